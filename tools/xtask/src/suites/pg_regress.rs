//! PostgreSQL's own regression tests, with data directory and results on the volume.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Plan, Tally, close};
use crate::pg::install::{Install, bin_dir};
use crate::pg::source::{self, Regress};
use crate::pg::{self, Server};
use crate::target::Volume;
use crate::workdir::WorkDir;
use crate::{cmd, say};

/// Runs the whole parallel schedule.
pub fn run(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    let installed = pg::install::find()?;
    let regress = source::prepare(&installed)?;
    let install = reachable(&installed, &regress, work)?;
    let mut target = plan.create(work, &Volume::for_postgres(4 << 30))?;
    let mut server = Server::new(&install, target.dir().join("data"), work)?;
    server.initdb()?;
    let suite = target.dir().join("regress");
    copy_for(&install, &regress.suite, &suite)?;
    server.start()?;
    let text = play(&server, &suite)?;
    server.stop()?;
    let counts = parse(&text);
    if counts.failed() > 0 {
        let diffs = std::fs::read_to_string(suite.join("regression.diffs")).unwrap_or_default();
        println!("{}", diffs.chars().take(20_000).collect::<String>());
    }
    for line in text.lines().filter(|line| line.contains("FAILED") || line.contains("not ok")) {
        println!("{line}");
    }
    if counts.passed() == 0 {
        bail!("pg_regress did not run:\n{text}");
    }
    say!("regression suite of PostgreSQL {}: {counts}", install.major());
    tally.add(counts);
    close(target.as_mut(), tally)
}

/// The target directory may be closed to PostgreSQL's user: a private server is copied out of it.
fn reachable(installed: &Install, regress: &Regress, work: &WorkDir) -> Result<Install> {
    let Some(root) = &regress.server else { return Ok(installed.clone()) };
    let copy = work.join("server");
    copy_for(installed, root, &copy)?;
    Install::at(bin_dir(&copy, installed.major()), installed.major())
}

fn copy_for(install: &Install, from: &Path, to: &Path) -> Result<()> {
    cmd::capture(Command::new("cp").arg("-r").arg(from).arg(to))?;
    let (uid, gid) = install.user().ids();
    cmd::capture(Command::new("chown").arg("-R").arg(format!("{uid}:{gid}")).arg(to))?;
    Ok(())
}

/// Runs `pg_regress` in `suite` and returns what it printed.
fn play(server: &Server, suite: &Path) -> Result<String> {
    let mut command = Command::new(suite.join("pg_regress"));
    server.install().as_user(&mut command);
    command.current_dir(suite).args([
        "--inputdir=.",
        "--outputdir=.",
        "--dlpath=.",
        "--max-concurrent-tests=20",
    ]);
    command.arg("--schedule=parallel_schedule").arg("--user=postgres");
    command.arg(format!("--bindir={}", server.install().bin().display()));
    let socket = server.socket();
    let host = socket.parent().context("a socket without a folder")?;
    command.arg(format!("--host={}", host.display())).arg(format!("--port={}", pg::server::PORT));
    Ok(cmd::capture_any(&mut command)?.1)
}

/// Counts result lines: "name ... ok", or "ok 1 - name" since version 16.
fn parse(text: &str) -> Tally {
    let is = |line: &str, old: &str, new: &str| line.contains(old) || line.trim_start().starts_with(new);
    let count = |old, new| text.lines().filter(|line| is(line, old, new)).count() as u64;
    Tally::new(count("... ok", "ok "), count("... FAILED", "not ok "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_counted() {
        let old = "parallel group (2 tests):  a b\n     a      ... ok    10 ms\ntest b    ... FAILED  5 ms\n";
        assert_eq!(parse(old), Tally::new(1, 1));
        let new = "# parallel group\nok 1         + a     10 ms\nnot ok 2     - b   5 ms\n1..2\n";
        assert_eq!(parse(new), Tally::new(1, 1));
    }
}
