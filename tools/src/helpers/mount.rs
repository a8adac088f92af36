//! `mount.dbfs` and `mount.fuse.dbfs`, as mount(8) calls them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::ArgAction;

use crate::options::{Options, Unknown};
use crate::{mount, remount};

/// Mount a dbfs volume; called by mount(8).
///
/// Exit codes: 0 mounted, 1 usage, 32 not mounted.
#[derive(Debug, clap::Parser)]
#[allow(dead_code, reason = "some options are taken and need nothing to be done")]
#[command(name = "mount.dbfs", version, after_help = crate::options::HELP)]
pub struct Args {
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Ignore unknown mount options
    #[arg(short = 's')]
    sloppy: bool,
    /// Do everything but mount
    #[arg(short = 'f')]
    fake: bool,
    /// Say what is mounted
    #[arg(short = 'v', action = ArgAction::Count)]
    verbose: u8,
    /// Ignored: there is no /etc/mtab
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Mount read-only
    #[arg(short = 'r', long = "read-only", overrides_with = "read_write")]
    read_only: bool,
    /// Mount for reading and writing (the default)
    #[arg(short = 'w', long = "rw")]
    read_write: bool,
    /// Ignored: the only type is fuse.dbfs
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
    /// Block device or image file
    volume: PathBuf,
    /// Where to mount it
    dir: PathBuf,
}

/// Mounts, or changes a mount (`-o remount`).
pub fn run(args: &Args) -> Result<ExitCode> {
    let unknown = if args.sloppy { Unknown::Ignore } else { Unknown::Refuse };
    let mut options = match Options::parse(&args.options, unknown) {
        Ok(options) => options,
        // Wrong usage, for which mount(8) has an exit code of its own.
        Err(error) => {
            crate::output::say(&format!("mount.dbfs: {error:#}"));
            return Ok(ExitCode::from(super::USAGE));
        }
    };
    options.read_only |= args.read_only;
    if options.remount {
        return remount::run(&args.dir, &options, args.fake);
    }
    if args.fake {
        if !args.dir.is_dir() {
            bail!("cannot mount on {}: it is not a directory", args.dir.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let code = mount::in_background(&args.volume, &args.dir, &options)?;
    if args.verbose > 0 && code == ExitCode::SUCCESS {
        crate::output::done(&format!("{} is mounted on {}", args.volume.display(), args.dir.display()));
    }
    Ok(code)
}
