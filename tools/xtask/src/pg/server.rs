//! One PostgreSQL server on a data directory of ours.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::Install;
use super::wire::Connection;
use crate::cleanup::Guard;
use crate::cmd;
use crate::proc::Proc;
use crate::workdir::WorkDir;

/// The port only names the socket: the server listens on no network address.
pub const PORT: u16 = 54_320;

/// How long start (with recovery) or stop may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// Settings for every test server. Small limits make checkpoints and log switches happen in short runs;
/// `full_page_writes=off` is what the file system promises to be safe.
const SETTINGS: &str = "
fsync = on
synchronous_commit = on
full_page_writes = off
max_connections = 60
shared_buffers = 64MB
checkpoint_timeout = 30s
min_wal_size = 32MB
max_wal_size = 96MB
log_checkpoints = on
listen_addresses = ''
";

/// A data directory, and the server on it when it runs.
pub struct Server {
    install: Install,
    data: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
    running: Option<Running>,
}

/// A running server. Dropped on a failure or an interrupt, it kills all its processes; field order is
/// drop order: the backends are found through the living postmaster.
struct Running {
    _backends: Guard,
    postmaster: Proc,
}

impl Server {
    /// Describes a server whose data directory is `data`; log and sockets are in `work`, on another
    /// file system.
    pub fn new(install: &Install, data: PathBuf, work: &WorkDir) -> Result<Self> {
        let sockets = work.dir("sock", Some(install.user().ids()))?;
        Ok(Self { install: install.clone(), data, sockets, log: work.join("postgres.log"), running: None })
    }

    /// Creates the data directory, with page checksums, in `parent`, which is given to PostgreSQL's user.
    pub fn initdb(&self) -> Result<()> {
        let parent = self.data.parent().context("the data directory has no parent")?;
        let (uid, gid) = self.install.user().ids();
        std::os::unix::fs::chown(parent, Some(uid), Some(gid))?;
        let mut initdb = self.install.command("initdb");
        initdb.arg("-D").arg(&self.data).args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "-k"]);
        cmd::capture(initdb.arg("--no-locale"))?;
        self.configure(SETTINGS)
    }

    /// Adds lines to the configuration, which win over earlier ones from the next start on.
    pub fn configure(&self, lines: &str) -> Result<()> {
        let config = self.data.join("postgresql.conf");
        let mut text = std::fs::read_to_string(&config)?;
        text.push_str(lines);
        std::fs::write(&config, text).context("cannot write the configuration")
    }

    /// The first process of the running server.
    pub fn pid(&self) -> Result<Pid> {
        Ok(self.running.as_ref().context("the server does not run")?.postmaster.pid())
    }

    /// Starts the server and waits until it takes queries, its own recovery included.
    pub fn start(&mut self) -> Result<()> {
        let mut command = self.install.command("postgres");
        command.arg("-D").arg(&self.data).arg("-k").arg(&self.sockets).args(["-p", &PORT.to_string()]);
        let postmaster = Proc::spawn(&mut command, &self.log)?;
        let pid = postmaster.pid();
        let backends = Guard::new(move || end_all(pid));
        let start = Instant::now();
        loop {
            if self.connect().and_then(|mut c| c.query("SELECT 1")).is_ok() {
                break;
            }
            if let Some(status) = postmaster.try_wait()? {
                return Err(postmaster.error(&format!("did not start ({status})")));
            }
            if start.elapsed() > PATIENCE {
                return Err(postmaster.error("did not take queries in time"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.running = Some(Running { _backends: backends, postmaster });
        Ok(())
    }

    /// Shuts down cleanly (as `pg_ctl stop -m fast`).
    pub fn stop(&mut self) -> Result<()> {
        let running = self.running.take().context("the server does not run")?;
        running.postmaster.signal(Signal::INT)?;
        let status = running.postmaster.wait(PATIENCE)?;
        if !status.success() {
            return Err(running.postmaster.error(&format!("a clean stop ended with {status}")));
        }
        Ok(())
    }

    /// Stops the postmaster (SIGSTOP), while its backends go on; [`Server::kill`] follows.
    pub fn freeze(&self) -> Result<()> {
        let running = self.running.as_ref().context("the server does not run")?;
        running.postmaster.signal(Signal::STOP)
    }

    /// Kills every process of the server with SIGKILL, and returns when all are gone.
    pub fn kill(&mut self) -> Result<()> {
        let running = self.running.take().context("the server does not run")?;
        let pid = running.postmaster.pid();
        if running.postmaster.try_wait()?.is_some() {
            return Err(running.postmaster.error("had ended by itself"));
        }
        let children = stop_and_kill(pid);
        running.postmaster.kill();
        wait_until_gone(&children)
    }

    /// Waits until the server has ended by itself.
    pub fn wait_for_end(&mut self) -> Result<()> {
        let running = self.running.as_ref().context("the server does not run")?;
        running.postmaster.wait(PATIENCE).map_err(|error| running.postmaster.error(&format!("{error:#}")))?;
        self.running = None;
        Ok(())
    }

    /// False if it was stopped, killed, or waited for.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// [`Server::kill`] for a server that may be ending, or have ended, by itself.
    pub fn kill_if_alive(&mut self) -> Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        let children = stop_and_kill(running.postmaster.pid());
        running.postmaster.kill();
        wait_until_gone(&children)
    }

    /// Waits until the server takes queries again, after it has restarted its processes by itself. False if
    /// it has ended instead.
    pub fn wait_until_ready(&mut self) -> Result<bool> {
        let running = self.running.as_ref().context("the server does not run")?;
        let start = Instant::now();
        while self.connect().and_then(|mut c| c.query("SELECT 1")).is_err() {
            if running.postmaster.try_wait()?.is_some() {
                self.running = None;
                return Ok(false);
            }
            if start.elapsed() > PATIENCE {
                return Err(running.postmaster.error("did not take queries again in time"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(true)
    }

    /// A new connection to database `postgres`.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(&self.socket(), "postgres", "postgres")
    }

    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        self.sockets.join(format!(".s.PGSQL.{PORT}"))
    }

    /// The options that make a client program find this server.
    pub fn client_args(&self) -> [String; 6] {
        let [host, port, user] = ["-h", "-p", "-U"].map(String::from);
        let sockets = self.sockets.display().to_string();
        [host, sockets, port, PORT.to_string(), user, "postgres".into()]
    }

    /// What it has logged so far.
    pub fn log(&self) -> Result<String> {
        std::fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))
    }

    /// The installation it runs from.
    pub fn install(&self) -> &Install {
        &self.install
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }
}

/// For guards: ends a postmaster and its children, if that pid still is one of ours. An immediate shutdown
/// first: it leaves no shared memory behind, which SIGKILL does.
fn end_all(postmaster: Pid) {
    const GRACE: Duration = Duration::from_secs(5);
    let ours = || parent_of(postmaster) == Some(std::process::id());
    let start = Instant::now();
    if ours() {
        let _ = kill_process(postmaster, Signal::QUIT);
        let _ = kill_process(postmaster, Signal::CONT);
    }
    while ours() && !is_zombie(postmaster) && start.elapsed() < GRACE {
        std::thread::sleep(Duration::from_millis(5));
    }
    if ours() && !is_zombie(postmaster) {
        let children = stop_and_kill(postmaster);
        if let Err(error) = wait_until_gone(&children) {
            eprintln!("warning: {error:#}");
        }
    }
}

/// Stops the postmaster, so that it forks no more, then kills it and all its children at once.
fn stop_and_kill(postmaster: Pid) -> Vec<Pid> {
    // Errors mean that the process is gone, which is what is wanted.
    let _ = kill_process(postmaster, Signal::STOP);
    let children = children_of(postmaster);
    for pid in children.iter().chain([&postmaster]) {
        let _ = kill_process(*pid, Signal::KILL);
    }
    children
}

/// The pids whose parent is `parent`.
fn children_of(parent: Pid) -> Vec<Pid> {
    let path = format!("/proc/{0}/task/{0}/children", parent.as_raw_nonzero());
    let list = std::fs::read_to_string(path).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// The second field after the command name in `/proc/<pid>/stat`; the name itself may hold anything.
fn parent_of(pid: Pid) -> Option<u32> {
    stat_fields(pid)?.split(' ').nth(1)?.parse().ok()
}

fn is_zombie(pid: Pid) -> bool {
    stat_fields(pid).is_none_or(|fields| fields.starts_with('Z'))
}

fn stat_fields(pid: Pid) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}

/// Waits until killed processes have let go of the file system and of shared memory.
fn wait_until_gone(pids: &[Pid]) -> Result<()> {
    let start = Instant::now();
    // A zombie that nobody reaps holds nothing any more.
    let alive = |pid: &Pid| test_kill_process(*pid).is_ok() && !is_zombie(*pid);
    while let Some(pid) = pids.iter().find(|pid| alive(pid)) {
        if start.elapsed() > PATIENCE {
            bail!("process {} survives SIGKILL", pid.as_raw_nonzero());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
