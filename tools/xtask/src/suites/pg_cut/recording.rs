//! A recorded run of PostgreSQL with its ledger.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use blockdev::recorder::{Log, SeqFile};

use super::SIZE;
use super::moments::Moments;
use crate::cmd;
use crate::pg::ledger::Clock;
use crate::pg::{self, Install, Ledger, Server};
use crate::target::{Dbfs, DbfsOptions, Target, Volume};
use crate::workdir::WorkDir;

const CLIENTS: u32 = 4;
const SCALE: u32 = 2;

/// How long the recorded load runs at least, and at most if the engine is slow to write checkpoints.
const TIME: Duration = Duration::from_secs(8);
const LIMIT: Duration = Duration::from_secs(90);

/// The checkpoints of the engine that a recording should hold.
const CHECKPOINTS: usize = 2;

/// How often PostgreSQL writes a checkpoint of its own meanwhile: it dirties data files, not only the log.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);

/// What a run leaves behind.
pub struct Recording {
    base: PathBuf,
    log: PathBuf,
    started: u64,
    ended: u64,
    ledger: Ledger,
}

impl Recording {
    /// Sets a database up on a new volume, copies the volume, and records a load on it until everything is
    /// killed.
    pub fn make(program: &Path, install: &Install, work: &WorkDir, seed: u64) -> Result<Self> {
        let image = work.join("volume.img");
        let base = work.join("base.img");
        let log = work.join("record.log");
        let seq_file = work.join("record.log.seq");
        for old in [&image, &base, &log, &seq_file] {
            remove_if_there(old)?;
        }
        let dir = work.dir("mnt", None)?;
        let volume = Volume::for_postgres(SIZE);
        let options =
            DbfsOptions::new(program.to_path_buf(), image.clone(), dir, volume, work.join("dbfs.log"));
        let mut target = Dbfs::new(options);
        let mut server = Server::new(install, target.dir().join("data"), work)?;
        set_up(&mut target, &mut server)?;
        cmd::capture(Command::new("cp").arg("--sparse=always").arg(&image).arg(&base))?;

        target.record_to(Some(log.clone()));
        target.mount()?;
        server.start()?;
        let seq = SeqFile::open(&seq_file).context("the recorder shows no sequence number")?;
        let clock: Clock = Arc::new(move || seq.get());
        let mut recording = Self { base, log, started: clock(), ended: 0, ledger: Ledger::default() };
        recording.load(&mut target, &mut server, seed, &clock)?;
        recording.ended = clock();
        Ok(recording)
    }

    fn load(&mut self, target: &mut Dbfs, server: &mut Server, seed: u64, clock: &Clock) -> Result<()> {
        let load = self.ledger.start(server, CLIENTS, seed, clock)?;
        let mut connection = server.connect()?;
        let start = Instant::now();
        while start.elapsed() < TIME || (self.checkpoints()? < CHECKPOINTS && start.elapsed() < LIMIT) {
            std::thread::sleep(CHECKPOINT_EVERY);
            connection.query("CHECKPOINT")?;
        }
        server.kill()?;
        target.crash()?;
        load.finish(&mut self.ledger)
    }

    /// The number of the engine's checkpoints so far.
    fn checkpoints(&self) -> Result<usize> {
        Ok(Moments::read(&Log::open(&self.log)?, self.started)?.checkpoints())
    }

    /// The volume as it was before the recording.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The recorder's log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The number of the first record of the load.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// What the clients did.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commits = self.ledger.acknowledged();
        write!(f, "{} records, {commits} acknowledged commits", self.ended - self.started)
    }
}

fn set_up(target: &mut Dbfs, server: &mut Server) -> Result<()> {
    target.format()?;
    target.mount()?;
    server.initdb()?;
    server.start()?;
    pg::bench::init(server, SCALE)?;
    Ledger::create_table(server)?;
    server.stop()?;
    target.unmount()
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
