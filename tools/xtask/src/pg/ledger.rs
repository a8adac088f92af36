//! A load whose every acknowledged commit is written down outside of the server.
//!
//! Each client runs pgbench's own transaction and adds a row (client, n) to a table `ledger`. What the
//! server acknowledged is kept here, with the recorder's sequence number before each commit was sent
//! and after it was acknowledged; later, the table must hold it.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};

use super::Server;
use super::wire::Connection;
use crate::rng::Rng;

/// Reads the number that the recorder will give to its next record.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A clock for runs without a recorder: everything happens at 0.
pub fn no_clock() -> Clock {
    Arc::new(|| 0)
}

/// One commit of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The client's own counter, from 1.
    pub n: u64,
    /// The number of the next record, before the commit was sent.
    pub sent: u64,
    /// The same after it was acknowledged; `None` if the answer never came.
    pub acked: Option<u64>,
}

/// Everything that all clients did.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    commits: BTreeMap<u32, Vec<Commit>>,
}

/// Clients at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<(u32, JoinHandle<Vec<Commit>>)>,
}

/// What a comparison of table and ledger found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Acknowledged commits that had to be there, and were.
    pub acknowledged: u64,
    /// Commits that were sent, not acknowledged by then, and are there all the same.
    pub unacknowledged: u64,
}

impl Ledger {
    /// Creates the table.
    pub fn create_table(server: &Server) -> Result<()> {
        let sql = "CREATE TABLE ledger (client int, n bigint, delta int, PRIMARY KEY (client, n))";
        server.connect()?.query(sql)?;
        Ok(())
    }

    /// Starts `clients` sessions that commit as fast as they can until the server is gone.
    pub fn start(&self, server: &Server, clients: u32, seed: u64, clock: &Clock) -> Result<Load> {
        let scale = server.connect()?.number("SELECT count(*) FROM pgbench_branches")?;
        let scale = u64::try_from(scale)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for id in 1..=clients {
            let session = Session {
                connection: server.connect()?,
                client: id,
                next: self.last(id) + 1,
                scale,
                rng: Rng::new(seed ^ u64::from(id) << 32),
                clock: Arc::clone(clock),
                stop: Arc::clone(&stop),
            };
            threads.push((id, std::thread::spawn(move || session.run())));
        }
        Ok(Load { stop, clients: threads })
    }

    /// The number of acknowledged commits.
    pub fn acknowledged(&self) -> u64 {
        let all = self.commits.values().flatten();
        all.filter(|commit| commit.acked.is_some()).count() as u64
    }

    fn last(&self, client: u32) -> u64 {
        self.commits.get(&client).and_then(|list| list.last()).map_or(0, |commit| commit.n)
    }

    /// Checks the server's table against the records below `cut`: every commit acknowledged within them is
    /// there, none is there that was only sent after them, none that nobody sent.
    pub fn check(&self, server: &Server, cut: u64) -> Result<Found> {
        let rows = server.connect()?.query("SELECT client, n FROM ledger")?;
        let mut present = HashSet::new();
        for row in rows {
            let [Some(client), Some(n)] = row.as_slice() else { bail!("malformed ledger row {row:?}") };
            present.insert((client.parse::<u32>()?, n.parse::<u64>()?));
        }
        self.compare(present, cut)
    }

    fn compare(&self, mut present: HashSet<(u32, u64)>, cut: u64) -> Result<Found> {
        let mut found = Found::default();
        for (client, list) in &self.commits {
            for commit in list {
                let there = present.remove(&(*client, commit.n));
                let promised = commit.acked.is_some_and(|seq| seq <= cut);
                match (promised, there) {
                    (true, true) => found.acknowledged += 1,
                    (true, false) => bail!("client {client}: acknowledged commit is lost: {commit:?}"),
                    (false, true) if commit.sent >= cut => {
                        bail!("client {client}: commit is there before it was sent: {commit:?}")
                    }
                    (false, true) => found.unacknowledged += 1,
                    (false, false) => {}
                }
            }
        }
        match present.into_iter().next() {
            Some(stray) => bail!("the table has commits nobody sent, such as {stray:?}"),
            None => Ok(found),
        }
    }

    /// Turns "the answer never came" into what the server then showed: such a commit must from now on
    /// stay there (or stay away), as any other.
    pub fn settle(&mut self, server: &Server) -> Result<()> {
        for (client, list) in &mut self.commits {
            for commit in list.iter_mut().filter(|commit| commit.acked.is_none()) {
                let sql = format!("SELECT count(*) FROM ledger WHERE client = {client} AND n = {}", commit.n);
                if server.connect()?.number(&sql)? == 1 {
                    commit.acked = Some(commit.sent);
                }
            }
            list.retain(|commit| commit.acked.is_some());
        }
        Ok(())
    }

    /// [`Ledger::check`]; if it fails, the ledger is saved in the temporary directory for a closer look.
    pub fn check_or_save(&self, server: &Server, cut: u64) -> Result<Found> {
        self.check(server, cut).or_else(|error| {
            let path = std::env::temp_dir().join(format!("dbfs-ledger-{}.txt", std::process::id()));
            self.save(&path)?;
            Err(error.context(format!("the ledger (cut {cut}) is in {}", path.display())))
        })
    }

    /// Writes all commits to a file.
    fn save(&self, path: &Path) -> Result<()> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        writeln!(file, "client n sent acked")?;
        for (client, list) in &self.commits {
            for Commit { n, sent, acked } in list {
                let acked = acked.map_or("-".into(), |seq| seq.to_string());
                writeln!(file, "{client} {n} {sent} {acked}")?;
            }
        }
        file.flush().context("cannot write the ledger")
    }
}

impl Load {
    /// Ends the clients (they end by themselves when the server is gone) and adds what they did.
    pub fn finish(self, ledger: &mut Ledger) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for (client, thread) in self.clients {
            let Ok(commits) = thread.join() else { bail!("ledger client {client} panicked") };
            ledger.commits.entry(client).or_default().extend(commits);
        }
        Ok(())
    }
}

struct Session {
    connection: Connection,
    client: u32,
    next: u64,
    scale: u64,
    rng: Rng,
    clock: Clock,
    stop: Arc<AtomicBool>,
}

impl Session {
    fn run(mut self) -> Vec<Commit> {
        let mut commits = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let n = self.next;
            self.next += 1;
            let sql = self.transaction(n);
            let sent = (self.clock)();
            let answer = self.connection.query(&sql);
            let acked = answer.is_ok().then(|| (self.clock)());
            commits.push(Commit { n, sent, acked });
            if acked.is_none() {
                break;
            }
        }
        commits
    }

    /// pgbench's transaction, in its order of locks, and the ledger's row. Several statements in one
    /// message: one round trip, one commit.
    fn transaction(&mut self, n: u64) -> String {
        let client = self.client;
        let account = self.rng.range(1, self.scale * 100_000 + 1);
        let teller = self.rng.range(1, self.scale * 10 + 1);
        let branch = self.rng.range(1, self.scale + 1);
        let delta = i64::try_from(self.rng.range(0, 10_001)).unwrap_or(0) - 5_000;
        format!(
            "BEGIN; \
             UPDATE pgbench_accounts SET abalance = abalance + {delta} WHERE aid = {account}; \
             UPDATE pgbench_tellers SET tbalance = tbalance + {delta} WHERE tid = {teller}; \
             UPDATE pgbench_branches SET bbalance = bbalance + {delta} WHERE bid = {branch}; \
             INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) \
             VALUES ({teller}, {branch}, {account}, {delta}, now()); \
             INSERT INTO ledger VALUES ({client}, {n}, {delta}); \
             COMMIT"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let commit = |n, sent, acked| Commit { n, sent, acked };
        let list = vec![commit(1, 10, Some(20)), commit(2, 20, Some(30)), commit(3, 30, None)];
        Ledger { commits: BTreeMap::from([(1, list)]) }
    }

    fn compare(rows: &[u64], cut: u64) -> Result<Found> {
        ledger().compare(rows.iter().map(|n| (1, *n)).collect(), cut)
    }

    #[test]
    fn what_was_acknowledged_before_the_cut_must_be_there() {
        assert_eq!(compare(&[1], 20).unwrap(), Found { acknowledged: 1, unacknowledged: 0 });
        assert_eq!(compare(&[1, 2], 21).unwrap(), Found { acknowledged: 1, unacknowledged: 1 });
        assert_eq!(compare(&[1, 2, 3], u64::MAX).unwrap(), Found { acknowledged: 2, unacknowledged: 1 });
        assert!(compare(&[2], 20).unwrap_err().to_string().contains("is lost"));
        assert!(compare(&[1], 30).unwrap_err().to_string().contains("is lost"));
    }

    #[test]
    fn what_was_not_sent_must_not_be_there() {
        assert!(compare(&[1, 2], 20).unwrap_err().to_string().contains("before it was sent"));
        assert!(compare(&[1, 2, 3], 25).unwrap_err().to_string().contains("before it was sent"));
        assert!(compare(&[1, 2, 4], 99).unwrap_err().to_string().contains("nobody sent"));
    }
}
