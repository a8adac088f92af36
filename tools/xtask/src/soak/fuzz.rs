//! `cargo xtask soak fuzz`: the cargo-fuzz targets of `tests/fuzz`, each for a time, with coverage as guide.
//!
//! Everything is kept below `<target>/fuzz`: the build, the seeds, what was found in earlier runs (a run goes on from
//! there), logs, and the inputs that failed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::proc::{Proc, tail};
use crate::suites::Tally;
use crate::{cargo, cmd, deps, paths, say, tools};

/// Options of the fuzz targets.
#[derive(clap::Args)]
pub struct Args {
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Targets that run at the same time, one thread each
    #[arg(long, default_value_t = 2)]
    at_a_time: usize,
    /// Targets [default: all]
    targets: Vec<String>,
}

/// Longest time that a target may take for one input, in seconds: on a busy machine the slowest one (`image`: mounts, fsck,
/// reading and writing a whole volume) needs up to a second.
const HANGS: u64 = 60;

/// Most memory that a target may take, in MiB: that of the aged volume, its copies and caches, and room.
const MOST_MEMORY: u64 = 2048;

/// Time for a last input and for the statistics.
const GRACE: Duration = Duration::from_secs(5 * 60);

/// Longest inputs of targets whose seeds say too little about that.
const MAX_LEN: [(&str, usize); 3] = [("image", 512), ("superblock", 4096), ("slot", 4096)];

/// Builds the targets, writes the seeds, runs the targets.
pub fn run(args: &Args) -> Result<()> {
    deps::ensure(deps::FUZZ)?;
    let fuzzer = Fuzzer::build()?;
    let targets = if args.targets.is_empty() { fuzzer.targets()? } else { args.targets.clone() };
    let tally = Mutex::new(Tally::default());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..args.at_a_time.clamp(1, targets.len().max(1)) {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    say!("fuzzing {target} for {} minutes", args.minutes);
                    let outcome = fuzzer.run(target, args.minutes);
                    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                    let what = format!("fuzz {target}");
                    match outcome.and_then(|summary| tally.step(&format!("{what}: {summary}"), || Ok(()))) {
                        Ok(()) => {}
                        Err(error) => tally.fail(&what, &error),
                    }
                }
            });
        }
    });
    tally.into_inner().unwrap_or_else(PoisonError::into_inner).finish()
}

struct Fuzzer {
    /// Where everything is.
    dir: PathBuf,
    /// Where the targets' programs are.
    programs: PathBuf,
}

impl Fuzzer {
    /// Builds the targets with what guides them, and writes their seeds.
    fn build() -> Result<Self> {
        tools::CARGO_FUZZ.install()?;
        let dir = paths::target_dir()?.join("fuzz");
        let host = host()?;
        say!("building the fuzz targets");
        // Without a sanitizer a stable compiler does; all `unsafe` of dbfs is elsewhere.
        let mut build = Command::new(tools::CARGO_FUZZ.path()?);
        build.current_dir(paths::workspace());
        build.args(["build", "--fuzz-dir", "tests/fuzz", "--sanitizer", "none", "--target", &host]);
        cmd::run(build.arg("--target-dir").arg(dir.join("build")))?;
        let seeds = dir.join("seeds");
        if seeds.exists() {
            std::fs::remove_dir_all(&seeds).context("cannot remove the seeds of an earlier run")?;
        }
        let mut write = cargo::cargo();
        write.args(["run", "--quiet", "--package", "dbfs-tests", "--bin", "dbfs-soak", "--", "--corpus"]);
        cmd::run(write.arg(&seeds))?;
        Ok(Self { programs: dir.join("build").join(host).join("release"), dir })
    }

    /// All targets: each has seeds.
    fn targets(&self) -> Result<Vec<String>> {
        let seeds = std::fs::read_dir(self.dir.join("seeds"))?;
        let mut names = seeds
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    /// Runs one target; says what it has done.
    fn run(&self, target: &str, minutes: u64) -> Result<String> {
        let place = |what: &str| self.dir.join(what).join(target);
        let (corpus, artifacts) = (place("corpus"), place("artifacts"));
        for dir in [&corpus, &artifacts] {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let log = self.dir.join(format!("{target}.log"));
        std::fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
        let program = self.programs.join(target);
        let mut command = Command::new(&program);
        command.arg(&corpus).arg(place("seeds"));
        command.arg(format!("-artifact_prefix={}/", artifacts.display()));
        command.arg(format!("-max_total_time={}", minutes * 60));
        command.arg(format!("-timeout={HANGS}")).arg(format!("-rss_limit_mb={MOST_MEMORY}"));
        command.arg("-print_final_stats=1");
        let max_len = MAX_LEN.iter().find(|(name, _)| *name == target);
        command.args(max_len.map(|(_, len)| format!("-max_len={len}")));
        let process = Proc::spawn(&mut command, &log)?;
        let status = process.wait(Duration::from_secs(minutes * 60) + GRACE)?;
        if !status.success() {
            bail!("{status}\n{}\nREPLAY: {}", tail(&log), replay(&program, &text(&log)?));
        }
        summary(&text(&log)?).with_context(|| format!("see {}", log.display()))
    }
}

/// The compiler's own target.
fn host() -> Result<String> {
    let text = cmd::capture(Command::new("rustc").arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV does not name its host")?.to_owned())
}

fn text(log: &Path) -> Result<String> {
    let bytes = std::fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How to run the input that failed once more: libFuzzer's last words name it.
fn replay(program: &Path, log: &str) -> String {
    let input = log.lines().rev().find_map(|line| line.split_once("Test unit written to "));
    format!("{} {}", program.display(), input.map_or("(no input was written)", |(_, path)| path.trim()))
}

/// What libFuzzer says at the end of a run. An error if it was not guided by coverage.
fn summary(log: &str) -> Result<String> {
    let number = |name: &str| {
        let line = log.lines().rev().find_map(|line| line.split_once(name));
        line.and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok())
    };
    let coverage =
        |line: &str| -> Option<u64> { line.split_once("cov: ")?.1.split_whitespace().next()?.parse().ok() };
    let mut steps = log.lines().filter_map(coverage);
    let (Some(first), Some(last)) = (steps.next(), steps.next_back()) else {
        bail!("the target was not guided by coverage: it was not built for fuzzing");
    };
    let stat = |name| number(name).map_or("?".to_owned(), |n| n.to_string());
    Ok(format!(
        "{} inputs, {} a second, coverage {first} to {last}, {} new inputs kept, {} MiB",
        stat("stat::number_of_executed_units:"),
        stat("stat::average_exec_per_sec:"),
        stat("stat::new_units_added:"),
        stat("stat::peak_rss_mb:"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From a run, shortened.
    const LOG: &str = "\
INFO: seed corpus: files: 33
#34\tINITED cov: 6250 ft: 9000 corp: 30/1Kb exec/s: 0 rss: 70Mb
#225\tNEW    cov: 6573 ft: 12947 corp: 101/6183b lim: 94 exec/s: 14 rss: 75Mb
#225\tDONE   cov: 6573 ft: 12947 corp: 101/6183b lim: 94 exec/s: 14 rss: 75Mb
stat::number_of_executed_units: 225
stat::average_exec_per_sec:     14
stat::new_units_added:          77
stat::slowest_unit_time_sec:    0
stat::peak_rss_mb:              75
";

    #[test]
    fn a_summary_has_the_statistics() {
        let text = summary(LOG).unwrap();
        assert_eq!(text, "225 inputs, 14 a second, coverage 6250 to 6573, 77 new inputs kept, 75 MiB");
    }

    #[test]
    fn a_run_without_coverage_is_an_error() {
        let blind: String = LOG.lines().filter(|line| !line.contains("cov: ")).collect();
        assert!(summary(&blind).is_err());
    }

    #[test]
    fn a_failure_names_the_input() {
        let text = "ERROR: libFuzzer: deadly signal\nartifact_prefix='a/'; Test unit written to a/crash-12\nBase64: AA==\n";
        assert_eq!(replay(Path::new("image"), text), "image a/crash-12");
    }
}
