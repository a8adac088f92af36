//! MariaDB without its doublewrite buffer, InnoDB and Aria, under sysbench; kill -9, recovery, check.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::{Bench, program, wait_for_lines};
use crate::cmd;
use crate::proc::Proc;
use crate::suites::Tally;

/// "nobody": the server refuses to run as root.
const USER: u32 = 65534;

/// How long start (with recovery) or stop may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(180);

/// Settings for the test server. `innodb-doublewrite=OFF` is what the file system promises to be safe;
/// a small log makes checkpoints happen in short runs.
const SETTINGS: [&str; 9] = [
    "--no-defaults",
    "--innodb-doublewrite=OFF",
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=16M",
    "--aria-checkpoint-interval=2",
    "--skip-networking",
    "--skip-log-bin",
    "--loose-skip-name-resolve",
];

/// Storage engines, each with its sysbench database.
const ENGINES: [(&str, &str); 2] = [("innodb", "sbinnodb"), ("aria", "sbaria")];

/// Rows that a round's ledger could get; it is killed long before.
const LEDGER_ROWS: u64 = 100_000;

/// Rows that are acknowledged before the time until the kill begins.
const FIRST_ROWS: usize = 10;

/// Runs the rounds on one data directory.
pub fn run(bench: &mut Bench, tally: &mut Tally) -> Result<()> {
    let mut server = Server::new(bench)?;
    tally.step("mariadb-install-db", || server.install())?;
    server.start()?;
    let rows = bench.amount(2_000, 50_000);
    for (engine, database) in ENGINES {
        tally.step(&format!("sysbench prepare, {engine}"), || {
            server.query(&format!("CREATE DATABASE {database}"))?;
            cmd::capture(server.sysbench(engine, database, rows)?.arg("prepare"))
        })?;
    }
    server.query("CREATE DATABASE ledger; CREATE TABLE ledger.t(id BIGINT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(200)) ENGINE=InnoDB")?;
    let mut acknowledged = 0;
    for round in 1..=bench.amount(2, 15) {
        let crash = round % 2 == 0;
        let what = if crash { "server and file system" } else { "the server" };
        tally.step(&format!("MariaDB, kill -9 of {what}, round {round}"), || {
            acknowledged = one_round(bench, &mut server, rows, crash)?.max(acknowledged);
            server.check(acknowledged)
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
        let mut load = server.sysbench(engine, database, rows)?;
        load.args(["--time=600", "--threads=2", "run"]);
        loads.push(Proc::spawn(&mut load, &bench.work.join(&format!("sysbench-{engine}.log")))?);
    }
    let log = bench.work.join("ledger.log");
    let _ = std::fs::remove_file(&log);
    let ledger = Proc::spawn(&mut server.ledger()?, &log)?;
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

/// A data directory on the volume, and the server on it when it runs.
struct Server {
    data: PathBuf,
    outside: PathBuf,
    running: Option<Proc>,
}

impl Server {
    fn new(bench: &Bench) -> Result<Self> {
        let data = bench.dir().join("mariadb");
        std::fs::create_dir(&data)?;
        std::os::unix::fs::chown(&data, Some(USER), Some(USER))?;
        let outside = bench.work.dir("mariadb", Some((USER, USER)))?;
        Ok(Self { data, outside, running: None })
    }

    fn as_user(name: &str) -> Result<Command> {
        let mut command = program(name)?;
        command.uid(USER).gid(USER).current_dir("/").env("HOME", "/nonexistent").env("LC_ALL", "C");
        Ok(command)
    }

    fn install(&self) -> Result<()> {
        let mut install = Self::as_user("mariadb-install-db")?;
        install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        install
            .arg(format!("--datadir={}", self.data.display()))
            .arg(format!("--tmpdir={}", self.outside.display()));
        cmd::capture(&mut install).map(drop)
    }

    fn start(&mut self) -> Result<()> {
        let mut command = Self::as_user("mariadbd")?;
        command.args(SETTINGS).arg(format!("--datadir={}", self.data.display()));
        command
            .arg(format!("--tmpdir={}", self.outside.display()))
            .arg(format!("--socket={}", self.socket()));
        command.arg(format!("--pid-file={}", self.outside.join("pid").display()));
        let server = Proc::spawn(&mut command, &self.outside.join("server.log"))?;
        let start = Instant::now();
        while self.query("SELECT 1").is_err() {
            if let Some(status) = server.try_wait()? {
                return Err(server.error(&format!("did not start ({status})")));
            }
            if start.elapsed() > PATIENCE {
                return Err(server.error("did not take queries in time"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.running = Some(server);
        Ok(())
    }

    /// kill -9.
    fn kill(&mut self) -> Result<()> {
        let server = self.running.take().context("the server does not run")?;
        if let Some(status) = server.try_wait()? {
            return Err(server.error(&format!("had ended by itself ({status})")));
        }
        server.kill();
        Ok(())
    }

    /// As [`Self::kill`], when its file system is gone.
    fn kill_whatever_it_does(&mut self) -> Result<()> {
        self.running.take().context("the server does not run")?.kill();
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        let server = self.running.take().context("the server does not run")?;
        server.signal(Signal::TERM)?;
        let status = server.wait(PATIENCE)?;
        if !status.success() {
            return Err(server.error(&format!("a clean stop ended with {status}")));
        }
        Ok(())
    }

    fn socket(&self) -> String {
        self.outside.join("socket").display().to_string()
    }

    fn client(&self, name: &str) -> Result<Command> {
        let mut client = program(name)?;
        client.args(["--no-defaults", "--user=root"]).arg(format!("--socket={}", self.socket()));
        Ok(client)
    }

    fn query(&self, sql: &str) -> Result<String> {
        cmd::capture(self.client("mariadb")?.args(["--batch", "--skip-column-names", "-e", sql]))
    }

    fn sysbench(&self, engine: &str, database: &str, rows: u64) -> Result<Command> {
        let mut sysbench = program("sysbench")?;
        sysbench.args(["oltp_read_write", "--db-driver=mysql", "--mysql-user=root", "--tables=2"]);
        // Aria knows no row locks: transactions that meet are tried again.
        sysbench.args(["--mysql-ignore-errors=all", "--db-ps-mode=disable"]);
        sysbench.arg(format!("--mysql-socket={}", self.socket())).arg(format!("--mysql-db={database}"));
        sysbench.arg(format!("--mysql_storage_engine={engine}")).arg(format!("--table-size={rows}"));
        Ok(sysbench)
    }

    /// A client that commits row after row, and prints the number of each when that has returned.
    fn ledger(&self) -> Result<Command> {
        let script = self.outside.join("ledger.sql");
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
        let mut client = self.client("mariadb")?;
        client.args(["--batch", "--skip-column-names", "--unbuffered", "-e"]);
        client.arg(format!("source {}", script.display()));
        Ok(client)
    }

    /// Every table is sound, and every acknowledged row is there.
    fn check(&self, acknowledged: u64) -> Result<()> {
        let said =
            cmd::capture(self.client("mariadb-check")?.args(["--all-databases", "--check", "--extended"]))?;
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
        match self.query(&format!("USE ledger; {missing}"))?.trim() {
            "0" => Ok(()),
            n => bail!("{n} of {acknowledged} acknowledged rows are lost"),
        }
    }
}
