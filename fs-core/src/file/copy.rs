//! copy_file_range: from cache to cache.

use crate::api::{FileType, IoFlags};
use crate::error::{FsError, Result};
use crate::fs::Inode;
use crate::volume::Volume;

/// Most bytes copied by one call: callers go on where it ended, and nobody waits too long.
const MAX_COPY: u64 = 64 << 20;

/// Bytes read and written at once.
const STEP: u64 = 1 << 20;

impl Volume {
    /// See [`FsOps::copy_range`](crate::api::FsOps::copy_range).
    pub(crate) fn copy_file_range(
        &self,
        (from, from_offset): (&Inode, u64),
        (to, to_offset): (&Inode, u64),
        len: u64,
        flags: IoFlags,
    ) -> Result<u64> {
        for inode in [from, to] {
            match inode.kind() {
                FileType::Regular => {}
                FileType::Directory => return Err(FsError::IS_DIR),
                _ => return Err(FsError::INVALID),
            }
        }
        let fits = |offset: u64| offset.checked_add(len).is_some_and(|end| end <= i64::MAX as u64);
        if !fits(from_offset) || !fits(to_offset) {
            return Err(FsError::OVERFLOW);
        }
        let len = len.min(from.state.lock().item.size.saturating_sub(from_offset));
        if from.ino == to.ino && from_offset < to_offset + len && to_offset < from_offset + len {
            return Err(FsError::INVALID);
        }
        let len = len.min(MAX_COPY);
        if len > 0 {
            self.drop_capability(to)?;
        }
        let mut buf = vec![0; len.min(STEP) as usize];
        let mut done = 0;
        while done < len {
            // Pieces end at page borders of the target, where they can.
            let at = to_offset + done;
            let n = (len - done).min(STEP - at % self.page_bytes() as u64) as usize;
            match self.copy_piece(from, from_offset + done, to, at, &mut buf[..n], flags) {
                Ok(0) => break, // the source has become shorter
                Ok(n) => done += n as u64,
                Err(e) if done == 0 => return Err(e),
                Err(_) => break, // the next call will say
            }
        }
        Ok(done)
    }

    fn copy_piece(
        &self,
        from: &Inode,
        from_offset: u64,
        to: &Inode,
        to_offset: u64,
        buf: &mut [u8],
        flags: IoFlags,
    ) -> Result<usize> {
        let n = self.read_file(from, from_offset, buf, IoFlags::default())?;
        self.write_attended(to, to_offset, &buf[..n], flags)
    }
}
