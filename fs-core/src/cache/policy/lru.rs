//! Least recently used, exactly: the yardstick. A scan flushes it.

use super::lists::Lists;
use super::{Counting, FrameNr, Frames, MOST_PINNED, Policy};

const ALL: usize = 0;

/// See the module.
#[derive(Debug)]
pub struct Lru {
    lists: Lists<1>,
}

impl Lru {
    /// An empty one with room for `capacity` frames.
    pub fn new(capacity: usize) -> Self {
        Self { lists: Lists::new(capacity) }
    }

    #[cfg(test)]
    pub(super) fn lists(&self) -> &Lists<1> {
        &self.lists
    }
}

impl Policy for Lru {
    fn counting(&self) -> Counting {
        Counting { once_per_interval: false, most: 0 }
    }

    fn enter(&mut self, frame: FrameNr, _page: u64) {
        self.lists.push(ALL, frame);
    }

    fn orders_by_use(&self) -> bool {
        true
    }

    fn used(&mut self, frame: FrameNr) {
        if self.lists.list_of(frame).is_some() {
            self.lists.push(ALL, frame);
        }
    }

    fn leave(&mut self, frame: FrameNr) {
        self.lists.remove(frame);
    }

    fn victim(&mut self, frames: &dyn Frames) -> Option<FrameNr> {
        for _ in 0..MOST_PINNED {
            let tail = self.lists.tail(ALL)?;
            if frames.claim(tail) {
                self.lists.remove(tail);
                return Some(tail);
            }
            self.lists.push(ALL, tail);
        }
        None
    }

    fn set_capacity(&mut self, _frames: usize) {}

    fn len(&self) -> usize {
        self.lists.total()
    }
}
