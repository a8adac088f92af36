//! A part of the page cache: an index, slots that frames are in, and the policy over the slots' numbers.

use std::collections::HashMap;
use std::sync::Arc;

use super::pages::Frame;
use super::policy::{Clock, Counting, FrameNr, Frames, Policy, PolicyKind, TouchCount};
use crate::types::{Ino, PageNr};

/// Pages evicted for one that comes in, at most. More than one goes if the shard has too many, as after
/// pages that were dirty have been written.
const MOST_EVICTED: usize = 32;

#[derive(Debug)]
struct Slot {
    key: (Ino, PageNr),
    frame: Arc<Frame>,
}

/// By frame number; `None`: free.
#[derive(Debug, Default)]
struct Slots(Vec<Option<Slot>>);

impl Slots {
    fn taken(&self, nr: FrameNr) -> &Slot {
        self.0[nr.0 as usize].as_ref().expect("the index and the policy know only slots that are taken")
    }
}

impl Frames for Slots {
    fn touches(&self, nr: FrameNr) -> &TouchCount {
        &self.taken(nr).frame.touches
    }

    /// Somebody works with it, or it is in its inode's list of what is not at home. New references come
    /// from the cache, under the shard's lock, or from those that are there already.
    fn pinned(&self, nr: FrameNr) -> bool {
        Arc::strong_count(&self.taken(nr).frame) > 1
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shard {
    index: HashMap<(Ino, PageNr), FrameNr>,
    slots: Slots,
    free: Vec<FrameNr>,
    policy: Box<dyn Policy>,
    counting: Counting,
    clock: Clock,
    /// Frames that it should have at most; pinned ones can make it more.
    capacity: usize,
}

impl Shard {
    /// An empty one.
    pub(super) fn new(kind: PolicyKind, capacity: usize) -> Self {
        let policy = kind.make(capacity);
        Self {
            index: HashMap::new(),
            slots: Slots::default(),
            free: Vec::new(),
            counting: policy.counting(),
            policy,
            clock: Clock::default(),
            capacity,
        }
    }

    /// Pages in it.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether a page is in it; does not count as a use.
    pub(super) fn contains(&self, ino: Ino, page: PageNr) -> bool {
        self.index.contains_key(&(ino, page))
    }

    /// The page's frame. Counts as a use.
    pub(super) fn get(&mut self, ino: Ino, page: PageNr) -> Option<Arc<Frame>> {
        let nr = *self.index.get(&(ino, page))?;
        let frame = &self.slots.taken(nr).frame;
        frame.touches.touch(self.clock.now(), self.counting);
        self.policy.used(nr);
        Some(frame.clone())
    }

    /// Adds a page with its hash; one that is there already is kept and returned.
    pub(super) fn insert(&mut self, ino: Ino, page: PageNr, hash: u64, frame: Arc<Frame>) -> Arc<Frame> {
        if let Some(present) = self.get(ino, page) {
            return present;
        }
        self.evict(self.capacity.saturating_sub(1), MOST_EVICTED);
        let now = self.clock.tick(self.policy.interval_length(self.capacity));
        frame.touches.reset(now);
        let key = (ino, page);
        let slot = Some(Slot { key, frame: frame.clone() });
        let nr = match self.free.pop() {
            Some(nr) => {
                self.slots.0[nr.0 as usize] = slot;
                nr
            }
            None => {
                self.slots.0.push(slot);
                FrameNr(self.slots.0.len() as u32 - 1)
            }
        };
        self.index.insert(key, nr);
        self.policy.enter(nr, hash);
        frame
    }

    /// Forgets a page.
    pub(super) fn remove(&mut self, ino: Ino, page: PageNr) {
        if let Some(nr) = self.index.remove(&(ino, page)) {
            self.policy.leave(nr);
            self.vacate(nr);
        }
    }

    /// Forgets the pages of a file from `from` on.
    pub(super) fn remove_from(&mut self, ino: Ino, from: PageNr) {
        let gone: Vec<PageNr> =
            self.index.keys().filter(|(i, p)| *i == ino && *p >= from).map(|(_, p)| *p).collect();
        gone.into_iter().for_each(|page| self.remove(ino, page));
    }

    /// Changes the number of frames; what is too much goes, as far as it is not pinned.
    pub(super) fn set_capacity(&mut self, frames: usize) {
        self.capacity = frames;
        self.policy.set_capacity(frames);
        // The policy gives up after some pinned frames in a row, and goes on behind them.
        for _ in 0..=self.len() / 16 {
            self.evict(frames, usize::MAX);
        }
    }

    /// Evicts up to `most` pages as long as there are more than `target`.
    fn evict(&mut self, target: usize, most: usize) {
        for _ in 0..most {
            if self.len() <= target {
                break;
            }
            let Some(nr) = self.policy.victim(&self.slots) else { break };
            self.index.remove(&self.slots.taken(nr).key);
            self.vacate(nr);
        }
    }

    fn vacate(&mut self, nr: FrameNr) {
        self.slots.0[nr.0 as usize] = None;
        self.free.push(nr);
    }
}
