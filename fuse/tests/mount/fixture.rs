//! A mounted [`MemFs`] that is unmounted when it goes out of scope.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dbfs_fuse::{Features, MountConfig, Unmounter, mount};

use crate::memfs::MemFs;

/// For users of a mount to leave it.
pub const GRACE: Duration = Duration::from_secs(1);

pub struct Fixture {
    pub fs: Arc<MemFs>,
    pub features: Features,
    pub unmounter: Unmounter,
    dir: tempfile::TempDir,
    server: Option<JoinHandle<io::Result<()>>>,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// A mount whose options `change` has changed.
    pub fn with(change: impl FnOnce(&mut MountConfig)) -> Self {
        let fs = Arc::new(MemFs::new());
        let dir = tempfile::tempdir().expect("a directory to mount on");
        let mut config = MountConfig::new("memory");
        config.threads = 4;
        change(&mut config);
        let mounted = mount(fs.clone(), dir.path(), &config).expect("mount (root and /dev/fuse are needed)");
        let (features, unmounter) = (mounted.features(), mounted.unmounter());
        let server = std::thread::spawn(move || mounted.run());
        Self { fs, features, unmounter, dir, server: Some(server) }
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Unmounts and waits until nothing is served any more.
    pub fn stop(&mut self) -> io::Result<()> {
        self.stop_within(GRACE)
    }

    /// As [`stop`](Self::stop), with another time for users of the mount.
    pub fn stop_within(&mut self, grace: Duration) -> io::Result<()> {
        self.unmounter.unmount(grace)?;
        match self.server.take() {
            Some(server) => server.join().expect("the server does not panic"),
            None => Ok(()),
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Err(e) = self.stop() {
            eprintln!("cannot unmount {}: {e}", self.dir.path().display());
        }
    }
}

/// Waits until `done` holds; some requests (such as the release of a file) have no reply that
/// anybody waits for.
pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
