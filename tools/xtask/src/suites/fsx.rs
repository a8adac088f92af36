//! `fsx`: random operations on one file, each read compared with what was written.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::{Plan, Tally, close};
use crate::target::Volume;
use crate::workdir::WorkDir;
use crate::{cmd, paths, tools};

/// Configuration files with operations per seed, in CI and in full.
const PROFILES: [(&str, u64, u64); 3] =
    [("fsx-mmap", 4_000, 200_000), ("fsx-holes", 4_000, 200_000), ("fsx-large", 1_000, 20_000)];

/// Seeds of each profile, in CI and in full.
const SEEDS: (u64, u64) = (4, 10);

/// Runs every profile with several seeds on one volume.
pub fn run(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    let mut target = plan.create(work, &Volume { size: 512 << 20, page_size: 16 << 10 })?;
    let seeds = if plan.full { SEEDS.1 } else { SEEDS.0 };
    for (profile, short, long) in PROFILES {
        let operations = if plan.full { long } else { short };
        for seed in plan.seed..plan.seed + seeds {
            let name = format!("{profile} seed {seed}, {operations} operations");
            let file = target.dir().join(format!("{profile}-{seed}"));
            tally.step(&name, || exercise(profile, seed, operations, &file, work))?;
        }
    }
    close(target.as_mut(), tally)
}

fn exercise(profile: &str, seed: u64, operations: u64, file: &Path, work: &WorkDir) -> Result<()> {
    let config = paths::external_tests().join(format!("{profile}.toml"));
    let mut fsx = Command::new(tools::FSX.path()?);
    fsx.arg("-f").arg(config).args(["-S", &seed.to_string(), "-N", &operations.to_string()]);
    let (success, text) = cmd::capture_any(fsx.arg("-P").arg(work.path()).arg(file))?;
    if !success {
        bail!("{}:\n{text}", cmd::describe(&fsx));
    }
    Ok(())
}
