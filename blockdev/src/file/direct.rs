//! Requests done by the calling thread itself with plain system calls.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};

use crate::check::Shape;
use crate::{Completion, DeviceError};

use super::transfer::{Kind, Step, Transfer, kind_of};

/// An open file or block device, as the engines share it. It is closed, and its lock given up,
/// when the last of them is through with it.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) fd: OwnedFd,
    pub(super) name: Arc<str>,
    pub(super) is_block_device: bool,
}

/// Runs a transfer to its end. Blocks.
pub(super) fn run(target: &Target, mut transfer: Transfer) -> Completion {
    if transfer.is_empty() {
        return transfer.finish(&target.name, Ok(()));
    }
    loop {
        let result = once(target, &mut transfer);
        if let Step::Over(result) = transfer.on_result(result) {
            return transfer.finish(&target.name, result);
        }
    }
}

/// One system call: bytes transferred or a negative errno.
fn once(target: &Target, transfer: &mut Transfer) -> i32 {
    let fd = target.fd.as_raw_fd();
    let segments = transfer.segments();
    let count = segments.len() as i32;
    let offset = transfer.offset() as i64;
    let result = match transfer.kind {
        // SAFETY: the segments point into buffers that `transfer` owns exclusively and that live
        // beyond the call, which is the only user of the pointers.
        Kind::Read => unsafe { libc::preadv2(fd, segments.as_ptr(), count, offset, 0) },
        Kind::Write => {
            let flags = if transfer.fua { libc::RWF_DSYNC } else { 0 };
            // SAFETY: as above; the kernel only reads the buffers.
            unsafe { libc::pwritev2(fd, segments.as_ptr(), count, offset, flags) }
        }
        Kind::Flush => rustix::fs::fdatasync(&target.fd).map_or_else(|e| -e.raw_os_error() as isize, |()| 0),
    };
    match result {
        -1 if transfer.kind != Kind::Flush => {
            -std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
        }
        // At most MAX_CHUNK, or a negative errno: both fit.
        n => n as i32,
    }
}

/// Discards a range. Blocks.
pub(super) fn discard(target: &Target, shape: Shape) -> Completion {
    let result = if shape.len == 0 {
        Ok(())
    } else if target.is_block_device {
        discard_blocks(&target.fd, shape.offset, shape.len)
    } else {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&target.fd, flags, shape.offset, shape.len).map_err(|e| e.raw_os_error())
    };
    let error = |errno| -> DeviceError { shape.error(&target.name, kind_of(errno), errno) };
    Completion { bufs: Vec::new(), result: result.map_err(error) }
}

fn discard_blocks(fd: &OwnedFd, offset: u64, len: u64) -> Result<(), i32> {
    /// `_IO(0x12, 119)` of linux/fs.h.
    const BLKDISCARD: libc::Ioctl = 0x1277;
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two u64 from the pointer, which are alive for the call.
    match unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
    }
}
