//! `dbfs fsck`: checks a volume.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use blockdev::{BlockDevice, Engine};
use fs_core::FsError;
use fs_core::fsck::{CheckOptions, Report, Stats};

use crate::{engine, output, size};

/// Exit codes of fsck(8).
const CLEAN: u8 = 0;
const ERRORS_LEFT: u8 = 4;
/// Wrong usage.
pub const USAGE: u8 = 16;

/// How often the progress is shown.
const PROGRESS: Duration = Duration::from_millis(200);

/// Check a dbfs volume: all metadata, and with --data all data.
///
/// Changes nothing. Reads the volume as a mount would recover it. A daemon that is still draining
/// the volume is waited for, up to 10 seconds.
///
/// Exit codes: 0 no errors, 4 errors found, 8 the check could not be done, 16 usage.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only check, repair nothing (required: repairing is not possible yet)
    #[arg(short = 'n', required = true)]
    no_repair: bool,
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
        Self { no_repair: true, data: false, json: false, volume }
    }
}

/// What is checked at boot: that a mount would recover the volume. Prints one line.
pub fn quick(volume: &Path) -> Result<ExitCode> {
    let shown = volume.display();
    let device = engine::open_device(volume, true, Engine::Auto)?;
    match fs_core::dump::info_json(&device) {
        Ok(info) => {
            let journal =
                if info["changes_to_replay"] == true { " (a mount replays the journal)" } else { "" };
            println!("{shown}: clean{journal}, {} inodes, {} bytes free", info["inodes"], info["free_bytes"]);
            Ok(ExitCode::from(CLEAN))
        }
        Err(FsError::Device(e)) => Err(e).with_context(|| format!("cannot read {shown}")),
        Err(e) => {
            println!("{shown}: cannot be mounted: {e}; run `dbfs fsck` on it by hand");
            Ok(ExitCode::from(ERRORS_LEFT))
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let volume = args.volume.display();
    let device = engine::open_device(&args.volume, true, Engine::Auto)?;
    let device: Arc<dyn BlockDevice> = Arc::new(device);
    let meter = Meter::default();
    let show = |stats: &Stats| meter.show(stats);
    let progress: Option<&dyn Fn(&Stats)> = io::stderr().is_terminal().then_some(&show);
    let checked = fs_core::fsck::check(&device, &CheckOptions { data: args.data, progress });
    meter.clear();
    let report = checked.with_context(|| format!("cannot check {volume}"))?;
    if report.volume.is_none() && report.is_clean() {
        bail!("cannot check {volume}: no volume was found on it");
    }
    if args.json {
        output::json(&report)?;
    } else {
        output::stream(|out| print(out, args, &report))?;
    }
    Ok(ExitCode::from(if report.is_clean() { CLEAN } else { ERRORS_LEFT }))
}

fn print(out: &mut dyn Write, args: &Args, report: &Report) -> io::Result<()> {
    let volume = args.volume.display();
    for problem in &report.problems {
        writeln!(out, "{problem}")?;
    }
    if report.more_problems > 0 {
        writeln!(out, "and {} more problems", report.more_problems)?;
    }
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
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
        0 => writeln!(out, "{volume}: clean")?,
        1 => writeln!(out, "{volume}: 1 PROBLEM; copy what matters from a read-only mount, do not write")?,
        n => writeln!(out, "{volume}: {n} PROBLEMS; copy what matters from a read-only mount, do not write")?,
    }
    Ok(())
}

/// A line on the terminal that shows how far the check is.
#[derive(Default)]
struct Meter {
    shown: Cell<Option<Instant>>,
}

impl Meter {
    fn show(&self, stats: &Stats) {
        if self.shown.get().is_some_and(|at| at.elapsed() < PROGRESS) {
            return;
        }
        self.shown.set(Some(Instant::now()));
        // A progress line that cannot be shown is no reason to stop.
        let _ =
            write!(io::stderr(), "\r\x1b[K{} items, {} pages verified", stats.items, stats.verified_pages);
    }

    fn clear(&self) {
        if self.shown.get().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
