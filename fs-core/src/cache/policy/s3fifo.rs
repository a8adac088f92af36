//! S3-FIFO: three queues. Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache
//! eviction", SOSP 2023.
//!
//! Pages enter a *small* queue. Those that have been used more than once when they reach its end go to the
//! *main* queue; the others are evicted, and remembered (*ghost*) for a while: a page that comes back
//! in that time enters the main queue at once. At the end of the main queue a page that was used
//! goes round once more, for each use up to three.

use super::ghost::Ghost;
use super::lists::Lists;
use super::{Counting, FrameNr, Frames, MOST_PINNED, Policy, interval_length, most_rounds};

const SMALL: usize = 0;
const MAIN: usize = 1;

/// Uses that count, as in the paper: two bits.
const MOST: u8 = 3;

/// Parameters of [`S3Fifo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct S3FifoOptions {
    /// Share of the frames that the small queue has, in percent; 1 to 99.
    pub small_percent: u8,
    /// Uses in the small queue that bring a page to the main queue; 1 to 3.
    pub threshold: u8,
    /// As [`TouchOptions::intervals`](super::TouchOptions::intervals). The paper has none (0), but counts
    /// requests for whole objects; we get some for each page that is read in pieces.
    pub intervals: u32,
}

impl Default for S3FifoOptions {
    fn default() -> Self {
        Self { small_percent: 10, threshold: 2, intervals: 64 }
    }
}

/// See the module.
#[derive(Debug)]
pub struct S3Fifo {
    options: S3FifoOptions,
    lists: Lists<2>,
    /// Hash of the page in each frame.
    pages: Vec<u64>,
    ghost: Ghost,
    small: usize,
}

impl S3Fifo {
    /// An empty one for `capacity` frames.
    pub fn new(options: S3FifoOptions, capacity: usize) -> Self {
        let options = S3FifoOptions { threshold: options.threshold.clamp(1, MOST), ..options };
        let lists = Lists::new(capacity);
        let mut new = Self { options, lists, pages: vec![0; capacity], ghost: Ghost::new(0), small: 0 };
        new.set_capacity(capacity);
        new
    }

    #[cfg(test)]
    pub(super) fn lists(&self) -> &Lists<2> {
        &self.lists
    }

    #[cfg(test)]
    pub(super) fn ghost(&self) -> &Ghost {
        &self.ghost
    }

    /// The list to take from: the small queue if it has its share, or the main one has nothing to give
    /// after so many `pinned` frames.
    fn source(&self, pinned: usize) -> usize {
        let small = self.lists.len(SMALL);
        let main_is_no_use = self.lists.len(MAIN) == 0 || pinned >= MOST_PINNED / 2;
        if small > 0 && (small >= self.small || main_is_no_use) { SMALL } else { MAIN }
    }
}

impl Policy for S3Fifo {
    fn counting(&self) -> Counting {
        Counting { once_per_interval: self.options.intervals > 0, most: MOST }
    }

    fn interval_length(&self, capacity: usize) -> usize {
        interval_length(capacity, self.options.intervals)
    }

    fn enter(&mut self, frame: FrameNr, page: u64) {
        if frame.index() >= self.pages.len() {
            self.pages.resize(frame.index() + 1, 0);
        }
        self.pages[frame.index()] = page;
        let list = if self.ghost.take(page) { MAIN } else { SMALL };
        self.lists.push(list, frame);
    }

    fn leave(&mut self, frame: FrameNr) {
        self.lists.remove(frame);
    }

    fn victim(&mut self, frames: &dyn Frames) -> Option<FrameNr> {
        let mut pinned = 0;
        // A round that finds no victim takes a frame from the small queue, takes one use from a count, or
        // passes over a pinned frame. Others use pages meanwhile, so the rounds are counted.
        for _ in 0..most_rounds(self.len(), MOST) {
            if pinned == MOST_PINNED {
                break;
            }
            let list = self.source(pinned);
            let tail = self.lists.tail(list)?;
            let touches = frames.touches(tail);
            if list == SMALL && touches.count() >= self.options.threshold {
                touches.set_count(0);
                self.lists.push(MAIN, tail);
            } else if list == MAIN && touches.count() > 0 {
                touches.set_count(touches.count() - 1);
                self.lists.push(MAIN, tail);
            } else if !frames.claim(tail) {
                pinned += 1;
                self.lists.push(MAIN, tail);
            } else {
                self.lists.remove(tail);
                if list == SMALL {
                    self.ghost.insert(self.pages[tail.index()]);
                }
                return Some(tail);
            }
        }
        None
    }

    fn set_capacity(&mut self, frames: usize) {
        self.small = (frames * usize::from(self.options.small_percent.clamp(1, 99)) / 100).max(1);
        self.ghost = Ghost::new(frames.saturating_sub(self.small));
    }

    fn len(&self) -> usize {
        self.lists.total()
    }
}
