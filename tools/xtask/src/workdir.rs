//! A scratch directory on a real disk, gone at the end.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cleanup::Guard;
use crate::target::mounts;

/// A directory that is removed, with everything mounted below it, when dropped.
pub struct WorkDir {
    path: PathBuf,
    _guard: Guard,
}

impl WorkDir {
    /// Makes one that every user may pass through (PostgreSQL runs unprivileged).
    pub fn new() -> Result<Self> {
        // Not /tmp: that is often a RAM disk, too small for images and without direct I/O.
        let path = PathBuf::from(format!("/var/tmp/dbfs-xtask-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let guard = Guard::new({
            let path = path.clone();
            move || remove(&path)
        });
        set_mode(&path, 0o755)?;
        Ok(Self { path, _guard: guard })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a directory in it, owned by `owner` (uid, gid) if given.
    pub fn dir(&self, name: &str, owner: Option<(u32, u32)>) -> Result<PathBuf> {
        let dir = self.join(name);
        std::fs::create_dir_all(&dir)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&dir, Some(uid), Some(gid))?;
        }
        Ok(dir)
    }
}

/// chmod.
pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot chmod {}", path.display()))
}

fn remove(path: &Path) {
    if let Err(error) = mounts::unmount_below(path) {
        // Removing now would delete into a file system that is still mounted there.
        eprintln!("warning: left {} behind: {error:#}", path.display());
        return;
    }
    if let Err(error) = std::fs::remove_dir_all(path) {
        eprintln!("warning: cannot remove {}: {error}", path.display());
    }
}
