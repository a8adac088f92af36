//! `cargo xtask bench`: dbfs beside the raw device, ext4 and a no-op FUSE daemon, in turn on one device.

mod device;
mod grow;
mod jobs;
mod names;
mod report;
mod subject;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo::{self, Profile};
use crate::workdir::WorkDir;
use crate::{deps, paths, privilege, say};
use device::LoopDevice;
use report::Table;
use subject::Subject;

/// Options of the benchmark.
#[derive(clap::Args)]
pub struct Args {
    /// Rounds; each figure is the median over them
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Where the figures go as JSON [default: bench.json in the target directory]
    #[arg(long)]
    json: Option<PathBuf>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Subject::ALL)]
    subjects: Vec<Subject>,
    /// Measure only the longest pause of writes while the volume grows
    #[arg(long)]
    grow: bool,
}

/// Bytes of the device: small enough to be written in full before the start, larger than any cache of
/// a disk.
const DEVICE_SIZE: u64 = 3 << 30;

/// Runs the rounds and prints the table.
pub fn run(args: &Args) -> Result<()> {
    if !privilege::is_prepared() {
        deps::ensure(deps::BENCH)?;
    }
    if args.grow || args.subjects.contains(&Subject::Dbfs) {
        cargo::build_dbfs(Profile::Release)?;
    }
    privilege::become_root()?;
    if args.grow {
        return grow::run(args.rounds);
    }
    let work = WorkDir::new()?;
    say!("writing a file of {} GiB for the loop device", DEVICE_SIZE >> 30);
    let device = LoopDevice::new(work.join("device.img"), DEVICE_SIZE)?;
    let mut table = Table::default();
    for round in 1..=args.rounds {
        for subject in &args.subjects {
            say!("round {round}: {}", subject.name());
            let outcome = subject.measure(&device, &work, &mut table);
            outcome.with_context(|| format!("round {round} on {}", subject.name()))?;
        }
    }
    let json = match &args.json {
        Some(path) => path.clone(),
        None => paths::target_dir()?.join("bench.json"),
    };
    std::fs::write(&json, table.to_json(args.rounds))
        .with_context(|| format!("cannot write {}", json.display()))?;
    println!();
    print!("{table}");
    println!("\nthe same as JSON: {}", json.display());
    Ok(())
}
