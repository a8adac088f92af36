//! Whether to spin for a completion or to sleep until it comes.
//!
//! Sleeping costs the switch to another thread and the way back: on small virtual machines 20 to 40 us, more
//! than a fast device needs for a page. Spinning costs the processor for as long as it lasts. So a waiter spins
//! only if completions have lately come within [`LONGEST`], what sleeping costs at least, and only so long. Where they
//! do not, as on most devices, one wait in [`PROBE`] spins to see whether that is still so.
//!
//! On one processor it never does: nothing would complete meanwhile.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest spin.
pub(super) const LONGEST: Duration = Duration::from_micros(20);

/// One in so many waits tries whether spinning would do.
const PROBE: u32 = 64;

/// What a spin in vain counts for in the mean.
const MISS_NS: u64 = 2 * LONGEST.as_nanos() as u64;

/// See the module.
#[derive(Debug)]
pub(super) struct Poller {
    allowed: bool,
    /// Mean of how long spins took, in ns; those in vain count [`MISS_NS`].
    mean_ns: AtomicU64,
    /// Waits since the last spin.
    since: AtomicU32,
    spins: AtomicU64,
    hits: AtomicU64,
}

impl Poller {
    /// Begins with sleeping. `allowed`: spinning may come to pass.
    pub(super) fn new(allowed: bool) -> Self {
        Self {
            allowed: allowed && std::thread::available_parallelism().is_ok_and(|n| n.get() > 1),
            mean_ns: AtomicU64::new(MISS_NS),
            since: AtomicU32::new(0),
            spins: AtomicU64::new(0),
            hits: AtomicU64::new(0),
        }
    }

    /// Spins until `there`, for a while. True: it is there.
    pub(super) fn spin(&self, there: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        loop {
            if there() {
                self.note(Some(start.elapsed()));
                return true;
            }
            if start.elapsed() >= LONGEST {
                self.note(None);
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Whether who waits now should spin first.
    pub(super) fn is_worth_it(&self) -> bool {
        if !self.allowed {
            return false;
        }
        let pays = self.mean_ns.load(Ordering::Relaxed) <= LONGEST.as_nanos() as u64;
        if pays || self.since.fetch_add(1, Ordering::Relaxed) + 1 >= PROBE {
            self.since.store(0, Ordering::Relaxed);
            return true;
        }
        false
    }

    /// Takes how long a spin took, `None` if it was in vain. An update that is lost does no harm.
    fn note(&self, took: Option<Duration>) {
        self.spins.fetch_add(1, Ordering::Relaxed);
        self.hits.fetch_add(u64::from(took.is_some()), Ordering::Relaxed);
        let ns = took.map_or(MISS_NS, |took| took.as_nanos() as u64);
        let mean = self.mean_ns.load(Ordering::Relaxed);
        self.mean_ns.store(mean - mean / 4 + ns / 4, Ordering::Relaxed);
    }

    /// How often a waiter has spun, and how often not in vain.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.spins.load(Ordering::Relaxed), self.hits.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allowed even on one processor.
    fn poller() -> Poller {
        Poller { allowed: true, ..Poller::new(true) }
    }

    #[test]
    fn a_slow_device_is_tried_now_and_then_only() {
        let poller = poller();
        assert_eq!((0..10 * PROBE).filter(|_| poller.is_worth_it() && poller.spin(|| false)).count(), 0);
        assert_eq!(poller.counts(), (10, 0));
    }

    #[test]
    fn a_fast_device_is_spun_for_until_it_is_slow() {
        let poller = poller();
        let fast = (0..5 * PROBE).filter(|_| poller.is_worth_it() && poller.spin(|| true)).count();
        assert!(fast > PROBE as usize, "it has been noticed: {fast}");
        let (before, _) = poller.counts();
        (0..PROBE).for_each(|_| assert!(!(poller.is_worth_it() && poller.spin(|| false))));
        let in_vain = poller.counts().0 - before;
        assert!(in_vain < 8, "it has been noticed: {in_vain}");
    }

    #[test]
    fn not_allowed_is_never() {
        let poller = Poller::new(false);
        (0..2 * PROBE).for_each(|_| assert!(!poller.is_worth_it()));
        assert_eq!(poller.counts(), (0, 0));
    }
}
