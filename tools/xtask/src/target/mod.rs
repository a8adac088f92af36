//! File systems that the harnesses run on.
//!
//! Every suite sees only [`Target`], so that it can be tried on ext4, whose behaviour is the bar,
//! and a failure there is a fault of the suite.

mod daemon;
mod dbfs;
mod faulty;
mod kernel;
pub mod mounts;
mod noop;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;
use rustix::process::Pid;

pub use dbfs::{Dbfs, DbfsOptions};
pub use faulty::{Failing, Fault, FaultyDevice, Leaves};
pub use kernel::{Format, KernelFs};
pub use noop::{Noop, NoopArgs, serve_noop};

use crate::cargo::{self, Profile};
use crate::workdir::WorkDir;

/// A file system on a volume, mounted or not.
pub trait Target {
    /// Makes a new, empty file system on the volume.
    fn format(&mut self) -> Result<()>;

    /// Mounts; returns when files can be used. Recovers first if the last use was not ended cleanly.
    fn mount(&mut self) -> Result<()>;

    /// Unmounts; returns when everything is on the device.
    fn unmount(&mut self) -> Result<()>;

    /// Ends service without any warning (kill -9 of the daemon) and removes the dead mount. A kernel file
    /// system cannot be killed: it is unmounted and mounted again by the next [`Target::mount`].
    fn crash(&mut self) -> Result<()>;

    /// Ends service so that the next mount has to recover, and leaves the volume unmounted; nothing may be
    /// open on it.
    fn cut_power(&mut self) -> Result<()> {
        self.crash()
    }

    /// Checks the unmounted volume; an error lists what is wrong.
    fn check(&self) -> Result<()>;

    /// Where it is mounted.
    fn dir(&self) -> &Path;

    /// The process that serves it, if it is mounted and has one.
    fn daemon(&self) -> Option<Pid> {
        None
    }
}

/// Which file system a suite runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// This project's file system, through its FUSE mount.
    #[default]
    Dbfs,
    /// The kernel's ext4 on a loop device, to try the suite itself.
    Ext4,
}

/// What a volume for a suite looks like.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Bytes.
    pub size: u64,
    /// Bytes per data page (dbfs only).
    pub page_size: u32,
}

impl Volume {
    /// A volume that fits PostgreSQL's 8 KiB pages.
    pub fn for_postgres(size: u64) -> Self {
        Self { size, page_size: 8 << 10 }
    }
}

/// Makes programs and a formatted, mounted volume of the given kind in `work`.
pub fn create(kind: Kind, work: &WorkDir, volume: &Volume, profile: Profile) -> Result<Box<dyn Target>> {
    let dir = work.dir("mnt", None)?;
    let image = work.join("volume.img");
    let mut target: Box<dyn Target> = match kind {
        Kind::Dbfs => {
            let program = cargo::build_dbfs(profile)?;
            let options = DbfsOptions::new(program, image, dir, volume.clone(), work.join("dbfs.log"));
            Box::new(Dbfs::new(options))
        }
        Kind::Ext4 => Box::new(KernelFs::on_image(Format::Ext4, image, dir, volume.size)),
    };
    target.format()?;
    target.mount()?;
    Ok(target)
}

/// Makes `path` a sparse file of `size` bytes.
pub fn make_image(path: &PathBuf, size: u64) -> Result<()> {
    if path.exists() {
        bail!("{} exists already", path.display());
    }
    std::fs::File::create(path)?.set_len(size)?;
    Ok(())
}
