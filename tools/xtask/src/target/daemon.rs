//! A file system daemon in the foreground, and its mount.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Pid;

use super::mounts;
use crate::cleanup::Guard;
use crate::proc::Proc;

/// How long a mount (with its recovery) or a clean unmount may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running daemon and its mount. Field order is drop order: the daemon dies before its mount is
/// removed, as unmounting under a stuck daemon could wait for it.
pub struct Daemon {
    process: Proc,
    _mount: Guard,
}

impl Daemon {
    /// Starts `command`, which mounts at `dir`, and waits until that answers.
    pub fn start(command: &mut Command, dir: &Path, log: &Path) -> Result<Self> {
        let mount = Guard::new({
            let dir = dir.to_path_buf();
            move || detach_if_mounted(&dir)
        });
        let process = Proc::spawn(command, log)?;
        wait_until_mounted(&process, dir)?;
        Ok(Self { process, _mount: mount })
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Bytes of memory that the daemon had resident when it had most.
    pub fn peak_memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.process.pid().as_raw_nonzero());
        let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")).context("no VmHWM in it")?;
        Ok(kib.trim().parse::<u64>()? << 10)
    }

    /// Kills the daemon with SIGKILL and removes its mount.
    pub fn kill(self) {
        self.process.kill();
    }

    /// Waits for the end that an unmount brings.
    pub fn wait_for_clean_end(&self) -> Result<()> {
        let status = self.process.wait(PATIENCE)?;
        if !status.success() {
            return Err(self.process.error(&format!("a clean unmount ended with {status}")));
        }
        Ok(())
    }
}

fn wait_until_mounted(process: &Proc, dir: &Path) -> Result<()> {
    let start = Instant::now();
    while !mounts::is_mounted(dir)? {
        if let Some(status) = process.try_wait()? {
            return Err(process.error(&format!("ended before the mount was up ({status})")));
        }
        if start.elapsed() > PATIENCE {
            return Err(process.error("did not mount in time"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // Answers only once the daemon serves requests.
    std::fs::metadata(dir).with_context(|| format!("{} is mounted but does not answer", dir.display()))?;
    Ok(())
}

fn detach_if_mounted(dir: &Path) {
    let done = mounts::is_mounted(dir).and_then(|there| if there { mounts::detach(dir) } else { Ok(()) });
    if let Err(error) = done {
        eprintln!("warning: {error:#}");
    }
}
