//! Reading.

use crate::api::{FileType, IoFlags};
use crate::error::{FsError, Result};
use crate::fs::Inode;
use crate::types::PageNr;
use crate::volume::Volume;

/// Seconds after which a read updates the access time even if the file has not changed (relatime).
const RELATIME: i64 = 24 * 3600;

impl Volume {
    /// See [`FsOps::read`](crate::api::FsOps::read).
    pub(crate) fn read_file(
        &self,
        inode: &Inode,
        offset: u64,
        buf: &mut [u8],
        flags: IoFlags,
    ) -> Result<usize> {
        match inode.kind() {
            FileType::Regular => {}
            FileType::Directory => return Err(FsError::IS_DIR),
            _ => return Err(FsError::INVALID),
        }
        if buf.is_empty() {
            return Ok(0);
        }
        let page_size = self.page_size();
        let last_byte = offset.saturating_add(buf.len() as u64 - 1);
        let (first, last) = (page_size.page_of(offset), page_size.page_of(last_byte));
        let _range = self.lock_pages(inode, first, last, false);
        let size = inode.state.lock().item.size;
        if offset >= size {
            return Ok(0);
        }
        let n = (size - offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..n];
        let last = page_size.page_of(offset + n as u64 - 1);
        let count = (last.0 - first.0 + 1) as usize;
        if flags.direct {
            self.read_direct(inode, offset, first, count, buf)?;
        } else {
            let (frames, missed) = self.load_frames(inode, first, count)?;
            for (i, frame) in frames.iter().enumerate() {
                let data = frame.read();
                self.copy_page(offset, first.0 + i as u64, data.bytes(), buf);
            }
            if missed {
                self.read_ahead(inode, first, count);
            }
        }
        self.touch_access(inode);
        Ok(n)
    }

    /// Past the cache, except for pages that are newer there.
    fn read_direct(
        &self,
        inode: &Inode,
        offset: u64,
        first: PageNr,
        count: usize,
        buf: &mut [u8],
    ) -> Result<()> {
        let mut wanted = vec![true; count];
        for (i, wanted) in wanted.iter_mut().enumerate() {
            let page = PageNr(first.0 + i as u64);
            let patched = || self.patches.lock().get(inode.ino, page).is_some();
            let cached = inode.unhomed.lock().get(&page).cloned();
            let frame = match cached {
                Some(frame) => Some(frame),
                None if patched() => Some(self.load_frame(inode, page)?),
                None => None,
            };
            if let Some(frame) = frame {
                self.copy_page(offset, page.0, frame.read().bytes(), buf);
                *wanted = false;
            }
        }
        self.read_pages(inode, first, &wanted, &mut |i, page| {
            self.copy_page(offset, first.0 + i as u64, &page, buf);
        })
    }

    /// Copies what page `page` has of the bytes from `offset` on into `buf`.
    fn copy_page(&self, offset: u64, page: u64, from: &[u8], buf: &mut [u8]) {
        let start = page * from.len() as u64;
        let skip = offset.saturating_sub(start) as usize;
        let at = start.saturating_sub(offset) as usize;
        let n = (from.len() - skip).min(buf.len() - at);
        buf[at..at + n].copy_from_slice(&from[skip..skip + n]);
    }

    fn touch_access(&self, inode: &Inode) {
        if self.options.no_atime || self.check_writable().is_err() {
            return;
        }
        let now = self.env.now();
        let mut state = inode.state.lock();
        let i = &state.item;
        if i.atime <= i.mtime || i.atime <= i.ctime || now.secs - i.atime.secs >= RELATIME {
            if state.item.atime != now {
                state.item.atime = now;
                state.lazy = true;
            }
            drop(state);
            self.inodes.mark_dirty(inode.ino, self.env.monotonic_ns());
        }
    }
}
