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
    tally.step("new data is refused", || refused(&mut session))?;
    fs::remove_file(&ballast)?;
    tally.step("new data is taken when there is space again", || session.query(MANY))?;
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
    // Recycles log segments: the updates that follow need no new ones.
    session.query("CHECKPOINT")?;
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
    refused(session)
}

fn update(session: &mut Connection) -> Result<()> {
    for _ in 0..200 {
        session.query("UPDATE pgbench_branches SET bbalance = bbalance + 1 WHERE bid = 1")?;
        session.query("UPDATE pgbench_branches SET bbalance = bbalance - 1 WHERE bid = 1")?;
    }
    Ok(())
}

fn refused(session: &mut Connection) -> Result<()> {
    // Rolled back rows leave their blocks in the table: each time there is less.
    for _ in 0..200 {
        if let Err(error) = session.query(MANY) {
            let text = format!("{error:#}");
            ensure!(text.contains("No space left on device"), "{text}");
            return Ok(());
        }
    }
    bail!("the volume does not become full")
}

fn unharmed(server: &Server) -> Result<()> {
    let log = server.log()?;
    let harm = log.lines().find(|line| line.contains("PANIC") || line.contains("was terminated by signal"));
    ensure!(harm.is_none(), "the server's log has: {}", harm.unwrap_or_default());
    Ok(())
}
