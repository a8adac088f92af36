//! `cargo xtask test`: all tests that need no long run.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::cargo::{self, Profile};
use crate::suites::{self, Plan, Suite, Tally};
use crate::target::Kind;
use crate::{cmd, privilege, say};

/// Options of the test run.
#[derive(clap::Args)]
pub struct Args {
    /// All rounds of the suites, rather than the few that fit into CI
    #[arg(long)]
    full: bool,
    /// Seed of the suites' random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Carries the outcome of the unprivileged part through sudo, as "passed,failed".
const CARRIED: &str = "DBFS_XTASK_TALLY";

/// Runs the crates' own tests, then the suites of real programs.
pub fn run(args: &Args) -> Result<()> {
    let plan = Plan { kind: Kind::Dbfs, profile: Profile::Dev, full: args.full, seed: args.seed };
    let suites = Suite::all(args.full);
    suites::prepare(&plan, &suites)?;
    let mut tally = if privilege::is_prepared() { carried()? } else { cargo_test()? };
    let counts = format!("{},{}", tally.passed(), tally.failed());
    privilege::become_root_with(&[(CARRIED, &counts)])?;
    tally.add(suites::run(&plan, &suites));
    println!();
    tally.finish()
}

fn carried() -> Result<Tally> {
    let text = std::env::var(CARRIED).context("the counts of the crates' tests were lost")?;
    let (passed, failed) = text.split_once(',').context("malformed counts")?;
    Ok(Tally::new(passed.parse()?, failed.parse()?))
}

/// What `cargo` is told: to run the tests of the workspace, and then, in a build that can break each
/// safety rule, to prove that they notice.
const CARGO_TESTS: [&[&str]; 3] = [
    &["test", "--workspace", "--no-fail-fast"],
    &["test", "-p", "dbfs-fs-core", "--features", "mutants", "--test", "rules", "mutants"],
    &["test", "-p", "dbfs-tests", "--features", "mutants", "--test", "mutants"],
];

/// Runs the crates' tests and counts them.
fn cargo_test() -> Result<Tally> {
    let mut tally = Tally::default();
    for args in CARGO_TESTS {
        say!("cargo {}", args.join(" "));
        tally.add(count_tests(cargo::cargo().args(args))?);
    }
    Ok(tally)
}

fn count_tests(command: &mut Command) -> Result<Tally> {
    let mut child = cmd::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let guard = cmd::terminate_on_interrupt(&child)?;
    let stdout = child.stdout.take().context("no output to read")?;
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        tally.add(parse_result_line(&line));
        println!("{line}");
    }
    let status = child.wait()?;
    guard.disarm();
    if !status.success() && tally.failed() == 0 {
        // Did not compile, or a test process died before it could count.
        tally.fail(&cmd::describe(command), &anyhow::anyhow!("{status}"));
    }
    Ok(tally)
}

/// "test result: ok. 3 passed; 0 failed; ..." closes each test program's output.
fn parse_result_line(line: &str) -> Tally {
    let Some(counts) = line.strip_prefix("test result: ") else { return Tally::default() };
    let count = |what: &str| {
        let number = counts.split([';', '.']).find_map(|part| part.trim().strip_suffix(what));
        number.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
    };
    Tally::new(count("passed"), count("failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(parse_result_line(line), Tally::new(12, 3));
        assert_eq!(parse_result_line("test a ... ok"), Tally::default());
    }

    #[test]
    fn a_run_that_dies_without_counting_has_failed() {
        let mut command = Command::new("sh");
        let tally = count_tests(command.args(["-c", "echo 'test result: ok. 2 passed; 0 failed'; exit 3"]));
        assert_eq!(tally.unwrap(), Tally::new(2, 1));
    }
}
