//! kill -9 of daemon and server under load; each time everything acknowledged must be there again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Plan, Tally, close};
use crate::pg::{self, Ledger, Server, ledger::Load, verify};
use crate::proc::Proc;
use crate::rng::Rng;
use crate::target::{Target, Volume};
use crate::workdir::WorkDir;

const CLIENTS: u32 = 4;
const SCALE: u32 = 5;

/// Rounds in CI and in full.
const ROUNDS: (u32, u32) = (5, 20);

/// Everything that lives from round to round.
struct Rig<'a> {
    work: &'a WorkDir,
    target: Box<dyn Target>,
    server: Server,
    ledger: Ledger,
    rng: Rng,
}

/// Runs the rounds on one volume, so that what one left behind is below the next.
pub fn run(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    let target = plan.create(work, &Volume::for_postgres(4 << 30))?;
    let mut server = Server::new(&pg::install::find()?, target.dir().join("data"), work)?;
    server.initdb()?;
    server.start()?;
    pg::bench::init(&server, SCALE)?;
    Ledger::create_table(&server)?;
    let mut rig = Rig { work, target, server, ledger: Ledger::default(), rng: Rng::new(plan.seed) };
    let rounds = if plan.full { ROUNDS.1 } else { ROUNDS.0 };
    for round in 1..=rounds {
        tally.step(&format!("kill -9, round {round}"), || rig.round())?;
    }
    tally.step("pg_amcheck", || verify::amcheck(&rig.server))?;
    rig.server.stop()?;
    tally.step("pg_checksums", || verify::page_checksums(&rig.server))?;
    println!("     {rounds} rounds, {} acknowledged commits, all there", rig.ledger.acknowledged());
    close(rig.target.as_mut(), tally)
}

impl Rig<'_> {
    /// Load, kill, recovery, comparison.
    fn round(&mut self) -> Result<()> {
        let pgbench = pg::bench::start(&self.server, self.work)?;
        let load = self.ledger.start(&self.server, CLIENTS, self.rng.next(), &pg::ledger::no_clock())?;
        std::thread::sleep(Duration::from_millis(self.rng.range(500, 4_000)));
        self.kill(&pgbench, load)?;
        let begin = Instant::now();
        self.target.mount().context("the volume does not mount after the kill")?;
        let mounted = begin.elapsed();
        self.server.start().context("PostgreSQL does not start after the kill")?;
        let started = begin.elapsed();
        let found = self.ledger.check_or_save(&self.server, u64::MAX)?;
        self.ledger.settle(&self.server)?;
        let transactions = verify::sums(&self.server)?;
        println!(
            "     mount {:.3} s, server {:.3} s, {} acknowledged commits, {} more in flight, \
             {transactions} transactions",
            mounted.as_secs_f64(),
            (started - mounted).as_secs_f64(),
            found.acknowledged,
            found.unacknowledged
        );
        Ok(())
    }

    /// Daemon and server die within microseconds of each other, either one first.
    fn kill(&mut self, pgbench: &Proc, load: Load) -> Result<()> {
        // A checkpoint under way is where most can go wrong.
        if self.rng.percent(50) {
            let mut connection = self.server.connect()?;
            std::thread::spawn(move || connection.query("CHECKPOINT"));
            std::thread::sleep(Duration::from_millis(self.rng.range(0, 50)));
        }
        // Frozen, so that it neither reacts to the death of the file system nor forks any more.
        self.server.freeze()?;
        if self.rng.percent(50) {
            self.target.crash()?;
            self.server.kill()?;
        } else {
            self.server.kill()?;
            self.target.crash()?;
        }
        pgbench.kill();
        load.finish(&mut self.ledger)
    }
}
