//! `fsck.dbfs`, as fsck(8) and the boot call it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ArgAction;

use crate::fsck::{self, Meter};
use crate::output;

/// Check a dbfs volume and repair it; called by fsck(8).
///
/// With -a or -p, as at boot, only what a mount needs is checked unless -f is given: the journal is
/// replayed by the next mount anyway.
///
/// If the device fails a read, nothing is repaired: mend the path to it, or copy it to a good one (with
/// ddrescue) and repair the copy.
///
/// Exit codes: 0 no errors, 1 errors corrected, 4 errors left, 8 the check could not be done, or not all
/// of it, as the device failed reads, 16 usage, 32 cancelled.
#[derive(Debug, clap::Parser)]
#[allow(dead_code, reason = "some options are taken and need nothing to be done")]
#[command(name = "fsck.dbfs", version)]
pub struct Args {
    /// As at boot: without questions
    #[arg(short = 'a', short_alias = 'p', visible_short_alias = 'p')]
    automatic: bool,
    /// Only check, change nothing
    #[arg(short = 'n', conflicts_with_all = ["yes", "automatic"])]
    check_only: bool,
    /// Repair what can be repaired
    #[arg(short = 'y', conflicts_with = "automatic")]
    yes: bool,
    /// Ask before each kind of repair (as without options)
    #[arg(short = 'r')]
    ask: bool,
    /// Check everything, even if the volume seems to be clean
    #[arg(short = 'f')]
    force: bool,
    /// Write progress to this descriptor, in lines of "pass done of volume"; 0: show a bar, if there is
    /// a terminal; negative: as without the sign, but not before SIGUSR1 comes (SIGUSR2 stops it)
    #[arg(short = 'C', value_name = "FD", allow_hyphen_values = true)]
    progress: Option<i32>,
    /// Say more
    #[arg(short = 'v', action = ArgAction::Count)]
    verbose: u8,
    /// Ignored: there is no title
    #[arg(short = 'T')]
    no_title: bool,
    /// Block device or image file
    volume: PathBuf,
}

/// Checks.
pub fn run(args: &Args) -> Result<ExitCode> {
    // First of all: a number that is nobody's must not become that of something opened here.
    let meter = match args.progress.map(|fd| (fd, Meter::for_program(fd, &args.volume))) {
        None => Meter::default(),
        Some((_, Ok(meter))) => meter,
        Some((fd, Err(e))) => {
            output::say(&format!("fsck.dbfs: -C {fd}: no progress can be written to that descriptor: {e}"));
            return Ok(ExitCode::from(fsck::USAGE));
        }
    };
    if args.automatic && !args.force {
        return fsck::quick(&args.volume);
    }
    let volume = args.volume.clone();
    let args = match args.check_only {
        true => fsck::Args::check_of(volume),
        false => fsck::Args::repair_of(volume, args.yes, args.automatic),
    };
    fsck::run_with(&args, &meter)
}
