//! What is agreed with the kernel when it is mounted.

use std::io;

use fuser::{InitFlags, KernelConfig, Version};

use crate::config::{Features, MAX_WRITE};

/// Requests of asynchronous I/O and read-ahead the kernel may have under way at once.
const MAX_BACKGROUND: u16 = 128;

/// Linux 5.4: the oldest kernel whose FUSE has all that the adapter counts on (1 MiB requests,
/// page cache kept until invalidated on request).
const KERNEL_FLOOR: Version = Version(7, 31);

/// What is wanted of every kernel; one that lacks something works too, only slower or with less.
const WANTED: [InitFlags; 9] = [
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    // Otherwise the kernel drops a file's pages whenever it learns of a new size.
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    // Inodes are found by number, so file handles outlive the kernel's caches and the mount.
    InitFlags::FUSE_EXPORT_SUPPORT,
    // The umask must not count in a directory with a default access control list.
    InitFlags::FUSE_DONT_MASK,
    // The file system takes set-user-id bits and capabilities away. Without this the kernel would ask
    // for `security.capability` before every buffered write.
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
];

/// How the adapter wants to work.
pub(crate) struct Wishes {
    /// Never open a file past the kernel's page cache.
    pub(crate) cached_opens: bool,
    /// Access control lists are checked, by the kernel, as permission bits are.
    pub(crate) access_lists: bool,
}

/// Agrees with the kernel; an error refuses the mount.
pub(crate) fn agree(kernel: &mut KernelConfig, wishes: &Wishes) -> io::Result<Features> {
    if kernel.kernel_abi() < KERNEL_FLOOR {
        tracing::error!("the kernel's FUSE is {}; dbfs needs 7.31 (Linux 5.4)", kernel.kernel_abi());
        return Err(io::Error::from_raw_os_error(libc::EPROTO));
    }
    for capability in WANTED {
        let _ = kernel.add_capabilities(capability);
    }
    if wishes.access_lists {
        let _ = kernel.add_capabilities(InitFlags::FUSE_POSIX_ACL);
    }
    let extended_setxattr = kernel.add_capabilities(InitFlags::FUSE_SETXATTR_EXT).is_ok();
    let direct_handles =
        !wishes.cached_opens && kernel.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok();
    let refused = |_| io::Error::from_raw_os_error(libc::EPROTO);
    kernel.set_max_write(MAX_WRITE).map_err(refused)?;
    kernel.set_max_background(MAX_BACKGROUND).map_err(|_| io::Error::from_raw_os_error(libc::EPROTO))?;
    let Version(major, minor) = kernel.kernel_abi();
    Ok(Features { kernel_abi: (major, minor), direct_handles, extended_setxattr, max_write: MAX_WRITE })
}
