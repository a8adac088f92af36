//! MariaDB without its doublewrite buffer, InnoDB and Aria, under sysbench; kill -9, recovery, check.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Bench, wait_for_lines};
use crate::cmd;
use crate::mariadb::Server;
use crate::proc::Proc;
use crate::suites::Tally;

/// Settings for the test server. `innodb-doublewrite=OFF` is what the file system promises to be safe;
/// a small log makes checkpoints happen in short runs.
const SETTINGS: [&str; 4] = [
    "--innodb-doublewrite=OFF",
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=16M",
    "--aria-checkpoint-interval=2",
];

/// Storage engines, each with its sysbench database.
const ENGINES: [(&str, &str); 2] = [("innodb", "sbinnodb"), ("aria", "sbaria")];

/// Rows that a round's ledger could get; it is killed long before.
const LEDGER_ROWS: u64 = 100_000;

/// Rows that are acknowledged before the time until the kill begins.
const FIRST_ROWS: usize = 10;

/// Runs the rounds on one data directory.
pub fn run(bench: &mut Bench, tally: &mut Tally) -> Result<()> {
    let mut server = Server::new(bench.dir(), bench.work, &SETTINGS)?;
    tally.step("mariadb-install-db", || server.install())?;
    server.start()?;
    let rows = bench.amount(2_000, 50_000);
    for (engine, database) in ENGINES {
        tally.step(&format!("sysbench prepare, {engine}"), || {
            server.query(&format!("CREATE DATABASE {database}"))?;
            cmd::capture(server.sysbench("oltp_read_write", engine, database, rows)?.arg("prepare"))
        })?;
    }
    server.query("CREATE DATABASE ledger; CREATE TABLE ledger.t(id BIGINT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(200)) ENGINE=InnoDB")?;
    let mut acknowledged = 0;
    for round in 1..=bench.amount(2, 15) {
        let crash = round % 2 == 0;
        let what = if crash { "server and file system" } else { "the server" };
        tally.step(&format!("MariaDB, kill -9 of {what}, round {round}"), || {
            acknowledged = one_round(bench, &mut server, rows, crash)?.max(acknowledged);
            check(&server, acknowledged)
        })?;
    }
    tally.step("MariaDB stops cleanly", || server.stop())?;
    println!("     {acknowledged} acknowledged commits in the ledger");
    Ok(())
}

/// Load, kill, recovery. Returns the number of rows whose commit was acknowledged.
fn one_round(bench: &mut Bench, server: &mut Server, rows: u64, crash: bool) -> Result<u64> {
    let mut loads = Vec::new();
    for (engine, database) in ENGINES {
        let mut load = server.sysbench("oltp_read_write", engine, database, rows)?;
        load.args(["--time=600", "--threads=2", "run"]);
        loads.push(Proc::spawn(&mut load, &bench.work.join(&format!("sysbench-{engine}.log")))?);
    }
    let log = bench.work.join("ledger.log");
    let _ = std::fs::remove_file(&log);
    let ledger = Proc::spawn(&mut ledger(server)?, &log)?;
    wait_for_lines(&ledger, &log, FIRST_ROWS)?;
    std::thread::sleep(Duration::from_millis(bench.rng.range(3_000, 6_000)));
    for load in loads.iter().chain([&ledger]) {
        if let Some(status) = load.try_wait()? {
            return Err(load.error(&format!("ended by itself ({status})")));
        }
    }
    let crash_first = crash && bench.rng.percent(50);
    if crash_first {
        // The server may end by itself before it is killed.
        bench.target.crash()?;
        server.kill_whatever_it_does()?;
    } else {
        server.kill()?;
    }
    if crash && !crash_first {
        bench.target.crash()?;
    }
    loads.iter().chain([&ledger]).for_each(Proc::kill);
    if crash {
        bench.target.mount()?;
    }
    server.start()?;
    let text = std::fs::read_to_string(&log)?;
    text.lines().filter_map(|line| line.parse().ok()).max().context("the ledger got nothing")
}

/// A client that commits row after row, and prints the number of each when that has returned.
fn ledger(server: &Server) -> Result<Command> {
    let script = server.outside().join("ledger.sql");
    let mut text = String::new();
    for i in 0..LEDGER_ROWS {
        let _ = writeln!(
            text,
            "INSERT INTO ledger.t(v) VALUES(repeat('{}', {}));\nSELECT last_insert_id();",
            i % 10,
            i % 200
        );
    }
    std::fs::write(&script, text)?;
    let mut client = server.client("mariadb")?;
    client.args(["--batch", "--skip-column-names", "--unbuffered", "-e"]);
    client.arg(format!("source {}", script.display()));
    Ok(client)
}

/// Every table is sound, and every acknowledged row is there.
fn check(server: &Server, acknowledged: u64) -> Result<()> {
    let said =
        cmd::capture(server.client("mariadb-check")?.args(["--all-databases", "--check", "--extended"]))?;
    let bad = |line: &&str| {
        let line = line.to_lowercase();
        ["error", "corrupt", "crashed"].iter().any(|word| line.contains(word))
    };
    if let Some(line) = said.lines().find(bad) {
        bail!("mariadb-check: {line}\n{said}");
    }
    let missing = format!(
        "SELECT count(*) FROM seq_1_to_{acknowledged} s LEFT JOIN ledger.t ON t.id = s.seq WHERE t.id IS NULL"
    );
    match server.query(&format!("USE ledger; {missing}"))?.trim() {
        "0" => Ok(()),
        n => bail!("{n} of {acknowledged} acknowledged rows are lost"),
    }
}
