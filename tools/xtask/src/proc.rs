//! A background process that never outlives this program.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::cleanup::Guard;
use crate::cmd::describe;

const POLL: Duration = Duration::from_millis(5);

/// A child process; killed when dropped.
pub struct Proc {
    child: Arc<Mutex<Child>>,
    name: String,
    log: PathBuf,
    _guard: Guard,
}

impl Proc {
    /// Starts `command` in a process group of its own (a terminal's Ctrl-C must reach only us, which
    /// then stop things in order), with its output appended to `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", describe(command)))?;
        let name = Path::new(command.get_program()).file_name().unwrap_or_default();
        let child = Arc::new(Mutex::new(child));
        let guard = Guard::new({
            let child = Arc::clone(&child);
            move || kill_and_reap(&child)
        });
        Ok(Self { child, name: name.to_string_lossy().into_owned(), log: log.to_path_buf(), _guard: guard })
    }

    /// The process id; stays reserved until the process was waited for.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&lock(&self.child))
    }

    /// The exit status, if it ended.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        Ok(lock(&self.child).try_wait()?)
    }

    /// Waits for the end, at most `limit`; the process keeps running if that is exceeded.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            // Polled, so that an interrupt can take the lock and kill the child.
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{} did not end within {} s", self.name, limit.as_secs());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Sends `signal`; nothing happens if the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.try_wait()?.is_none() {
            kill_process(self.pid(), signal)?;
        }
        Ok(())
    }

    /// Kills with SIGKILL and reaps.
    pub fn kill(&self) {
        kill_and_reap(&self.child);
    }

    /// An error that carries the end of the process's output.
    pub fn error(&self, what: &str) -> anyhow::Error {
        anyhow::anyhow!("{}: {what}; the end of its output:\n{}", self.name, tail(&self.log))
    }
}

/// The last lines of a log file.
pub fn tail(log: &Path) -> String {
    const LINES: usize = 30;
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill_and_reap(child: &Mutex<Child>) {
    let mut child = lock(child);
    // Both calls are no-ops on a child that was already waited for, so no foreign pid is ever hit.
    let _ = child.kill();
    let _ = child.wait();
}
