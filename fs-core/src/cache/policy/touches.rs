//! Counting the uses of a page without a lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bits of a word for the count; the others hold the interval.
const COUNT_BITS: u32 = 8;
const COUNT_MASK: u32 = (1 << COUNT_BITS) - 1;

/// How uses are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counting {
    /// At most one use in an interval of the clock counts.
    pub once_per_interval: bool,
    /// The count stays here; up to 255.
    pub most: u8,
}

/// Uses of one page: a count, and the interval of the last one that counted.
///
/// It is a hint: of two touches at the same moment one may be lost, so a hit needs no atomic
/// read-modify-write, and a page that is used all the time is not even written to.
#[derive(Debug, Default)]
pub struct TouchCount(AtomicU32);

impl TouchCount {
    /// A use in interval `now`.
    pub fn touch(&self, now: u32, counting: Counting) {
        let word = self.0.load(Ordering::Relaxed);
        let count = word & COUNT_MASK;
        let same = counting.once_per_interval && word >> COUNT_BITS == shortened(now);
        if count >= u32::from(counting.most) || same {
            return;
        }
        self.0.store(shortened(now) << COUNT_BITS | (count + 1), Ordering::Relaxed);
    }

    /// Another page enters in interval `now`: no uses yet. What it is used for in this interval belongs
    /// to its coming in.
    pub fn reset(&self, now: u32) {
        self.0.store(shortened(now) << COUNT_BITS, Ordering::Relaxed);
    }

    /// Uses that count.
    pub fn count(&self) -> u8 {
        (self.0.load(Ordering::Relaxed) & COUNT_MASK) as u8
    }

    /// Sets the count; the interval stays.
    pub(super) fn set_count(&self, count: u8) {
        let word = self.0.load(Ordering::Relaxed);
        self.0.store(word & !COUNT_MASK | u32::from(count), Ordering::Relaxed);
    }
}

/// As much of an interval's number as there is room for; it comes again after 16 million.
fn shortened(interval: u32) -> u32 {
    interval & (u32::MAX >> COUNT_BITS)
}

/// Intervals, counted in pages that entered the cache: each is a fixed share of its capacity. So a page
/// passes the same number of intervals from one end of the cache to the other, whether the
/// device is fast or slow; and as long as nothing enters, nothing has to be told apart.
#[derive(Debug, Default)]
pub struct Clock {
    entries: AtomicU64,
    interval: AtomicU32,
}

impl Clock {
    /// The interval.
    pub fn now(&self) -> u32 {
        self.interval.load(Ordering::Relaxed)
    }

    /// A page entered; an interval is `length` of them (0 counts as 1). Returns the interval.
    pub fn tick(&self, length: usize) -> u32 {
        let entries = self.entries.fetch_add(1, Ordering::Relaxed) + 1;
        if entries >= length as u64 {
            // Two at once may count one interval twice, or lose an entry: that does not matter.
            self.entries.store(0, Ordering::Relaxed);
            self.interval.fetch_add(1, Ordering::Relaxed);
        }
        self.now()
    }
}
