//! `mount -o remount`: changes the flags of a mount that is live.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::mounts::{self, DbfsMount};
use crate::options::Options;

/// Gives the mount on `dir` the flags of `options`; `fake`: only checks that this is possible.
pub fn run(dir: &Path, options: &Options, fake: bool) -> Result<ExitCode> {
    let shown = dir.display();
    let dir = mounts::absolute(dir).with_context(|| format!("cannot remount {shown}"))?;
    let Some(mount) = mounts::mounted_on(&dir)? else {
        bail!("cannot remount {shown}: no dbfs volume is mounted there");
    };
    if !options.read_only && mount.read_only && is_served_read_only(&mount)? {
        bail!(
            "cannot remount {shown} for writing: the volume {} was opened read-only; unmount it, and mount it again",
            mount.volume.display()
        );
    }
    if !fake {
        let config = options.mount_config(&mount.volume);
        dbfs_fuse::remount(&mount.dir, &config).with_context(|| format!("cannot remount {shown}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the mount on `dir` read-only.
pub fn read_only(dir: &Path) -> Result<()> {
    let options = Options { read_only: true, ..Options::default() };
    dbfs_fuse::remount(dir, &options.mount_config(Path::new("")))
        .with_context(|| format!("cannot make the mount on {} read-only", dir.display()))
}

/// A daemon that may write holds the volume for itself; one that only reads lets others read.
fn is_served_read_only(mount: &DbfsMount) -> Result<bool> {
    let volume = mount.volume.display();
    let file = std::fs::File::open(&mount.volume).with_context(|| format!("cannot open {volume}"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(anyhow!(e).context(format!("cannot lock {volume}"))),
    }
}
