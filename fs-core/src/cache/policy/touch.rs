//! Touch count: least recently used with a hot and a cool end, in the style of Oracle's buffer cache.
//!
//! A page enters at the head of the cool end and wanders to its tail while others enter. There, a page
//! that has been touched often enough goes to the head of the hot end, with its count cut;
//! another is evicted. What the hot end has too much goes to the head of the cool end and has to
//! prove itself again. A scan, whose pages are touched once, passes through the cool end only.

use super::lists::Lists;
use super::{Counting, FrameNr, Frames, MOST_PINNED, Policy, interval_length, most_rounds};

const HOT: usize = 0;
const COOL: usize = 1;

/// Touches that count. More make no difference that could be measured.
const MOST: u8 = 4;

/// Parameters of [`TouchLru`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TouchOptions {
    /// Touches that a page at the cool tail needs to go to the hot end; 1 to 4.
    pub threshold: u8,
    /// Intervals, in each of which at most one touch of a page counts, while as many pages enter as there
    /// are frames. 0: every touch counts.
    pub intervals: u32,
    /// Share of the frames that the hot end may have, in percent; 1 to 99.
    pub hot_percent: u8,
}

impl Default for TouchOptions {
    fn default() -> Self {
        Self { threshold: 1, intervals: 64, hot_percent: 65 }
    }
}

/// See the module.
#[derive(Debug)]
pub struct TouchLru {
    options: TouchOptions,
    lists: Lists<2>,
    largest_hot: usize,
}

impl TouchLru {
    /// An empty one for `capacity` frames.
    pub fn new(options: TouchOptions, capacity: usize) -> Self {
        let options = TouchOptions { threshold: options.threshold.clamp(1, MOST), ..options };
        let mut new = Self { options, lists: Lists::new(capacity), largest_hot: 0 };
        new.set_capacity(capacity);
        new
    }

    #[cfg(test)]
    pub(super) fn lists(&self) -> &Lists<2> {
        &self.lists
    }

    /// The hot end has no more than its share.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert!(self.lists.len(HOT) <= self.largest_hot, "{self:?}");
    }

    /// The frame to look at: from the hot end only if the cool one has nothing to give after so many
    /// `pinned` frames.
    fn oldest(&self, pinned: usize) -> Option<FrameNr> {
        let (first, second) = if pinned < MOST_PINNED / 2 { (COOL, HOT) } else { (HOT, COOL) };
        self.lists.tail(first).or_else(|| self.lists.tail(second))
    }

    /// To the hot end; its oldest pages go to the cool end, with what they have been touched there.
    fn heat(&mut self, frame: FrameNr, frames: &dyn Frames) {
        let touches = frames.touches(frame);
        touches.set_count(touches.count() / 2);
        self.lists.push(HOT, frame);
        self.cool_down();
    }

    /// What the hot end has too much goes to the head of the cool end.
    fn cool_down(&mut self) {
        while self.lists.len(HOT) > self.largest_hot {
            let Some(oldest) = self.lists.tail(HOT) else { break };
            self.lists.push(COOL, oldest);
        }
    }
}

impl Policy for TouchLru {
    fn counting(&self) -> Counting {
        Counting { once_per_interval: self.options.intervals > 0, most: MOST }
    }

    fn interval_length(&self, capacity: usize) -> usize {
        interval_length(capacity, self.options.intervals)
    }

    fn enter(&mut self, frame: FrameNr, _page: u64) {
        self.lists.push(COOL, frame);
    }

    fn leave(&mut self, frame: FrameNr) {
        self.lists.remove(frame);
    }

    fn victim(&mut self, frames: &dyn Frames) -> Option<FrameNr> {
        let mut pinned = 0;
        // A round that finds no victim halves a count or passes over a pinned frame. Others touch frames
        // meanwhile, so the rounds are counted.
        for _ in 0..most_rounds(self.len(), MOST) {
            if pinned == MOST_PINNED {
                break;
            }
            let Some(tail) = self.oldest(pinned) else { break };
            if frames.touches(tail).count() >= self.options.threshold {
                self.heat(tail, frames);
            } else if !frames.claim(tail) {
                pinned += 1;
                self.lists.push(COOL, tail);
            } else {
                self.lists.remove(tail);
                return Some(tail);
            }
        }
        None
    }

    fn set_capacity(&mut self, frames: usize) {
        self.largest_hot = frames * usize::from(self.options.hot_percent.clamp(1, 99)) / 100;
        self.cool_down();
    }

    fn len(&self) -> usize {
        self.lists.total()
    }
}
