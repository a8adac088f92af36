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
use fuser::{Config, Session, SessionACL};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::adapter::{Adapter, Link};
use crate::config::{Features, MountConfig};
use crate::fusermount;
use crate::handshake::Wishes;

/// The device every FUSE file system is served through.
const DEV_FUSE: &str = "/dev/fuse";

/// How often a busy mount is tried again.
const BUSY_RETRY: Duration = Duration::from_millis(20);

/// Mounts `fs` on the directory `dir`. When this returns, the mount is live: requests wait until
/// [`Mounted::run`] serves them. No thread has been started yet.
pub fn mount(fs: Arc<dyn FsOps>, dir: &Path, config: &MountConfig) -> io::Result<Mounted> {
    let dir = dir.canonicalize()?;
    let link = Arc::new(Link::default());
    let wishes = Wishes { cached_opens: config.cached_opens, access_lists: config.default_permissions };
    let adapter = Adapter::new(fs, wishes, link.clone());
    let device = if rustix::process::geteuid().is_root() {
        mount_as_root(&dir, config)?
    } else {
        fusermount::mount(&dir, config)?
    };
    // Whom the mount lets in is the kernel's decision (`allow_other`).
    let session =
        Session::from_fd(adapter, device, SessionACL::All, session_config(config)).inspect_err(|_| {
            // The mount is of no use; a failure to remove it must not hide why.
            let _ = detach(&dir);
        })?;
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
            match take_away(&self.dir) {
                Ok(()) => return Ok(()),
                Err(e) if !is_busy(&e) && self.is_mounted() => return Err(e),
                Err(_) if !self.is_mounted() => return Ok(()),
                Err(_) if Instant::now() < deadline => std::thread::sleep(BUSY_RETRY),
                Err(_) => break,
            }
        }
        tracing::warn!("{} is in use; its users are cut off", self.dir.display());
        // `run` may take the mount away once the connection has ended.
        cut_off(&self.dir);
        match detach(&self.dir) {
            Err(e) if self.is_mounted() => Err(e),
            _ => Ok(()),
        }
    }

    /// Takes what is left of the mount out of the tree.
    fn detach(&self) {
        if !self.is_mounted() {
            return;
        }
        if let Err(e) = detach(&self.dir) {
            tracing::warn!("cannot remove the mount on {}: {e}", self.dir.display());
        }
    }

    /// The mount may have been removed by somebody else, and another one made in its place.
    fn is_mounted(&self) -> bool {
        mount_id(&self.dir).is_ok_and(|id| id == self.mount_id)
    }
}

/// Gives the mount on `dir` other flags: the options of `config` that the kernel knows for every
/// file system.
pub fn remount(dir: &Path, config: &MountConfig) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(dir, mount_flags(config), c"")?)
}

/// Unmounts what nobody uses; EBUSY. Users other than root unmount what they mounted, through the
/// helper.
pub fn take_away(dir: &Path) -> io::Result<()> {
    match rustix::mount::unmount(dir, UnmountFlags::empty()) {
        Err(Errno::PERM) => fusermount::unmount(dir, false),
        other => Ok(other?),
    }
}

/// Takes a mount out of the tree, in use or not.
pub fn detach(dir: &Path) -> io::Result<()> {
    match rustix::mount::unmount(dir, UnmountFlags::DETACH) {
        Err(Errno::PERM) => fusermount::unmount(dir, true),
        other => Ok(other?),
    }
}

/// Ends the connection between kernel and daemon: whoever still uses the mount gets ENOTCONN. Users
/// other than root need the kernel's control files for it; without them programs keep what they
/// have open.
pub fn cut_off(dir: &Path) {
    // Ends the connection, then fails: the mount is in use.
    if rustix::mount::unmount(dir, UnmountFlags::FORCE) != Err(Errno::PERM) {
        return;
    }
    let aborted = connection_number(dir)
        .and_then(|number| std::fs::write(format!("/sys/fs/fuse/connections/{number}/abort"), "1"));
    if let Err(e) = aborted {
        tracing::warn!("cannot cut the users of {} off, they may go on: {e}", dir.display());
    }
}

/// The minor device number of the mount on `dir`, by which the kernel calls the connection.
fn connection_number(dir: &Path) -> io::Result<u32> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(CWD, dir, flags, StatxFlags::empty())?.stx_dev_minor)
}

fn is_busy(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EBUSY)
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

/// What fuser needs to know to serve a device that is mounted already.
fn session_config(config: &MountConfig) -> Config {
    let mut session = Config::default();
    session.acl = SessionACL::All;
    session.n_threads = Some(config.threads.max(1));
    session.clone_fd = true;
    session
}
