//! PostgreSQL on a device that fails: it is told, gives up, and finds everything acknowledged afterwards.
//!
//! PostgreSQL ends with a PANIC when an fsync of its log or its tables fails (`data_sync_retry=off`): it
//! counts on its log for all that the file system may have lost. If an error did not reach it, it would
//! drop the log that it still needs. So the suite demands the PANIC, and then, on the healed device, every
//! commit that was acknowledged before.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::{Plan, Tally, close};
use crate::cargo;
use crate::pg::wire::Connection;
use crate::pg::{self, Ledger, Server, verify};
use crate::proc::Proc;
use crate::rng::Rng;
use crate::target::{Dbfs, DbfsOptions, Failing, Fault, FaultyDevice, Kind, Leaves, Target, Volume};
use crate::workdir::WorkDir;

const SIZE: u64 = 2 << 30;
const CLIENTS: u32 = 4;
const SCALE: u32 = 2;

/// Rows of a table that has more pages than dbfs puts into its journal for one fsync.
const BULK: &str = "CREATE TABLE bulk (n int, t text) WITH (fillfactor = 50, autovacuum_enabled = off); \
                    INSERT INTO bulk SELECT 0, repeat('x', 200) FROM generate_series(1, 20000)";

/// Checkpoints of PostgreSQL that may succeed before a failing device must have been noticed.
const CHECKPOINTS: u32 = 20;

/// Checkpoints that follow an error that nobody was told of: its pages were saved in another way.
const AFTERWARDS: u32 = 2;

/// How often all cases are gone through in full.
const FULL_ROUNDS: u32 = 8;

/// What the operating system calls the failures, as PostgreSQL's log has it. After an error in its journal
/// a volume is read-only.
const REASONS: [&str; 2] = ["Input/output error", "Read-only file system"];

/// How a round has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The server gives up.
    Panic,
    /// The server gives up and recovers by itself, on the same mount; or dbfs has put the data elsewhere.
    PanicOrNone,
    /// Statements fail, and the server goes on when the device does.
    Errors,
}

/// A kind of failure.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    failing: Failing,
    times: u64,
    /// Up to so many requests pass first.
    after: u64,
    end: End,
}

const FOR_EVER: u64 = u64::MAX;

const CASES: [Case; 6] = [
    case("writes of data fail", Failing::Pages, FOR_EVER, 30, End::Panic),
    case("one write of data fails", Failing::Pages, 1, 30, End::PanicOrNone),
    case("a write of the journal fails", Failing::Journal, 1, 30, End::Panic),
    case("a flush fails", Failing::Flushes, 1, 30, End::Panic),
    case("nothing can be written", Failing::Changes, FOR_EVER, 100, End::Panic),
    case("reads fail", Failing::Reads, FOR_EVER, 3, End::Errors),
];

const fn case(name: &'static str, failing: Failing, times: u64, after: u64, end: End) -> Case {
    Case { name, failing, times, after, end }
}

/// Everything that lives from round to round. Field order is drop order: the device goes last.
struct Rig<'a> {
    work: &'a WorkDir,
    server: Server,
    target: Dbfs,
    device: FaultyDevice,
    ledger: Ledger,
    rng: Rng,
}

/// Runs the cases on one volume.
pub fn run(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    if plan.kind != Kind::Dbfs {
        bail!("only dbfs runs on a device of the suite's");
    }
    keep_no_cores()?;
    let device = FaultyDevice::new(&work.join("device.img"), &work.dir("device", None)?, SIZE)?;
    let volume = Volume::for_postgres(SIZE);
    let program = cargo::build_dbfs(plan.profile)?;
    let dir = work.dir("mnt", None)?;
    let options = DbfsOptions::new(program, device.path().to_path_buf(), dir, volume, work.join("dbfs.log"));
    let mut target = Dbfs::new(options);
    target.format()?;
    target.mount()?;
    let mut server = Server::new(&pg::install::find()?, target.dir().join("data"), work)?;
    server.initdb()?;
    server.start()?;
    pg::bench::init(&server, SCALE)?;
    Ledger::create_table(&server)?;
    server.connect()?.query(BULK)?;
    let mut rig = Rig { work, server, target, device, ledger: Ledger::default(), rng: Rng::new(plan.seed) };
    for round in 1..=if plan.full { FULL_ROUNDS } else { 1 } {
        for case in &CASES {
            tally.step(&format!("{}, round {round}", case.name), || rig.round(case))?;
        }
    }
    tally.step("pg_amcheck", || verify::amcheck(&rig.server))?;
    rig.server.stop()?;
    tally.step("pg_checksums", || verify::page_checksums(&rig.server))?;
    println!("     {} acknowledged commits, all there", rig.ledger.acknowledged());
    close(&mut rig.target, tally)
}

/// A PANIC is an abort: its core would be written onto the failing volume.
fn keep_no_cores() -> Result<()> {
    let mut limit = getrlimit(Resource::Core);
    limit.current = Some(0);
    setrlimit(Resource::Core, limit).context("cannot forbid cores")
}

impl Rig<'_> {
    /// Load, failure, its consequence, recovery on the healed device, comparison.
    fn round(&mut self, case: &Case) -> Result<()> {
        let restarts = if case.end == End::PanicOrNone { "on" } else { "off" };
        let mut session = self.server.connect()?;
        session.query(&format!("ALTER SYSTEM SET restart_after_crash = {restarts}"))?;
        session.query("SELECT pg_reload_conf()")?;
        if case.end == End::Errors {
            // Nothing is cached: neither here, nor there.
            self.server.stop()?;
            self.target.unmount()?;
            self.target.mount()?;
            self.server.start()?;
            session = self.server.connect()?;
        }
        let logged = self.server.log()?.len();
        let pgbench = pg::bench::start(&self.server, self.work)?;
        let load = self.ledger.start(&self.server, CLIENTS, self.rng.next(), &pg::ledger::no_clock())?;
        std::thread::sleep(Duration::from_millis(self.rng.range(300, 2_000)));
        let fault = self.fault(case);
        self.device.fail(fault);
        let outcome = self.fail(case, session, &pgbench);
        pgbench.kill();
        // The clients have lost their server, or are told to stop.
        let finished = load.finish(&mut self.ledger);
        let told = outcome?;
        finished?;
        ensure!(self.device.hits() > 0, "no request failed");
        self.find_in_log(case, logged, told)?;
        let (hits, live) = (self.device.hits(), self.go_on(case)?);
        self.recover()?;
        let found = self.ledger.check_or_save(&self.server, u64::MAX)?;
        self.ledger.settle(&self.server)?;
        let transactions = verify::sums(&self.server)?;
        println!(
            "     {hits} requests failed, the server {}; {} acknowledged commits, {} more in flight, \
             {transactions} transactions",
            match (told, live) {
                (false, _) => "was not told",
                (true, true) => "was told, and went on",
                (true, false) => "gave up",
            },
            found.acknowledged,
            found.unacknowledged
        );
        Ok(())
    }

    fn fault(&mut self, case: &Case) -> Fault {
        let leaves = [Leaves::Nothing, Leaves::Half, Leaves::All];
        Fault {
            failing: case.failing,
            after: self.rng.range(0, case.after),
            times: case.times,
            leaves: leaves[self.rng.range(0, 3) as usize],
        }
    }

    /// Works until the failure has shown; true if PostgreSQL was told.
    fn fail(&mut self, case: &Case, mut session: Connection, pgbench: &Proc) -> Result<bool> {
        if case.end == End::Errors {
            return self.read_failing(session);
        }
        let mut since = 0;
        for _ in 0..CHECKPOINTS {
            let hit = self.device.hits() > 0;
            let done = session.query("UPDATE bulk SET n = n + 1").and_then(|_| session.query("CHECKPOINT"));
            // A statement may fail by itself: of that nobody needs to give up.
            if done.is_err() && session.query("SELECT 1").is_err() {
                if case.end == End::Panic {
                    self.server.wait_for_end()?;
                }
                return Ok(true);
            }
            since += u32::from(hit && done.is_ok());
            if case.end == End::PanicOrNone && since >= AFTERWARDS {
                return Ok(false);
            }
        }
        Err(pgbench.error(&format!(
            "PostgreSQL went on for {CHECKPOINTS} checkpoints, with {} failed requests",
            self.device.hits()
        )))
    }

    /// Statements that read from the device fail, and succeed when the device does.
    fn read_failing(&mut self, mut session: Connection) -> Result<bool> {
        let mut told = 0;
        for table in ["pgbench_accounts", "bulk", "pgbench_history"] {
            let read = format!("SELECT count(*) FROM {table}");
            match session.query(&read) {
                Ok(_) => {}
                Err(error) if REASONS.iter().any(|reason| format!("{error:#}").contains(reason)) => told += 1,
                // The server has given up: its log tells why.
                Err(error) => {
                    self.server.wait_for_end().with_context(|| format!("{read}: {error:#}"))?;
                    return Ok(true);
                }
            }
        }
        self.device.heal();
        ensure!(told > 0, "everything could be read, with {} failed requests", self.device.hits());
        Ok(true)
    }

    /// What has failed is in the server's log, behind `logged` bytes; and if it was told, it has given up.
    fn find_in_log(&self, case: &Case, logged: usize, told: bool) -> Result<()> {
        let log = self.server.log()?;
        let new = log.get(logged..).context("the server's log was cut")?;
        let has = |word: &str| new.lines().any(|line| line.contains(word) && is_reason(line));
        let shown = match case.end {
            End::PanicOrNone if !told => true,
            End::Errors => has("ERROR: ") || has("PANIC: "),
            _ => has("PANIC: "),
        };
        ensure!(shown, "the server's log does not tell of a failed request:\n{new}");
        Ok(())
    }

    /// A server that has not given up for good works, on the healed device, and everything is there. False
    /// if it has.
    fn go_on(&mut self, case: &Case) -> Result<bool> {
        if case.end == End::Panic || !self.server.is_running() {
            return Ok(false);
        }
        self.device.heal();
        if !self.server.wait_until_ready()? {
            return Ok(false);
        }
        self.ledger.check_or_save(&self.server, u64::MAX).context("on the same mount")?;
        self.ledger.settle(&self.server)?;
        verify::sums(&self.server).context("on the same mount")?;
        let mut session = self.server.connect()?;
        session.query("UPDATE bulk SET n = n + 1")?;
        session.query("CHECKPOINT")?;
        Ok(true)
    }

    /// Ends server and daemon, one way or the other, heals the device, and starts both again.
    fn recover(&mut self) -> Result<()> {
        self.server.kill_if_alive()?;
        if self.rng.percent(50) {
            self.device.heal();
        }
        // It may fail, as what it is to write cannot be written any more.
        let unmounted = self.rng.percent(50) && self.target.unmount().is_ok();
        if !unmounted {
            self.target.crash()?;
        }
        self.device.heal();
        self.target.mount().context("the volume does not mount after the failure")?;
        self.server.start().context("PostgreSQL does not start after the failure")
    }
}

fn is_reason(line: &str) -> bool {
    REASONS.iter().any(|reason| line.contains(reason))
}
