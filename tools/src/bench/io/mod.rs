//! `dbfs bench io`: reads and writes of one file, in this process, through the library.

mod job;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use fs_core::api::{FsOps, IoFlags, Owner, SetAttr};
use fs_core::{Ino, StopFlag, Volume};

use crate::observe::metered::DeviceStats;
use crate::options::{self, Options};
use crate::{engine, output, size};
use job::{Job, Outcome, Rw, SyncMode};

/// Measure reads and writes of a file on a volume that is not mounted, without FUSE.
///
/// The volume is opened in this process. A file `dbfs-bench-io` is made in its root, filled, worked on as
/// fio(1) does, and removed again; other files are left alone. Without --buffered, reads and writes go past the
/// page cache. Every read is verified by its checksums, every direct write is atomic.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is done, in the whole file; `append` begins with an empty file
    #[arg(long, value_enum, default_value_t = Rw::Randread)]
    rw: Rw,
    /// Bytes of each read or write
    #[arg(long, value_name = "SIZE", default_value = "16K", value_parser = parse_block)]
    bs: u64,
    /// Threads, each with one request at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// How long
    #[arg(long, value_name = "S", default_value = "5", value_parser = parse_seconds)]
    seconds: Duration,
    /// End after so many operations, if that is earlier
    #[arg(long, value_name = "N")]
    ops: Option<u64>,
    /// Size of the file
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size::parse)]
    size: u64,
    /// How writes are made durable
    #[arg(long, value_enum, default_value_t = SyncMode::None)]
    sync: SyncMode,
    /// Writes of a thread for each fdatasync
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Through the page cache
    #[arg(long)]
    buffered: bool,
    /// Size of the page cache
    #[arg(long, value_name = "SIZE", value_parser = options::cache_size)]
    cache: Option<u64>,
    /// What the offsets follow from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Leave the file for the next job
    #[arg(long)]
    keep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Block device or image file
    volume: PathBuf,
}

fn parse_block(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes @ 512..=1_048_576 => Ok(bytes),
        _ => Err("it must be from 512 bytes to 1 MiB".into()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("it must be from 0.001 to 86400 seconds".into()),
    }
}

/// Name of the file, in the root.
const NAME: &[u8] = b"dbfs-bench-io";

/// Largest request that fills it.
const STEP: u64 = 1 << 20;

/// What the device was asked for, from one moment to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
struct DeviceWork {
    read_bytes: u64,
    written_bytes: u64,
    flushes: u64,
}

impl DeviceWork {
    /// Since the start.
    fn so_far(stats: &DeviceStats) -> Self {
        let mut work = Self::default();
        for kind in stats.read() {
            match kind.name {
                "read" => work.read_bytes = kind.bytes,
                "write" => work.written_bytes = kind.bytes,
                "flush" => work.flushes = kind.latency.count(),
                _ => {}
            }
        }
        work
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            read_bytes: self.read_bytes - earlier.read_bytes,
            written_bytes: self.written_bytes - earlier.written_bytes,
            flushes: self.flushes - earlier.flushes,
        }
    }
}

/// All that is known of a job.
struct Report {
    outcome: Outcome,
    /// While the job ran.
    device: DeviceWork,
    /// From its start until nothing was left to be done.
    device_in_all: DeviceWork,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    anyhow::ensure!(args.size >= args.bs, "a file of {} has no room for one request", size::show(args.size));
    let options = Options {
        cache: args.cache.map(usize::try_from).transpose().context("the page cache is too large")?,
        ..Options::default()
    };
    let (device, stats) = engine::open_for_mount(&args.volume, &options)?;
    let volume = engine::mount(&args.volume, device, &options)?;
    let measured = measure(args, &volume, &stats);
    // Whatever happened, what others have on the volume has to be safe.
    let home = volume.shutdown().context("the last changes may not have reached the volume");
    drop(volume);
    let in_all = DeviceWork::so_far(&stats);
    let removed = if args.keep { Ok(()) } else { remove_file(&args.volume, &options) };
    let (outcome, before, after) = measured?;
    home.and(removed)?;
    let report = Report { outcome, device: after.since(before), device_in_all: in_all.since(before) };
    print(args, &report)?;
    Ok(ExitCode::SUCCESS)
}

/// The job, with what the device had done before and after it.
fn measure(
    args: &Args,
    volume: &Arc<Volume>,
    stats: &DeviceStats,
) -> Result<(Outcome, DeviceWork, DeviceWork)> {
    let stop = Arc::new(StopFlag::default());
    let background = std::thread::spawn({
        let (volume, stop) = (volume.clone(), stop.clone());
        move || volume.run_background(&stop)
    });
    let measured = lay_out(args, volume).and_then(|ino| {
        // What is left of laying out is not the job's.
        volume.sync_all()?;
        let before = DeviceWork::so_far(stats);
        let job = Job {
            rw: args.rw,
            block: args.bs as usize,
            threads: args.threads,
            time: args.seconds,
            operations: args.ops.unwrap_or(u64::MAX),
            size: args.size,
            sync: args.sync,
            every: args.every,
            direct: !args.buffered,
            seed: args.seed,
        };
        let outcome = job.run(volume.as_ref(), ino);
        volume.close(ino);
        Ok((outcome?, before, DeviceWork::so_far(stats)))
    });
    stop.stop();
    background.join().map_err(|_| anyhow!("the background thread panicked"))?;
    measured
}

/// Makes the file, or takes the one that an earlier job kept, and fills it.
fn lay_out(args: &Args, volume: &Volume) -> Result<Ino> {
    let attr = match volume.lookup(Ino::ROOT, NAME) {
        Ok(attr) => volume.open(attr.ino)?,
        Err(error) if error.errno() == libc::ENOENT => {
            volume.create(Ino::ROOT, NAME, 0o600, Owner::new(0, 0))?
        }
        Err(error) => return Err(error).context("cannot look for the file"),
    };
    let resize = |size| volume.setattr(attr.ino, &SetAttr { size: Some(size), ..SetAttr::default() });
    if args.rw == Rw::Append {
        resize(0)?;
        return Ok(attr.ino);
    }
    let step = vec![0x5a; STEP as usize];
    let mut at = attr.size;
    while at < args.size {
        let length = STEP.min(args.size - at);
        let flags = IoFlags { direct: true, ..IoFlags::default() };
        volume.write(attr.ino, at, &step[..length as usize], flags).context("cannot fill the file")?;
        at += length;
    }
    Ok(attr.ino)
}

/// Removes the file, if it was made, when nothing is counted any more.
fn remove_file(path: &Path, options: &Options) -> Result<()> {
    let (device, _) = engine::open_for_mount(path, options)?;
    let volume = engine::mount(path, device, options)?;
    let removed = match volume.unlink(Ino::ROOT, NAME) {
        Err(error) if error.errno() != libc::ENOENT => Err(error).context("cannot remove the file"),
        _ => Ok(()),
    };
    volume.shutdown().context("the last changes may not have reached the volume")?;
    removed
}

fn print(args: &Args, report: &Report) -> Result<()> {
    let Outcome { operations, seconds, ref latency } = report.outcome;
    let rate = operations as f64 / seconds;
    let bytes = operations * args.bs;
    let micros = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| micros(latency.quantile(q)));
    if args.json {
        return output::json(&serde_json::json!({
            "rw": args.rw.name(),
            "bs": args.bs,
            "threads": args.threads,
            "sync": args.sync.name(),
            "every": args.every,
            "direct": !args.buffered,
            "size": args.size,
            "seconds": seconds,
            "operations": operations,
            "iops": rate,
            "bytes": bytes,
            "latency_us": { "p50": p50, "p99": p99, "p99.9": p999, "max": micros(latency.max()) },
            "device": report.device,
            "device_until_home": report.device_in_all,
        }));
    }
    let mut text = format!(
        "{operations} operations in {seconds:.2} s: {rate:.0}/s, {:.1} MiB/s\n\
         latency: median {p50:.1} us, 99% {p99:.1} us, 99.9% {p999:.1} us, longest {:.1} us\n\
         device: {} read, {} written, {} flushes\n",
        bytes as f64 / seconds / f64::from(1 << 20),
        micros(latency.max()),
        size::show(report.device.read_bytes),
        size::show(report.device.written_bytes),
        report.device.flushes,
    );
    if args.rw.writes() && bytes > 0 {
        let share = report.device_in_all.written_bytes as f64 / bytes as f64;
        text +=
            &format!("until all was home: {share:.3} bytes written to the device for each of the job's\n");
    }
    output::text(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_times_have_bounds() {
        assert_eq!(parse_block("16K"), Ok(16 << 10));
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "511", "2M", "x"] {
            assert!(parse_block(wrong).is_err(), "{wrong}");
        }
        for wrong in ["0", "-1", "NaN", "inf", "1e9", ""] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }
}
