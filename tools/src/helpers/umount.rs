//! `umount.dbfs` and `umount.fuse.dbfs`, as umount(8) calls them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ArgAction;

use crate::umount::{self, How};

/// Unmount a dbfs volume; called by umount(8). Returns when everything is on the device.
///
/// Exit codes: 0 unmounted, 1 usage, 32 not unmounted (or not known to be all on the device).
#[derive(Debug, clap::Parser)]
#[allow(dead_code, reason = "some options are taken and need nothing to be done")]
#[command(name = "umount.dbfs", version)]
pub struct Args {
    /// Cut off programs that still use it
    #[arg(short = 'f')]
    force: bool,
    /// Take it out of the tree now and end it when nobody uses it any more; does not wait
    #[arg(short = 'l')]
    lazy: bool,
    /// Ignored: there is no /etc/mtab
    #[arg(short = 'n')]
    no_mtab: bool,
    /// If it is in use, make it read-only instead
    #[arg(short = 'r')]
    read_only: bool,
    /// Say what is unmounted
    #[arg(short = 'v', action = ArgAction::Count)]
    verbose: u8,
    /// Ignored: the only type is fuse.dbfs
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
    /// Where it is mounted
    dir: PathBuf,
}

/// Unmounts.
pub fn run(args: &Args) -> Result<ExitCode> {
    let how = match (args.force, args.lazy, args.read_only) {
        (_, true, _) => How::Lazy,
        (true, ..) => How::Force,
        (.., true) => How::OrReadOnly,
        _ => How::Plain,
    };
    umount::unmount(&args.dir, how, umount::PATIENCE)?;
    if args.verbose > 0 {
        crate::output::done(&format!("{} is unmounted", args.dir.display()));
    }
    Ok(ExitCode::SUCCESS)
}
