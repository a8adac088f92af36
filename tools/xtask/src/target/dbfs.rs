//! dbfs through its daemon.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Pid;

use super::daemon::Daemon;
use super::{Target, Volume};
use crate::cmd;

/// How long a mount may stay in use by what is about to end.
const BUSY: Duration = Duration::from_secs(30);

/// A dbfs volume and where its parts are.
#[derive(Clone, Debug)]
pub struct DbfsOptions {
    program: PathBuf,
    image: PathBuf,
    dir: PathBuf,
    volume: Volume,
    log: PathBuf,
    record: Option<PathBuf>,
}

impl DbfsOptions {
    /// The `dbfs` program, the volume's image file (or block device), its mount point, its geometry,
    /// and the file that takes the daemon's messages.
    pub fn new(program: PathBuf, image: PathBuf, dir: PathBuf, volume: Volume, log: PathBuf) -> Self {
        Self { program, image, dir, volume, log, record: None }
    }
}

/// A dbfs volume.
pub struct Dbfs {
    options: DbfsOptions,
    daemon: Option<Daemon>,
}

impl Dbfs {
    /// Describes a volume; nothing is started.
    pub fn new(options: DbfsOptions) -> Self {
        Self { options, daemon: None }
    }

    /// Puts a recorder between engine and device from the next mount on, which logs every write and flush
    /// to `log`; `None` takes it away.
    pub fn record_to(&mut self, log: Option<PathBuf>) {
        self.options.record = log;
    }

    /// Bytes of memory that the running daemon had resident when it had most.
    pub fn peak_memory(&self) -> Result<u64> {
        self.daemon.as_ref().context("not mounted")?.peak_memory()
    }

    /// Bytes of live metadata on the unmounted volume, which has to be clean.
    pub fn metadata_bytes(&self) -> Result<u64> {
        let text = cmd::capture(self.dbfs("fsck").args(["-n", "--json"]).arg(&self.options.image))?;
        let report: serde_json::Value = serde_json::from_str(&text).context("fsck printed no JSON")?;
        report["stats"]["metadata_bytes"].as_u64().context("fsck printed no metadata_bytes")
    }

    fn dbfs(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.options.program);
        command.arg(subcommand);
        command
    }
}

impl Target for Dbfs {
    fn format(&mut self) -> Result<()> {
        let volume = &self.options.volume;
        let mut mkfs = self.dbfs("mkfs");
        mkfs.args(["--page-size", &volume.page_size.to_string()]);
        if self.options.image.exists() {
            mkfs.arg("--force");
        } else {
            mkfs.args(["--size", &volume.size.to_string()]);
        }
        cmd::capture(mkfs.arg(&self.options.image))?;
        Ok(())
    }

    fn mount(&mut self) -> Result<()> {
        if self.daemon.is_some() {
            bail!("mounted already");
        }
        let mut mount = self.dbfs("mount");
        mount.arg(&self.options.image).arg(&self.options.dir).arg("--foreground");
        if let Some(log) = &self.options.record {
            mount.args(["-o", &format!("record={}", log.display())]);
        }
        self.daemon = Some(Daemon::start(&mut mount, &self.options.dir, &self.options.log)?);
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        let daemon = self.daemon.as_ref().context("not mounted")?;
        let start = Instant::now();
        // A program that has just ended, or a child on its way from fork to exec, may be in the mount still.
        while let Err(error) = cmd::capture(self.dbfs("umount").arg(&self.options.dir)) {
            if start.elapsed() > BUSY || !format!("{error:#}").contains("is in use") {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon.wait_for_clean_end()?;
        self.daemon = None;
        Ok(())
    }

    fn crash(&mut self) -> Result<()> {
        self.daemon.take().context("not mounted")?.kill();
        Ok(())
    }

    fn check(&self) -> Result<()> {
        cmd::capture(self.dbfs("fsck").args(["-n", "--data"]).arg(&self.options.image))?;
        Ok(())
    }

    fn dir(&self) -> &Path {
        &self.options.dir
    }

    fn daemon(&self) -> Option<Pid> {
        self.daemon.as_ref().map(Daemon::pid)
    }
}
