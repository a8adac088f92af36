//! `pjdfstest`: POSIX semantics, call by call and error by error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Plan, Tally, close};
use crate::target::{Kind, Target, Volume};
use crate::workdir::{WorkDir, set_mode};
use crate::{cmd, paths, say, tools};

/// Tests by outcome, each failure or skip with what was printed about it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    passed: BTreeSet<String>,
    not_passed: BTreeMap<String, String>,
}

/// Runs all tests and compares the failures with the allow-list.
pub fn run(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    let mut target = plan.create(work, &Volume { size: 512 << 20, page_size: 16 << 10 })?;
    set_mode(target.dir(), 0o755)?;
    let config = paths::external_tests().join("pjdfstest.toml");
    let text = play(&config, target.as_ref(), work, &[], &[])?;
    let mut outcome = parse(&text);
    let path = path_with_plain_mount(work)?;
    let config = remounting(&config, work)?;
    outcome.replace(parse(&play(&config, target.as_ref(), work, &[("PATH", &path)], &["erofs"])?));
    if outcome.passed.is_empty() {
        bail!("pjdfstest did not run:\n{text}");
    }
    let allowed = match plan.kind {
        Kind::Dbfs => allow_list()?,
        Kind::Ext4 => BTreeMap::new(),
    };
    judge(&outcome, &allowed, tally);
    close(target.as_mut(), tally)
}

/// Runs the tests whose names contain one of `patterns`, or all, and returns what was printed.
fn play(
    config: &Path,
    target: &dyn Target,
    work: &WorkDir,
    variables: &[(&str, &str)],
    patterns: &[&str],
) -> Result<String> {
    let mut program = Command::new(tools::PJDFSTEST.path()?);
    program.env("NO_COLOR", "1").env("RUST_BACKTRACE", "0").envs(variables.iter().copied());
    program.arg("-c").arg(config);
    program.arg("-p").arg(target.dir()).arg("-s").arg(work.dir("elsewhere", None)?).args(patterns);
    Ok(cmd::capture_any(&mut program)?.1)
}

/// A search path on which `mount` leaves its helper programs alone: to remount a FUSE file system it would
/// look for an installed `dbfs`, and there is only the one just built.
fn path_with_plain_mount(work: &WorkDir) -> Result<String> {
    let folder = work.dir("bin", None)?;
    let script = folder.join("mount");
    let mount = paths::program("mount")?;
    std::fs::write(&script, format!("#!/bin/sh\nexec {} -i \"$@\"\n", mount.display()))?;
    set_mode(&script, 0o755)?;
    let path = std::env::var("PATH").unwrap_or_default();
    Ok(format!("{}:{path}", folder.display()))
}

/// A copy of the configuration that lets tests remount the volume read-only.
fn remounting(config: &Path, work: &WorkDir) -> Result<PathBuf> {
    let text = std::fs::read_to_string(config)?;
    let copy = work.join("remount.toml");
    std::fs::write(&copy, text.replace("allow_remount = false", "allow_remount = true"))?;
    Ok(copy)
}

impl Outcome {
    /// Takes over the verdicts of a later run.
    fn replace(&mut self, later: Outcome) {
        self.not_passed.retain(|name, _| !later.passed.contains(name));
        self.passed.extend(later.passed);
        self.not_passed.extend(later.not_passed);
    }
}

/// Reads the allow-list: "test: reason" lines.
fn allow_list() -> Result<BTreeMap<String, String>> {
    let path = paths::external_tests().join("pjdfstest.allow");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse_allow_list(&text)
}

fn parse_allow_list(text: &str) -> Result<BTreeMap<String, String>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match line.split_once(": ") {
            Some((name, reason)) if !reason.trim().is_empty() => Ok((name.into(), reason.trim().into())),
            _ => bail!("no reason is given in the allow-list: {line}"),
        })
        .collect()
}

/// Result lines are "name, blanks, verdict"; details follow, indented.
fn parse(text: &str) -> Outcome {
    let mut outcome = Outcome::default();
    let mut last = None;
    for line in text.lines().take_while(|line| !line.starts_with("Summary")) {
        let mut words = line.split_whitespace();
        let (name, verdict) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if line.starts_with(char::is_whitespace) || !name.contains("::") {
            if let Some(details) = last.as_ref().and_then(|name| outcome.not_passed.get_mut(name)) {
                details.push_str("\n    ");
                details.push_str(line.trim());
            }
            continue;
        }
        if verdict == "ok" {
            outcome.passed.insert(name.to_owned());
        } else {
            outcome.not_passed.insert(name.to_owned(), verdict.to_owned());
        }
        last = Some(name.to_owned());
    }
    outcome
}

fn judge(outcome: &Outcome, allowed: &BTreeMap<String, String>, tally: &mut Tally) {
    tally.add(Tally::new(outcome.passed.len() as u64, 0));
    for (name, details) in &outcome.not_passed {
        match allowed.get(name) {
            Some(reason) => say!("pjdfstest {name}: fails as listed: {reason}"),
            None => tally.fail(&format!("pjdfstest {name}"), &anyhow::anyhow!("{details}")),
        }
    }
    for name in allowed.keys() {
        if outcome.passed.contains(name) {
            say!("pjdfstest {name}: passes, although it is listed: take it off the allow-list");
        } else if !outcome.not_passed.contains_key(name) {
            tally.fail(&format!("allow-list entry {name}"), &anyhow::anyhow!("there is no such test"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
open::erofs_named                     skipped
\tRemounts are not allowed
chmod::x                         FAILED
\tassertion failed
Backtrace:
chown::y                               ok

Summary: 1 failed, 1 skipped, 1 passed, 0 expected failures, 3 total
";

    #[test]
    fn verdicts_and_details_are_found() {
        let outcome = parse(TEXT);
        assert_eq!(outcome.passed, BTreeSet::from(["chown::y".to_owned()]));
        assert_eq!(outcome.not_passed.len(), 2);
        assert_eq!(outcome.not_passed["open::erofs_named"], "skipped\n    Remounts are not allowed");
        assert!(outcome.not_passed["chmod::x"].contains("assertion failed"));
    }

    #[test]
    fn only_listed_failures_are_forgiven() {
        let allowed = parse_allow_list("# c\n\nchmod::x: not yet\n").unwrap();
        let mut tally = Tally::default();
        judge(&parse(TEXT), &allowed, &mut tally);
        assert_eq!(tally, Tally::new(1, 1));
    }

    #[test]
    fn entries_need_a_reason_and_a_test() {
        assert!(parse_allow_list("chmod::x\n").is_err());
        let mut tally = Tally::default();
        judge(&Outcome::default(), &parse_allow_list("no::such: reason").unwrap(), &mut tally);
        assert_eq!(tally.failed(), 1);
    }
}
