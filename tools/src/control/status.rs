//! The status of a volume, as it goes over the control socket and out as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Latencies, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Their sum.
    pub sum_ns: u64,
    /// Half of them took no longer.
    pub p50_ns: u64,
    /// 95 of 100.
    pub p95_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// Latencies of a call or stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timed {
    /// The call or stage.
    pub name: String,
    /// The class of files, "all" for all of them.
    pub class: String,
    /// How long it took.
    #[serde(flatten)]
    pub latency: Latency,
}

/// Space, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// For users.
    pub size_bytes: u64,
    /// Not in use.
    pub free_bytes: u64,
    /// Free for users.
    pub available_bytes: u64,
    /// Files, directories...
    pub inodes: u64,
}

/// The page cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// What it may hold.
    pub capacity_bytes: u64,
    /// What it holds.
    pub resident_bytes: u64,
    /// Not on the device in any form.
    pub dirty_bytes: u64,
    /// Pages with bytes that are on the device in the journal only.
    pub journal_only_bytes: u64,
    /// Pages found.
    pub hits: u64,
    /// Pages read.
    pub misses: u64,
}

/// The journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// Its size.
    pub size_bytes: u64,
    /// In segments that are in use.
    pub used_bytes: u64,
    /// In segments written since the last checkpoint.
    pub since_checkpoint_bytes: u64,
    /// The last record that survives a power cut.
    pub durable_lsn: u64,
    /// The record that collects changes.
    pub applied_lsn: u64,
    /// The last record that the tree has.
    pub checkpoint_lsn: u64,
    /// Commits: one flush each.
    pub commits: u64,
    /// Records written.
    pub records: u64,
    /// Calls that another call's commit has made durable.
    pub shared_commits: u64,
}

/// Checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoints {
    /// Since the mount.
    pub completed: u64,
    /// How long the one that runs has been running.
    pub running_ns: Option<u64>,
    /// How long they took.
    pub duration: Latency,
}

/// What went wrong since the mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// Pages that did not match their checksum.
    pub checksum_errors: u64,
    /// Files that have lost a write of a mapped page.
    pub files_with_lost_writes: u64,
    /// Blocks out of use because a write to them failed.
    pub quarantined_blocks: u64,
    /// Requests that the device failed.
    pub device_errors: u64,
}

/// Requests of one kind to the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRequests {
    /// "read", "write", "flush" or "discard".
    pub name: String,
    /// Bytes since the mount.
    pub bytes: u64,
    /// Failed since the mount.
    pub errors: u64,
    /// How long they took.
    #[serde(flatten)]
    pub latency: Latency,
}

/// The device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its size.
    pub size_bytes: u64,
    /// Its smallest unit.
    pub sector_bytes: u64,
    /// Past the cache of the host.
    pub direct: bool,
    /// It has a cache that a power cut empties.
    pub volatile_write_cache: bool,
    /// Requests under way.
    pub in_flight: u64,
    /// Those of them that wait, because enough of their class are with the device.
    pub waiting: u64,
    /// Requests since the mount whose memory the device knew already.
    pub in_registered_memory: u64,
    /// How often somebody has spun for a result since the mount.
    pub spins: u64,
    /// How often not in vain.
    pub spins_hit: u64,
    /// By kind.
    pub requests: Vec<DeviceRequests>,
}

/// How a volume is doing. Counts are since the mount, latencies over `measured_ns`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Where the volume lives.
    pub volume: String,
    /// Where it is mounted.
    pub mounted_on: String,
    /// Its UUID.
    pub uuid: String,
    /// Its label.
    pub label: String,
    /// The running epoch.
    pub epoch: u64,
    /// Size of its pages.
    pub page_bytes: u64,
    /// It takes no changes.
    pub read_only: bool,
    /// Why it takes no changes any more, if it does not.
    pub failure: Option<String>,
    /// Nanoseconds since the mount.
    pub uptime_ns: u64,
    /// The time over which latencies were measured.
    pub measured_ns: u64,
    /// Space.
    pub space: Space,
    /// The page cache.
    pub cache: Cache,
    /// The journal.
    pub journal: Journal,
    /// Checkpoints.
    pub checkpoints: Checkpoints,
    /// What went wrong.
    pub errors: Errors,
    /// The device.
    pub device: Device,
    /// Bytes that reads have returned since the mount.
    pub bytes_read: u64,
    /// Bytes that writes have taken since the mount.
    pub bytes_written: u64,
    /// Whole calls.
    pub calls: Vec<Timed>,
    /// Their stages.
    pub stages: Vec<Timed>,
    /// All counters of the engine.
    pub counters: BTreeMap<String, u64>,
}

/// A sync that was slow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowSync {
    /// The file.
    pub ino: u64,
    /// Its path, if it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// "fsync", or "write" for a synchronous write.
    pub call: String,
    /// What the file was taken for.
    pub class: String,
    /// How long ago it ended.
    pub ago_ns: u64,
    /// How long it took.
    pub total_ns: u64,
    /// Time in each stage.
    pub stages: BTreeMap<String, u64>,
    /// Time in none of them.
    pub elsewhere_ns: u64,
    /// The stage that took most; none: most of the time was in no stage.
    pub culprit: Option<String>,
}

/// Bytes of a file that follow each other on the device, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Offset in the file.
    pub offset: u64,
    /// Offset on the device.
    pub physical: u64,
    /// Bytes on the device.
    pub length: u64,
    /// How the bytes are stored: "plain".
    pub encoding: String,
    /// Reserved, not written yet.
    pub unwritten: bool,
}

/// What is known of a file beside its extents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// Size in bytes.
    pub size: u64,
    /// What it is taken for.
    pub class: String,
    /// How often it is open.
    pub opens: u32,
    /// Size of a page.
    pub page_bytes: u64,
    /// Number of extents.
    pub extents: u64,
    /// Of those behind the first one, how many begin where the one before ends on the device.
    pub adjacent: u64,
    /// With blocks, and written.
    pub written_bytes: u64,
    /// With blocks, and not written.
    pub unwritten_bytes: u64,
    /// Pages with blocks.
    pub mapped_pages: u64,
    /// Those of them in memory.
    pub cached_pages: u64,
    /// Pages with bytes that have not reached the device.
    pub dirty_pages: u64,
    /// Pages with bytes that are in the journal only.
    pub journal_only_pages: u64,
}
