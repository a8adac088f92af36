//! fallocate: reserving space for a file.

use super::map::Near;
use super::punch::Space;
use crate::api::{Fallocate, FileType};
use crate::error::{FsError, Result};
use crate::format::{Change, MappedRun, PageEntry};
use crate::fs::Inode;
use crate::types::PageNr;
use crate::volume::Volume;

/// Pages given blocks in one step.
const STEP: usize = 1024;

impl Volume {
    /// See [`FsOps::fallocate`](crate::api::FsOps::fallocate).
    pub(crate) fn allocate_file(&self, inode: &Inode, mode: Fallocate, offset: u64, len: u64) -> Result<()> {
        match inode.kind() {
            FileType::Regular => {}
            FileType::Directory => return Err(FsError::IS_DIR),
            FileType::Fifo => return Err(FsError::Posix(libc::ESPIPE)),
            _ => return Err(FsError::Posix(libc::ENODEV)),
        }
        let end = offset.checked_add(len).filter(|end| *end <= i64::MAX as u64).ok_or(FsError::TOO_BIG)?;
        if len == 0 {
            return Err(FsError::INVALID);
        }
        if mode == Fallocate::PunchHole {
            return self.zero_range(inode, (offset, end), Space::Free);
        }
        self.check_fallocate_room(len)?;
        let page_size = self.page_size();
        let mut page = page_size.page_of(offset);
        let last = page_size.page_of(end - 1);
        while page <= last {
            let n = (last.0 - page.0 + 1).min(STEP as u64);
            self.with_room(|| self.reserve_pages(inode, page, n as usize))?;
            page = PageNr(page.0 + n);
        }
        // After the holes have space: a full volume refuses that, and nothing has changed then.
        if matches!(mode, Fallocate::ZeroRange | Fallocate::ZeroRangeKeepSize) {
            self.zero_range(inode, (offset, end), Space::Keep)?;
        }
        let grows = matches!(mode, Fallocate::Allocate | Fallocate::ZeroRange);
        let (_admitted, _range) =
            self.lock_for_change(inode, PageNr(0), PageNr(u64::MAX), || self.admit())?;
        let now = self.env.now();
        let mut state = inode.state.lock();
        if state.deleted {
            return Err(FsError::STALE);
        }
        state.touch_content(now);
        if grows && state.item.size < end {
            state.item.size = end;
            state.disk_size = end;
            let change = state.put(inode.ino);
            self.meta.apply(vec![change], 0)?;
        }
        drop(state);
        self.inodes.mark_dirty(inode.ino, self.env.monotonic_ns());
        Ok(())
    }

    /// Refuses early what certainly does not fit, instead of filling the volume first.
    fn check_fallocate_room(&self, len: u64) -> Result<()> {
        let blocks = len / crate::types::BLOCK_SIZE as u64;
        let total = self.total_blocks();
        if blocks > total { Err(FsError::NO_SPACE) } else { Ok(()) }
    }

    /// Gives the holes among `count` pages unwritten blocks.
    fn reserve_pages(&self, inode: &Inode, first: PageNr, count: usize) -> Result<()> {
        let last = PageNr(first.0 + count as u64 - 1);
        let (_admitted, _range) =
            self.lock_for_change(inode, first, last, || self.admit_cost(self.cost_of_pages(count as u64)))?;
        if inode.state.lock().deleted {
            return Err(FsError::STALE);
        }
        let mut entries = vec![PageEntry::Hole; count];
        self.meta.pages(inode.ino, first, &mut entries)?;
        let holes: Vec<_> = entries
            .iter()
            .enumerate()
            .filter(|(_, e)| **e == PageEntry::Hole)
            .map(|(i, _)| (PageNr(first.0 + i as u64), self.page_blocks()))
            .collect();
        if holes.is_empty() {
            return Ok(());
        }
        let goal = self.goal_near(inode, first)?;
        let blocks = holes.len() as u64 * u64::from(self.page_blocks());
        let mut hold = self.space.alloc.hold(blocks, crate::alloc::Purpose::User)?;
        let placed = self.place_pages(&holes, Near::behind(goal), &mut hold, false)?;
        let mut grown = 0;
        let changes = placed
            .iter()
            .map(|p| {
                grown += i64::from(p.run.len);
                let last_blocks = self.page_blocks() as u8;
                let run = MappedRun { start: p.run.start, pages: p.pages, last_blocks, crcs: None };
                Change::MapRun { ino: inode.ino, page: p.page, run }
            })
            .collect();
        let applied = self.apply_to_file(inode, changes, grown, |_| false);
        if applied.is_err() {
            self.take_back(&placed, &mut hold);
        }
        applied.map(drop)
    }
}
