//! Mounting, serving and unmounting.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fs_core::api::FsOps;
use fuser::{Config, MountOption, Session, SessionACL};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::adapter::{Adapter, Link};
use crate::config::{Features, MountConfig};

/// The device every FUSE file system is served through.
const DEV_FUSE: &str = "/dev/fuse";

/// How often a busy mount is tried again.
const BUSY_RETRY: Duration = Duration::from_millis(20);

/// Mounts `fs` on the directory `dir`. When this returns, the mount is live: requests wait until
/// [`Mounted::run`] serves them. No thread has been started yet.
pub fn mount(fs: Arc<dyn FsOps>, dir: &Path, config: &MountConfig) -> io::Result<Mounted> {
    let dir = dir.canonicalize()?;
    let link = Arc::new(Link::default());
    let adapter = Adapter::new(fs, config.cached_opens, link.clone());
    let session = if rustix::process::geteuid().is_root() {
        let device = mount_as_root(&dir, config)?;
        Session::from_fd(adapter, device, SessionACL::All, session_config(config)).inspect_err(|_| {
            // The mount is of no use; a failure to remove it must not hide why.
            let _ = rustix::mount::unmount(&dir, UnmountFlags::DETACH);
        })?
    } else {
        Session::new(adapter, &dir, &session_config(config))?
    };
    let mount_id = mount_id(&dir)?;
    // Set once: there is one session.
    let _ = link.notifier.set(session.notifier());
    let features =
        *link.features.get().ok_or_else(|| io::Error::other("the kernel skipped the handshake"))?;
    Ok(Mounted { session, features, place: Unmounter { dir, mount_id } })
}

/// A live mount.
pub struct Mounted {
    session: Session<Adapter>,
    features: Features,
    place: Unmounter,
}

impl Mounted {
    /// What was agreed with the kernel.
    pub fn features(&self) -> Features {
        self.features
    }

    /// A handle that unmounts, for another thread.
    pub fn unmounter(&self) -> Unmounter {
        self.place.clone()
    }

    /// Serves requests, on threads of its own, until the mount is gone. Then every open that is
    /// left has been closed and no request is being worked on.
    pub fn run(self) -> io::Result<()> {
        let served = self.session.run();
        // If the threads ended for another reason, a dead mount would be left.
        self.place.detach();
        served
    }
}

/// Unmounts one mount, and only that one.
#[derive(Clone, Debug)]
pub struct Unmounter {
    dir: PathBuf,
    mount_id: u64,
}

impl Unmounter {
    /// Unmounts. Programs that use the mount get `grace` to leave it; then they are cut off: their
    /// next request fails with ENOTCONN. What they wrote through mappings is asked from the kernel
    /// at the start, and it is given until the end of `grace` to hand that over. Returns at once if
    /// it is not mounted any more.
    pub fn unmount(&self, grace: Duration) -> io::Result<()> {
        if !self.is_mounted() {
            return Ok(());
        }
        // Only starts the writing: for FUSE, the kernel's sync does not wait.
        let synced = File::open(&self.dir).and_then(|d| Ok(rustix::fs::syncfs(d)?));
        if let Err(e) = synced {
            tracing::warn!("cannot sync {} before unmounting: {e}", self.dir.display());
        }
        let deadline = Instant::now() + grace;
        loop {
            match rustix::mount::unmount(&self.dir, UnmountFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(BUSY_RETRY),
                Err(Errno::BUSY) => break,
                Err(_) if !self.is_mounted() => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        tracing::warn!("{} is in use; its users are cut off", self.dir.display());
        // Ends the connection, then fails with EBUSY again. `run` may take the mount away then.
        let _ = rustix::mount::unmount(&self.dir, UnmountFlags::FORCE);
        match rustix::mount::unmount(&self.dir, UnmountFlags::DETACH) {
            Err(e) if self.is_mounted() => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Takes what is left of the mount out of the tree.
    fn detach(&self) {
        if !self.is_mounted() {
            return;
        }
        if let Err(e) = rustix::mount::unmount(&self.dir, UnmountFlags::DETACH) {
            tracing::warn!("cannot remove the mount on {}: {e}", self.dir.display());
        }
    }

    /// The mount may have been removed by somebody else, and another one made in its place.
    fn is_mounted(&self) -> bool {
        mount_id(&self.dir).is_ok_and(|id| id == self.mount_id)
    }
}

/// Which mount `dir` is on, without a request to the file system there. The number is never used
/// again from Linux 6.8 on.
fn mount_id(dir: &Path) -> io::Result<u64> {
    let unique = StatxFlags::from_bits_retain(libc::STATX_MNT_ID_UNIQUE);
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(CWD, dir, flags, StatxFlags::MNT_ID | unique)?.stx_mnt_id)
}

/// Opens the FUSE device and mounts it.
fn mount_as_root(dir: &Path, config: &MountConfig) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open(DEV_FUSE).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("cannot open {DEV_FUSE}: {e}; load the kernel module with `modprobe fuse`"),
        )
    })?;
    let data = mount_data(&device, config)?;
    let source = CString::new(config.source.as_bytes())?;
    let target = CString::new(dir.as_os_str().as_bytes())?;
    rustix::mount::mount(&*source, &*target, c"fuse", mount_flags(config), &*data)?;
    Ok(device.into())
}

/// The options of the kernel's FUSE.
fn mount_data(device: &File, config: &MountConfig) -> io::Result<CString> {
    let uid = rustix::process::getuid().as_raw();
    let gid = rustix::process::getgid().as_raw();
    let mut data = format!(
        "fd={},rootmode={:o},user_id={uid},group_id={gid},subtype=dbfs",
        device.as_raw_fd(),
        libc::S_IFDIR,
    );
    if config.allow_other {
        data.push_str(",allow_other");
    }
    if config.default_permissions {
        data.push_str(",default_permissions");
    }
    Ok(CString::new(data)?)
}

fn mount_flags(config: &MountConfig) -> MountFlags {
    let wanted = [
        (config.read_only, MountFlags::RDONLY),
        (config.nodev, MountFlags::NODEV),
        (config.nosuid, MountFlags::NOSUID),
        (config.noexec, MountFlags::NOEXEC),
        (config.noatime, MountFlags::NOATIME),
        (config.sync, MountFlags::SYNCHRONOUS),
    ];
    wanted.iter().filter(|(on, _)| *on).fold(MountFlags::empty(), |all, (_, flag)| all | *flag)
}

/// The same for fuser, which mounts through `fusermount3` for users other than root, and starts
/// the threads for all.
fn session_config(config: &MountConfig) -> Config {
    let wanted = [
        (config.read_only, MountOption::RO),
        (config.default_permissions, MountOption::DefaultPermissions),
        (config.noexec, MountOption::NoExec),
        (config.noatime, MountOption::NoAtime),
        (config.sync, MountOption::Sync),
    ];
    let mut session = Config::default();
    session.mount_options =
        vec![MountOption::FSName(config.source.clone()), MountOption::Subtype("dbfs".into())];
    session.mount_options.extend(wanted.into_iter().filter(|(on, _)| *on).map(|(_, option)| option));
    session.acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
    session.n_threads = Some(config.threads.max(1));
    session.clone_fd = true;
    session
}
