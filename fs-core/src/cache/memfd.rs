//! Files of shared memory (memfd) that other processes may map.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::Advice;

/// An empty file that never shrinks: who maps it is never killed for touching what is gone.
pub(super) fn create(name: &str) -> rustix::io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK)?;
    // Everybody could open it for writing through /proc, else.
    rustix::fs::fchmod(&file, Mode::RUSR)?;
    Ok(file)
}

/// The file again, only to be read: to be given to others.
pub(super) fn read_only(file: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Asks for memory for `bytes` bytes of the file from `offset` on, which are mapped at `start`, so that nobody
/// is killed for touching them where there is none left; false: there is none. Changes none of them.
///
/// # Safety
/// The bytes are mapped.
pub(super) unsafe fn back(file: impl AsFd, offset: u64, start: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: the bytes are mapped, and populating changes none of them.
    match unsafe { rustix::mm::madvise(start.as_ptr().cast(), bytes, Advice::LinuxPopulateWrite) } {
        // Linux before 5.14.
        Err(Errno::INVAL) => {
            rustix::fs::fallocate(file, FallocateFlags::empty(), offset, bytes as u64).is_ok()
        }
        outcome => outcome.is_ok(),
    }
}
