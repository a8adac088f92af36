//! A reader on files that have anything in them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::super::layout::{Header, PARTS, ShardHeader, TABLES};
use super::super::policy::PolicyKind;
use super::super::{Lookup, PageCache, SharedCache, SharedReader, memfd};
use crate::types::{Ino, PageNr, PageSize};

const BYTES: usize = 4096;
const PAGES: u64 = 40;
const INO: Ino = Ino(23);

/// A sealed file with these bytes.
fn file(bytes: &[u8]) -> OwnedFd {
    let file = File::from(memfd::create("test").unwrap());
    file.write_all_at(bytes, 0).unwrap();
    file.into()
}

/// The bytes of a cache's files, with the pages in it.
fn image() -> [Vec<u8>; 2] {
    let page_size = PageSize::new(BYTES as u32).unwrap();
    let cache = PageCache::new(page_size, 64 * BYTES, PolicyKind::default(), 2);
    let files = cache.shared().unwrap();
    for nr in 0..PAGES {
        let mut page = cache.page();
        page.fill(nr as u8);
        drop(cache.insert(INO, PageNr(nr), page));
    }
    // What is used of them.
    [(files.index, 16384), (files.pages, PAGES as usize * BYTES)].map(|(file, len)| {
        let mut bytes = vec![0; len];
        File::from(file).read_exact_at(&mut bytes, 0).unwrap();
        bytes
    })
}

/// Opens the files and asks for every page; how many are found.
fn read_all(index: &[u8], pages: &[u8]) -> usize {
    let files = SharedCache { index: file(index), pages: file(pages) };
    let Ok(reader) = SharedReader::open(files) else { return 0 };
    let mut bytes = vec![0; reader.page_bytes()];
    (0..PAGES).filter(|nr| reader.read(INO, PageNr(*nr), 0, &mut bytes) == Lookup::Hit).count()
}

/// What somebody might write who wants to lead a reader astray.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..200,
        (0u64..16384 / 8).prop_map(|at| at * 8),
        (0u32..64).prop_map(|bit| 1 << bit),
        (0u64..5000).prop_map(|less| u64::MAX - less),
        (0u64..5000).prop_map(|less| i64::MAX as u64 - less),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn words_that_anybody_has_written(words in prop::collection::vec((0usize..16384 / 8, word()), 1..60)) {
        let [mut index, pages] = image();
        for (at, word) in words {
            index[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        read_all(&index, &pages);
    }

    /// Only what tells where everything is.
    #[test]
    fn headers_that_anybody_has_written(words in prop::collection::vec((2usize..64 * 3, word()), 1..20)) {
        let [mut index, pages] = image();
        for (at, word) in words {
            index[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        read_all(&index, &pages);
    }

    #[test]
    fn files_of_any_length(index_len in 0usize..16384, pages_len in 0usize..PAGES as usize * BYTES) {
        let [index, pages] = image();
        read_all(&index[..index_len], &pages[..pages_len]);
    }

    #[test]
    fn any_bytes(seed in any::<u64>(), header in any::<bool>()) {
        let [image, pages] = image();
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u8
        };
        let mut index: Vec<u8> = image.iter().map(|_| next()).collect();
        if header {
            index[..64].copy_from_slice(&image[..64]);
        }
        read_all(&index, &pages);
    }
}

#[test]
fn the_files_as_they_are_have_all_pages() {
    let [index, pages] = image();
    assert_eq!(read_all(&index, &pages), PAGES as usize);
    // Without the last slots, some.
    assert!((1..PAGES as usize).contains(&read_all(&index, &pages[..pages.len() / 2])));
}

/// Tables that point at themselves, or are full of one entry: the search has an end.
#[test]
fn a_search_ends() {
    let [index, pages] = image();
    let shard = |nr: usize| size_of::<Header>() + nr * size_of::<ShardHeader>();
    for current in [1, TABLES as u64, TABLES as u64 + 1, u64::MAX] {
        let mut index = index.clone();
        let mut set = |at: usize, word: u64| index[at..at + 8].copy_from_slice(&word.to_le_bytes());
        for nr in 0..2 {
            set(shard(nr), current);
            (1..=TABLES + PARTS).for_each(|word| set(shard(nr) + word * 8, 1 << 20));
        }
        // Behind the end of what was there: entries of every tag, with frames in and behind all parts.
        let hash = |nr| super::super::policy::hash_page(INO.0, nr) >> 32 << 32;
        let entries = (0..PAGES).cycle().zip(0u64..).take(8192);
        index.resize(1 << 20, 0);
        index.extend(entries.flat_map(|(nr, n)| (hash(nr) | ((n * n * 31) & 0xffff_ffff)).to_le_bytes()));
        assert_eq!(read_all(&index, &pages), 0);
    }
}

/// Each word of the header has to be right.
#[test]
fn other_files_are_refused() {
    let [index, pages] = image();
    let opens =
        |index: &[u8]| SharedReader::open(SharedCache { index: file(index), pages: file(&pages) }).is_ok();
    assert!(opens(&index) && !opens(&[]) && !opens(&index[..56]));
    for at in 0..7 {
        let mut other = index.clone();
        other[at * 8..at * 8 + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        // Where the shards are is looked at when a page is.
        assert_eq!(opens(&other), at == 4, "word {at}");
        assert_eq!(read_all(&other, &pages), 0);
    }
}
