//! `dbfs mount`: starts the daemon of a volume.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rustix::mount::UnmountFlags;

use crate::daemon::{self, Report, Side};
use crate::options::Options;
use crate::{logging, mounts, serve};

/// Mount a dbfs volume. Returns when the mount is live.
///
/// A daemon that is still draining the volume is waited for, up to 10 seconds. Stop the daemon with
/// `dbfs umount DIR`, or with SIGTERM.
///
/// Exit codes: 0 mounted, 1 usage, 32 not mounted.
#[derive(Debug, clap::Args)]
#[command(after_help = OPTIONS_HELP)]
pub struct Args {
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS", value_parser = known_options)]
    options: Vec<String>,
    /// Do not become a daemon
    #[arg(long, short = 'f')]
    foreground: bool,
    /// Block device or image file
    volume: PathBuf,
    /// Where to mount it
    dir: PathBuf,
}

const OPTIONS_HELP: &str = "\
Mount options:
  ro, rw                 change nothing on the volume / read and write
  allow_other            let other users in (default if root mounts)
  default_permissions    the kernel checks permissions (always on)
  nodev, nosuid, noexec  as for every file system
  noatime, relatime      never update access times / only if they are old (default)
  sync                   every write is O_SYNC
  commit=SECONDS         greatest age of changes that nobody has synced (default 2)
  cache=SIZE             page cache (default 256M)
  threads=N              threads that serve requests (default 16)
  engine=auto|uring|pread   how requests reach the device
  log=FILE               where the daemon's messages go (default: the system's log, with
                         --foreground the terminal; DBFS_LOG=debug and the like set the level)
  record=FILE            record every write and flush of the device
  cached_opens           treat O_DIRECT opens as on kernels before 6.6";

/// Makes a wrong option a matter of usage.
fn known_options(list: &str) -> Result<String, String> {
    let list = list.to_owned();
    match Options::parse(std::slice::from_ref(&list)) {
        Ok(_) => Ok(list),
        Err(e) => Err(format!("{e:#}")),
    }
}

/// Runs the command, and in the daemon's process the daemon.
pub fn run(args: &Args) -> Result<ExitCode> {
    let options = Options::parse(&args.options)?;
    let dir = prepare_dir(&args.dir)?;
    let volume = args
        .volume
        .canonicalize()
        .with_context(|| format!("cannot find the volume {}", args.volume.display()))?;
    let mut report = if args.foreground {
        Report::to_nobody()
    } else {
        match daemon::daemonize()? {
            Side::Command(outcome) => return outcome.map(|()| ExitCode::SUCCESS),
            Side::Daemon(report) => report,
        }
    };
    let served = serve_volume(&volume, &dir, &options, args.foreground, &mut report);
    match served {
        Err(error) if report.failed(&error) => Ok(ExitCode::from(crate::MOUNT_FAILURE)),
        Err(error) => {
            // The mount was live, or nobody waits: standard error may go nowhere.
            tracing::error!("{error:#}");
            Err(error)
        }
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

fn serve_volume(
    volume: &Path,
    dir: &Path,
    options: &Options,
    foreground: bool,
    report: &mut Report,
) -> Result<()> {
    logging::start(options.log.as_deref(), !foreground)?;
    serve::serve(volume, dir, options, report)
}

/// Finds the directory; if a daemon died there, takes its dead mount away first.
fn prepare_dir(dir: &Path) -> Result<PathBuf> {
    let path = mounts::absolute(dir).with_context(|| format!("cannot mount on {}", dir.display()))?;
    let meta = match std::fs::metadata(&path) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) && mounts::mounted_on(&path)?.is_some() => {
            rustix::mount::unmount(&path, UnmountFlags::DETACH)
                .with_context(|| format!("cannot remove the dead mount on {}", path.display()))?;
            std::fs::metadata(&path)
        }
        other => other,
    };
    let meta = meta.with_context(|| format!("cannot mount on {}", path.display()))?;
    if !meta.is_dir() {
        bail!("cannot mount on {}: it is not a directory", path.display());
    }
    Ok(path)
}
