//! SQLite in WAL mode: a writer, concurrent readers, kill -9 of the writer and of the file system.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Bench, program, wait_for_lines};
use crate::cmd;
use crate::proc::Proc;
use crate::suites::Tally;

/// Rows that a round could write; it is killed long before.
const ROWS: u64 = 200_000;

/// Rows that are acknowledged before the time until the kill begins.
const FIRST_ROWS: usize = 10;

/// Runs the rounds on one database.
pub fn run(bench: &mut Bench, tally: &mut Tally) -> Result<()> {
    let db = bench.dir().join("sqlite.db");
    query(
        &db,
        "PRAGMA journal_mode=WAL; PRAGMA page_size; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB, n INT); \
                CREATE INDEX i ON t(n);",
    )?;
    let mut acknowledged = 0;
    for round in 1..=bench.amount(3, 20) {
        let crash = round % 3 == 2;
        let what = if crash { "and of the file system" } else { "of the writer" };
        tally.step(&format!("SQLite, kill -9 {what}, round {round}"), || {
            acknowledged = one_round(bench, &db, crash)?.max(acknowledged);
            check(&db, acknowledged)
        })?;
    }
    tally.step("SQLite VACUUM and checkpoint", || {
        query(&db, "DELETE FROM t WHERE id % 3 = 0; PRAGMA wal_checkpoint(TRUNCATE); VACUUM; PRAGMA integrity_check;")
            .and_then(|text| if text.ends_with("ok\n") { Ok(()) } else { bail!("{text}") })
    })?;
    println!("     {acknowledged} acknowledged commits");
    Ok(())
}

/// Writes under readers until a kill. Returns the number of rows whose commit was acknowledged.
fn one_round(bench: &mut Bench, db: &Path, crash: bool) -> Result<u64> {
    let script = bench.work.join("sqlite.sql");
    std::fs::write(&script, inserts())?;
    let log = bench.work.join("sqlite.log");
    let _ = std::fs::remove_file(&log);
    // Line by line: what it prints was committed.
    let mut writer = program("stdbuf")?;
    writer.args(["-oL", "sqlite3", "-bail"]).arg(db).arg(format!(".read {}", script.display()));
    let writer = Proc::spawn(&mut writer, &log)?;
    wait_for_lines(&writer, &log, FIRST_ROWS)?;
    let stop = AtomicBool::new(false);
    let length = Duration::from_millis(bench.rng.range(1_000, 3_000));
    let read = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2).map(|_| scope.spawn(|| read_on(db, &stop))).collect();
        std::thread::sleep(length);
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().try_for_each(|r| r.join().unwrap_or_else(|_| bail!("a reader panicked")))
    });
    if let Some(status) = writer.try_wait()? {
        return Err(writer.error(&format!("ended by itself ({status})")));
    }
    if crash {
        bench.target.crash()?;
    }
    writer.kill();
    read?;
    if crash {
        bench.target.mount()?;
    }
    let text = std::fs::read_to_string(&log)?;
    let ids = text.lines().filter_map(|line| line.strip_prefix("ack "));
    ids.filter_map(|id| id.parse().ok()).max().context("the writer has committed nothing")
}

/// Each insert is a transaction of its own, durable when it returns.
fn inserts() -> String {
    let mut text = String::from(
        "PRAGMA busy_timeout=20000;\nPRAGMA synchronous=FULL;\nPRAGMA wal_autocheckpoint=200;\n",
    );
    for i in 0..ROWS {
        // The column `n` is checked against the row's number.
        let bytes = 10 + i * 37 % 3000;
        let _ = writeln!(
            text,
            "INSERT INTO t(v, n) VALUES(randomblob({bytes}), (SELECT coalesce(max(id), 0) + 1 FROM t));\n\
             SELECT 'ack ' || last_insert_rowid();"
        );
    }
    text
}

/// What every reader sees: rows without gaps.
fn read_on(db: &Path, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let text = query(
            db,
            "PRAGMA busy_timeout=20000; SELECT count(*) = coalesce(max(id), 0), count(*) FROM t WHERE n = id;",
        )?;
        if !text.lines().last().is_some_and(|line| line.starts_with("1|")) {
            bail!("a reader sees gaps: {text}");
        }
    }
    Ok(())
}

fn check(db: &Path, acknowledged: u64) -> Result<()> {
    let text = query(db, "PRAGMA integrity_check; SELECT count(*), max(id), sum(n = id) FROM t;")?;
    let (verdict, counts) = text.trim().split_once('\n').context("no answer")?;
    if verdict != "ok" {
        bail!("integrity_check: {text}");
    }
    let counts: Vec<u64> = counts.split('|').filter_map(|n| n.parse().ok()).collect();
    match counts.as_slice() {
        [rows, last, good] if rows == last && rows == good && *last >= acknowledged => Ok(()),
        _ => bail!("{acknowledged} rows were acknowledged, found {counts:?}"),
    }
}

fn query(db: &Path, sql: &str) -> Result<String> {
    let mut sqlite: Command = program("sqlite3")?;
    cmd::capture(sqlite.arg("-bail").arg(db).arg(sql))
}
