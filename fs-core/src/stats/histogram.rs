//! Histograms that many threads record into without a lock.
//!
//! Buckets are log-linear, as in Gil Tene's HdrHistogram: 16 of the same width between two powers of
//! two, so that a quantile is at most 1/16 too high, from nanoseconds to minutes. Recording is two atomic
//! additions and a comparison; nothing is allocated.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets between two powers of two, as a power of two.
const SUB_BITS: u32 = 4;
const SUB: usize = 1 << SUB_BITS;
/// Values above two to this power (18 minutes in nanoseconds) share the last bucket.
const MAX_BITS: u32 = 40;
const BUCKETS: usize = SUB + (MAX_BITS - SUB_BITS) as usize * SUB;

/// The live histogram.
pub struct Histogram {
    buckets: Box<[AtomicU64; BUCKETS]>,
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        let buckets = Box::new([const { AtomicU64::new(0) }; BUCKETS]);
        Self { buckets, sum: AtomicU64::new(0), max: AtomicU64::new(0) }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").field("values", &self.read()).finish()
    }
}

/// The bucket that `value` is counted in: its upper bound belongs to it.
fn index(value: u64) -> usize {
    let below = value.saturating_sub(1);
    if below < SUB as u64 {
        return below as usize;
    }
    let shift = 63 - below.leading_zeros() - SUB_BITS;
    let within = (below >> shift) as usize - SUB;
    ((shift as usize + 1) * SUB + within).min(BUCKETS - 1)
}

/// The largest value that bucket `i` is meant for.
fn upper(i: usize) -> u64 {
    if i < SUB {
        return i as u64 + 1;
    }
    ((i % SUB + SUB + 1) as u64) << (i / SUB - 1)
}

impl Histogram {
    /// Counts `value`. Takes a few nanoseconds.
    pub fn record(&self, value: u64) {
        self.buckets[index(value)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
        if value > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(value, Ordering::Relaxed);
        }
    }

    /// What has been recorded. Values that come in meanwhile may be in it or not.
    pub fn read(&self) -> HistogramValues {
        let counts = self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        let sum = self.sum.load(Ordering::Relaxed);
        HistogramValues { counts, sum, max: self.max.load(Ordering::Relaxed) }
    }
}

/// A reading of a histogram.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HistogramValues {
    /// As many as there are buckets, or none at all: nothing was recorded.
    counts: Vec<u64>,
    sum: u64,
    max: u64,
}

impl fmt::Debug for HistogramValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quantiles = [0.5, 0.95, 0.99].map(|q| self.quantile(q));
        write!(f, "{} values, quantiles {quantiles:?}, at most {}", self.count(), self.max)
    }
}

impl HistogramValues {
    /// Number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The greatest value; 0 if there is none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// A value that a share of `q` (0 to 1) does not exceed, at most 1/16 too high; 0 if there is none.
    pub fn quantile(&self, q: f64) -> u64 {
        let wanted = ((self.count() as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return if i == BUCKETS - 1 { self.max } else { upper(i).min(self.max) };
            }
        }
        0
    }

    /// How many values are at most `bound`, a power of two from 16 on.
    pub fn at_most(&self, bound: u64) -> u64 {
        let buckets = (0..self.counts.len().min(BUCKETS - 1)).take_while(|i| upper(*i) <= bound);
        buckets.map(|i| self.counts[i]).sum()
    }

    /// What was recorded since an earlier reading of the same histogram. The greatest value is the upper
    /// bound of its bucket then.
    pub fn since(&self, earlier: &HistogramValues) -> HistogramValues {
        let before = earlier.counts.iter().copied().chain(std::iter::repeat(0));
        let counts: Vec<u64> = self.counts.iter().zip(before).map(|(n, old)| n.saturating_sub(old)).collect();
        let last = counts.iter().rposition(|n| *n > 0);
        let max = last.map_or(0, |i| if i == BUCKETS - 1 { self.max } else { upper(i).min(self.max) });
        HistogramValues { counts, sum: self.sum.saturating_sub(earlier.sum), max }
    }

    /// Adds the values of another reading.
    pub fn merge(&mut self, other: &HistogramValues) {
        self.counts.resize(self.counts.len().max(other.counts.len()), 0);
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        assert_eq!(index(0), 0);
        for i in 0..BUCKETS - 1 {
            assert_eq!(index(upper(i)), i);
            assert_eq!(index(upper(i) + 1), i + 1);
        }
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_recorded() {
        let v = Histogram::default().read();
        assert_eq!((v.count(), v.sum(), v.max(), v.quantile(0.99), v.at_most(1 << 20)), (0, 0, 0, 0, 0));
    }

    #[test]
    fn what_is_too_long_is_still_counted() {
        let h = Histogram::default();
        h.record(1 << 50);
        assert_eq!((h.read().count(), h.read().quantile(0.5)), (1, 1 << 50));
        assert_eq!(h.read().at_most(1 << 40), 0);
    }

    #[test]
    fn what_came_in_between() {
        let h = Histogram::default();
        h.record(1_000_000);
        let earlier = h.read();
        assert_eq!(h.read().since(&earlier).count(), 0);
        h.record(1_000);
        h.record(2_000);
        let new = h.read().since(&earlier);
        assert_eq!((new.count(), new.sum()), (2, 3_000));
        assert!((2_000..=2_125).contains(&new.max()) && new.quantile(0.5) <= 1_063);
        assert_eq!(h.read().since(&HistogramValues::default()), h.read());
    }

    #[test]
    fn threads_lose_nothing() {
        let h = Histogram::default();
        std::thread::scope(|s| {
            for t in 0..4 {
                let h = &h;
                s.spawn(move || (0..10_000).for_each(|i| h.record(i * 37 + t)));
            }
        });
        let v = h.read();
        assert_eq!(v.count(), 40_000);
        assert_eq!(v.sum(), (0..4).map(|t| (0..10_000u64).map(|i| i * 37 + t).sum::<u64>()).sum::<u64>());
        assert_eq!(v.max(), 9_999 * 37 + 3);
    }

    proptest! {
        /// Against the sorted list of all values.
        #[test]
        fn quantiles_and_counts_are_near(
            values in prop::collection::vec((0u32..40).prop_flat_map(|bits| 0..=1u64 << bits), 1..200),
            q in 0.0..=1.0f64,
            bits in 4u32..40,
        ) {
            let (a, b) = (Histogram::default(), Histogram::default());
            for (i, v) in values.iter().enumerate() {
                if i % 2 == 0 { a.record(*v) } else { b.record(*v) }
            }
            let mut read = a.read();
            read.merge(&b.read());
            let mut sorted = values.clone();
            sorted.sort_unstable();
            prop_assert_eq!(read.count(), values.len() as u64);
            prop_assert_eq!(read.sum(), values.iter().sum::<u64>());
            prop_assert_eq!(read.max(), *sorted.last().unwrap());
            let rank = ((values.len() as f64 * q).ceil() as usize).max(1);
            let exact = sorted[rank - 1];
            let found = read.quantile(q);
            prop_assert!(found >= exact && found <= exact + exact / SUB as u64 + 1, "{found} for {exact}");
            let bound = 1 << bits;
            prop_assert_eq!(read.at_most(bound), values.iter().filter(|v| **v <= bound).count() as u64);
        }
    }
}
