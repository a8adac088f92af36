//! `cargo xtask soak bytes`: every byte of an aged volume's metadata is flipped in turn.
//!
//! `dbfs-soak --every-byte` does the work, one process for some bytes: so memory is counted for one case at a time, and a hang
//! or a runaway ends that process only. What is done is noted; a run that was interrupted goes on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Simulation;
use crate::suites::Tally;
use crate::{cmd, paths, say};

/// Options of the round over all bytes.
#[derive(clap::Args)]
pub struct Args {
    /// Processes at the same time
    #[arg(long, default_value_t = 2)]
    at_a_time: usize,
    /// Stop after so many minutes; the next run goes on [default: when all are done]
    #[arg(long)]
    minutes: Option<u64>,
    /// Number of the round: each flips other bits
    #[arg(long, default_value_t = 0)]
    round: u64,
    /// Forget what earlier runs of this round have done
    #[arg(long)]
    again: bool,
}

/// Bytes for one process.
const SHARE: u64 = 500;

/// How often progress is shown.
const REPORT: Duration = Duration::from_secs(60);

/// Runs what is left of the round.
pub fn run(args: &Args) -> Result<()> {
    let simulation = Simulation::build()?;
    let total: u64 = cmd::capture(Command::new(&simulation.program).arg("--count-bytes"))?
        .trim()
        .parse()
        .context("dbfs-soak does not say how many bytes there are")?;
    let mut round = Round::open(args, total)?;
    say!("round {}: {} of {total} bytes of metadata are done", args.round, round.counts.cases());
    let end = args.minutes.map(|minutes| Instant::now() + Duration::from_secs(minutes * 60));
    let todo: Vec<u64> = (0..total).step_by(SHARE as usize).filter(|at| !round.done.contains(at)).collect();
    round.left = todo.len();
    let todo = Mutex::new(todo.into_iter());
    let round = Mutex::new(round);
    let next = || todo.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        for _ in 0..args.at_a_time.max(1) {
            scope.spawn(|| {
                while end.is_none_or(|end| Instant::now() < end)
                    && let Some(from) = next()
                {
                    let numbers = (args.round * total + from, args.round * total + total.min(from + SHARE));
                    let outcome = share(&simulation, numbers);
                    round.lock().unwrap_or_else(PoisonError::into_inner).note(from, outcome);
                }
            });
        }
    });
    round.into_inner().unwrap_or_else(PoisonError::into_inner).finish()
}

/// Runs one share. The counts, and the lines of failures.
fn share(simulation: &Simulation, (from, to): (u64, u64)) -> Result<(Counts, Vec<String>)> {
    let mut command = Command::new(&simulation.program);
    command.args(["--every-byte", "--from", &from.to_string(), "--to", &to.to_string()]);
    let (_, text) = cmd::capture_any(&mut command)?;
    let counts = text.lines().find_map(Counts::parse);
    let failures = text.lines().filter(|line| line.starts_with("FAILED")).map(str::to_owned).collect();
    match counts {
        Some(counts) => Ok((counts, failures)),
        None => bail!("bytes {from} to {to}: {text}\nREPLAY: {}", cmd::describe(&command)),
    }
}

/// What became of the cases, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// From "COUNTS cases=500 refused=3 ...".
    fn parse(line: &str) -> Option<Self> {
        let fields = line.strip_prefix("COUNTS ")?.split_whitespace();
        let field = |text: &str| {
            let (name, number) = text.split_once('=')?;
            Some((name.to_owned(), number.parse().ok()?))
        };
        fields.map(field).collect::<Option<_>>().map(Self)
    }

    fn add(&mut self, other: &Self) {
        for (name, number) in &other.0 {
            *self.0.entry(name.clone()).or_default() += number;
        }
    }

    fn cases(&self) -> u64 {
        self.0.get("cases").copied().unwrap_or(0)
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fields: Vec<String> = self.0.iter().map(|(name, number)| format!("{name}={number}")).collect();
        f.write_str(&fields.join(" "))
    }
}

/// A round over all bytes, as far as it has come.
struct Round {
    /// Where the shares that are done are noted: a line each, its first byte and its counts.
    notes: PathBuf,
    done: BTreeSet<u64>,
    counts: Counts,
    left: usize,
    tally: Tally,
    start: Instant,
    shown: Instant,
}

impl Round {
    fn open(args: &Args, total: u64) -> Result<Self> {
        let dir = paths::target_dir()?.join("soak");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        // Another number of bytes means another volume.
        let notes = dir.join(format!("bytes-{total}-round-{}", args.round));
        let (mut done, mut counts) = (BTreeSet::new(), Counts::default());
        if args.again && notes.exists() {
            std::fs::remove_file(&notes).with_context(|| format!("cannot remove {}", notes.display()))?;
        }
        for (from, of) in std::fs::read_to_string(&notes).unwrap_or_default().lines().filter_map(parse_note) {
            if done.insert(from) {
                counts.add(&of);
            }
        }
        let now = Instant::now();
        Ok(Self { notes, done, counts, left: 0, tally: Tally::default(), start: now, shown: now })
    }

    /// Takes the outcome of the share that begins with byte `from`. Those that failed are not noted as done.
    fn note(&mut self, from: u64, outcome: Result<(Counts, Vec<String>)>) {
        self.left -= 1;
        match outcome {
            Ok((counts, failures)) if failures.is_empty() => {
                self.counts.add(&counts);
                let line = format!("{from} COUNTS {counts}\n");
                let file = std::fs::File::options().create(true).append(true).open(&self.notes);
                if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
                    eprintln!("warning: cannot note what is done in {}: {error}", self.notes.display());
                }
                self.tally.add(Tally::new(counts.cases(), 0));
            }
            Ok((_, failures)) => {
                let lines = failures.iter().fold(String::new(), |mut text, line| {
                    let _ = write!(text, "\n{line}");
                    text
                });
                self.tally.fail(&format!("bytes from {from} on"), &anyhow::anyhow!(lines));
            }
            Err(error) => self.tally.fail(&format!("bytes from {from} on"), &error),
        }
        if self.shown.elapsed() > REPORT || self.left == 0 {
            self.shown = Instant::now();
            let minutes = self.start.elapsed().as_secs() / 60;
            say!("{}; {} bytes left after {minutes} minutes", self.counts, self.left as u64 * SHARE);
        }
    }

    fn finish(self) -> Result<()> {
        say!("{}", self.counts);
        if self.left > 0 {
            say!("about {} bytes are left for the next run", self.left as u64 * SHARE);
        } else if self.tally.failed() == 0 && self.tally.passed() == 0 {
            say!("this round was done before: --again or --round N for another one");
            return Ok(());
        }
        self.tally.finish()
    }
}

fn parse_note(line: &str) -> Option<(u64, Counts)> {
    let (from, counts) = line.split_once(' ')?;
    Some((from.parse().ok()?, Counts::parse(counts)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_back() {
        let counts = Counts::parse("COUNTS cases=500 failed=0 refused=3").unwrap();
        assert_eq!(counts.cases(), 500);
        assert_eq!(parse_note(&format!("1500 COUNTS {counts}")), Some((1500, counts.clone())));
        let mut sum = counts.clone();
        sum.add(&counts);
        assert_eq!(sum.to_string(), "cases=1000 failed=0 refused=6");
    }

    #[test]
    fn half_a_note_is_not_believed() {
        assert!(parse_note("1500 COUNTS cases=500 fai").is_none());
        assert!(parse_note("1500").is_none());
    }
}
