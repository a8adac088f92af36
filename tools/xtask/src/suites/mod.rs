//! The program-based test suites: real programs on a mounted volume.

mod fsx;
mod nfs;
mod package;
mod pg_basic;
mod pg_cut;
mod pg_faults;
mod pg_full;
mod pg_kill;
mod pg_regress;
mod pjdfstest;
mod programs;
mod scale;
mod tally;

use anyhow::{Context, Result};
use clap::ValueEnum;

pub use tally::{Reported, Tally};

use crate::cargo::{self, Profile};
use crate::target::{self, Kind, Target, Volume};
use crate::workdir::WorkDir;
use crate::{deb, deps, pg, privilege, say, tools};

/// A suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Random operations on one file, checked against a copy in memory
    Fsx,
    /// POSIX behaviour, call by call
    Pjdfstest,
    /// initdb, pgbench, pg_amcheck, pg_checksums
    PgBasic,
    /// PostgreSQL's own regression tests
    PgRegress,
    /// kill -9 of daemon and server under load, again and again
    PgKill,
    /// Power cuts, rebuilt from a recording of everything the daemon wrote
    PgCut,
    /// PostgreSQL on a volume that becomes full
    PgFull,
    /// PostgreSQL on a device whose writes, flushes and reads fail
    PgFaults,
    /// A large file overwritten at random, a directory of a million files: size and memory stay bounded
    Scale,
    /// cp, tar, rsync, git, dd, SQLite and MariaDB
    Programs,
    /// The Debian package in a fresh Debian
    Package,
    /// Export by the kernel's NFS server, in a virtual machine; not in CI
    Nfs,
}

impl Suite {
    /// Those that run unless others are named: for CI, or in full.
    pub fn all(full: bool) -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|suite| full || *suite != Suite::Nfs).collect()
    }

    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// How a suite is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The file system.
    pub kind: Kind,
    /// How dbfs is compiled.
    pub profile: Profile,
    /// All rounds, rather than the few that fit into CI.
    pub full: bool,
    /// Seed of all random choices.
    pub seed: u64,
}

/// Options of `cargo xtask suite`.
#[derive(clap::Args)]
pub struct Args {
    /// The suites to run; all of CI if none is named
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// The file system to run on
    #[arg(long, value_enum, default_value_t)]
    target: Kind,
    /// All rounds, rather than the few that fit into CI
    #[arg(long)]
    full: bool,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run dbfs as compiled for release
    #[arg(long)]
    release: bool,
}

/// `cargo xtask suite`.
pub fn command(args: &Args) -> Result<()> {
    let profile = if args.release { Profile::Release } else { Profile::Dev };
    let plan = Plan { kind: args.target, profile, full: args.full, seed: args.seed };
    let suites = if args.suites.is_empty() { Suite::all(args.full) } else { args.suites.clone() };
    prepare(&plan, &suites)?;
    privilege::become_root()?;
    run(&plan, &suites).finish()
}

/// Installs and builds, without being root, what `suites` need.
pub fn prepare(plan: &Plan, suites: &[Suite]) -> Result<()> {
    if privilege::is_prepared() {
        return Ok(());
    }
    deps::ensure(deps::EVERYTHING)?;
    if suites.contains(&Suite::Nfs) {
        deps::ensure(deps::NFS)?;
    }
    if suites.contains(&Suite::Fsx) {
        tools::FSX.install()?;
    }
    if suites.contains(&Suite::Pjdfstest) {
        tools::PJDFSTEST.install()?;
    }
    if suites.contains(&Suite::PgRegress) {
        pg::source::prepare(&pg::install::find()?)?;
    }
    if plan.kind == Kind::Dbfs {
        say!("building dbfs");
        cargo::build_dbfs(plan.profile)?;
    }
    if suites.contains(&Suite::Package) {
        deb::build(plan.profile)?;
    }
    Ok(())
}

/// Runs suites one after the other; a failure does not keep the others from running.
pub fn run(plan: &Plan, suites: &[Suite]) -> Tally {
    let mut total = Tally::default();
    for suite in suites {
        total.add(run_one(plan, *suite));
    }
    total
}

fn run_one(plan: &Plan, suite: Suite) -> Tally {
    let name = suite.name();
    println!();
    say!("{name} on {:?}, seed {}", plan.kind, plan.seed);
    let mut tally = Tally::default();
    let outcome = WorkDir::new().and_then(|work| match suite {
        Suite::Fsx => fsx::run(plan, &work, &mut tally),
        Suite::Pjdfstest => pjdfstest::run(plan, &work, &mut tally),
        Suite::PgBasic => pg_basic::run(plan, &work, &mut tally),
        Suite::PgRegress => pg_regress::run(plan, &work, &mut tally),
        Suite::PgKill => pg_kill::run(plan, &work, &mut tally),
        Suite::PgCut => pg_cut::run(plan, &work, &mut tally),
        Suite::PgFull => pg_full::run(plan, &work, &mut tally),
        Suite::PgFaults => pg_faults::run(plan, &work, &mut tally),
        Suite::Scale => scale::run(plan, &work, &mut tally),
        Suite::Programs => programs::run(plan, &work, &mut tally),
        Suite::Package => package::run(plan, &work, &mut tally),
        Suite::Nfs => nfs::run(plan, &work, &mut tally),
    });
    if let Err(error) = outcome {
        tally.fail(&format!("{name} (seed {})", plan.seed), &error);
    }
    say!("{name}: {tally}");
    tally
}

impl Plan {
    /// A formatted, mounted volume.
    fn create(&self, work: &WorkDir, volume: &Volume) -> Result<Box<dyn Target>> {
        target::create(self.kind, work, volume, self.profile)
    }
}

/// The end of each suite: a clean unmount and a clean check.
fn close(target: &mut dyn Target, tally: &mut Tally) -> Result<()> {
    target.unmount().context("the volume does not unmount")?;
    tally.step("fsck", || target.check())
}
