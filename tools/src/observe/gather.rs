//! From the engine's figures to the documents that go out.

use std::collections::BTreeMap;

use fs_core::api::FsOps;
use fs_core::stats::{Call, FileClass, HistogramValues, Stage, StatsValues};

use super::Observed;
use super::metered::KindValues;
use crate::control::status::{
    Cache, Checkpoints, Device, DeviceRequests, Errors, Journal, Latency, SlowSync, Space, Status, Timed,
};

/// All histograms at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    stats: StatsValues,
    device: Vec<KindValues>,
}

impl Observed {
    /// Reads all histograms.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { stats: self.volume.stats(), device: self.device.read() }
    }

    /// The status, with latencies since the mount or since an `earlier` moment, and the moment it shows.
    pub fn status(&self, earlier: Option<&Snapshot>) -> (Status, Snapshot) {
        let now = self.snapshot();
        let v = &self.volume;
        let sb = v.superblock();
        let (s, c) = (v.status(), v.counters());
        let stats = earlier.map_or_else(|| now.stats.clone(), |e| now.stats.since(&e.stats));
        let all = |f: fn(&fs_core::stats::ClassValues) -> u64| {
            FileClass::ALL.iter().map(|class| f(now.stats.class(*class))).sum()
        };
        let status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            volume: self.path.to_string_lossy().into_owned(),
            mounted_on: self.dir.to_string_lossy().into_owned(),
            uuid: sb.uuid.to_string(),
            label: sb.label.clone(),
            epoch: v.epoch().get(),
            page_bytes: v.page_size().bytes() as u64,
            read_only: s.read_only || s.failure.is_some(),
            failure: s.failure.clone(),
            uptime_ns: now.stats.mounted_ns,
            measured_ns: now.stats.mounted_ns - earlier.map_or(0, |e| e.stats.mounted_ns),
            space: self.space(),
            cache: Cache {
                capacity_bytes: s.cache.capacity,
                resident_bytes: s.cache.resident,
                dirty_bytes: s.cache.dirty,
                journal_only_bytes: s.cache.journal_only,
                hits: c.cache_hits,
                misses: c.cache_misses,
            },
            journal: Journal {
                size_bytes: s.journal.size,
                used_bytes: s.journal.used,
                since_checkpoint_bytes: s.journal.since_checkpoint,
                durable_lsn: s.journal.durable.get(),
                applied_lsn: s.journal.applied.get(),
                checkpoint_lsn: s.journal.checkpoint.get(),
                commits: c.commits,
                records: c.records,
                shared_commits: c.shared_commits,
            },
            checkpoints: Checkpoints {
                completed: c.checkpoints,
                running_ns: stats.checkpoint_running_ns,
                duration: latency(&stats.checkpoints),
            },
            errors: Errors {
                checksum_errors: c.checksum_errors,
                files_with_lost_writes: s.files_with_lost_writes,
                quarantined_blocks: c.quarantined_blocks,
                device_errors: now.device.iter().map(|k| k.errors).sum(),
            },
            device: self.device_status(&now.device, earlier),
            bytes_read: all(|c| c.bytes_read),
            bytes_written: all(|c| c.bytes_written),
            calls: Call::ALL.iter().flat_map(|call| timed(&stats, call.name(), |c| c.call(*call))).collect(),
            stages: Stage::ALL.iter().flat_map(|s| timed(&stats, s.name(), |c| c.stage(*s))).collect(),
            counters: c.list().into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
        };
        (status, now)
    }

    /// What statfs(2) says, in bytes; zeros if it fails.
    pub fn space(&self) -> Space {
        let Ok(s) = self.volume.statfs() else { return Space::default() };
        let unit = u64::from(s.block_size);
        Space {
            size_bytes: s.blocks * unit,
            free_bytes: s.bfree * unit,
            available_bytes: s.bavail * unit,
            inodes: s.files - s.ffree,
        }
    }

    fn device_status(&self, kinds: &[KindValues], earlier: Option<&Snapshot>) -> Device {
        let capabilities = self.volume.device_capabilities();
        let engine = self.volume.device_engine_counts();
        let requests = kinds.iter().enumerate().map(|(i, kind)| DeviceRequests {
            name: kind.name.into(),
            bytes: kind.bytes,
            errors: kind.errors,
            latency: match earlier {
                Some(e) => latency(&kind.latency.since(&e.device[i].latency)),
                None => latency(&kind.latency),
            },
        });
        Device {
            size_bytes: capabilities.size_bytes,
            sector_bytes: capabilities.logical_sector.into(),
            direct: capabilities.direct,
            volatile_write_cache: capabilities.volatile_write_cache,
            in_flight: self.device.in_flight(),
            waiting: engine.waiting,
            in_registered_memory: engine.fixed,
            spins: engine.spins,
            spins_hit: engine.spins_hit,
            requests: requests.collect(),
        }
    }

    /// The slowest recent syncs.
    pub fn slow_syncs(&self) -> Vec<SlowSync> {
        let document = |(s, ago_ns): (fs_core::stats::SlowSync, u64)| SlowSync {
            ino: s.ino.get(),
            path: None,
            call: s.call.name().into(),
            class: s.class.name().into(),
            ago_ns,
            total_ns: s.total_ns,
            stages: Stage::ALL
                .iter()
                .map(|stage| (stage.name().to_owned(), s.stage(*stage)))
                .collect::<BTreeMap<_, _>>(),
            elsewhere_ns: s.elsewhere_ns(),
            culprit: s.culprit().map(|stage| stage.name().to_owned()),
        };
        self.volume.slowest_syncs().into_iter().map(document).collect()
    }
}

/// The percentiles of a histogram.
fn latency(values: &HistogramValues) -> Latency {
    let [p50_ns, p95_ns, p99_ns] = [0.5, 0.95, 0.99].map(|q| values.quantile(q));
    Latency { count: values.count(), sum_ns: values.sum(), p50_ns, p95_ns, p99_ns, max_ns: values.max() }
}

/// A call or stage over all classes, and by class where there is anything to say.
fn timed<'a>(
    stats: &'a StatsValues,
    name: &str,
    of: impl Fn(&'a fs_core::stats::ClassValues) -> &'a HistogramValues,
) -> Vec<Timed> {
    let mut all = HistogramValues::default();
    let mut list = Vec::new();
    for class in FileClass::ALL {
        let values = of(stats.class(class));
        all.merge(values);
        if values.count() > 0 {
            list.push(Timed { name: name.into(), class: class.name().into(), latency: latency(values) });
        }
    }
    list.insert(0, Timed { name: name.into(), class: "all".into(), latency: latency(&all) });
    list
}
