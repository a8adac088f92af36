//! The page cache: pages of files in memory, found by inode and page number.
//!
//! Shards, each with a replacement policy of its own ([`super::policy`]). A frame that is dirty, or whose bytes
//! are still in the journal only, is also pinned by its inode ([`crate::fs::Inode::unhomed`]), which keeps
//! it from being evicted: only frames that nobody pins are. A frame's content changes only under its
//! lock, by holders of the inode's page range.
//!
//! Lock order: a shard's lock, then that of a frame's content, then that of the arena ([`super::arena`]), where the
//! pages' memory is, or that of the file of the index ([`super::index_file`]).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use blockdev::{AlignedBuf, BlockDevice};

use super::arena::Arena;
use super::frame::{FrameData, FrameRef, Incoming};
use super::index_file::{IndexFile, ShardPlace};
use super::layout::{MOST_SHARDS, shard_of};
use super::policy::{PolicyKind, hash_page};
use super::shard::Shard;
use crate::types::{Ino, PageNr, PageSize};

/// Frames of a shard below which there are fewer shards: a policy needs some to choose from.
const MIN_SHARD_FRAMES: usize = 16;
/// Frames that a shard may have in any case.
const LEAST_FRAMES: usize = 4;

/// The files of a page cache, only to be read: for another process that may see every file of the volume, to find
/// pages by itself ([`super::SharedReader`]).
#[derive(Debug)]
pub struct SharedCache {
    /// The index and the frames' identities.
    pub index: OwnedFd,
    /// The pages.
    pub pages: OwnedFd,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct PageCache {
    shards: Vec<Shard>,
    /// In bytes.
    capacity: AtomicUsize,
    page_size: PageSize,
    arena: Arena,
    /// Where the shards' indexes are, if others may see them.
    index: Option<Arc<IndexFile>>,
    dirty_pages: AtomicUsize,
    inline_pages: AtomicUsize,
}

impl PageCache {
    /// A cache of `capacity` bytes in up to `shards` shards, each with a policy of its own.
    pub(crate) fn new(page_size: PageSize, capacity: usize, kind: PolicyKind, shards: usize) -> Self {
        let frames = capacity / page_size.bytes();
        let shards = shards.min(frames / MIN_SHARD_FRAMES).clamp(1, MOST_SHARDS);
        let per_shard = (frames / shards).max(LEAST_FRAMES);
        let index = IndexFile::create(page_size.bytes(), shards);
        let shard = |nr| Shard::new(kind, per_shard, ShardPlace::new(index.clone(), nr));
        Self {
            shards: (0..shards).map(shard).collect(),
            capacity: AtomicUsize::new(capacity),
            page_size,
            arena: Arena::new(page_size.bytes(), frames),
            index,
            dirty_pages: AtomicUsize::new(0),
            inline_pages: AtomicUsize::new(0),
        }
    }

    /// Makes the pages' memory known to the device that they come from.
    pub(crate) fn used_by(self, device: &Arc<dyn BlockDevice>) -> Self {
        self.arena.used_by(device);
        self
    }

    /// Its shard, and the page's hash.
    fn shard(&self, ino: Ino, page: PageNr) -> (&Shard, u64) {
        let hash = hash_page(ino.0, page.0);
        (&self.shards[shard_of(hash, self.shards.len())], hash)
    }

    /// Capacity in bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Changes the capacity. What is too much goes at once; what is in use or dirty now goes when other
    /// pages come in.
    pub(crate) fn set_capacity(&self, bytes: usize) {
        self.capacity.store(bytes, Ordering::Relaxed);
        let per_shard = (bytes / self.page_size.bytes() / self.shards.len()).max(LEAST_FRAMES);
        for shard in &self.shards {
            shard.set_capacity(per_shard);
        }
        self.arena.set_limit(bytes / self.page_size.bytes());
    }

    /// Memory for a page, to be read into and inserted. It has any content: that of other pages, too.
    pub(crate) fn page(&self) -> AlignedBuf {
        self.arena.page()
    }

    /// Memory for a page, zeroed.
    pub(crate) fn zeroed_page(&self) -> AlignedBuf {
        let mut page = self.arena.page();
        page.fill(0);
        page
    }

    /// The files that other processes may map. `None`: it is not in shared memory.
    pub(crate) fn shared(&self) -> Option<SharedCache> {
        let index = self.index.as_ref()?.read_only().ok()?;
        Some(SharedCache { index, pages: self.arena.read_only()? })
    }

    /// From now on other processes find nothing in it.
    pub(crate) fn stop_sharing(&self) {
        if let Some(index) = &self.index {
            index.close();
        }
    }

    /// Pages in it.
    pub(crate) fn resident_pages(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum()
    }

    /// The page, if it is cached. Counts as a use. Takes no lock if it is.
    pub(crate) fn get(&self, ino: Ino, page: PageNr) -> Option<FrameRef> {
        let (shard, hash) = self.shard(ino, page);
        shard.get((ino, page), hash)
    }

    /// Adds a clean page; if somebody else was faster, theirs is kept and returned.
    pub(crate) fn insert(&self, ino: Ino, page: PageNr, buf: AlignedBuf) -> FrameRef {
        self.enter(ino, page, buf, false)
    }

    /// Adds a page of zeros that the caller, who has its range exclusively, is about to write to. Other processes do
    /// not find it before that.
    pub(crate) fn insert_blank(&self, ino: Ino, page: PageNr) -> FrameRef {
        self.enter(ino, page, self.zeroed_page(), true)
    }

    fn enter(&self, ino: Ino, page: PageNr, buf: AlignedBuf, veiled: bool) -> FrameRef {
        let (shard, hash) = self.shard(ino, page);
        let slot = self.arena.slot_of(&buf);
        shard.insert((ino, page), hash, Incoming { buf, slot, veiled })
    }

    /// Forgets a page.
    pub(crate) fn remove(&self, ino: Ino, page: PageNr) {
        let (shard, hash) = self.shard(ino, page);
        shard.remove((ino, page), hash);
    }

    /// Forgets the pages of a file from `from` on.
    pub(crate) fn remove_from(&self, ino: Ino, from: PageNr) {
        self.shards.iter().for_each(|shard| shard.remove_from(ino, from));
    }

    /// A page became dirty.
    pub(crate) fn note_dirty(&self) {
        self.dirty_pages.fetch_add(1, Ordering::Relaxed);
    }

    /// A dirty page was written or dropped.
    pub(crate) fn note_clean(&self) {
        self.dirty_pages.fetch_sub(1, Ordering::Relaxed);
    }

    /// The frame's page was written or dropped: nothing of it waits any more. Its place has been used or
    /// given up. Returns whether bytes of it were in the journal only.
    pub(crate) fn settle(&self, data: &mut FrameData) -> bool {
        if data.dirty.take().is_some() {
            self.note_clean();
        }
        data.hold = None;
        data.covered = 0;
        self.set_inline(data, false)
    }

    /// Notes whether bytes of the frame's page are in the journal only; returns what it was.
    pub(crate) fn set_inline(&self, data: &mut FrameData, inline: bool) -> bool {
        let before = std::mem::replace(&mut data.inline, inline);
        match (before, inline) {
            (false, true) => self.inline_pages.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.inline_pages.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        before
    }

    /// Whether a page is in memory; does not count as a use of it.
    pub(crate) fn contains(&self, ino: Ino, page: PageNr) -> bool {
        let (shard, hash) = self.shard(ino, page);
        shard.contains((ino, page), hash)
    }

    /// Number of pages with bytes that are in the journal only. They cannot be evicted.
    pub(crate) fn inline_pages(&self) -> usize {
        self.inline_pages.load(Ordering::Relaxed)
    }

    /// Bytes of dirty pages.
    pub(crate) fn dirty_bytes(&self) -> usize {
        self.dirty_pages.load(Ordering::Relaxed) * self.page_size.bytes()
    }

    /// Number of dirty pages.
    pub(crate) fn dirty_pages(&self) -> usize {
        self.dirty_pages.load(Ordering::Relaxed)
    }
}

impl Drop for PageCache {
    fn drop(&mut self) {
        // Who has mapped it has it for as long as he wants.
        self.stop_sharing();
    }
}
