//! Operations on names.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use super::figures::{Figures, Unit};
use super::jobs::rate;
use super::subject::Subject;
use super::titles;

/// Operations without a sync.
const MANY: u64 = 2_000;

/// Operations with one.
const FEW: u64 = 300;

/// Runs all jobs in the (empty) root of a file system; leaves nothing.
pub fn run(root: &Path, subject: Subject, figures: &mut Figures) -> Result<()> {
    let plain = |i: u64| root.join(format!("file-{i:06}"));
    let renamed = |i: u64| root.join(format!("moved-{i:06}"));

    let mut add = |title, rate| figures.add(title, Unit::Operations, subject, rate);

    add(titles::CREATE, each(MANY, |i| create(&plain(i)).map(drop))?);
    drop_cached_names()?;
    add(titles::STAT_COLD, each(MANY, |i| stat(&plain(i)))?);
    add(titles::STAT, each(MANY, |i| stat(&plain(i)))?);
    add(titles::RENAME, each(MANY, |i| Ok(fs::rename(plain(i), renamed(i))?))?);
    add(titles::UNLINK, each(MANY, |i| Ok(fs::remove_file(renamed(i))?))?);

    add(titles::CREATE_DURABLY, each(FEW, |i| create_durably(&plain(i)))?);
    let directory = File::open(root)?;
    let rename_durably = |i| {
        fs::rename(plain(i), renamed(i))?;
        Ok(directory.sync_all()?)
    };
    add(titles::RENAME_DURABLY, each(FEW, rename_durably)?);
    for i in 0..FEW {
        fs::remove_file(renamed(i))?;
    }
    Ok(())
}

/// Calls of `operation` per second.
fn each(count: u64, mut operation: impl FnMut(u64) -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for i in 0..count {
        operation(i)?;
    }
    Ok(rate(start, count))
}

fn create(path: &PathBuf) -> Result<File> {
    Ok(OpenOptions::new().write(true).create_new(true).open(path)?)
}

fn create_durably(path: &PathBuf) -> Result<()> {
    let mut file = create(path)?;
    file.write_all(&[7; 4096])?;
    Ok(file.sync_all()?)
}

fn stat(path: &PathBuf) -> Result<()> {
    fs::symlink_metadata(path)?;
    Ok(())
}

/// Makes the kernel forget names and attributes, so that a FUSE daemon is asked again.
fn drop_cached_names() -> Result<()> {
    const NAMES_AND_INODES: &str = "2";
    fs::write("/proc/sys/vm/drop_caches", NAMES_AND_INODES).context("cannot drop cached names")
}
