//! What is measured.

use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use super::device::LoopDevice;
use super::report::Table;
use super::{jobs, names};
use crate::cargo::{self, Profile};
use crate::target::{Dbfs, DbfsOptions, Ext4, Noop, Target, Volume};
use crate::workdir::WorkDir;

/// A way to store files (or just blocks).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Subject {
    /// The device itself
    Raw,
    /// The kernel's ext4
    Ext4,
    /// A FUSE daemon that stores nothing
    Noop,
    /// dbfs through its FUSE mount
    Dbfs,
}

impl Subject {
    /// All, in the order of the table's columns.
    pub const ALL: [Subject; 4] = [Subject::Raw, Subject::Ext4, Subject::Noop, Subject::Dbfs];

    /// The column's title.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Raw => "raw",
            Subject::Ext4 => "ext4",
            Subject::Noop => "no-op",
            Subject::Dbfs => "dbfs",
        }
    }

    /// One round: formats the device, runs every job that makes sense, adds the figures.
    pub fn measure(self, device: &LoopDevice, work: &WorkDir, table: &mut Table) -> Result<()> {
        let Some(mut target) = self.target(device, work)? else {
            return jobs::run(device.path(), self, table);
        };
        target.format()?;
        target.mount()?;
        let file = target.dir().join("file");
        jobs::lay_out(&file, false)?;
        jobs::run(&file, self, table)?;
        std::fs::remove_file(&file)?;
        names::run(target.dir(), self, table)?;
        if self == Subject::Noop {
            return target.unmount();
        }
        self.measure_recovery(target.as_mut(), table)?;
        target.unmount()?;
        target.check()
    }

    fn target(self, device: &LoopDevice, work: &WorkDir) -> Result<Option<Box<dyn Target>>> {
        let dir = work.dir(self.name(), None)?;
        let device = device.path().to_path_buf();
        Ok(match self {
            Subject::Raw => None,
            Subject::Ext4 => Some(Box::new(Ext4::on_device(device, dir))),
            Subject::Noop => Some(Box::new(Noop::new(dir, work.join("noop.log")))),
            Subject::Dbfs => {
                let program = cargo::build_dbfs(Profile::Release)?;
                let volume = Volume { size: super::DEVICE_SIZE, page_size: 16 << 10 };
                let options = DbfsOptions::new(program, device, dir, volume, work.join("dbfs.log"));
                Some(Box::new(Dbfs::new(options)))
            }
        })
    }

    /// The time of a mount after a crash in the middle of work.
    fn measure_recovery(self, target: &mut dyn Target, table: &mut Table) -> Result<()> {
        const FILES: u64 = 2_000;
        const SYNC_EVERY: u64 = 100;
        for i in 0..FILES {
            let path = target.dir().join(format!("crash-{i}"));
            std::fs::write(&path, [1; 4096])?;
            if i % SYNC_EVERY == 0 {
                std::fs::File::open(&path)?.sync_all()?;
            }
        }
        target.cut_power()?;
        let start = Instant::now();
        target.mount()?;
        table.add("mount after a crash", self, jobs::per_operation(start, 1));
        Ok(())
    }
}
