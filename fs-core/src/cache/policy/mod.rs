//! Which page goes when another needs its frame.
//!
//! Policies are data structures over numbers of frames: no I/O, no locks, no clock. The owner of the
//! frames tells which page entered which frame, and asks for a victim; touches and pins are
//! the owner's ([`Frames`]). So a hit costs at most a store to the frame's [`TouchCount`], and takes no lock.
//!
//! "Once per interval" is counted in a clock that the owner advances; `docs/CACHE.md` has the figures
//! that the defaults follow from.

mod ghost;
mod lists;
mod lru;
mod replay;
mod s3fifo;
#[cfg(test)]
mod tests;
mod touch;
mod touches;

use std::fmt;

pub use lru::Lru;
pub use replay::Replay;
pub use s3fifo::{S3Fifo, S3FifoOptions};
pub use touch::{TouchLru, TouchOptions};
pub use touches::{Clock, Counting, TouchCount};

/// Number of a frame. The owner keeps them small: policies have arrays over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameNr(pub u32);

impl FrameNr {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a policy sees of the frames.
pub trait Frames {
    /// Uses of the frame's page.
    fn touches(&self, frame: FrameNr) -> &TouchCount;
    /// Takes the frame for good, so that nobody can begin to use its page; false: it may not be taken now, as
    /// somebody uses it, or it has bytes that are nowhere else.
    fn claim(&self, frame: FrameNr) -> bool;
}

/// A replacement policy for the pages of one cache or shard. No method blocks or allocates, but for
/// frame numbers higher than all before.
pub trait Policy: Send + fmt::Debug {
    /// How uses of the frames' pages are to be counted.
    fn counting(&self) -> Counting;

    /// Pages that enter in an interval of the clock, with `capacity` frames.
    fn interval_length(&self, capacity: usize) -> usize {
        capacity.max(1)
    }

    /// A page, known by its hash, enters `frame`. The frame must be in no list, and its count reset.
    fn enter(&mut self, frame: FrameNr, page: u64);

    /// It has to be told of each use. The others go by the counts, so that a use needs no lock.
    fn orders_by_use(&self) -> bool {
        false
    }

    /// The frame's page was used. Only for policies that order by use; an owner that does not call this
    /// loses nothing with the others.
    fn used(&mut self, _frame: FrameNr) {}

    /// The frame's page is gone, and will not come back. Does nothing if the frame is in no list.
    fn leave(&mut self, frame: FrameNr);

    /// Chooses a frame, claims it, and takes it out; `None`: none of those that were looked at could be
    /// claimed (a bounded number in a row). Never claims another one.
    fn victim(&mut self, frames: &dyn Frames) -> Option<FrameNr>;

    /// Number of frames that the policy plans with. More may be in it; what is too much
    /// goes with the next victims.
    fn set_capacity(&mut self, frames: usize);

    /// Frames in it.
    fn len(&self) -> usize;

    /// No frame is in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Hash of a page of a file, as the policies and the cache's index use it.
pub fn hash_page(file: u64, page: u64) -> u64 {
    // SplitMix64's finisher: every bit of the result depends on all bits of both.
    let mut z = file.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ page;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Entries of an interval, if there are `intervals` of them while `capacity` frames are filled.
fn interval_length(capacity: usize, intervals: u32) -> usize {
    (capacity / intervals.max(1) as usize).max(1)
}

/// Frames to look at for one victim among `frames`, with counts of up to `most`.
fn most_rounds(frames: usize, most: u8) -> usize {
    frames.saturating_mul(usize::from(most) + 2).saturating_add(MOST_PINNED)
}

/// Pinned frames that are passed over for one victim. They go to the young end, so that the next call
/// does not meet them again.
const MOST_PINNED: usize = 64;

/// The policies there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PolicyKind {
    /// Touch count with a hot and a cool end.
    Touch(TouchOptions),
    /// S3-FIFO.
    S3Fifo(S3FifoOptions),
    /// Least recently used: to compare with.
    Lru,
}

impl Default for PolicyKind {
    /// What misses least over the workloads of docs/CACHE.md.
    fn default() -> Self {
        Self::S3Fifo(S3FifoOptions::default())
    }
}

impl PolicyKind {
    /// An empty policy of this kind for `capacity` frames.
    pub fn make(self, capacity: usize) -> Box<dyn Policy> {
        match self {
            Self::Touch(options) => Box::new(TouchLru::new(options, capacity)),
            Self::S3Fifo(options) => Box::new(S3Fifo::new(options, capacity)),
            Self::Lru => Box::new(Lru::new(capacity)),
        }
    }

    /// Its name, as in the mount option.
    pub fn name(self) -> &'static str {
        match self {
            Self::Touch(_) => "touch",
            Self::S3Fifo(_) => "s3fifo",
            Self::Lru => "lru",
        }
    }
}
