//! `dbfs umount`: ends a mount and waits until the volume has it all.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use blockdev::Engine;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::engine;
use crate::mounts::{self, DbfsMount};

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
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// Where it is mounted
    dir: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let shown = args.dir.display();
    let dir = mounts::absolute(&args.dir).with_context(|| format!("cannot unmount {shown}"))?;
    let Some(mount) = mounts::mounted_on(&dir)? else {
        bail!("no dbfs volume is mounted on {shown}; `mount -t fuse.dbfs` lists those that are");
    };
    unmount(&mount, args.force)?;
    wait_for_daemon(&mount, Duration::from_secs(args.timeout))?;
    if !mount.read_only {
        check_that_all_is_home(&mount)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn unmount(mount: &DbfsMount, force: bool) -> Result<()> {
    let dir = mount.dir.display();
    match rustix::mount::unmount(&mount.dir, UnmountFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) if force => {
            // Cuts the connection and says that it is busy.
            let _ = rustix::mount::unmount(&mount.dir, UnmountFlags::FORCE);
            match rustix::mount::unmount(&mount.dir, UnmountFlags::DETACH) {
                // The daemon took it away first.
                Ok(()) | Err(Errno::INVAL) => Ok(()),
                Err(e) => Err(anyhow!(e).context(format!("cannot unmount {dir}"))),
            }
        }
        Err(Errno::BUSY) => {
            bail!("{dir} is in use (`fuser -vm {dir}` shows by whom); --force cuts its users off")
        }
        Err(Errno::PERM) => unmount_as_user(&mount.dir),
        Err(e) => Err(anyhow!(e).context(format!("cannot unmount {dir}"))),
    }
}

/// Users other than root unmount what they mounted with FUSE's own helper.
fn unmount_as_user(dir: &Path) -> Result<()> {
    let output = Command::new("fusermount3").arg("-u").arg("--").arg(dir).output();
    let output = output
        .with_context(|| format!("cannot unmount {}: no permission, and no fusermount3", dir.display()))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
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
