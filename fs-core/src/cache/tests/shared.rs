//! A reader with mappings of its own, beside threads that change, drop and evict pages.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blockdev::AlignedBuf;

use super::super::policy::PolicyKind;
use super::super::{Lookup, PageCache, SharedReader};
use crate::types::{Ino, PageNr, PageSize};

const BYTES: usize = 4096;
const PAGES: u64 = 1500;
const INO: Ino = Ino(23);

fn cache(frames: usize, shards: usize) -> PageCache {
    PageCache::new(PageSize::new(BYTES as u32).unwrap(), frames * BYTES, PolicyKind::default(), shards)
}

fn reader(cache: &PageCache) -> SharedReader {
    SharedReader::open(cache.shared().unwrap()).unwrap()
}

/// A page that says which one it is, and of which version, and whose every word depends on that.
fn describe(page: &mut [u8], nr: u64, version: u64) {
    let mut word = nr.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version;
    for (i, bytes) in page.chunks_exact_mut(8).enumerate() {
        word = match i {
            0 => nr,
            1 => version,
            _ => word.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407 ^ nr ^ version),
        };
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// The version of a page that is whole and the one wanted.
fn check(page: &[u8], nr: u64) -> u64 {
    let version = u64::from_le_bytes(page[8..16].try_into().unwrap());
    let mut whole = vec![0; BYTES];
    describe(&mut whole, nr, version);
    assert!(page == whole, "page {nr}: another one's bytes, or torn");
    version
}

fn page(cache: &PageCache, nr: u64, version: u64) -> AlignedBuf {
    let mut buf = cache.page();
    describe(&mut buf, nr, version);
    buf
}

#[test]
fn it_finds_what_is_in_the_cache_and_nothing_else() {
    let cache = cache(1000, 4);
    let reader = reader(&cache);
    let mut bytes = vec![0; BYTES];
    assert_eq!(reader.read(INO, PageNr(0), 0, &mut bytes), Lookup::Miss);
    // The index grows many times meanwhile.
    let pins: Vec<_> = (0..2000).map(|nr| cache.insert(INO, PageNr(nr), page(&cache, nr, 1))).collect();
    for nr in 0..2000 {
        assert_eq!(reader.read(INO, PageNr(nr), 0, &mut bytes), Lookup::Hit, "{nr}");
        assert_eq!(check(&bytes, nr), 1);
        assert_eq!(reader.read(Ino(INO.0 + 1), PageNr(nr), 0, &mut bytes), Lookup::Miss);
    }
    // Parts of a page, however they lie.
    let whole = pins[7].read().bytes().to_vec();
    for (from, len) in [(0, 0), (0, 1), (3, 2), (5, 20), (8, 16), (4089, 7), (4095, 1), (1, 4095), (4096, 0)]
    {
        let mut part = vec![0; len];
        assert_eq!(reader.read(INO, PageNr(7), from, &mut part), Lookup::Hit);
        assert!(part == whole[from..from + len], "{len} bytes from {from} on");
    }
    let mut more = [0; 2];
    assert_eq!(reader.read(INO, PageNr(7), 4095, &mut more), Lookup::Miss);
    assert_eq!(reader.read(INO, PageNr(7), usize::MAX, &mut more), Lookup::Miss);
    // Dropped while it is in use: not to be found.
    cache.remove(INO, PageNr(7));
    assert_eq!(reader.read(INO, PageNr(7), 0, &mut bytes), Lookup::Miss);
    drop(pins);
    // Not in the arena: only its owner finds it.
    let _pin = cache.insert(INO, PageNr(5000), AlignedBuf::zeroed(BYTES));
    assert_eq!(reader.read(INO, PageNr(5000), 0, &mut bytes), Lookup::Miss);
    // And nothing when the cache is gone.
    let _pin = cache.insert(INO, PageNr(5001), page(&cache, 5001, 1));
    assert_eq!(reader.read(INO, PageNr(5001), 0, &mut bytes), Lookup::Hit);
    drop(cache);
    assert_eq!(reader.read(INO, PageNr(5001), 0, &mut bytes), Lookup::Miss);
}

#[test]
fn a_page_that_is_changing_is_not_found() {
    let cache = cache(100, 1);
    let reader = reader(&cache);
    let mut bytes = vec![0; BYTES];
    let mut look = || reader.read(INO, PageNr(1), 0, &mut bytes);
    let frame = cache.insert_blank(INO, PageNr(1));
    assert_eq!(look(), Lookup::Miss, "nobody has written to it yet");
    // To know more of it changes no byte.
    frame.write().covered = 1;
    assert_eq!(look(), Lookup::Miss);
    describe(frame.write().bytes_mut(), 1, 1);
    let mut data = frame.write();
    data.covered = 2;
    assert_eq!(look(), Lookup::Hit);
    data.bytes_mut()[100] = 1;
    assert_eq!(look(), Lookup::Miss);
    describe(data.bytes_mut(), 1, 2);
    assert_eq!(look(), Lookup::Miss);
    drop(data);
    assert_eq!(look(), Lookup::Hit);
    assert_eq!(check(&bytes, 1), 2);
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 33
}

/// Pages with versions that never go back, as their files would have them.
struct Pages {
    cache: PageCache,
    /// The version that each page has at least, for who looks after it was written.
    versions: Vec<AtomicU64>,
    /// One for each page: who has it changes the page, or brings it in.
    ranges: Vec<parking_lot::Mutex<()>>,
    stop: AtomicBool,
}

impl Pages {
    fn one_step(&self, state: &mut u64) {
        // Some pages are used more than others.
        let nr = random(state) % PAGES * (random(state) % 4) / 3;
        let _range = self.ranges[nr as usize].lock();
        let version = self.versions[nr as usize].load(Ordering::SeqCst);
        let blank = random(state).is_multiple_of(32);
        if random(state).is_multiple_of(16) || blank {
            self.cache.remove(INO, PageNr(nr));
        }
        let frame = match self.cache.get(INO, PageNr(nr)) {
            Some(frame) => frame,
            None if blank => self.cache.insert_blank(INO, PageNr(nr)),
            None => self.cache.insert(INO, PageNr(nr), page(&self.cache, nr, version)),
        };
        if blank || random(state).is_multiple_of(2) {
            describe(frame.write().bytes_mut(), nr, version + 1);
            self.versions[nr as usize].store(version + 1, Ordering::SeqCst);
        }
    }

    /// Reads until it is told to stop; how many were found, also on their own mappings.
    fn read(&self, state: &mut u64) -> u64 {
        let reader = reader(&self.cache);
        let mut bytes = vec![0; BYTES];
        let mut hits = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let nr = random(state) % PAGES / 2;
            let least = self.versions[nr as usize].load(Ordering::SeqCst);
            if reader.read(INO, PageNr(nr), 0, &mut bytes) == Lookup::Hit {
                hits += 1;
                assert!(check(&bytes, nr) >= least, "page {nr}: an old version");
            }
        }
        hits
    }
}

#[test]
fn no_page_is_torn_old_or_another_one() {
    let ranges = (0..PAGES).map(|_| parking_lot::Mutex::new(())).collect();
    // It begins with so few frames that the index grows in all of its parts.
    let pages = Pages {
        cache: cache(64, 2),
        versions: (0..PAGES).map(|_| AtomicU64::new(0)).collect(),
        ranges,
        stop: AtomicBool::new(false),
    };
    let until = Instant::now() + Duration::from_millis(1500);
    let working = || Instant::now() < until && !pages.stop.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let pages = &pages;
        let readers = [1, 2].map(|seed| scope.spawn(move || pages.read(&mut (seed * 77))));
        let working = &working;
        let writers = [3, 4].map(|seed| {
            scope.spawn(move || {
                let mut state = seed;
                while working() {
                    pages.one_step(&mut state);
                }
            })
        });
        for frames in [64, 200, 500, 100, 1200, 300, 40].iter().cycle() {
            pages.cache.set_capacity(frames * BYTES);
            std::thread::sleep(Duration::from_millis(20));
            if !working() || readers.iter().any(|reader| reader.is_finished()) {
                break;
            }
        }
        pages.stop.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let hits = readers.map(|reader| reader.join().unwrap());
        assert!(hits.iter().all(|hits| *hits > 100), "{hits:?} hits");
    });
}
