//! Threads that read and write a file.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use fs_core::Ino;
use fs_core::api::{FsOps, IoFlags};
use fs_core::stats::{Histogram, HistogramValues};

use crate::bench::rng::Rng;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rw {
    /// Reads, one behind the other
    Read,
    /// Writes, one behind the other
    Write,
    /// Reads at random
    Randread,
    /// Writes at random
    Randwrite,
    /// Writes that make the file longer
    Append,
}

impl Rw {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Rw::Read => "read",
            Rw::Write => "write",
            Rw::Randread => "randread",
            Rw::Randwrite => "randwrite",
            Rw::Append => "append",
        }
    }

    /// Whether it writes.
    pub fn writes(self) -> bool {
        !matches!(self, Rw::Read | Rw::Randread)
    }
}

/// How writes are made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SyncMode {
    /// Not at all
    None,
    /// Each by itself, as with O_DSYNC
    Dsync,
    /// By fdatasync after it, or after some
    Fdatasync,
}

impl SyncMode {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            SyncMode::None => "none",
            SyncMode::Dsync => "dsync",
            SyncMode::Fdatasync => "fdatasync",
        }
    }
}

/// A job.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// What is done.
    pub rw: Rw,
    /// Bytes of each read or write.
    pub block: usize,
    /// Threads, each with one request at a time.
    pub threads: u32,
    /// How long.
    pub time: Duration,
    /// It ends earlier after so many.
    pub operations: u64,
    /// Bytes of the file that are used.
    pub size: u64,
    /// How writes are made durable.
    pub sync: SyncMode,
    /// Writes of a thread for each fdatasync.
    pub every: u64,
    /// Past the page cache.
    pub direct: bool,
    /// What the offsets follow from.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Reads or writes.
    pub operations: u64,
    /// How long they took.
    pub seconds: f64,
    /// Nanoseconds of each, its share of syncs included where a sync follows it.
    pub latency: HistogramValues,
}

/// What the threads share.
struct Shared<'a> {
    job: &'a Job,
    fs: &'a dyn FsOps,
    ino: Ino,
    /// Operations begun.
    begun: AtomicU64,
    failed: AtomicBool,
    latency: Histogram,
    start: Instant,
}

impl Job {
    /// Runs it on an open file. Blocks until all threads have ended; an error if one met an error.
    pub fn run(&self, fs: &dyn FsOps, ino: Ino) -> Result<Outcome> {
        let shared = Shared {
            job: self,
            fs,
            ino,
            begun: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            latency: Histogram::default(),
            start: Instant::now(),
        };
        std::thread::scope(|scope| {
            let shared = &shared;
            let threads: Vec<_> =
                (0..self.threads).map(|thread| scope.spawn(move || shared.work(thread.into()))).collect();
            threads.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow!("a thread panicked"))?)
        })?;
        let seconds = shared.start.elapsed().as_secs_f64();
        let latency = shared.latency.read();
        Ok(Outcome { operations: latency.count(), seconds, latency })
    }
}

impl Shared<'_> {
    fn work(&self, thread: u64) -> Result<()> {
        let outcome = self.loop_over(thread);
        if outcome.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        outcome
    }

    fn loop_over(&self, thread: u64) -> Result<()> {
        let job = self.job;
        let mut rng = Rng::new(job.seed.wrapping_add(thread << 32));
        let mut buffer = vec![0x5a; job.block];
        let mut unsynced = 0;
        while self.start.elapsed() < job.time && !self.failed.load(Ordering::Relaxed) {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            if number >= job.operations {
                break;
            }
            let offset = self.offset(number, &mut rng);
            let begun = Instant::now();
            self.transfer(offset, &mut buffer)?;
            unsynced += 1;
            if job.sync == SyncMode::Fdatasync && job.rw.writes() && unsynced >= job.every {
                self.fs.fsync(self.ino, true)?;
                unsynced = 0;
            }
            self.latency.record(begun.elapsed().as_nanos() as u64);
        }
        Ok(())
    }

    /// Where operation `number` of all threads is done.
    fn offset(&self, number: u64, rng: &mut Rng) -> u64 {
        let block = self.job.block as u64;
        let blocks = self.job.size / block;
        match self.job.rw {
            Rw::Randread | Rw::Randwrite => rng.below(blocks) * block,
            Rw::Read | Rw::Write => number % blocks * block,
            Rw::Append => number * block,
        }
    }

    fn transfer(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let dsync = self.job.sync == SyncMode::Dsync;
        let flags = IoFlags { direct: self.job.direct, dsync, ..IoFlags::default() };
        let length = buffer.len();
        let done = if self.job.rw.writes() {
            self.fs.write(self.ino, offset, buffer, flags)?
        } else {
            self.fs.read(self.ino, offset, buffer, IoFlags { dsync: false, ..flags })?
        };
        anyhow::ensure!(done == length, "{done} of {length} bytes at {offset}");
        Ok(())
    }
}
