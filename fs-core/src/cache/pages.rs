//! The page cache: pages of files in memory, found by inode and page number.
//!
//! Shards of least-recently-used order. A frame that is dirty, or whose bytes are still in the
//! journal only, is also referenced by its inode ([`crate::fs::Inode::unhomed`]), which keeps it from
//! being evicted. A frame's content changes only under its lock, by holders of the inode's page range.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use blockdev::AlignedBuf;
use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use crate::alloc::Hold;
use crate::types::{BlockRun, Ino, PageNr, PageSize};

const SHARDS: usize = 16;
/// Frames looked at for one eviction before the shard is allowed to exceed its share.
const EVICTION_TRIES: usize = 32;

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
}

impl Frame {
    /// A clean frame.
    pub(crate) fn new(buf: AlignedBuf) -> Arc<Self> {
        let data =
            FrameData { buf, dirty: None, inline: false, since_ns: 0, place: None, covered: 0, hold: None };
        Arc::new(Self { data: RwLock::new(data) })
    }
}

type Shard = Mutex<LruCache<(Ino, PageNr), Arc<Frame>>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct PageCache {
    shards: Vec<Shard>,
    frames_per_shard: usize,
    page_size: PageSize,
    dirty_pages: AtomicUsize,
    inline_pages: AtomicUsize,
}

impl PageCache {
    /// A cache of `capacity` bytes.
    pub(crate) fn new(page_size: PageSize, capacity: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(LruCache::unbounded())).collect(),
            frames_per_shard: (capacity / page_size.bytes() / SHARDS).max(4),
            page_size,
            dirty_pages: AtomicUsize::new(0),
            inline_pages: AtomicUsize::new(0),
        }
    }

    fn shard(&self, ino: Ino, page: PageNr) -> &Shard {
        let mixed = (ino.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ page.0).wrapping_mul(0xff51_afd7_ed55_8ccd);
        &self.shards[(mixed >> 60) as usize % SHARDS]
    }

    /// The page, if it is cached.
    pub(crate) fn get(&self, ino: Ino, page: PageNr) -> Option<Arc<Frame>> {
        self.shard(ino, page).lock().get(&(ino, page)).cloned()
    }

    /// Adds a page; if somebody else was faster, theirs is kept and returned.
    pub(crate) fn insert(&self, ino: Ino, page: PageNr, frame: Arc<Frame>) -> Arc<Frame> {
        let mut shard = self.shard(ino, page).lock();
        if let Some(present) = shard.get(&(ino, page)) {
            return present.clone();
        }
        let mut tries = 0;
        while shard.len() >= self.frames_per_shard && tries < EVICTION_TRIES {
            tries += 1;
            let Some((key, victim)) = shard.pop_lru() else { break };
            if Arc::strong_count(&victim) > 1 {
                shard.put(key, victim); // in use or dirty: to the young end
            }
        }
        shard.put((ino, page), frame.clone());
        frame
    }

    /// Forgets a page.
    pub(crate) fn remove(&self, ino: Ino, page: PageNr) {
        self.shard(ino, page).lock().pop(&(ino, page));
    }

    /// Forgets the pages of a file from `from` on.
    pub(crate) fn remove_from(&self, ino: Ino, from: PageNr) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let gone: Vec<_> =
                shard.iter().map(|(k, _)| *k).filter(|(i, p)| *i == ino && *p >= from).collect();
            for key in gone {
                shard.pop(&key);
            }
        }
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
        self.shard(ino, page).lock().contains(&(ino, page))
    }

    /// Number of pages in memory.
    pub(crate) fn resident_pages(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
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
