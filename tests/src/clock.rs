//! The clock of a run: time moves only when the run says so, so that model and engine see the same
//! time and one seed replays everything.

use std::sync::atomic::{AtomicU64, Ordering};

use fs_core::api::Timestamp;
use fs_core::env::Env;

const START_SECS: i64 = 1_700_000_000;

/// Time and randomness of one run, shared by model and engine.
#[derive(Debug)]
pub struct Clock {
    now_ns: AtomicU64,
    random: AtomicU64,
}

impl Clock {
    /// A clock at its start, with randomness that follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { now_ns: AtomicU64::new(0), random: AtomicU64::new(seed) }
    }

    /// Lets `ns` nanoseconds pass.
    pub fn advance(&self, ns: u64) {
        self.now_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

impl Env for Clock {
    fn now(&self) -> Timestamp {
        let ns = self.now_ns.load(Ordering::Relaxed);
        Timestamp { secs: START_SECS + (ns / 1_000_000_000) as i64, nanos: (ns % 1_000_000_000) as u32 }
    }

    fn monotonic_ns(&self) -> u64 {
        self.now_ns.load(Ordering::Relaxed)
    }

    fn random(&self) -> u64 {
        let step = self.random.fetch_add(1, Ordering::Relaxed);
        crate::rng::Rng::new(step.wrapping_mul(0xD134_2543_DE82_EF95)).next_u64()
    }
}
