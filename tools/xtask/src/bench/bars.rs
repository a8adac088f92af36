//! The bars: what dbfs is held against, and whether it gets there.

use super::figures::{Figures, Spread};
use super::subject::Subject;
use super::titles;

/// A ratio that has to be reached, or not to be exceeded.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What is compared.
    pub name: &'static str,
    /// The ratios of all rounds.
    pub ratio: Spread,
    /// What the median is held against.
    pub wanted: f64,
    /// The ratio must not exceed it.
    pub at_most: bool,
}

impl Verdict {
    /// Whether the median gets there.
    pub fn is_met(&self) -> bool {
        if self.at_most { self.ratio.median <= self.wanted } else { self.ratio.median >= self.wanted }
    }
}

/// The bars of all jobs that were done.
pub fn verdicts(figures: &Figures) -> Vec<Verdict> {
    let mut all: Vec<Verdict> = simple(figures);
    all.extend(two_threads(figures));
    all.extend(amplification(figures));
    all
}

type Side = (&'static str, Subject);

/// A ratio of two figures that should be at least so large.
const SIMPLE: [(&str, Side, Side, f64); 15] = [
    (
        "16 KiB direct random read, depth 1: library / raw device",
        (titles::READ_16K_1, Subject::Library),
        (titles::READ_16K_1, Subject::Raw),
        0.9,
    ),
    (
        "16 KiB direct random read, depth 16: library / raw device",
        (titles::READ_16K_16, Subject::Library),
        (titles::READ_16K_16, Subject::Raw),
        0.9,
    ),
    (
        "16 KiB direct write + data sync, 1 thread: library (atomic) / ext4 (not atomic)",
        (titles::SYNCED_1, Subject::Library),
        (titles::SYNCED_1, Subject::Ext4),
        0.9,
    ),
    (
        "16 KiB direct write + data sync, 1 thread: library / XFS with RWF_ATOMIC",
        (titles::ATOMIC, Subject::Library),
        (titles::ATOMIC, Subject::Xfs),
        3.0,
    ),
    (
        "8 KiB append + fdatasync: library / ext4",
        (titles::APPEND, Subject::Library),
        (titles::APPEND, Subject::Ext4),
        1.0,
    ),
    (
        "sequential read after random overwrites / of the fresh file: through the mount",
        (titles::SEQUENTIAL_READ, Subject::Aged),
        (titles::SEQUENTIAL_READ, Subject::Dbfs),
        0.8,
    ),
    (
        "pgbench in cache: dbfs / ext4, each with its safe settings",
        (titles::PGBENCH_IN_CACHE, Subject::Dbfs),
        (titles::PGBENCH_IN_CACHE, Subject::Ext4),
        1.0,
    ),
    (
        "pgbench out of cache: dbfs / ext4, each with its safe settings",
        (titles::PGBENCH_OUT_OF_CACHE, Subject::Dbfs),
        (titles::PGBENCH_OUT_OF_CACHE, Subject::Ext4),
        0.8,
    ),
    (
        "8 KiB overwrite + fdatasync: mount / ext4",
        (titles::LOG, Subject::Dbfs),
        (titles::LOG, Subject::Ext4),
        0.5,
    ),
    (
        "create + write + fsync: mount / ext4",
        (titles::CREATE_DURABLY, Subject::Dbfs),
        (titles::CREATE_DURABLY, Subject::Ext4),
        0.5,
    ),
    ("create: mount / no-op daemon", (titles::CREATE, Subject::Dbfs), (titles::CREATE, Subject::Noop), FUSE),
    (
        "stat, not cached: mount / no-op daemon",
        (titles::STAT_COLD, Subject::Dbfs),
        (titles::STAT_COLD, Subject::Noop),
        FUSE,
    ),
    (
        "stat, cached: mount / no-op daemon",
        (titles::STAT, Subject::Dbfs),
        (titles::STAT, Subject::Noop),
        FUSE,
    ),
    ("rename: mount / no-op daemon", (titles::RENAME, Subject::Dbfs), (titles::RENAME, Subject::Noop), FUSE),
    ("unlink: mount / no-op daemon", (titles::UNLINK, Subject::Dbfs), (titles::UNLINK, Subject::Noop), FUSE),
];

/// An operation on a name may take half as long again as with a daemon that does nothing.
const FUSE: f64 = 1.0 / 1.5;

fn simple(figures: &Figures) -> Vec<Verdict> {
    let verdict = |(name, better, worse, wanted): &(&'static str, Side, Side, f64)| {
        let ratio = Spread::of(&figures.ratios(*better, *worse)?)?;
        Some(Verdict { name, ratio, wanted: *wanted, at_most: false })
    };
    SIMPLE.iter().filter_map(verdict).collect()
}

/// What a second thread gains: 1.4, or nearly what it gains on the raw device, if that is less.
fn two_threads(figures: &Figures) -> Option<Verdict> {
    const GAIN: f64 = 1.4;
    const OF_RAW: f64 = 0.9;
    let gain = |subject| {
        let ratios = figures.ratios((titles::SYNCED_2, subject), (titles::SYNCED_1, subject))?;
        Spread::of(&ratios)
    };
    let raw = gain(Subject::Raw).map_or(GAIN, |raw| raw.median * OF_RAW);
    Some(Verdict {
        name: "16 KiB direct write + data sync: library, 2 threads / 1 thread",
        ratio: gain(Subject::Library)?,
        wanted: raw.min(GAIN),
        at_most: false,
    })
}

fn amplification(figures: &Figures) -> Option<Verdict> {
    const BYTES: f64 = 1.15;
    let ratio = Spread::of(figures.of(titles::AMPLIFICATION, Subject::Library)?)?;
    Some(Verdict {
        name: "bytes written to the device for each byte of 16 KiB pages, 32 for each sync: library",
        ratio,
        wanted: BYTES,
        at_most: true,
    })
}

#[cfg(test)]
mod tests {
    use super::super::figures::Unit;
    use super::*;

    #[test]
    fn bars_are_met_or_missed_or_not_measured() {
        let mut figures = Figures::default();
        assert!(verdicts(&figures).is_empty());
        figures.add(titles::READ_16K_1, Unit::Operations, Subject::Raw, 1000.0);
        figures.add(titles::READ_16K_1, Unit::Operations, Subject::Library, 901.0);
        figures.add(titles::AMPLIFICATION, Unit::Factor, Subject::Library, 1.2);
        let met: Vec<bool> = verdicts(&figures).iter().map(Verdict::is_met).collect();
        assert_eq!(met, [true, false]);
    }

    #[test]
    fn a_second_thread_need_not_gain_more_than_the_device_gives() {
        let mut figures = Figures::default();
        for (subject, one, two) in [(Subject::Library, 100.0, 120.0), (Subject::Raw, 100.0, 130.0)] {
            figures.add(titles::SYNCED_1, Unit::Operations, subject, one);
            figures.add(titles::SYNCED_2, Unit::Operations, subject, two);
        }
        let verdict = two_threads(&figures).unwrap();
        assert!((verdict.wanted - 1.17).abs() < 1e-9 && verdict.is_met(), "{verdict:?}");
    }
}
