//! The same jobs in one process with the library, by `dbfs bench io`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::figures::{Figures, Unit};
use super::fio::Sync;
use super::jobs::{PAGES, Shared, shared};
use super::subject::Subject;
use super::{Effort, Group, titles};
use crate::cmd;

/// Writes for each sync, when bytes on the device are counted.
const BATCH: &str = "32";

/// Runs the jobs on a new volume.
pub fn run(program: &PathBuf, volume: &Path, effort: &Effort, figures: &mut Figures) -> Result<()> {
    for job in shared(effort) {
        let mut bench = command(program, effort, &job);
        let report = report(bench.arg(volume))?;
        let rate = report["iops"].as_f64().context("no rate in the report")?;
        let title = job.title();
        figures.add(&title, Unit::Operations, Subject::Library, rate);
        if title == titles::SYNCED_1 {
            figures.add(titles::ATOMIC, Unit::Operations, Subject::Library, rate);
        }
    }
    if effort.groups.contains(&Group::Amplification) {
        figures.add(titles::AMPLIFICATION, Unit::Factor, Subject::Library, amplify(program, volume, effort)?);
    }
    Ok(())
}

fn command(program: &PathBuf, effort: &Effort, shared: &Shared) -> Command {
    let job = &shared.job;
    let mut bench = Command::new(program);
    bench.args(["bench", "io", "--json", "--keep", "--rw", if shared.appends { "append" } else { job.rw }]);
    bench.arg(format!("--bs={}", job.block)).arg(format!("--size={}", job.size.min(effort.size)));
    // A request at a time for each thread: it is the caller's thread that waits.
    bench.arg(format!("--threads={}", job.threads * job.depth));
    bench.arg(format!("--seconds={}", job.seconds));
    bench.args(match job.sync {
        Sync::None => [].as_slice(),
        Sync::Dsync => &["--sync=dsync"],
        Sync::Fdatasync => &["--sync=fdatasync"],
    });
    if !job.direct {
        bench.arg("--buffered");
    }
    bench
}

/// Bytes that the device was told to write, checkpoints included, for each byte of the job's.
fn amplify(program: &PathBuf, volume: &Path, effort: &Effort) -> Result<f64> {
    let mut bench = Command::new(program);
    bench.args(["bench", "io", "--json", "--rw=randwrite", "--sync=fdatasync", "--every", BATCH]);
    bench.arg(format!("--bs={}", PAGES[0])).arg(format!("--size={}", effort.large));
    bench.arg(format!("--seconds={}", effort.long));
    let report = report(bench.arg(volume))?;
    let written = report["device_until_home"]["written_bytes"].as_f64().context("no bytes in the report")?;
    Ok(written / report["bytes"].as_f64().filter(|bytes| *bytes > 0.0).context("nothing was written")?)
}

fn report(bench: &mut Command) -> Result<Value> {
    let text = cmd::capture(bench)?;
    serde_json::from_str(&text).with_context(|| format!("{} printed no JSON", cmd::describe(bench)))
}
