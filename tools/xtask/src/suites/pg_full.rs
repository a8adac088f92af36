//! PostgreSQL on a volume that becomes full: new data is refused, what is there goes on, and nothing
//! is lost.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Plan, Tally, close};
use crate::pg::wire::Connection;
use crate::pg::{self, Server, verify};
use crate::target::Volume;
use crate::workdir::WorkDir;

/// Rows that a statement adds at most, each about a page: more than fits.
const MANY: &str = "INSERT INTO filler SELECT repeat(md5(n::text), 200) FROM generate_series(1, 20000) n";

/// As many for a table that is logged: a page or two of log are written before there is no space.
const LOGGED: &str = "INSERT INTO logged SELECT repeat(md5(n::text), 200) FROM generate_series(1, 20000) n";

/// Rows of the table whose pages are overwritten in place.
const HOT_ROWS: i64 = 20_000;

/// Times that each of its rows is updated while the volume is full.
const HOT_ROUNDS: i64 = 4;

/// Segments of the log that are there, and not used yet.
const SPARE_SEGMENTS: &str = "SELECT count(*) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' AND name > pg_walfile_name(pg_current_wal_lsn())";

/// Fills the volume with a file, then with a table, works on it, and frees it again.
pub fn run(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    let mut target = plan.create(work, &Volume::for_postgres(1 << 30))?;
    let mut server = Server::new(&pg::install::find()?, target.dir().join("data"), work)?;
    server.initdb()?;
    server.start()?;
    pg::bench::init(&server, 2)?;
    pg::bench::run(&server, Duration::from_secs(if plan.full { 30 } else { 5 }))?;
    let mut session = prepare(&server)?;
    let ballast = target.dir().join("ballast");
    tally.step("the volume is filled", || fill(&ballast, &mut session))?;
    tally.step("rows are updated on the full volume", || update(&mut session))?;
    tally.step("pages are overwritten and vacuumed in place, and the log goes on in its segments", || {
        overwrite(&mut session)
    })?;
    tally.step("new data is refused", || refused(&mut session, MANY))?;
    tally.step("new data of a logged table is refused", || refused(&mut session, LOGGED))?;
    tally.step("a table is dropped on the full volume", || session.query("DROP TABLE filler"))?;
    tally
        .step("its space can be used", || session.query("CREATE UNLOGGED TABLE filler AS SELECT 'x' AS t"))?;
    fs::remove_file(&ballast)?;
    tally.step("new data is taken when there is space again", || {
        session.query(MANY)?;
        session.query(LOGGED)?;
        session.query("CHECKPOINT")
    })?;
    tally.step("transactions go on", || pg::bench::run(&server, Duration::from_secs(2)))?;
    tally.step("nothing is lost", || nothing_lost(&mut session))?;
    tally.step("no process of the server failed", || unharmed(&server))?;
    tally.step("sums", || verify::sums(&server))?;
    tally.step("pg_amcheck", || verify::amcheck(&server))?;
    drop(session);
    server.stop()?;
    tally.step("pg_checksums", || verify::page_checksums(&server))?;
    close(target.as_mut(), tally)
}

/// An unlogged table, so that filling it needs no log; and no checkpoint by time while the volume is full:
/// a checkpoint writes new small files, and PostgreSQL gives up when it cannot, on any file system.
fn prepare(server: &Server) -> Result<Connection> {
    let mut session = server.connect()?;
    session.query("ALTER SYSTEM SET checkpoint_timeout = '1h'")?;
    session.query("SELECT pg_reload_conf()")?;
    session.query("CREATE UNLOGGED TABLE filler (t text)")?;
    // Compressed rows would hardly fill anything.
    session.query("ALTER TABLE filler ALTER t SET STORAGE EXTERNAL")?;
    session.query("CREATE TABLE logged (t text)")?;
    session.query("ALTER TABLE logged ALTER t SET STORAGE EXTERNAL")?;
    // In each page there is room for the next version of all its rows.
    session.query("CREATE TABLE hot (id int, n int) WITH (fillfactor = 40, autovacuum_enabled = off)")?;
    session.query(&format!("INSERT INTO hot SELECT n, 0 FROM generate_series(1, {HOT_ROWS}) n"))?;
    session.query("VACUUM hot")?;
    // Recycles log segments: the updates that follow need no new ones.
    for _ in 0..5 {
        session.query("UPDATE pgbench_branches SET bbalance = bbalance")?;
        session.query("SELECT pg_switch_wal()")?;
    }
    session.query("CHECKPOINT")?;
    let spare = session.number(SPARE_SEGMENTS)?;
    ensure!(spare >= 1, "PostgreSQL keeps no segment of its log for later");
    println!("     {spare} segments of the log are preallocated");
    Ok(session)
}

fn fill(ballast: &Path, session: &mut Connection) -> Result<()> {
    let mut file = File::create(ballast)?;
    let written = loop {
        match file.write_all(&[0x5a; 1 << 20]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => break file.metadata()?.len(),
            Err(error) => return Err(error).context("cannot fill the volume"),
        }
    };
    file.sync_all().context("what was taken cannot be made durable")?;
    // A part of it is for the table.
    file.set_len(written.saturating_sub(16 << 20))?;
    file.sync_all()?;
    refused(session, MANY)
}

fn update(session: &mut Connection) -> Result<()> {
    for _ in 0..200 {
        session.query("UPDATE pgbench_branches SET bbalance = bbalance + 1 WHERE bid = 1")?;
        session.query("UPDATE pgbench_branches SET bbalance = bbalance - 1 WHERE bid = 1")?;
    }
    Ok(())
}

fn refused(session: &mut Connection, statement: &str) -> Result<()> {
    // Rolled back rows leave their blocks in the table: each time there is less.
    for _ in 0..200 {
        if let Err(error) = session.query(statement) {
            let text = format!("{error:#}");
            ensure!(text.contains("No space left on device"), "{text}");
            return Ok(());
        }
    }
    bail!("the volume does not become full")
}

/// Updates all rows of a table whose pages have room for them, and goes on to the next segment of the log.
fn overwrite(session: &mut Connection) -> Result<()> {
    let size = |session: &mut Connection| session.number("SELECT pg_relation_size('hot')");
    let before = size(session)?;
    for round in 0..HOT_ROUNDS {
        session.query("UPDATE hot SET n = n + 1")?;
        session.query("VACUUM hot")?;
        if round == 1 {
            ensure!(
                session.number(SPARE_SEGMENTS)? >= 1,
                "no preallocated segment of the log is left to go on in"
            );
            session.query("SELECT pg_switch_wal()")?;
        }
    }
    ensure!(size(session)? == before, "the updates were not in place");
    Ok(())
}

/// Every update that was acknowledged on the full volume is there.
fn nothing_lost(session: &mut Connection) -> Result<()> {
    let sum = session.number("SELECT sum(n)::bigint FROM hot")?;
    ensure!(sum == HOT_ROWS * HOT_ROUNDS, "the rows were updated {sum} times, not {}", HOT_ROWS * HOT_ROUNDS);
    Ok(())
}

fn unharmed(server: &Server) -> Result<()> {
    let log = server.log()?;
    let harm = log.lines().find(|line| line.contains("PANIC") || line.contains("was terminated by signal"));
    ensure!(harm.is_none(), "the server's log has: {}", harm.unwrap_or_default());
    Ok(())
}
