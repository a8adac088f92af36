//! Reads and writes of one file or device.

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use super::figures::{Figures, Unit};
use super::fio::{Job, Sync};
use super::subject::Subject;
use super::{Effort, Group, titles};
use crate::buffer::Buffer;
use crate::rng::Rng;

/// Bytes of a database's page, and of a request of the random jobs.
pub const PAGES: [u64; 2] = [16 << 10, 8 << 10];

/// Requests in flight in the random jobs.
pub const DEPTHS: [u32; 3] = [1, 4, 16];

/// Bytes that PostgreSQL writes its log in place in.
pub const SEGMENT: u64 = 16 << 20;

/// Random overwrites of a file that has aged, at most: several for each of its pages.
const OVERWRITES: u64 = 60_000;

/// One of the jobs that a file system, the device and the library have in common.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// Its kind.
    pub group: Group,
    /// As fio has it, except for the file.
    pub job: Job<'static>,
    /// It writes a new file, or the beginning of the device.
    pub appends: bool,
}

impl Shared {
    /// Its name in the tables.
    pub fn title(&self) -> String {
        let Job { rw, block, threads, depth, sync, .. } = self.job;
        let size = block >> 10;
        match (rw, sync) {
            ("randread", _) => format!("{size} KiB direct random read, depth {depth}"),
            ("randwrite", Sync::None) => format!("{size} KiB direct random write, depth {depth}"),
            ("randwrite", _) => match threads {
                1 => titles::SYNCED_1.into(),
                _ => titles::SYNCED_2.into(),
            },
            ("read", _) => titles::SEQUENTIAL_READ.into(),
            (_, Sync::None) => titles::SEQUENTIAL_WRITE.into(),
            _ if self.appends => titles::APPEND.into(),
            _ => titles::LOG.into(),
        }
    }
}

/// The jobs of the chosen groups, in an order in which the first ones meet the file as it was laid out.
pub fn shared(effort: &Effort) -> Vec<Shared> {
    let base = Job {
        rw: "read",
        block: 1 << 20,
        threads: 1,
        depth: 1,
        size: effort.size,
        direct: true,
        sync: Sync::None,
        seconds: effort.seconds,
    };
    let new = |group, job| Shared { group, job, appends: false };
    let mut all = vec![new(Group::Sequential, base)];
    let random = |rw| {
        let depths = move |block| DEPTHS.map(|depth| Job { rw, block, depth, ..base });
        PAGES.into_iter().flat_map(depths)
    };
    all.extend(random("randread").map(|job| new(Group::Read, job)));
    all.push(new(Group::Sequential, Job { rw: "write", ..base }));
    all.extend(random("randwrite").map(|job| new(Group::Write, job)));
    let synced = |threads| Job { rw: "randwrite", block: PAGES[0], threads, sync: Sync::Dsync, ..base };
    all.extend([1, 2].map(|threads| new(Group::Sync, synced(threads))));
    // A database's log: buffered, except where there is no cache to go through.
    let log = Job { rw: "write", block: 8 << 10, direct: false, sync: Sync::Fdatasync, ..base };
    all.push(new(Group::Log, Job { size: SEGMENT, ..log }));
    all.push(Shared { group: Group::Log, job: Job { size: effort.room, ..log }, appends: true });
    all.retain(|shared| effort.groups.contains(&shared.group));
    all
}

/// Fills the file, so that every later write overwrites.
pub fn lay_out(path: &Path, size: u64) -> Result<()> {
    let file = open(path, true)?;
    let mut buffer = Buffer::new(1 << 20);
    for offset in (0..size).step_by(1 << 20) {
        file.write_all_at(buffer.bytes(), offset)?;
    }
    file.sync_all().context("cannot lay the file out")
}

/// Overwrites pages at random, until the file is in pieces.
pub fn age(path: &Path, size: u64) -> Result<()> {
    let pages = size / PAGES[0];
    let file = open(path, false)?;
    let mut rng = Rng::new(1);
    let mut buffer = Buffer::new(usize::try_from(PAGES[0])?);
    for _ in 0..OVERWRITES.min(pages * 4) {
        file.write_all_at(buffer.bytes(), rng.range(0, pages) * PAGES[0])?;
    }
    file.sync_all().context("cannot age the file")
}

/// Runs the jobs on a laid-out file or the raw device.
pub fn run(path: &Path, subject: Subject, effort: &Effort, figures: &mut Figures) -> Result<()> {
    for Shared { job, appends, group } in shared(effort) {
        let title = Shared { job, appends, group }.title();
        let is_raw = subject == Subject::Raw;
        let job = Job { direct: job.direct || is_raw, ..job };
        let rate = if appends && !is_raw {
            let log = path.with_extension("log");
            let rate = job.run(&log);
            std::fs::remove_file(&log)?;
            rate?
        } else {
            job.run(path)?
        };
        figures.add(&title, Unit::Operations, subject, rate);
        // Each of its writes is all or nothing in any case.
        if title == titles::SYNCED_1 && matches!(subject, Subject::Dbfs | Subject::Aged) {
            figures.add(titles::ATOMIC, Unit::Operations, subject, rate);
        }
    }
    if subject == Subject::Xfs && effort.groups.contains(&Group::Sync) {
        match atomic_writes(path, effort)? {
            Some(rate) => figures.add(titles::ATOMIC, Unit::Operations, subject, rate),
            None => println!("     this kernel's XFS has no atomic writes of 16 KiB"),
        }
    }
    Ok(())
}

fn open(path: &Path, create: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create);
    options.custom_flags(i32::try_from(OFlags::DIRECT.bits())?);
    options.open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Random synced writes with `RWF_ATOMIC` per second; `None` if the kernel has no such thing.
fn atomic_writes(path: &Path, effort: &Effort) -> Result<Option<f64>> {
    /// From linux/fs.h.
    const RWF_ATOMIC: u32 = 0x40;
    let flags = ReadWriteFlags::DSYNC | ReadWriteFlags::from_bits_retain(RWF_ATOMIC);
    let file = open(path, false)?;
    let mut rng = Rng::new(1);
    let mut buffer = Buffer::new(usize::try_from(PAGES[0])?);
    let start = Instant::now();
    let mut done = 0;
    while start.elapsed() < Duration::from_secs_f64(effort.seconds) {
        let offset = rng.range(0, effort.size / PAGES[0]) * PAGES[0];
        match pwritev2(&file, &[IoSlice::new(buffer.bytes())], offset, flags) {
            Ok(_) => done += 1,
            Err(Errno::OPNOTSUPP | Errno::INVAL) if done == 0 => return Ok(None),
            Err(errno) => return Err(errno).context("an atomic write failed"),
        }
    }
    Ok(Some(rate(start, done)))
}

/// Operations per second since `start`.
pub fn rate(start: Instant, operations: u64) -> f64 {
    operations as f64 / start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_that_bars_refer_to_are_done() {
        let done: Vec<String> = shared(&Effort::for_tests()).iter().map(Shared::title).collect();
        for title in [
            titles::READ_16K_1,
            titles::READ_16K_16,
            titles::SYNCED_1,
            titles::SYNCED_2,
            titles::LOG,
            titles::APPEND,
            titles::SEQUENTIAL_READ,
            titles::SEQUENTIAL_WRITE,
        ] {
            assert_eq!(done.iter().filter(|name| *name == title).count(), 1, "{title}: {done:#?}");
        }
        assert_eq!(done.len(), 12 + 2 + 2 + 2);
        let only = Effort { groups: vec![Group::Read], ..Effort::for_tests() };
        assert!(shared(&only).iter().all(|shared| shared.group == Group::Read));
    }
}
