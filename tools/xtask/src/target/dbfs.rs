//! dbfs through its daemon.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Target, Volume, mounts};
use crate::cleanup::Guard;
use crate::cmd;
use crate::proc::Proc;

/// How long a mount (with its recovery) or a clean unmount may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// A dbfs volume and where its parts are.
#[derive(Clone, Debug)]
pub struct DbfsOptions {
    program: PathBuf,
    image: PathBuf,
    dir: PathBuf,
    volume: Volume,
    log: PathBuf,
}

impl DbfsOptions {
    /// The `dbfs` program, the volume's image file (or block device), its mount point, its geometry,
    /// and the file that takes the daemon's messages.
    pub fn new(program: PathBuf, image: PathBuf, dir: PathBuf, volume: Volume, log: PathBuf) -> Self {
        Self { program, image, dir, volume, log }
    }
}

/// A dbfs volume.
pub struct Dbfs {
    options: DbfsOptions,
    daemon: Option<Daemon>,
}

/// The running daemon and its mount. Field order is drop order: the daemon dies before its mount is
/// removed, as unmounting under a stuck daemon could wait for it.
struct Daemon {
    process: Proc,
    mount: Guard,
}

impl Dbfs {
    /// Describes a volume; nothing is started.
    pub fn new(options: DbfsOptions) -> Self {
        Self { options, daemon: None }
    }

    fn dbfs(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.options.program);
        command.arg(subcommand);
        command
    }

    fn wait_until_mounted(&self, process: &Proc) -> Result<()> {
        let start = Instant::now();
        while !mounts::is_mounted(&self.options.dir)? {
            if let Some(status) = process.try_wait()? {
                return Err(process.error(&format!("ended before the mount was up ({status})")));
            }
            if start.elapsed() > PATIENCE {
                return Err(process.error("did not mount in time"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // Answers only once the daemon serves requests.
        std::fs::metadata(&self.options.dir)
            .with_context(|| format!("{} is mounted but does not answer", self.options.dir.display()))?;
        Ok(())
    }
}

impl Target for Dbfs {
    fn format(&mut self) -> Result<()> {
        let volume = &self.options.volume;
        let mut mkfs = self.dbfs("mkfs");
        mkfs.args(["--page-size", &volume.page_size.to_string()]);
        if !self.options.image.exists() {
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
        let guard = Guard::new({
            let dir = self.options.dir.clone();
            move || detach_if_mounted(&dir)
        });
        let process = Proc::spawn(&mut mount, &self.options.log)?;
        self.wait_until_mounted(&process)?;
        self.daemon = Some(Daemon { process, mount: guard });
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        let daemon = self.daemon.as_ref().context("not mounted")?;
        cmd::capture(self.dbfs("umount").arg(&self.options.dir))?;
        let status = daemon.process.wait(PATIENCE)?;
        if !status.success() {
            return Err(daemon.process.error(&format!("a clean unmount ended with {status}")));
        }
        self.daemon = None;
        Ok(())
    }

    fn crash(&mut self) -> Result<()> {
        let daemon = self.daemon.take().context("not mounted")?;
        daemon.process.kill();
        drop(daemon.mount);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        cmd::capture(self.dbfs("fsck").args(["-n", "--data"]).arg(&self.options.image))?;
        Ok(())
    }

    fn dir(&self) -> &Path {
        &self.options.dir
    }
}

fn detach_if_mounted(dir: &Path) {
    let done = mounts::is_mounted(dir).and_then(|there| if there { mounts::detach(dir) } else { Ok(()) });
    if let Err(error) = done {
        eprintln!("warning: {error:#}");
    }
}
