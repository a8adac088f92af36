//! Counters of the engine's own events.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// The live counters.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        /// A reading of all counters.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CounterValues {
            $($(#[doc = $doc])+ pub $name: u64,)*
        }

        impl Counters {
            /// Reads all of them, one after the other.
            pub(crate) fn read(&self) -> CounterValues {
                CounterValues { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl CounterValues {
            /// Name and value of each.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }

            /// What each counts, in the order of [`list`](Self::list).
            pub fn descriptions() -> Vec<&'static str> {
                vec![$(concat!($($doc),+).trim(),)*]
            }
        }
    };
}

counters! {
    /// Commits: one flush each.
    commits,
    /// Journal records written.
    records,
    /// Records that carry data of more than one file.
    group_commits,
    /// Calls whose changes became durable with the commit of another call.
    shared_commits,
    /// Bytes of file data written to the device.
    data_bytes,
    /// Bytes of journal records written to the device, whole blocks.
    journal_bytes,
    /// Those of them that only fill the records' last blocks.
    journal_padding_bytes,
    /// Bytes of tree nodes and pending lists written to the device by checkpoints.
    node_bytes,
    /// Bytes of root slots written to the device.
    slot_bytes,
    /// Times the journal's ring was wrapped around.
    journal_wraps,
    /// Checkpoints completed.
    checkpoints,
    /// Times the volume has grown.
    grows,
    /// Tree nodes written.
    node_writes,
    /// Epochs begun.
    epoch_changes,
    /// Pages whose bytes went into the journal.
    inline_pages,
    /// Pages written home after their bytes had been in the journal.
    inline_homed,
    /// Pages written by writeback.
    writeback_pages,
    /// Pages written by direct or synchronous writes.
    direct_pages,
    /// Writes and syncs whose data was in flight together with the record that maps it.
    flights,
    /// Those of them whose data was lost, so that a later record had to supersede theirs (rule R6).
    lost_flights,
    /// Blocks that were allocated again after having been freed in this mount.
    blocks_reused,
    /// Blocks taken from the cushion, as no other run was free (contract C9).
    cushion_blocks,
    /// Blocks out of use until the next mount, because a write to them failed (rule R1).
    quarantined_blocks,
    /// Followers that lost their claim on freed blocks, for lack of space or for being too far behind.
    claims_revoked,
    /// Data pages that did not match their checksum.
    checksum_errors,
    /// Page cache hits.
    cache_hits,
    /// Page cache misses: pages read from the device.
    cache_misses,
    /// Pages read ahead of scans.
    ahead_pages,
    /// Those of them that somebody wanted.
    ahead_used,
    /// Those of them that nobody wanted in time.
    ahead_dropped,
    /// Pages that were waited for, as another thread was just reading them.
    cache_waits,
}
