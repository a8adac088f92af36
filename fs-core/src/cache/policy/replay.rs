//! A cache without pages: replays accesses to see what a policy keeps.

use std::collections::HashMap;

use super::{Clock, FrameNr, Frames, Policy, PolicyKind, TouchCount};

/// Replays accesses on a policy.
#[derive(Debug)]
pub struct Replay {
    policy: Box<dyn Policy>,
    clock: Clock,
    index: HashMap<(u64, u64), FrameNr>,
    slots: Slots,
    capacity: usize,
}

#[derive(Debug)]
struct Slots {
    touches: Vec<TouchCount>,
    pages: Vec<(u64, u64)>,
}

impl Frames for Slots {
    fn touches(&self, frame: FrameNr) -> &TouchCount {
        &self.touches[frame.index()]
    }

    fn claim(&self, _frame: FrameNr) -> bool {
        true
    }
}

impl Replay {
    /// An empty cache of `frames` frames, at least 1.
    pub fn new(kind: PolicyKind, frames: usize) -> Self {
        let frames = frames.max(1);
        let slots = Slots { touches: Vec::with_capacity(frames), pages: Vec::with_capacity(frames) };
        let index = HashMap::with_capacity(frames);
        Self { policy: kind.make(frames), clock: Clock::default(), index, slots, capacity: frames }
    }

    /// Somebody reads `page` of `file`; whether it is there.
    pub fn access(&mut self, file: u64, page: u64) -> bool {
        let key = (file, page);
        if let Some(frame) = self.index.get(&key) {
            self.slots.touches[frame.index()].touch(self.clock.now(), self.policy.counting());
            self.policy.used(*frame);
            return true;
        }
        let frame = if self.slots.pages.len() < self.capacity {
            self.slots.pages.push(key);
            self.slots.touches.push(TouchCount::default());
            FrameNr(self.slots.pages.len() as u32 - 1)
        } else {
            let victim = self.policy.victim(&self.slots).expect("nothing is pinned");
            let old = std::mem::replace(&mut self.slots.pages[victim.index()], key);
            self.index.remove(&old);
            victim
        };
        let now = self.clock.tick(self.policy.interval_length(self.capacity));
        self.slots.touches[frame.index()].reset(now);
        self.policy.enter(frame, super::hash_page(file, page));
        self.index.insert(key, frame);
        false
    }
}
