//! `dbfs mount`: starts the daemon of a volume.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::daemon::{self, Report, Side};
use crate::observe::http::{self, Address};
use crate::options::{self, Options, Unknown};
use crate::{logging, mounts, serve};

/// Mount a dbfs volume. Returns when the mount is live.
///
/// A daemon that is still draining the volume is waited for, up to 10 seconds. Stop the daemon with
/// `dbfs umount DIR`, or with SIGTERM.
///
/// Exit codes: 0 mounted, 1 usage, 32 not mounted.
#[derive(Debug, clap::Args)]
#[command(after_help = options::HELP)]
pub struct Args {
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS", value_parser = known_options)]
    options: Vec<String>,
    /// Serve metrics for Prometheus: on a port of the loopback interface, an IP:PORT, or a Unix socket
    #[arg(long, value_name = "ADDR|SOCKET", value_parser = |text: &str| http::option(text).map_err(|e| format!("{e:#}")))]
    metrics: Option<Address>,
    /// Do not become a daemon
    #[arg(long, short = 'f')]
    foreground: bool,
    /// Block device or image file
    volume: PathBuf,
    /// Where to mount it
    dir: PathBuf,
}

/// Makes a wrong option a matter of usage.
fn known_options(list: &str) -> Result<String, String> {
    let list = list.to_owned();
    match Options::parse(std::slice::from_ref(&list), Unknown::Refuse) {
        Ok(options) if options.remount => Err("use mount(8) to remount: `mount -o remount,... DIR`".into()),
        Ok(_) => Ok(list),
        Err(e) => Err(format!("{e:#}")),
    }
}

/// Runs the command, and in the daemon's process the daemon.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut options = Options::parse(&args.options, Unknown::Refuse)?;
    options.metrics = args.metrics.clone().or(options.metrics);
    if !args.foreground {
        return in_background(&args.volume, &args.dir, &options);
    }
    let (volume, dir) = prepare(&args.volume, &args.dir)?;
    let served = serve_volume(&volume, &dir, &options, true, &mut Report::to_nobody());
    served.inspect_err(|error| tracing::error!("{error:#}")).map(|()| ExitCode::SUCCESS)
}

/// Mounts and returns when the mount is live; in the daemon's process, when it has ended.
pub fn in_background(volume: &Path, dir: &Path, options: &Options) -> Result<ExitCode> {
    let (volume, dir) = prepare(volume, dir)?;
    let mut report = match daemon::daemonize()? {
        Side::Command(outcome) => return outcome.map(|()| ExitCode::SUCCESS),
        Side::Daemon(report) => report,
    };
    match serve_volume(&volume, &dir, options, false, &mut report) {
        Err(error) if report.failed(&error) => Ok(ExitCode::from(crate::MOUNT_FAILURE)),
        Err(error) => {
            // The mount was live: standard error goes nowhere.
            tracing::error!("{error:#}");
            Err(error)
        }
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

fn prepare(volume: &Path, dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let dir = prepare_dir(dir)?;
    let found = volume.canonicalize().with_context(|| format!("cannot find the volume {}", volume.display()));
    Ok((found?, dir))
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
            dbfs_fuse::detach(&path)
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
