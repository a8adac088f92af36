//! How a mounted volume is doing.

use blockdev::{Capabilities, EngineCounts};

use super::Volume;
use crate::stats::{SlowSync, StatsValues};
use crate::types::{BLOCK_SIZE, Lsn};

/// The page cache, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStatus {
    /// What it may hold.
    pub capacity: u64,
    /// What it holds.
    pub resident: u64,
    /// Pages with bytes that have not reached the device in any form.
    pub dirty: u64,
    /// Pages with bytes that are on the device in the journal only.
    pub journal_only: u64,
}

/// The journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalStatus {
    /// Its size in bytes; 0 of a volume that is mounted for reading only.
    pub size: u64,
    /// Bytes in segments that are in use.
    pub used: u64,
    /// Bytes in segments written since the last checkpoint; a quarter of `size` starts the next one.
    pub since_checkpoint: u64,
    /// Everything up to here survives a power cut.
    pub durable: Lsn,
    /// The record that collects changes now.
    pub applied: Lsn,
    /// The tree on the device has everything up to here.
    pub checkpoint: Lsn,
}

/// What the figures of a moment are; see also [`Volume::counters`] and [`Volume::stats`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatus {
    /// The page cache.
    pub cache: CacheStatus,
    /// The journal.
    pub journal: JournalStatus,
    /// Bytes that changes of the metadata take in memory until the next checkpoint.
    pub delta_bytes: u64,
    /// Files that have lost a write nobody could be told of.
    pub files_with_lost_writes: u64,
    /// The volume takes no changes.
    pub read_only: bool,
    /// Why it has stopped taking them, if it has.
    pub failure: Option<String>,
}

impl Volume {
    /// The state of cache and journal at this moment. Takes short locks only; never waits for the device.
    pub fn status(&self) -> VolumeStatus {
        let pages = |n: usize| n as u64 * self.page_bytes() as u64;
        let cache = CacheStatus {
            capacity: self.cache.capacity() as u64,
            resident: pages(self.cache.resident_pages()),
            dirty: self.cache.dirty_bytes() as u64,
            journal_only: pages(self.cache.inline_pages()),
        };
        VolumeStatus {
            cache,
            journal: self.journal_status(),
            delta_bytes: self.meta.pressure().1 as u64,
            files_with_lost_writes: self.inodes.lost.lock().len() as u64,
            read_only: self.read_only,
            failure: self.failure(),
        }
    }

    fn journal_status(&self) -> JournalStatus {
        // A volume that is mounted for reading only has no journal of its own.
        let (free, (since, count)) = match self.read_only {
            true => (0, (0, 0)),
            false => {
                let journal = self.commit.journal.lock();
                (journal.free_segments(), journal.segments_since_root())
            }
        };
        let segment = u64::from(self.superblock.segment_blocks) * BLOCK_SIZE as u64;
        JournalStatus {
            size: count * segment,
            used: count.saturating_sub(free) * segment,
            since_checkpoint: if count == 0 { 0 } else { (since + 1).min(count) * segment },
            durable: self.commit.durable(),
            applied: self.meta.applied_lsn(),
            checkpoint: self.stats.checkpoint_lsn(),
        }
    }

    /// What the device can do. Never blocks.
    pub fn device_capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    /// What the engine behind the device has done since it was opened. Never blocks.
    pub fn device_engine_counts(&self) -> EngineCounts {
        self.device.engine_counts()
    }

    /// Latencies since the mount, by stage, call and class of file.
    pub fn stats(&self) -> StatsValues {
        self.stats.read()
    }

    /// The slowest syncs of the last ten minutes, the slowest first, each with how many nanoseconds ago
    /// it ended.
    pub fn slowest_syncs(&self) -> Vec<(SlowSync, u64)> {
        self.stats.slowest()
    }
}
