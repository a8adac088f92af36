//! `dbfs umount`: ends a mount and waits until the volume has it all.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use blockdev::Engine;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::mounts::{self, DbfsMount};
use crate::{engine, remount};

/// How often the daemon is looked after.
const POLL: Duration = Duration::from_millis(5);

/// Unmount a dbfs volume. Returns when everything is on the device and the daemon has let go of it.
///
/// Exit codes: 0 unmounted, 1 usage, 32 not unmounted (or not known to be all on the device).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Cut off programs that still use it
    #[arg(long, short = 'f')]
    force: bool,
    /// Seconds to wait for the daemon
    #[arg(long, default_value_t = PATIENCE.as_secs(), value_name = "SECONDS")]
    timeout: u64,
    /// Where it is mounted, or the volume
    dir: PathBuf,
}

/// How a mount is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// If nobody uses it.
    Plain,
    /// Its users are cut off.
    Force,
    /// It goes out of the tree now, and ends with its last user: nothing is waited for.
    Lazy,
    /// If somebody uses it, it becomes read-only.
    OrReadOnly,
}

/// How long the daemon may take to bring everything home, unless told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let how = if args.force { How::Force } else { How::Plain };
    unmount(&args.dir, how, Duration::from_secs(args.timeout))?;
    Ok(ExitCode::SUCCESS)
}

/// Unmounts what is mounted on `dir` and waits, at most for `patience`, until all is on the device.
pub fn unmount(dir: &Path, how: How, patience: Duration) -> Result<()> {
    let shown = dir.display();
    let dir = mounts::absolute(dir).with_context(|| format!("cannot unmount {shown}"))?;
    // By its volume, too, as umount(8) takes devices.
    let Some(mount) = mounts::mounted_on(&dir)?.or_else(|| mounts::mount_of(&dir)) else {
        bail!("no dbfs volume is mounted on {shown}; `findmnt -t fuse.dbfs` lists those that are");
    };
    if !take_away(&mount, how)? || how == How::Lazy {
        return Ok(());
    }
    wait_for_daemon(&mount, patience)?;
    if !mount.read_only {
        check_that_all_is_home(&mount)?;
    }
    Ok(())
}

/// False if the mount was left, read-only.
fn take_away(mount: &DbfsMount, how: How) -> Result<bool> {
    let dir = mount.dir.display();
    let failed = || format!("cannot unmount {dir}");
    if how == How::Lazy {
        dbfs_fuse::detach(&mount.dir).with_context(failed)?;
        return Ok(true);
    }
    match dbfs_fuse::take_away(&mount.dir) {
        Ok(()) => return Ok(true),
        Err(e) if e.raw_os_error() != Some(libc::EBUSY) => return Err(e).with_context(failed),
        Err(_) => {}
    }
    match how {
        How::Force => {
            dbfs_fuse::cut_off(&mount.dir);
            match dbfs_fuse::detach(&mount.dir) {
                Err(e) if mounts::mounted_on(&mount.dir)?.is_some() => Err(e).with_context(failed),
                // Done, or the daemon took it away first.
                _ => Ok(true),
            }
        }
        How::OrReadOnly => {
            remount::read_only(&mount.dir)?;
            Ok(false)
        }
        _ => bail!("{dir} is in use (`fuser -vm {dir}` shows by whom); --force cuts its users off"),
    }
}

/// The daemon locks the volume as long as it may write to it.
fn wait_for_daemon(mount: &DbfsMount, timeout: Duration) -> Result<()> {
    let volume = mount.volume.display();
    let file = std::fs::File::open(&mount.volume)
        .with_context(|| format!("unmounted, but cannot tell whether {volume} has everything"))?;
    let deadline = Instant::now() + timeout;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(POLL),
            Err(Errno::WOULDBLOCK) => {
                bail!(
                    "unmounted, but the daemon has been writing to {volume} for {timeout:?} since; leave it running"
                )
            }
            Err(e) => return Err(anyhow!(e).context(format!("unmounted, but cannot lock {volume}"))),
        }
    }
}

/// A daemon that has ended well leaves nothing for the next mount to replay. One that could not
/// bring everything home (or died) has told its log why.
fn check_that_all_is_home(mount: &DbfsMount) -> Result<()> {
    let volume = mount.volume.display();
    let device = engine::open_device(&mount.volume, true, Engine::Auto)?;
    let info =
        fs_core::dump::info_json(&device).with_context(|| format!("unmounted, but cannot read {volume}"))?;
    if info["changes_to_replay"] == serde_json::Value::Bool(false) {
        return Ok(());
    }
    bail!(
        "unmounted, but the daemon of {volume} did not end cleanly: what was synced is safe, later \
         changes may be lost; see its log, and `dbfs fsck -n {volume}`"
    )
}
