//! MariaDB: running it on a data directory of ours, and sysbench on it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::proc::Proc;
use crate::workdir::WorkDir;
use crate::{cmd, paths};

/// "nobody": the server refuses to run as root.
const USER: u32 = 65534;

/// How long start (with recovery) or stop may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(180);

/// Settings for every server of ours.
const COMMON: [&str; 5] = [
    "--no-defaults",
    "--innodb-flush-log-at-trx-commit=1",
    "--skip-networking",
    "--skip-log-bin",
    "--loose-skip-name-resolve",
];

/// A data directory on the volume, and the server on it when it runs.
pub struct Server {
    data: PathBuf,
    outside: PathBuf,
    settings: Vec<String>,
    running: Option<Proc>,
}

impl Server {
    /// Describes a server with an empty data directory in `dir`; its log, socket and temporary files are in
    /// `work`. `settings` are options of its command line.
    pub fn new(dir: &Path, work: &WorkDir, settings: &[&str]) -> Result<Self> {
        let data = dir.join("mariadb");
        std::fs::create_dir(&data)?;
        std::os::unix::fs::chown(&data, Some(USER), Some(USER))?;
        let outside = work.dir("mariadb", Some((USER, USER)))?;
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Ok(Self { data, outside, settings, running: None })
    }

    /// Other settings, from the next start on.
    pub fn set(&mut self, settings: &[&str]) {
        self.settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
    }

    /// Where its files beside the data are.
    pub fn outside(&self) -> &Path {
        &self.outside
    }

    fn as_user(name: &str) -> Result<Command> {
        let mut command = command_of(name)?;
        command.uid(USER).gid(USER).current_dir("/").env("HOME", "/nonexistent").env("LC_ALL", "C");
        Ok(command)
    }

    /// Creates the system tables.
    pub fn install(&self) -> Result<()> {
        let mut install = Self::as_user("mariadb-install-db")?;
        install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        install
            .arg(format!("--datadir={}", self.data.display()))
            .arg(format!("--tmpdir={}", self.outside.display()));
        cmd::capture(&mut install).map(drop)
    }

    /// Starts the server and waits until it takes queries, its own recovery included.
    pub fn start(&mut self) -> Result<()> {
        let mut command = Self::as_user("mariadbd")?;
        command.args(COMMON).args(&self.settings).arg(format!("--datadir={}", self.data.display()));
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
    pub fn kill(&mut self) -> Result<()> {
        let server = self.running.take().context("the server does not run")?;
        if let Some(status) = server.try_wait()? {
            return Err(server.error(&format!("had ended by itself ({status})")));
        }
        server.kill();
        Ok(())
    }

    /// As [`Self::kill`], when its file system is gone.
    pub fn kill_whatever_it_does(&mut self) -> Result<()> {
        self.running.take().context("the server does not run")?.kill();
        Ok(())
    }

    /// Shuts down cleanly.
    pub fn stop(&mut self) -> Result<()> {
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

    /// A client program that finds this server.
    pub fn client(&self, name: &str) -> Result<Command> {
        let mut client = command_of(name)?;
        client.args(["--no-defaults", "--user=root"]).arg(format!("--socket={}", self.socket()));
        Ok(client)
    }

    /// Runs statements, and returns what the client printed.
    pub fn query(&self, sql: &str) -> Result<String> {
        cmd::capture(self.client("mariadb")?.args(["--batch", "--skip-column-names", "-e", sql]))
    }

    /// sysbench with one of its scripts, on two tables of `rows` rows.
    pub fn sysbench(&self, script: &str, engine: &str, database: &str, rows: u64) -> Result<Command> {
        let mut sysbench = command_of("sysbench")?;
        sysbench.args([script, "--db-driver=mysql", "--mysql-user=root", "--tables=2"]);
        // Aria knows no row locks: transactions that meet are tried again.
        sysbench.args(["--mysql-ignore-errors=all", "--db-ps-mode=disable"]);
        sysbench.arg(format!("--mysql-socket={}", self.socket())).arg(format!("--mysql-db={database}"));
        sysbench.arg(format!("--mysql_storage_engine={engine}")).arg(format!("--table-size={rows}"));
        Ok(sysbench)
    }
}

fn command_of(name: &str) -> Result<Command> {
    Ok(Command::new(paths::program(name)?))
}
