//! Finding pages in the cache of another process, which has given its files to be read ([`SharedCache`]).
//!
//! There is no lock and nothing is written: the reader looks at the words that `docs/CACHE.md` tells, copies the page,
//! and looks whether nothing has happened meanwhile; if it has, it tries again a few times, and then whoever
//! asked has to ask the owner of the cache. A miss never means that there is no such page.
//!
//! What is in the files is not trusted: offsets and numbers are checked, loops have an end, each word is read once.
//! So whatever another process writes there, a reader gets a wrong page at worst, and is never led out of the files.
//! It does trust that the machine has memory for a page that the file has not (a hole), which is only touched when
//! a page goes at that moment.
//!
//! A hit is the page as the cache has it. The size of the file, whether it is the same file still, and what several
//! pages of it have in common, is for others to tell.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::extents::Extents;
use super::identity::{Look, Seen};
use super::layout::{
    EMPTY, Header, Key, MAGIC, MOST_SHARDS, PARTS, Record, ShardHeader, TABLES, VERSION, frame_of, locate,
    shard_of, table_len, tag, tag_of,
};
use super::pages::SharedCache;
use super::policy::hash_page;
use crate::types::{Ino, PageNr, PageSize};

/// Times that a page is looked for, if it is changed or goes at that moment.
const TRIES: usize = 8;
/// Entries of a table that are looked at. Half of them are free, so it takes far fewer to come to one.
const MOST_PROBES: usize = 4096;
/// Bytes of the words that a page is copied in.
const WORD: usize = size_of::<u64>();

/// Whether a page was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Lookup {
    /// The bytes are those of the page.
    Hit,
    /// The page is not in the cache, or it is just changing. The buffer may have any bytes.
    Miss,
}

/// What became of one try.
enum Try {
    Hit,
    Absent,
    /// It was there, and something happened to it meanwhile.
    Disturbed,
}

/// See the module. Threads may share it.
#[derive(Debug)]
pub struct SharedReader {
    index: Extents,
    pages: Extents,
    page_bytes: usize,
    shards: usize,
    shards_at: u64,
}

impl SharedReader {
    /// Maps the files. Fails if they are not those of a page cache that this program understands.
    pub fn open(files: SharedCache) -> io::Result<Self> {
        let (index, pages) = (Extents::new(files.index)?, Extents::new(files.pages)?);
        let header: &Header = index.get(0).ok_or_else(|| unknown("it is too short"))?;
        let word = |word: &AtomicU64| word.load(Ordering::Acquire);
        if (word(&header.magic), word(&header.version)) != (MAGIC, VERSION) {
            return Err(unknown("it has another format"));
        }
        let sizes = (word(&header.shard_bytes), word(&header.record_bytes));
        if sizes != (size_of::<ShardHeader>() as u64, size_of::<Record>() as u64) {
            return Err(unknown("its parts have other sizes"));
        }
        let page_size = u32::try_from(word(&header.page_bytes)).ok().and_then(PageSize::new);
        let page_bytes = page_size.ok_or_else(|| unknown("no such page size"))?.bytes();
        let shards = usize::try_from(word(&header.shards)).ok().filter(|n| (1..=MOST_SHARDS).contains(n));
        let shards = shards.ok_or_else(|| unknown("no such number of shards"))?;
        let shards_at = word(&header.shards_at);
        Ok(Self { index, pages, page_bytes, shards, shards_at })
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Copies the bytes of a page from `from` on into `to`, if the page is in the cache and has them.
    pub fn read(&self, ino: Ino, page: PageNr, from: usize, to: &mut [u8]) -> Lookup {
        if from.checked_add(to.len()).is_none_or(|end| end > self.page_bytes) {
            return Lookup::Miss;
        }
        for _ in 0..TRIES {
            match self.find_and_copy((ino, page), from, to) {
                Some(Try::Hit) => return Lookup::Hit,
                Some(Try::Disturbed) => std::hint::spin_loop(),
                Some(Try::Absent) | None => break,
            }
        }
        Lookup::Miss
    }

    /// `None`: something is not where it should be.
    fn find_and_copy(&self, key: Key, from: usize, to: &mut [u8]) -> Option<Try> {
        let hash = hash_page(key.0.0, key.1.0);
        let nr = shard_of(hash, self.shards) * size_of::<ShardHeader>();
        let shard: &ShardHeader = self.index.get(self.shards_at.checked_add(nr as u64)?)?;
        let current = shard.current.load(Ordering::Acquire).checked_sub(1)?;
        let current = usize::try_from(current).ok().filter(|nr| *nr < TABLES)?;
        let table = offset_in(&shard.tables[current])?;
        let (tag, mask) = (tag(hash), table_len(current) as u64 - 1);
        for i in 0..MOST_PROBES.min(table_len(current)) as u64 {
            let at = table.checked_add(((u64::from(tag) + i) & mask) * WORD as u64)?;
            let word = self.index.get::<AtomicU64>(at)?.load(Ordering::Acquire);
            if word == EMPTY {
                return Some(Try::Absent);
            }
            if tag_of(word) != tag {
                continue;
            }
            let Some(record) = frame_of(word).and_then(|frame| self.record(shard, frame)) else { continue };
            match record.identity.look(key) {
                Look::Other => {}
                Look::Busy => return Some(Try::Disturbed),
                Look::Found(seen) => return self.copy(record, &seen, from, to),
            }
        }
        Some(Try::Absent)
    }

    fn record(&self, shard: &ShardHeader, frame: u32) -> Option<&Record> {
        let (part, at) = locate(frame);
        debug_assert!(part < PARTS);
        let part = offset_in(&shard.parts[part])?;
        self.index.get(part.checked_add((at * size_of::<Record>()) as u64)?)
    }

    /// Copies what was seen, and looks whether it has stayed so.
    fn copy(&self, record: &Record, seen: &Seen, from: usize, to: &mut [u8]) -> Option<Try> {
        let at = seen.slot()?.checked_mul(self.page_bytes as u64)?;
        let page = self.pages.bytes(at, self.page_bytes)?;
        // SAFETY: the page is mapped, aligned to more than a word, and `read` has made sure that it has the bytes.
        unsafe { copy_out(page, from, to) };
        let same = record.identity.is_still(seen);
        // The cache may have ended at any time before. Behind the look: it acquires.
        let open = self.index.get::<Header>(0)?.open.load(Ordering::Acquire) != 0;
        match (same, open) {
            (_, false) => None,
            (true, true) => Some(Try::Hit),
            (false, true) => Some(Try::Disturbed),
        }
    }
}

fn unknown(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not the index of a page cache: {why}"))
}

/// An offset that the file has; 0 is none.
fn offset_in(word: &AtomicU64) -> Option<u64> {
    match word.load(Ordering::Acquire) {
        0 => None,
        offset => Some(offset),
    }
}

/// Copies the bytes of a page that somebody may be changing, from `from` on: they may be old and new ones then, but
/// that is all. So it must be no copy of which the compiler knows: one may assume that nobody changes the bytes.
///
/// # Safety
/// `page` is aligned to words, and readable up to `from + to.len()`.
unsafe fn copy_out(page: NonNull<u8>, from: usize, to: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if to.len() >= LONG {
        // SAFETY: as the caller says; the two do not overlap, as `to` is the caller's only.
        unsafe {
            std::arch::asm!(
                "rep movsb",
                inout("rcx") to.len() => _,
                inout("rsi") page.as_ptr().add(from) => _,
                inout("rdi") to.as_mut_ptr() => _,
                options(nostack, preserves_flags)
            );
        }
        return;
    }
    // SAFETY: as the caller says.
    unsafe { copy_words(page, from, to) }
}

/// Bytes from which on the processor's own copy is the faster one.
#[cfg(target_arch = "x86_64")]
const LONG: usize = 512;

/// As [`copy_out`], word by word.
///
/// # Safety
/// As for [`copy_out`].
unsafe fn copy_words(page: NonNull<u8>, from: usize, to: &mut [u8]) {
    let head = (from.next_multiple_of(WORD) - from).min(to.len());
    let (head, rest) = to.split_at_mut(head);
    let words_at = from + head.len();
    let (words, tail) = rest.as_chunks_mut::<WORD>();
    let tail_at = words_at + words.len() * WORD;
    // SAFETY: of the page.
    let byte = |at: usize| unsafe { page.add(at).cast::<AtomicU8>().as_ref() }.load(Ordering::Relaxed);
    head.iter_mut().zip(from..).for_each(|(to, at)| *to = byte(at));
    for (i, to) in words.iter_mut().enumerate() {
        // SAFETY: of the page; behind the head it is aligned.
        let word = unsafe { page.add(words_at + i * WORD).cast::<AtomicU64>().as_ref() };
        // SAFETY: as many bytes as a word has.
        unsafe { to.as_mut_ptr().cast::<u64>().write_unaligned(word.load(Ordering::Relaxed)) };
    }
    tail.iter_mut().zip(tail_at..).for_each(|(to, at)| *to = byte(at));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_the_bytes() {
        let words: Vec<u64> = (0..1024u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let page = NonNull::from(&words[..]).cast::<u8>();
        // SAFETY: the words are as many bytes, initialised.
        let bytes = unsafe { std::slice::from_raw_parts(page.as_ptr(), words.len() * WORD) };
        for from in [0, 1, 7, 8, 13, 4000] {
            for len in [0, 1, 5, 8, 9, 23, 64, 511, 512, 513, 4095, 4096] {
                let (mut copy, mut by_words) = (vec![0xaa; len + 1], vec![0xaa; len + 1]);
                // SAFETY: as many bytes as the page has.
                unsafe {
                    copy_out(page, from, &mut copy[..len]);
                    copy_words(page, from, &mut by_words[..len]);
                }
                assert!(copy == by_words && copy[..len] == bytes[from..from + len] && copy[len] == 0xaa);
            }
        }
    }
}
