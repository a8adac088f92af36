//! ext4 on an image file or a block device.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::ioctl::{Setter, ioctl};

use super::{Target, make_image, mounts};
use crate::cleanup::Guard;
use crate::{cmd, paths};

/// `EXT4_IOC_SHUTDOWN`: `_IOR('X', 125, u32)`, whose argument is read by the kernel all the same.
const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);

/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: stop as a power cut would, with the journal as it is on the device.
const NO_LOG_FLUSH: u32 = 2;

/// An ext4 volume.
pub struct Ext4 {
    volume: PathBuf,
    dir: PathBuf,
    image_size: Option<u64>,
    mounted: Option<Guard>,
    crashed: bool,
}

impl Ext4 {
    /// Describes a volume of `size` bytes in a new file `image`, to be mounted at `dir`.
    pub fn on_image(image: PathBuf, dir: PathBuf, size: u64) -> Self {
        Self { volume: image, dir, image_size: Some(size), mounted: None, crashed: false }
    }

    /// Describes a volume on a whole block device.
    pub fn on_device(device: PathBuf, dir: PathBuf) -> Self {
        Self { volume: device, dir, image_size: None, mounted: None, crashed: false }
    }
}

impl Target for Ext4 {
    fn format(&mut self) -> Result<()> {
        if let Some(size) = self.image_size {
            make_image(&self.volume, size)?;
        }
        cmd::capture(Command::new(paths::program("mkfs.ext4")?).args(["-q", "-F"]).arg(&self.volume))?;
        Ok(())
    }

    fn mount(&mut self) -> Result<()> {
        if std::mem::take(&mut self.crashed) {
            self.unmount()?;
        }
        let is_device = std::fs::metadata(&self.volume)?.file_type().is_block_device();
        let mut mount = Command::new(paths::program("mount")?);
        mount.args(["-o", if is_device { "rw" } else { "loop" }]);
        cmd::capture(mount.arg(&self.volume).arg(&self.dir))?;
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

    fn cut_power(&mut self) -> Result<()> {
        let root = File::open(&self.dir)?;
        // SAFETY: the kernel reads one u32 through the argument, which `Setter` points at a u32.
        unsafe { ioctl(&root, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }
            .context("cannot shut ext4 down")?;
        drop(root);
        self.unmount()
    }

    fn check(&self) -> Result<()> {
        let mut fsck = Command::new(paths::program("fsck.ext4")?);
        cmd::capture(fsck.args(["-f", "-n"]).arg(&self.volume))?;
        Ok(())
    }

    fn dir(&self) -> &Path {
        &self.dir
    }
}
