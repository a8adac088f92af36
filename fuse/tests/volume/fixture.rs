//! A mounted volume that is unmounted when it goes out of scope.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use blockdev::{BlockDevice, RamDevice};
use dbfs_fuse::{MountConfig, Unmounter, mount};
use fs_core::env::SystemEnv;
use fs_core::fsck::{CheckOptions, check};
use fs_core::{FormatOptions, MountOptions, Volume};

/// For users of a mount to leave it.
const GRACE: Duration = Duration::from_secs(5);

/// An unprivileged user, and its group.
pub const NOBODY: u32 = 65534;

pub struct Fixture {
    device: Arc<dyn BlockDevice>,
    dir: tempfile::TempDir,
    live: Option<Live>,
}

struct Live {
    volume: Arc<Volume>,
    unmounter: Unmounter,
    server: JoinHandle<io::Result<()>>,
}

impl Fixture {
    pub fn new() -> Self {
        let device: Arc<dyn BlockDevice> = Arc::new(RamDevice::new(256 << 20, 512));
        Volume::format(device.as_ref(), &FormatOptions::default(), &SystemEnv).unwrap();
        let dir = tempfile::tempdir().expect("a directory to mount on");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut fixture = Self { device, dir, live: None };
        fixture.start();
        std::fs::set_permissions(fixture.root(), PermissionsExt::from_mode(0o777)).unwrap();
        fixture
    }

    fn start(&mut self) {
        let env = Arc::new(SystemEnv);
        let volume = Volume::mount(self.device.clone(), MountOptions::default(), env).unwrap();
        let mut config = MountConfig::new("memory");
        config.threads = 4;
        let mounted =
            mount(volume.clone(), self.dir.path(), &config).expect("mount (root and /dev/fuse are needed)");
        let unmounter = mounted.unmounter();
        let server = std::thread::spawn(move || mounted.run());
        self.live = Some(Live { volume, unmounter, server });
    }

    fn stop(&mut self) -> io::Result<()> {
        let Some(live) = self.live.take() else { return Ok(()) };
        live.unmounter.unmount(GRACE)?;
        live.server.join().expect("the server does not panic")?;
        live.volume.shutdown().map_err(io::Error::other)
    }

    /// Unmounts, checks the volume, and mounts it again.
    pub fn remount(&mut self) {
        self.stop().unwrap();
        self.check();
        self.start();
    }

    fn check(&self) {
        let report = check(&self.device, &CheckOptions { data: true, progress: None }).unwrap();
        assert!(report.is_clean(), "{:#?}", report.problems);
        assert_eq!(report.stats.orphans, 0);
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a shell script in the root of the mount, as `uid` with the groups `gids`, and returns what it
    /// has printed. It must not fail.
    pub fn run_as(&self, uid: u32, gids: &[u32], script: &str) -> String {
        let out = self.try_as(uid, gids, script);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{script}: {text}{errors}");
        text
    }

    /// As [`run_as`](Self::run_as), whatever comes out.
    pub fn try_as(&self, uid: u32, gids: &[u32], script: &str) -> Output {
        let root = self.root().to_path_buf();
        let gids = gids.to_vec();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("set -e; {script}")]).current_dir(root);
        // SAFETY: only system calls that are allowed between fork and exec.
        unsafe {
            shell.pre_exec(move || {
                if libc::setgroups(gids.len(), gids.as_ptr()) != 0
                    || libc::setgid(gids[0]) != 0
                    || libc::setuid(uid) != 0
                {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        shell.output().expect("a shell")
    }

    pub fn run(&self, script: &str) -> String {
        self.run_as(0, &[0], script)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Err(e) = self.stop() {
            eprintln!("cannot unmount {}: {e}", self.dir.path().display());
        } else if !std::thread::panicking() {
            self.check();
        }
    }
}
