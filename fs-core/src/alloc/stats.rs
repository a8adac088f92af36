//! Counters.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of an allocator since the mount.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Default)]
        pub(super) struct Counters {
            $(pub $name: AtomicU64,)*
        }

        impl Counters {
            pub fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Runs allocated.
    allocations,
    /// Blocks allocated.
    allocated_blocks,
    /// Races for allocation bits that were lost to another thread.
    cas_retries,
    /// Groups whose bits were loaded.
    group_loads,
    /// Groups that were unloaded because they were full.
    group_unloads,
    /// Blocks that have left limbo to be used again.
    reused_blocks,
    /// Blocks taken from the cushion.
    cushion_blocks,
    /// Requests refused for lack of space while blocks were in limbo.
    limbo_waits,
    /// Requests that had to wait for a reservation.
    reservation_waits,
}

impl Counters {
    pub fn allocated(&self, blocks: u64, retries: u64) {
        self.allocations.fetch_add(1, Ordering::Relaxed);
        self.allocated_blocks.fetch_add(blocks, Ordering::Relaxed);
        self.lost_races(retries);
    }

    pub fn cushioned(&self, blocks: u64) {
        self.cushion_blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    pub fn lost_races(&self, retries: u64) {
        if retries > 0 {
            self.cas_retries.fetch_add(retries, Ordering::Relaxed);
        }
    }
}
