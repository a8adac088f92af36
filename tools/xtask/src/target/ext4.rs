//! ext4 on an image file through a loop device.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Target, make_image, mounts};
use crate::cleanup::Guard;
use crate::{cmd, paths};

/// An ext4 volume.
pub struct Ext4 {
    image: PathBuf,
    dir: PathBuf,
    size: u64,
    mounted: Option<Guard>,
    crashed: bool,
}

impl Ext4 {
    /// Describes a volume of `size` bytes in `image`, to be mounted at `dir`.
    pub fn new(image: PathBuf, dir: PathBuf, size: u64) -> Self {
        Self { image, dir, size, mounted: None, crashed: false }
    }
}

impl Target for Ext4 {
    fn format(&mut self) -> Result<()> {
        make_image(&self.image, self.size)?;
        cmd::capture(Command::new(paths::program("mkfs.ext4")?).args(["-q", "-F"]).arg(&self.image))?;
        Ok(())
    }

    fn mount(&mut self) -> Result<()> {
        if std::mem::take(&mut self.crashed) {
            self.unmount()?;
        }
        let mut mount = Command::new(paths::program("mount")?);
        cmd::capture(mount.args(["-o", "loop"]).arg(&self.image).arg(&self.dir))?;
        let dir = self.dir.clone();
        self.mounted = Some(Guard::new(move || {
            if let Err(error) = mounts::detach(&dir) {
                eprintln!("warning: {error:#}");
            }
        }));
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        let guard = self.mounted.take().context("not mounted")?;
        let mut umount = Command::new(paths::program("umount")?);
        cmd::capture(umount.arg(&self.dir))?;
        guard.disarm();
        Ok(())
    }

    fn crash(&mut self) -> Result<()> {
        // Users of the file system may still be alive here: the unmount waits for the next mount.
        self.crashed = true;
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let mut fsck = Command::new(paths::program("fsck.ext4")?);
        cmd::capture(fsck.args(["-f", "-n"]).arg(&self.image))?;
        Ok(())
    }

    fn dir(&self) -> &Path {
        &self.dir
    }
}
