//! ext4 and XFS on an image file or a block device.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::ioctl::{Setter, ioctl};

use super::{Target, make_image, mounts};
use crate::cleanup::Guard;
use crate::{cmd, paths};

/// `EXT4_IOC_SHUTDOWN`: `_IOR('X', 125, u32)`, whose argument is read by the kernel all the same. It is what XFS
/// had before.
const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);

/// `EXT4_GOING_FLAGS_NOLOGFLUSH`, `XFS_FSOP_GOING_FLAGS_NOLOGFLUSH`: stop as a power cut would, with the journal as it is on the device.
const NO_LOG_FLUSH: u32 = 2;

/// A file system of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl Format {
    /// The program that makes one, with its options.
    fn make(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Format::Ext4 => ("mkfs.ext4", &["-q", "-F"]),
            Format::Xfs => ("mkfs.xfs", &["-q", "-f"]),
        }
    }

    /// The program that checks one, and changes nothing.
    fn check(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Format::Ext4 => ("fsck.ext4", &["-f", "-n"]),
            Format::Xfs => ("xfs_repair", &["-n"]),
        }
    }
}

/// A volume with a file system of the kernel's.
pub struct KernelFs {
    format: Format,
    volume: PathBuf,
    dir: PathBuf,
    image_size: Option<u64>,
    mounted: Option<Guard>,
    crashed: bool,
}

impl KernelFs {
    /// Describes a volume of `size` bytes in a new file `image`, to be mounted at `dir`.
    pub fn on_image(format: Format, image: PathBuf, dir: PathBuf, size: u64) -> Self {
        Self { format, volume: image, dir, image_size: Some(size), mounted: None, crashed: false }
    }

    /// Describes a volume on a whole block device.
    pub fn on_device(format: Format, device: PathBuf, dir: PathBuf) -> Self {
        Self { format, volume: device, dir, image_size: None, mounted: None, crashed: false }
    }
}

impl Target for KernelFs {
    fn format(&mut self) -> Result<()> {
        if let Some(size) = self.image_size {
            make_image(&self.volume, size)?;
        }
        let (program, options) = self.format.make();
        cmd::capture(Command::new(paths::program(program)?).args(options).arg(&self.volume))?;
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
            .context("cannot shut the file system down")?;
        drop(root);
        self.unmount()
    }

    fn check(&self) -> Result<()> {
        let (program, options) = self.format.check();
        cmd::capture(Command::new(paths::program(program)?).args(options).arg(&self.volume))?;
        Ok(())
    }

    fn dir(&self) -> &Path {
        &self.dir
    }
}
