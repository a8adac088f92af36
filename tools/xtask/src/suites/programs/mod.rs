//! Programs that people use every day, each compared with what it has to leave behind: copies, archives,
//! git, dd, SQLite and MariaDB.

mod dd;
mod files;
mod git;
mod mariadb;
mod sqlite;
mod tree;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{Plan, Tally, close};
use crate::proc::Proc;
use crate::rng::Rng;
use crate::target::{Target, Volume};
use crate::workdir::WorkDir;
use crate::{cmd, paths, say};

/// What all parts work with.
struct Bench<'a> {
    plan: &'a Plan,
    work: &'a WorkDir,
    target: Box<dyn Target>,
    rng: Rng,
}

impl Bench<'_> {
    /// Where the volume is mounted.
    fn dir(&self) -> &Path {
        self.target.dir()
    }

    /// The first of two numbers, or with `--full` the second.
    fn amount(&self, short: u64, full: u64) -> u64 {
        if self.plan.full { full } else { short }
    }
}

/// Runs all of them on one volume.
pub fn run(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    let target = plan.create(work, &Volume { size: 8 << 30, page_size: 16 << 10 })?;
    let mut bench = Bench { plan, work, target, rng: Rng::new(plan.seed) };
    files::run(&mut bench, tally)?;
    git::run(&mut bench, tally)?;
    dd::run(&mut bench, tally)?;
    sqlite::run(&mut bench, tally)?;
    mariadb::run(&mut bench, tally)?;
    close(bench.target.as_mut(), tally)?;
    drop(bench);
    dd::large_sparse_file(plan, work, tally)?;
    tell_about_nfs();
    Ok(())
}

/// An export needs the kernel's server, which most test machines lack.
fn tell_about_nfs() {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.ends_with("nfsd")) {
        say!("this kernel has nfsd: export a volume by hand (docs/OPERATIONS.md) to try it");
    } else {
        say!("this kernel has no nfsd: an NFS export cannot be tried here");
    }
}

/// Waits until a program has printed `lines` lines into its log, however slow the machine is.
fn wait_for_lines(process: &Proc, log: &Path, lines: usize) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(300);
    let start = Instant::now();
    while std::fs::read_to_string(log).unwrap_or_default().lines().count() < lines {
        if let Some(status) = process.try_wait()? {
            return Err(process.error(&format!("ended by itself ({status})")));
        }
        if start.elapsed() > PATIENCE {
            return Err(process.error("does not get on"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Runs a line of shell in `dir`, with `$1`, `$2`... set; returns what it printed.
fn shell(dir: &Path, line: &str, args: &[&Path]) -> Result<String> {
    let mut sh = Command::new("sh");
    sh.args(["-ec", line, "sh"]).args(args).current_dir(dir).env("LC_ALL", "C");
    let (success, text) = cmd::capture_any(&mut sh)?;
    if !success {
        bail!("{line}\n{text}");
    }
    Ok(text)
}

/// Two texts that must be the same; an error shows the first line that is not.
fn expect_same(what: &str, wanted: &str, found: &str) -> Result<()> {
    if wanted == found {
        return Ok(());
    }
    let differing = wanted.lines().zip(found.lines()).find(|(a, b)| a != b);
    let (lines, other) = (wanted.lines().count(), found.lines().count());
    match differing {
        Some((a, b)) => bail!("{what}: wanted\n  {a}\nfound\n  {b}"),
        None => bail!("{what}: wanted {lines} lines, found {other}"),
    }
}

/// A program of the system as a command.
fn program(name: &str) -> Result<Command> {
    Ok(Command::new(paths::program(name)?))
}
