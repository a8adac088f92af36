//! `dbfs fsck`: checks a volume, and repairs it.

mod meter;
mod repair;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use blockdev::{BlockDevice, Engine};
use fs_core::FsError;
use fs_core::fsck::{CheckOptions, Report, Stats};

use crate::{FSCK_FAILURE, engine, output, size};
pub use meter::Meter;
use repair::Mode;

/// Exit codes of fsck(8).
const CLEAN: u8 = 0;
const CORRECTED: u8 = 1;
const ERRORS_LEFT: u8 = 4;
const CANCELLED: u8 = 32;
/// Wrong usage.
pub const USAGE: u8 = 16;

/// Check a dbfs volume: all metadata, and with --data all data; repair it if something is wrong.
///
/// Without -n, -y or -p, each kind of repair is asked about on a terminal; without a terminal nothing
/// is repaired. A repair is written as a whole or not at all, into free space, and takes effect with
/// the last write. With --data, the whole volume is also searched for a newer state than the one that
/// a mount would use. A daemon that is still draining the volume is waited for, up to 10 seconds.
///
/// If the device fails a read, nothing is repaired, for what is there would be given up: mend the path to
/// the device, or copy the device to a good one (with ddrescue) and repair the copy.
///
/// Exit codes: 0 no errors, 1 errors corrected, 4 errors left, 8 the check could not be done, or not all
/// of it, as the device failed reads, 16 usage, 32 cancelled.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only check, repair nothing
    #[arg(short = 'n', conflicts_with_all = ["yes", "safe"])]
    no_repair: bool,
    /// Repair whatever can be repaired, without questions
    #[arg(short = 'y', conflicts_with = "safe")]
    yes: bool,
    /// Repair only what cannot lose anything: counters, orphans, copies of the superblock
    #[arg(short = 'p')]
    safe: bool,
    /// Read all data too and verify its checksums
    #[arg(long)]
    data: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Block device or image file
    volume: PathBuf,
}

impl Args {
    /// A check of the metadata of `volume`.
    pub fn check_of(volume: PathBuf) -> Self {
        Self { no_repair: true, yes: false, safe: false, data: false, json: false, volume }
    }

    /// A check of all metadata of `volume` with the repairs that these options of fsck(8) ask for.
    pub fn repair_of(volume: PathBuf, yes: bool, safe: bool) -> Self {
        Self { no_repair: false, yes, safe, data: false, json: false, volume }
    }

    fn mode(&self) -> Mode {
        match self {
            Self { no_repair: true, .. } => Mode::Check,
            Self { yes: true, .. } => Mode::All,
            Self { safe: true, .. } => Mode::Safe,
            _ if repair::can_ask() => Mode::Ask,
            _ => {
                output::say("there is no terminal to ask on: nothing will be repaired, as with -n");
                Mode::Check
            }
        }
    }
}

/// What is checked at boot: that a mount would recover the volume. Prints one line.
pub fn quick(volume: &Path) -> Result<ExitCode> {
    let shown = volume.display();
    let device = engine::open_to_look(volume)?;
    match fs_core::dump::info_json(&device) {
        Ok(info) => {
            let journal =
                if info["changes_to_replay"] == true { " (a mount replays the journal)" } else { "" };
            let (inodes, free) = (&info["inodes"], &info["free_bytes"]);
            output::text(&format!("{shown}: clean{journal}, {inodes} inodes, {free} bytes free\n"))?;
            Ok(ExitCode::from(CLEAN))
        }
        Err(FsError::Device(e)) => Err(e).with_context(|| format!("cannot read {shown}")),
        Err(e) => {
            output::text(&format!("{shown}: cannot be mounted: {e}; run `dbfs fsck` on it by hand\n"))?;
            Ok(ExitCode::from(ERRORS_LEFT))
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    run_with(args, &Meter::default())
}

/// Runs the command; `meter` shows progress.
pub fn run_with(args: &Args, meter: &Meter) -> Result<ExitCode> {
    let volume = args.volume.display();
    let mode = args.mode();
    repair::watch_interrupts()?;
    let device = engine::open_device(&args.volume, mode == Mode::Check, Engine::Auto)?;
    let device: Arc<dyn BlockDevice> = Arc::new(device);
    // What is in use is what there is to read.
    let used = fs_core::dump::info_json(&device).map_or(0, |info| used_blocks(&info));
    meter.show("checking", 0, used);
    let show =
        |s: &Stats| meter.show("checking", s.data_blocks + s.nodes * fs_core::NODE_BLOCKS as u64, used);
    let checked = fs_core::fsck::check(&device, &CheckOptions { data: args.data, progress: Some(&show) });
    meter.clear();
    let report = checked.with_context(|| format!("cannot check {volume}"))?;
    if report.volume.is_none() && report.is_clean() {
        bail!("cannot check {volume}: no volume was found on it");
    }
    let may_repair = mode != Mode::Check && report.read_errors == 0;
    let searched = args.data && may_repair;
    if may_repair && (!report.is_clean() || (searched && is_outdated(&device, meter)?)) {
        if !args.json {
            output::stream(|out| print_problems(out, &report))?;
        }
        return repair::run(args, mode, &device, &report, meter);
    }
    if args.json {
        output::json(&report)?;
    } else {
        output::stream(|out| print(out, args, &report))?;
    }
    Ok(ExitCode::from(match &report {
        r if r.read_errors > 0 => {
            // Said last, whatever the form of the report is.
            output::say(&format!("{volume}: {}", unreadable(r.read_errors, mode)));
            FSCK_FAILURE
        }
        r if r.is_clean() => CLEAN,
        _ => ERRORS_LEFT,
    }))
}

/// What to do about a device that fails reads.
fn unreadable(n: u64, mode: Mode) -> String {
    let reads = if n == 1 { "1 READ".to_owned() } else { format!("{n} READS") };
    let nothing =
        if mode == Mode::Check { "" } else { "nothing is repaired, for what is there would be given up; " };
    format!(
        "THE DEVICE FAILED {reads}: {nothing}look into the kernel's log, mend the path to the device, or copy \
         the device to a good one (with ddrescue) and repair the copy"
    )
}

/// The volume has traces of a newer state than the one that its roots lead to.
fn is_outdated(device: &Arc<dyn BlockDevice>, meter: &Meter) -> Result<bool> {
    let show = |what: &str, done, of| meter.show(what, done, of);
    let newer = fs_core::repair::has_newer_state(device, Some(&show));
    meter.clear();
    newer.context("cannot search the volume")
}

fn used_blocks(info: &serde_json::Value) -> u64 {
    let number = |name: &str| info[name].as_u64().unwrap_or(0);
    number("size_bytes").saturating_sub(number("free_bytes")) / fs_core::BLOCK_SIZE as u64
}

fn print_problems(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    for problem in &report.problems {
        writeln!(out, "{problem}")?;
    }
    if report.more_problems > 0 {
        writeln!(out, "and {} more problems", report.more_problems)?;
    }
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}

fn print(out: &mut dyn Write, args: &Args, report: &Report) -> io::Result<()> {
    let volume = args.volume.display();
    print_problems(out, report)?;
    let s = &report.stats;
    let block = fs_core::BLOCK_SIZE as u64;
    writeln!(
        out,
        "{volume}: {} names of {} inodes, {} of data, {} of metadata, {} free",
        s.names,
        s.inodes,
        size::show(s.data_blocks * block),
        size::show(s.metadata_bytes),
        size::show(s.free_blocks * block)
    )?;
    if args.data {
        writeln!(out, "{volume}: {} pages of data verified", s.verified_pages)?;
    }
    match report.problem_count() {
        _ if report.read_errors > 0 => {}
        0 => writeln!(out, "{volume}: clean")?,
        1 => writeln!(out, "{volume}: 1 PROBLEM; do not mount it for writing; `dbfs fsck -y` repairs it")?,
        n => writeln!(out, "{volume}: {n} PROBLEMS; do not mount it for writing; `dbfs fsck -y` repairs it")?,
    }
    Ok(())
}
