//! A part of the page cache: frames, an index over them, and the policy over their numbers.
//!
//! A hit takes no lock: it finds the frame in the index and pins it ([`super::identity`]). The lock is for
//! pages that come and go, and for who has not found his page without it.

use parking_lot::Mutex;

use super::frame::{FrameRef, FrameTable, Incoming};
use super::index::Index;
use super::index_file::ShardPlace;
use super::layout::tag;
use super::policy::{Clock, Counting, FrameNr, Frames, Policy, PolicyKind, TouchCount, hash_page};
use crate::types::{Ino, PageNr};

/// Pages evicted for one that comes in, at most. More than one goes if the shard has too many, as after
/// pages that were dirty have been written.
const MOST_EVICTED: usize = 32;

impl Frames for FrameTable {
    fn touches(&self, nr: FrameNr) -> &TouchCount {
        &self.entry(nr).record.touches
    }

    /// Not if somebody works with it, or it is in its inode's list of what is not at home: both pin it.
    fn claim(&self, nr: FrameNr) -> bool {
        self.entry(nr).record.identity.close_unpinned()
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shard {
    index: Index,
    frames: FrameTable,
    counting: Counting,
    clock: Clock,
    /// The policy wants to know of each use, so a hit takes the lock.
    orders_by_use: bool,
    changing: Mutex<Changing>,
}

/// What the lock is for.
#[derive(Debug)]
struct Changing {
    policy: Box<dyn Policy>,
    /// Frames made so far.
    made: u32,
    /// Those without a page.
    free: Vec<FrameNr>,
    /// Those whose page was dropped while somebody used it. Free as soon as nobody does.
    orphans: Vec<FrameNr>,
    /// Pages that can be found.
    resident: usize,
    /// Frames that it should have at most; pinned ones can make it more.
    capacity: usize,
}

impl Shard {
    /// An empty one, with its index in that place.
    pub(super) fn new(kind: PolicyKind, capacity: usize, place: ShardPlace) -> Self {
        let policy = kind.make(capacity);
        Self {
            index: Index::new(Box::new(place.clone())),
            frames: FrameTable::new(place),
            counting: policy.counting(),
            clock: Clock::default(),
            orders_by_use: policy.orders_by_use(),
            changing: Mutex::new(Changing {
                policy,
                made: 0,
                free: Vec::new(),
                orphans: Vec::new(),
                resident: 0,
                capacity,
            }),
        }
    }

    /// Pages in it.
    pub(super) fn len(&self) -> usize {
        self.changing.lock().resident
    }

    /// Pins the page's frame, if it is found. Without the lock it may be missed.
    fn find(&self, key: (Ino, PageNr), hash: u64) -> Option<(FrameNr, FrameRef)> {
        self.index.find(tag(hash), |nr| Some((nr, self.frames.get(nr)?.pin(key)?)))
    }

    /// Whether a page is in it; does not count as a use.
    pub(super) fn contains(&self, key: (Ino, PageNr), hash: u64) -> bool {
        self.find(key, hash).is_some() || {
            let _locked = self.changing.lock();
            self.find(key, hash).is_some()
        }
    }

    /// The page's frame. Counts as a use.
    pub(super) fn get(&self, key: (Ino, PageNr), hash: u64) -> Option<FrameRef> {
        if !self.orders_by_use
            && let Some(frame) = self.index.find(tag(hash), |nr| self.frames.get(nr)?.pin(key))
        {
            self.touch(&frame);
            return Some(frame);
        }
        self.get_locked(&mut self.changing.lock(), key, hash)
    }

    fn get_locked(&self, changing: &mut Changing, key: (Ino, PageNr), hash: u64) -> Option<FrameRef> {
        let (nr, frame) = self.find(key, hash)?;
        self.touch(&frame);
        changing.policy.used(nr);
        Some(frame)
    }

    fn touch(&self, frame: &FrameRef) {
        frame.touches().touch(self.clock.now(), self.counting);
    }

    /// Adds a page with its hash; one that is there already is kept and returned.
    pub(super) fn insert(&self, key: (Ino, PageNr), hash: u64, page: Incoming) -> FrameRef {
        let mut changing = self.changing.lock();
        if let Some(present) = self.get_locked(&mut changing, key, hash) {
            return present;
        }
        self.reclaim_orphans(&mut changing);
        let target = changing.capacity.saturating_sub(1);
        self.evict(&mut changing, target, MOST_EVICTED);
        let now = self.clock.tick(changing.policy.interval_length(changing.capacity));
        let nr = changing.free_frame();
        let frame = self.frames.entry(nr);
        frame.record.touches.reset(now);
        let pinned = frame.fill(key, page);
        self.index.insert(tag(hash), nr);
        changing.resident += 1;
        changing.policy.enter(nr, hash);
        pinned
    }

    /// Forgets a page.
    pub(super) fn remove(&self, key: (Ino, PageNr), hash: u64) {
        let mut changing = self.changing.lock();
        let found = self.find(key, hash).map(|(nr, _pin)| nr);
        if let Some(nr) = found {
            self.drop_page(&mut changing, nr);
        }
    }

    /// Forgets the pages of a file from `from` on.
    pub(super) fn remove_from(&self, ino: Ino, from: PageNr) {
        let mut changing = self.changing.lock();
        for nr in (0..changing.made).map(FrameNr) {
            let identity = &self.frames.entry(nr).record.identity;
            let key = identity.key();
            if identity.is_open() && key.0 == ino && key.1 >= from {
                self.drop_page(&mut changing, nr);
            }
        }
    }

    fn drop_page(&self, changing: &mut Changing, nr: FrameNr) {
        changing.policy.leave(nr);
        self.unlist(changing, nr);
        let frame = self.frames.entry(nr);
        if frame.record.identity.close() {
            frame.vacate();
            changing.free.push(nr);
        } else {
            changing.orphans.push(nr);
        }
    }

    /// Takes the page out of the index.
    fn unlist(&self, changing: &mut Changing, nr: FrameNr) {
        let (ino, page) = self.frames.entry(nr).record.identity.key();
        self.index.remove(tag(hash_page(ino.0, page.0)), nr);
        changing.resident -= 1;
    }

    /// Frames of dropped pages that nobody uses any more are free.
    fn reclaim_orphans(&self, changing: &mut Changing) {
        let Changing { orphans, free, .. } = changing;
        orphans.retain(|nr| {
            let frame = self.frames.entry(*nr);
            let used = frame.record.identity.is_pinned();
            if !used {
                frame.vacate();
                free.push(*nr);
            }
            used
        });
    }

    /// Changes the number of frames; what is too much goes, as far as it is not pinned.
    pub(super) fn set_capacity(&self, frames: usize) {
        let mut changing = self.changing.lock();
        changing.capacity = frames;
        changing.policy.set_capacity(frames);
        self.reclaim_orphans(&mut changing);
        // The policy gives up after some pinned frames in a row, and goes on behind them.
        for _ in 0..=changing.resident / 16 {
            self.evict(&mut changing, frames, usize::MAX);
        }
    }

    /// Evicts up to `most` pages as long as there are more than `target`.
    fn evict(&self, changing: &mut Changing, target: usize, most: usize) {
        for _ in 0..most {
            if changing.resident <= target {
                break;
            }
            let Some(nr) = changing.policy.victim(&self.frames) else { break };
            self.unlist(changing, nr);
            let frame = self.frames.entry(nr);
            debug_assert!(frame.is_at_home(), "what is not at home is pinned by its inode");
            frame.vacate();
            changing.free.push(nr);
        }
    }
}

impl Changing {
    /// A frame without a page.
    fn free_frame(&mut self) -> FrameNr {
        self.free.pop().unwrap_or_else(|| {
            self.made += 1;
            FrameNr(self.made - 1)
        })
    }
}
