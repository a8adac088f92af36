//! What a mount can be asked for, and what the kernel gave.

use std::ffi::OsString;

/// Longest write or read in one request, in bytes.
pub const MAX_WRITE: u32 = 1 << 20;

/// How a volume is mounted.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// What `/proc/mounts` shows as the source; the volume's path by convention.
    pub source: OsString,
    /// The kernel refuses changes (EROFS).
    pub read_only: bool,
    /// Users other than the one who mounts may enter. Needs root or `user_allow_other` in
    /// `/etc/fuse.conf`.
    pub allow_other: bool,
    /// The kernel checks permission bits. Without it nobody does.
    pub default_permissions: bool,
    /// Device nodes do not work.
    pub nodev: bool,
    /// Set-user-id bits do not work.
    pub nosuid: bool,
    /// Programs cannot be run.
    pub noexec: bool,
    /// Shown in the mount table; not to update access times is the file system's business.
    pub noatime: bool,
    /// Every write is O_SYNC.
    pub sync: bool,
    /// Number of threads that serve requests; one that waits for the device blocks no other.
    pub threads: usize,
    /// Open files cached even where the kernel offers mappable direct handles.
    pub cached_opens: bool,
}

impl MountConfig {
    /// Threads unless told otherwise: enough for a group commit of a busy database, at the price of
    /// a stack and a request buffer each.
    pub const DEFAULT_THREADS: usize = 16;

    /// The defaults for a volume shown as `source`: for everybody if mounted by root, and
    /// permissions checked by the kernel.
    pub fn new(source: impl Into<OsString>) -> Self {
        Self {
            source: source.into(),
            read_only: false,
            allow_other: rustix::process::geteuid().is_root(),
            default_permissions: true,
            nodev: false,
            nosuid: false,
            noexec: false,
            noatime: false,
            sync: false,
            threads: Self::DEFAULT_THREADS,
            cached_opens: false,
        }
    }
}

/// What was agreed with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// FUSE protocol version of the kernel.
    pub kernel_abi: (u32, u32),
    /// `O_DIRECT` opens get direct handles (see the crate's description).
    pub direct_handles: bool,
    /// Who sets an access control list without being of the file's group loses setgid, as everywhere.
    pub extended_setxattr: bool,
    /// Longest write in one request, in bytes.
    pub max_write: u32,
}
