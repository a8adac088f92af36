//! What is measured.

use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use super::device::Device;
use super::figures::{Figures, Unit};
use super::{Effort, Group, databases, jobs, library, names, titles};
use crate::cargo::{self, Profile};
use crate::target::{Dbfs, DbfsOptions, Format, KernelFs, Noop, Target, Volume};
use crate::workdir::WorkDir;

/// A way to store files (or just blocks).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Subject {
    /// The device itself
    Raw,
    /// The kernel's ext4
    Ext4,
    /// The kernel's XFS
    Xfs,
    /// A FUSE daemon that stores nothing
    Noop,
    /// dbfs through its FUSE mount
    Dbfs,
    /// The same, with a file that was overwritten at random
    Aged,
    /// dbfs without FUSE, in the process that uses it
    Library,
}

/// What the pages of a dbfs volume have to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// PostgreSQL's, 8 KiB.
    Postgres,
    /// InnoDB's, 16 KiB.
    MariaDb,
}

impl Subject {
    /// All, in the order of the table's columns.
    pub const ALL: [Subject; 7] = [
        Subject::Raw,
        Subject::Ext4,
        Subject::Xfs,
        Subject::Noop,
        Subject::Dbfs,
        Subject::Aged,
        Subject::Library,
    ];

    /// All, in the order of their turns: those that are compared are neighbours, as devices change in the course of
    /// minutes.
    pub const IN_TURN: [Subject; 7] = [
        Subject::Raw,
        Subject::Library,
        Subject::Ext4,
        Subject::Dbfs,
        Subject::Noop,
        Subject::Aged,
        Subject::Xfs,
    ];

    /// The column's title.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Raw => "raw",
            Subject::Ext4 => "ext4",
            Subject::Xfs => "XFS",
            Subject::Noop => "no-op",
            Subject::Dbfs => "dbfs",
            Subject::Aged => "dbfs aged",
            Subject::Library => "library",
        }
    }

    /// One round: formats the device, runs every job that makes sense, adds the figures.
    pub fn measure(
        self,
        device: &Device,
        work: &WorkDir,
        effort: &Effort,
        figures: &mut Figures,
    ) -> Result<()> {
        if effort.wants_files() {
            self.measure_files(device, work, effort, figures)?;
        }
        if databases::SUBJECTS.contains(&self) {
            if effort.groups.contains(&Group::Pgbench) {
                databases::pgbench(self, device, work, effort, figures)?;
            }
            if effort.groups.contains(&Group::Sysbench) {
                databases::sysbench(self, device, work, effort, figures)?;
            }
        }
        Ok(())
    }

    fn measure_files(
        self,
        device: &Device,
        work: &WorkDir,
        effort: &Effort,
        figures: &mut Figures,
    ) -> Result<()> {
        let Some(mut target) = self.target(device, work, Page::MariaDb)? else {
            return jobs::run(device.path(), self, effort, figures);
        };
        target.format()?;
        if self == Subject::Library {
            let program = cargo::build_dbfs(Profile::Release)?;
            library::run(&program, device.path(), effort, figures)?;
            return target.check();
        }
        target.mount()?;
        let file = target.dir().join("file");
        jobs::lay_out(&file, effort.size)?;
        if self == Subject::Aged {
            jobs::age(&file, effort.size)?;
        }
        if self != Subject::Noop {
            // Nothing is cached.
            target.unmount()?;
            target.mount()?;
        }
        jobs::run(&file, self, effort, figures)?;
        std::fs::remove_file(&file)?;
        if self == Subject::Aged {
            target.unmount()?;
            return target.check();
        }
        if effort.groups.contains(&Group::Names) {
            names::run(target.dir(), self, figures)?;
        }
        if self == Subject::Noop {
            return target.unmount();
        }
        if effort.groups.contains(&Group::Recovery) {
            self.measure_recovery(target.as_mut(), figures)?;
        }
        target.unmount()?;
        target.check()
    }

    /// The file system on the device, not yet made; `None` for the device itself.
    pub fn target(self, device: &Device, work: &WorkDir, page: Page) -> Result<Option<Box<dyn Target>>> {
        let dir = work.dir(&format!("mnt-{}", self.name().replace(' ', "-")), None)?;
        let path = device.path().to_path_buf();
        Ok(match self {
            Subject::Raw => None,
            Subject::Ext4 => Some(Box::new(KernelFs::on_device(Format::Ext4, path, dir))),
            Subject::Xfs => Some(Box::new(KernelFs::on_device(Format::Xfs, path, dir))),
            Subject::Noop => Some(Box::new(Noop::new(dir, work.join("noop.log")))),
            Subject::Dbfs | Subject::Aged | Subject::Library => {
                let program = cargo::build_dbfs(Profile::Release)?;
                let volume = match page {
                    Page::Postgres => Volume::for_postgres(device.size()),
                    Page::MariaDb => Volume { size: device.size(), page_size: 16 << 10 },
                };
                let options = DbfsOptions::new(program, path, dir, volume, work.join("dbfs.log"));
                Some(Box::new(Dbfs::new(options)))
            }
        })
    }

    /// The time of a mount after a crash in the middle of work.
    fn measure_recovery(self, target: &mut dyn Target, figures: &mut Figures) -> Result<()> {
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
        figures.add(titles::RECOVERY, Unit::Milliseconds, self, start.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_has_its_turn() {
        assert!(Subject::ALL.iter().all(|s| Subject::IN_TURN.iter().filter(|t| *t == s).count() == 1));
    }
}
