//! Reads and writes of one file or device.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;

use super::report::Table;
use super::subject::Subject;
use crate::buffer::Buffer;
use crate::rng::Rng;

/// The part of the file or device that is used.
const SPAN: u64 = 256 << 20;

/// How long each job runs.
const TIME: Duration = Duration::from_millis(1_500);

/// Fills the file, so that every later write overwrites.
pub fn lay_out(path: &Path, is_device: bool) -> Result<()> {
    let file = open(path, true, !is_device)?;
    let mut buffer = Buffer::new(1 << 20);
    for offset in (0..SPAN).step_by(1 << 20) {
        file.write_all_at(buffer.bytes(), offset)?;
    }
    file.sync_all().context("cannot lay the file out")
}

/// Runs all jobs on a laid-out file or device.
pub fn run(path: &Path, subject: Subject, table: &mut Table) -> Result<()> {
    let direct = open(path, true, false)?;
    for threads in [1, 4] {
        let read = random(&direct, threads, |file, buffer, offset| file.read_exact_at(buffer, offset))?;
        table.add(&format!("16 KiB direct random read, {threads} at once"), subject, read);
        let write = random(&direct, threads, |file, buffer, offset| file.write_all_at(buffer, offset))?;
        table.add(&format!("16 KiB direct random write, {threads} at once"), subject, write);
    }
    direct.sync_all()?;
    let write = sequential(&direct, |file, buffer, offset| file.write_all_at(buffer, offset))?;
    table.add("1 MiB direct sequential write", subject, write);
    let read = sequential(&direct, |file, buffer, offset| file.read_exact_at(buffer, offset))?;
    table.add("1 MiB direct sequential read", subject, read);
    direct.sync_all()?;
    // A database's log: buffered, except where there is no cache to go through.
    let log = open(path, subject == Subject::Raw, false)?;
    table.add("8 KiB write + fdatasync", subject, synced_writes(&log)?);
    Ok(())
}

fn open(path: &Path, direct: bool, create: bool) -> Result<File> {
    let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).custom_flags(i32::try_from(flags.bits())?);
    options.open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Random 16 KiB operations from several threads; microseconds per operation.
fn random(
    file: &File,
    threads: u64,
    operation: impl Fn(&File, &mut [u8], u64) -> std::io::Result<()> + Sync,
) -> Result<f64> {
    const SIZE: u64 = 16 << 10;
    let operation = &operation;
    let start = Instant::now();
    let worker = |thread: u64| -> Result<u64> {
        let mut rng = Rng::new(thread);
        let mut buffer = Buffer::new(SIZE as usize);
        let mut done = 0;
        while start.elapsed() < TIME {
            operation(file, buffer.bytes(), rng.range(0, SPAN / SIZE) * SIZE)?;
            done += 1;
        }
        Ok(done)
    };
    let done = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(move || worker(thread))).collect();
        let mut sum = 0;
        for worker in workers {
            match worker.join() {
                Ok(done) => sum += done?,
                Err(_) => bail!("a worker panicked"),
            }
        }
        Ok(sum)
    })?;
    Ok(per_operation(start, done))
}

/// 1 MiB operations through the whole span, once or more; microseconds per operation.
fn sequential(file: &File, operation: impl Fn(&File, &mut [u8], u64) -> std::io::Result<()>) -> Result<f64> {
    const SIZE: u64 = 1 << 20;
    let mut buffer = Buffer::new(SIZE as usize);
    let start = Instant::now();
    let mut done = 0;
    while start.elapsed() < TIME {
        operation(file, buffer.bytes(), done * SIZE % SPAN)?;
        done += 1;
    }
    Ok(per_operation(start, done))
}

/// Overwrites 8 KiB after 8 KiB within 16 MiB, as PostgreSQL does with a log segment, and makes each
/// durable; microseconds per operation.
fn synced_writes(file: &File) -> Result<f64> {
    const SIZE: u64 = 8 << 10;
    const SEGMENT: u64 = 16 << 20;
    let mut buffer = Buffer::new(SIZE as usize);
    let start = Instant::now();
    let mut done = 0;
    while start.elapsed() < TIME {
        file.write_all_at(buffer.bytes(), done * SIZE % SEGMENT)?;
        file.sync_data()?;
        done += 1;
    }
    Ok(per_operation(start, done))
}

/// Microseconds per operation since `start`.
pub fn per_operation(start: Instant, operations: u64) -> f64 {
    start.elapsed().as_secs_f64() * 1e6 / operations.max(1) as f64
}
