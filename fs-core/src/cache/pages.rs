//! The page cache: pages of files in memory, found by inode and page number.
//!
//! Shards, each with a replacement policy of its own ([`super::policy`]). A frame that is dirty, or whose bytes
//! are still in the journal only, is also referenced by its inode ([`crate::fs::Inode::unhomed`]), which keeps
//! it from being evicted: only frames that nobody else references are. A frame's content changes only under its
//! lock, by holders of the inode's page range.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use blockdev::AlignedBuf;
use parking_lot::{Mutex, RwLock};

use super::policy::{PolicyKind, TouchCount, hash_page};
use super::shard::Shard;
use crate::alloc::Hold;
use crate::types::{BlockRun, Ino, PageNr, PageSize};

/// Frames of a shard below which there are fewer shards: a policy needs some to choose from.
const MIN_SHARD_FRAMES: usize = 16;
/// Frames that a shard may have in any case.
const LEAST_FRAMES: usize = 4;
/// Most shards.
const MOST_SHARDS: usize = 1024;

/// Content and state of a frame.
#[derive(Debug)]
pub(crate) struct FrameData {
    /// The page; bytes beyond the end of the file are zero.
    pub(crate) buf: AlignedBuf,
    /// Bytes (from, to) that have not reached the device in any form.
    pub(crate) dirty: Option<(usize, usize)>,
    /// Bytes of the page are in the journal only. Set by [`PageCache::set_inline`].
    pub(crate) inline: bool,
    /// When it became dirty (monotonic ns).
    pub(crate) since_ns: u64,
    /// New blocks for the page, taken when it became dirty or inline (contract C9). Owned by the frame:
    /// see [`crate::volume::Volume::settle_frame`].
    pub(crate) place: Option<BlockRun>,
    /// Blocks that the page is known to have, in the file or as its place, while it is dirty or inline.
    pub(crate) covered: u32,
    /// Space for the blocks that an inline page without a place will need.
    pub(crate) hold: Option<Hold>,
}

/// A cached page.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Its content.
    pub(crate) data: RwLock<FrameData>,
    /// How often it was found.
    pub(super) touches: TouchCount,
}

impl Frame {
    /// A clean frame.
    pub(crate) fn new(buf: AlignedBuf) -> Arc<Self> {
        let data =
            FrameData { buf, dirty: None, inline: false, since_ns: 0, place: None, covered: 0, hold: None };
        Arc::new(Self { data: RwLock::new(data), touches: TouchCount::default() })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct PageCache {
    shards: Vec<Mutex<Shard>>,
    /// In bytes.
    capacity: AtomicUsize,
    page_size: PageSize,
    dirty_pages: AtomicUsize,
    inline_pages: AtomicUsize,
}

impl PageCache {
    /// A cache of `capacity` bytes in up to `shards` shards, each with a policy of its own.
    pub(crate) fn new(page_size: PageSize, capacity: usize, kind: PolicyKind, shards: usize) -> Self {
        let frames = capacity / page_size.bytes();
        let shards = shards.min(frames / MIN_SHARD_FRAMES).clamp(1, MOST_SHARDS);
        let per_shard = (frames / shards).max(LEAST_FRAMES);
        Self {
            shards: (0..shards).map(|_| Mutex::new(Shard::new(kind, per_shard))).collect(),
            capacity: AtomicUsize::new(capacity),
            page_size,
            dirty_pages: AtomicUsize::new(0),
            inline_pages: AtomicUsize::new(0),
        }
    }

    /// Its shard, and the page's hash.
    fn shard(&self, ino: Ino, page: PageNr) -> (&Mutex<Shard>, u64) {
        let hash = hash_page(ino.0, page.0);
        // The policies use the other bits.
        (&self.shards[(hash >> 20) as usize % self.shards.len()], hash)
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
            shard.lock().set_capacity(per_shard);
        }
    }

    /// Pages in it.
    pub(crate) fn resident_pages(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// The page, if it is cached. Counts as a use.
    pub(crate) fn get(&self, ino: Ino, page: PageNr) -> Option<Arc<Frame>> {
        self.shard(ino, page).0.lock().get(ino, page)
    }

    /// Adds a page; if somebody else was faster, theirs is kept and returned.
    pub(crate) fn insert(&self, ino: Ino, page: PageNr, frame: Arc<Frame>) -> Arc<Frame> {
        let (shard, hash) = self.shard(ino, page);
        shard.lock().insert(ino, page, hash, frame)
    }

    /// Forgets a page.
    pub(crate) fn remove(&self, ino: Ino, page: PageNr) {
        self.shard(ino, page).0.lock().remove(ino, page);
    }

    /// Forgets the pages of a file from `from` on.
    pub(crate) fn remove_from(&self, ino: Ino, from: PageNr) {
        self.shards.iter().for_each(|shard| shard.lock().remove_from(ino, from));
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
        self.shard(ino, page).0.lock().contains(ino, page)
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
