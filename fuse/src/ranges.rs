//! Requests about ranges of files: where data is, and copies that stay in the daemon.

use fs_core::Ino;
use fs_core::api::IoFlags;
use fuser::{CopyFileRangeFlags, Errno, ReplyLseek, ReplyWrite};

use crate::adapter::Adapter;
use crate::convert;

impl Adapter {
    /// lseek with SEEK_DATA or SEEK_HOLE; the kernel answers the others itself.
    pub(crate) fn find_offset(&self, ino: Ino, offset: i64, whence: i32, reply: ReplyLseek) {
        let _busy = self.gate.enter();
        let Some(what) = convert::seek(whence) else { return reply.error(Errno::EINVAL) };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.run("lseek", ino, |fs| fs.seek(ino, offset, what)) {
            Ok(found) => reply.offset(found as i64),
            Err(e) => reply.error(e),
        }
    }

    /// copy_file_range. The kernel has written its own pages of both ranges back and drops those of
    /// the target afterwards.
    pub(crate) fn copy_within(
        &self,
        (from, from_offset): (Ino, u64),
        (to, to_offset): (Ino, u64),
        (len, flags): (u64, CopyFileRangeFlags),
        unprivileged: bool,
        reply: ReplyWrite,
    ) {
        let _busy = self.gate.enter();
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let how = IoFlags { kill_priv: unprivileged, ..IoFlags::default() };
        let clears_set_ids = unprivileged && self.clears_set_ids(to);
        let copied =
            self.run("copy_file_range", to, |fs| fs.copy_range(from, from_offset, to, to_offset, len, how));
        if clears_set_ids {
            self.forget_attributes(to);
        }
        match copied {
            Ok(n) => reply.written(n as u32),
            Err(e) => reply.error(e),
        }
    }
}
