//! Where the time goes: latencies of calls and of their stages, by class of file, and the slowest
//! syncs.
//!
//! Every call works on its caller's thread, so what a call has spent in its stages is kept by thread
//! (`timer.rs`): no function has to hand it on. Time comes from [`Env`], which the simulator turns by
//! itself, so that measuring changes nothing in a run. Recording takes no lock and allocates nothing; a
//! wait that did not have to wait is neither measured nor counted.

mod class;
mod histogram;
mod slow;
mod timer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

pub(crate) use class::Usage;
pub use histogram::{Histogram, HistogramValues};
pub use slow::SlowSync;
pub(crate) use timer::CallTimer;

use crate::env::Env;
use crate::types::Lsn;
use slow::SlowRing;

/// Variants that are numbered from 0, with names for people, JSON and metrics.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $type { $($(#[$variant_doc])* $variant,)* }

        impl $type {
            /// All of them, in order.
            pub const ALL: [$type; [$($name),*].len()] = [$($type::$variant),*];

            /// Its name: lower case, stable.
            pub const fn name(self) -> &'static str {
                match self { $($type::$variant => $name,)* }
            }
        }
    };
}

named! {
    /// What a file is to a database, by how it is written (`stats/class.rs` has the rule).
    FileClass {
        /// Neither, or not known yet; and work that belongs to no file.
        Other "other",
        /// Pages of a database: blocks overwritten here and there.
        Data "data",
        /// A log: written in sequence and synced again and again.
        Log "log",
    }
}

named! {
    /// A part of a call. The stages of a call do not overlap: what is done within another stage counts
    /// for the inner one.
    Stage {
        /// Waiting to be let in (room in the journal, writeback of others' pages, a checkpoint that makes
        /// space), or for the commit of somebody else that was under way.
        Queue "queue",
        /// Waiting for pages or names that somebody else is changing.
        Lock "lock",
        /// Reading data from the device.
        Load "load",
        /// Writing data to the device.
        Data "data",
        /// Writing records of the journal, and making them durable where the device does both in one
        /// step (FUA).
        Journal "journal",
        /// Flushing the device's cache.
        Flush "flush",
    }
}

named! {
    /// A whole call of the file system.
    Call {
        /// Reads.
        Read "read",
        /// Writes, direct and synchronous ones included.
        Write "write",
        /// fsync and fdatasync.
        Fsync "fsync",
        /// Opening a file that exists.
        Open "open",
        /// Creating a file, directory, link or device.
        Create "create",
        /// Removing a name.
        Unlink "unlink",
        /// Renaming.
        Rename "rename",
    }
}

impl FileClass {
    fn from_index(i: u8) -> Self {
        Self::ALL.get(usize::from(i)).copied().unwrap_or(FileClass::Other)
    }
}

const CLASSES: usize = FileClass::ALL.len();
const STAGES: usize = Stage::ALL.len();
const CALLS: usize = Call::ALL.len();

/// What one class of files has cost.
#[derive(Debug, Default)]
struct ClassStats {
    stages: [Histogram; STAGES],
    calls: [Histogram; CALLS],
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

/// The live statistics of a volume.
pub(crate) struct Stats {
    env: Arc<dyn Env>,
    /// When the volume was mounted (monotonic ns).
    since_ns: u64,
    classes: [ClassStats; CLASSES],
    checkpoints: Histogram,
    /// When the checkpoint that runs has begun (monotonic ns, at least 1); 0: none runs.
    checkpoint_since: AtomicU64,
    checkpoint_lsn: AtomicU64,
    slow: Mutex<SlowRing>,
    bar: slow::Bar,
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stats").field("classes", &self.classes).finish_non_exhaustive()
    }
}

impl Stats {
    /// Nothing has happened yet but a checkpoint at `checkpoint`.
    pub(crate) fn new(env: Arc<dyn Env>, checkpoint: Lsn) -> Self {
        Self {
            since_ns: env.monotonic_ns(),
            env,
            classes: Default::default(),
            checkpoints: Histogram::default(),
            checkpoint_since: AtomicU64::new(0),
            checkpoint_lsn: AtomicU64::new(checkpoint.get()),
            slow: Mutex::default(),
            bar: slow::Bar::default(),
        }
    }

    fn class(&self, class: FileClass) -> &ClassStats {
        &self.classes[class as usize]
    }

    /// A checkpoint begins; it ends when the result is dropped.
    pub(crate) fn checkpoint(&self) -> impl Drop + use<'_> {
        struct Running<'a>(&'a Stats, u64);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.checkpoint_since.store(0, Ordering::Relaxed);
                self.0.checkpoints.record(self.0.env.monotonic_ns().saturating_sub(self.1));
            }
        }
        let now = self.env.monotonic_ns();
        self.checkpoint_since.store(now.max(1), Ordering::Relaxed);
        Running(self, now)
    }

    /// The root of a checkpoint at `lsn` is durable.
    pub(crate) fn checkpointed(&self, lsn: Lsn) {
        self.checkpoint_lsn.store(lsn.get(), Ordering::Relaxed);
    }

    /// Where the last checkpoint is.
    pub(crate) fn checkpoint_lsn(&self) -> Lsn {
        Lsn(self.checkpoint_lsn.load(Ordering::Relaxed))
    }

    /// Reads all of it. Takes some ten microseconds; blocks nobody.
    pub(crate) fn read(&self) -> StatsValues {
        let now = self.env.monotonic_ns();
        let read = |c: &ClassStats| ClassValues {
            stages: c.stages.iter().map(Histogram::read).collect(),
            calls: c.calls.iter().map(Histogram::read).collect(),
            bytes_read: c.bytes_read.load(Ordering::Relaxed),
            bytes_written: c.bytes_written.load(Ordering::Relaxed),
        };
        let since = self.checkpoint_since.load(Ordering::Relaxed);
        StatsValues {
            mounted_ns: now.saturating_sub(self.since_ns),
            classes: self.classes.iter().map(read).collect(),
            checkpoints: self.checkpoints.read(),
            checkpoint_running_ns: (since > 0).then(|| now.saturating_sub(since)),
        }
    }
}

/// What one class of files has cost so far.
#[derive(Clone, Debug)]
pub struct ClassValues {
    stages: Vec<HistogramValues>,
    calls: Vec<HistogramValues>,
    /// Bytes that reads have returned.
    pub bytes_read: u64,
    /// Bytes that writes have taken.
    pub bytes_written: u64,
}

impl ClassValues {
    /// Nanoseconds in a stage, each time one was met.
    pub fn stage(&self, stage: Stage) -> &HistogramValues {
        &self.stages[stage as usize]
    }

    /// Nanoseconds of whole calls.
    pub fn call(&self, call: Call) -> &HistogramValues {
        &self.calls[call as usize]
    }
}

/// A reading of a volume's statistics, since it was mounted.
#[derive(Clone, Debug)]
pub struct StatsValues {
    /// Nanoseconds since the mount.
    pub mounted_ns: u64,
    classes: Vec<ClassValues>,
    /// Nanoseconds that checkpoints took.
    pub checkpoints: HistogramValues,
    /// For how many nanoseconds a checkpoint has been running now, if one is.
    pub checkpoint_running_ns: Option<u64>,
}

impl StatsValues {
    /// What a class has cost.
    pub fn class(&self, class: FileClass) -> &ClassValues {
        &self.classes[class as usize]
    }

    /// What has come since an earlier reading. A checkpoint that runs is the later reading's.
    pub fn since(&self, earlier: &StatsValues) -> StatsValues {
        let each = |new: &[HistogramValues], old: &[HistogramValues]| {
            new.iter().zip(old).map(|(new, old)| new.since(old)).collect()
        };
        let class = |(new, old): (&ClassValues, &ClassValues)| ClassValues {
            stages: each(&new.stages, &old.stages),
            calls: each(&new.calls, &old.calls),
            bytes_read: new.bytes_read - old.bytes_read,
            bytes_written: new.bytes_written - old.bytes_written,
        };
        StatsValues {
            mounted_ns: self.mounted_ns,
            classes: self.classes.iter().zip(&earlier.classes).map(class).collect(),
            checkpoints: self.checkpoints.since(&earlier.checkpoints),
            checkpoint_running_ns: self.checkpoint_running_ns,
        }
    }

    /// A stage, over all classes.
    pub fn stage(&self, stage: Stage) -> HistogramValues {
        self.over_all(|c| c.stage(stage))
    }

    /// A call, over all classes.
    pub fn call(&self, call: Call) -> HistogramValues {
        self.over_all(|c| c.call(call))
    }

    fn over_all(&self, of: impl Fn(&ClassValues) -> &HistogramValues) -> HistogramValues {
        let mut all = HistogramValues::default();
        self.classes.iter().for_each(|c| all.merge(of(c)));
        all
    }
}
