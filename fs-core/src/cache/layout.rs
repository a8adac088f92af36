//! What is where in the file of the index, which other processes map. `docs/CACHE.md` tells each word.
//!
//! Words of 64 bits in the byte order of the machine, offsets and numbers, never addresses. Nothing in the file
//! moves: tables and parts are added, each twice as large as the one before.

use std::sync::atomic::{AtomicU32, AtomicU64};

use super::identity::Identity;
use super::policy::TouchCount;
use crate::types::{Ino, PageNr};

/// The first word of the file: "dbfsindx".
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"dbfsindx");
/// Of the layout, the hash function, and the meaning of all words.
pub(super) const VERSION: u64 = 1;

/// Most shards.
pub(super) const MOST_SHARDS: usize = 1024;
/// Entries of the smallest table of an index.
pub(super) const LEAST_TABLE: usize = 64;
/// Tables of an index, each twice the one before: the last has 2^32 entries.
pub(super) const TABLES: usize = 27;
/// Frames of the smallest part of a shard's frames.
pub(super) const LEAST_PART: usize = 16;
/// Parts, each twice the one before: enough for all numbers.
pub(super) const PARTS: usize = 29;

/// An entry of a table where nothing is.
pub(super) const EMPTY: u64 = 0;

/// What can be in the file.
///
/// # Safety
/// It has nothing but atomics, any bytes are a value of it, and zeros are the one it begins with.
pub(super) unsafe trait Shared {}

// SAFETY: an atomic, and every number is good.
unsafe impl Shared for AtomicU64 {}
// SAFETY: atomics only; zeros are no valid file, which it becomes when it is filled in.
unsafe impl Shared for Header {}
// SAFETY: atomics only; zeros are no tables and no frames.
unsafe impl Shared for ShardHeader {}
// SAFETY: atomics only; zeros are a closed frame without pins.
unsafe impl Shared for Record {}

/// Begins the file. Constant, but for `open`.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Header {
    /// [`MAGIC`].
    pub(super) magic: AtomicU64,
    /// [`VERSION`].
    pub(super) version: AtomicU64,
    /// Bytes of a page, and of a slot in the file of the pages.
    pub(super) page_bytes: AtomicU64,
    pub(super) shards: AtomicU64,
    /// Where the first [`ShardHeader`] is; the others follow it.
    pub(super) shards_at: AtomicU64,
    /// Bytes of a [`ShardHeader`].
    pub(super) shard_bytes: AtomicU64,
    /// Bytes of a [`Record`].
    pub(super) record_bytes: AtomicU64,
    /// Not 0 as long as the pages are those of the volume. Never again, once it is 0.
    pub(super) open: AtomicU64,
}

/// A shard's part of the index.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct ShardHeader {
    /// Number of the table to look into, and 1; 0: none yet.
    pub(super) current: AtomicU64,
    /// Where each table is; 0: nowhere in the file.
    pub(super) tables: [AtomicU64; TABLES],
    /// Where each part of the frames is, an array of [`Record`]; 0: nowhere in the file.
    pub(super) parts: [AtomicU64; PARTS],
}

/// What others see of a frame, in a cache line of its own: pins of one do not disturb the others.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Record {
    pub(super) identity: Identity,
    /// How often its page was found. Only for the owner of the cache.
    pub(super) touches: TouchCount,
    _unused: [AtomicU32; 3],
}

const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<Header>() == 64 && offset_of!(Header, open) == 56);
    assert!(size_of::<ShardHeader>() == 512);
    assert!(offset_of!(ShardHeader, tables) == 8 && offset_of!(ShardHeader, parts) == 8 * (1 + TABLES));
    assert!(size_of::<Record>() == 64 && offset_of!(Record, touches) == size_of::<Identity>());
};

/// The number of a page's shard among `shards`, from the page's hash.
pub(super) fn shard_of(hash: u64, shards: usize) -> usize {
    // The policies use the other bits.
    (hash >> 20) as usize % shards
}

/// The part of a page's hash that an index goes by.
pub(super) fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The tag of a table's entry; the search for it begins there.
pub(super) fn tag_of(entry: u64) -> u32 {
    (entry >> 32) as u32
}

/// The entry of a frame with this number.
pub(super) fn entry(tag: u32, frame: u32) -> u64 {
    u64::from(tag) << 32 | (u64::from(frame) + 1)
}

/// The number of an entry's frame. `None` for what is no entry.
pub(super) fn frame_of(entry: u64) -> Option<u32> {
    (entry as u32).checked_sub(1)
}

/// Part and place in it of a frame. The place is in the part, whatever the number.
pub(super) fn locate(frame: u32) -> (usize, usize) {
    let nth = frame as usize + LEAST_PART;
    let part = (nth / LEAST_PART).ilog2() as usize;
    (part, nth - (LEAST_PART << part))
}

/// Frames of a part.
pub(super) fn part_len(part: usize) -> usize {
    LEAST_PART << part
}

/// Entries of a table.
pub(super) fn table_len(table: usize) -> usize {
    LEAST_TABLE << table
}

/// Where a page is: the words that tell.
pub(super) type Key = (Ino, PageNr);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_frame_has_a_place_in_its_part() {
        let near = |n: u32| [n.saturating_sub(17), n.saturating_sub(16), n.saturating_sub(15), n];
        for nr in (0..32).map(|bit| 1 << bit).chain([u32::MAX]).flat_map(near) {
            let (part, at) = locate(nr);
            assert!(part < PARTS && at < part_len(part), "{nr}");
            let before: usize = (0..part).map(part_len).sum();
            assert_eq!(before + at, nr as usize);
        }
    }
}
