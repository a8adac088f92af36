//! Changing the size of a file.

use parking_lot::RwLockReadGuard;

use super::map::freed_blocks;
use super::range_lock::RangeGuard;
use super::tail::{TailJob, report_owed};
use crate::cache::FrameRef;
use crate::error::{FsError, Result};
use crate::format::{Change, PageEntry};
use crate::fs::{Inode, InodeState};
use crate::mutants::{self, Mutant};
use crate::types::PageNr;
use crate::volume::{Admission, Volume};

/// The last page of a file that is cut within it: its bytes from `at` on become zeros.
struct CutPage {
    page: PageNr,
    frame: FrameRef,
    at: usize,
}

impl Volume {
    /// Sets the size; `update` makes other changes of the inode that belong to the same step. When it
    /// returns, everything behind a smaller size is free, or will be before anything else is there.
    pub(crate) fn resize(
        &self,
        inode: &Inode,
        size: u64,
        update: impl FnOnce(&mut InodeState),
    ) -> Result<()> {
        if size > i64::MAX as u64 {
            return Err(FsError::TOO_BIG);
        }
        let rest = {
            // Zeros of the last page go into the journal; see `home_inline`.
            let (_admitted, _no_homing, _range) = self.lock_for_resize(inode)?;
            self.resize_locked(inode, size, update)?
        };
        if let Some((job, from)) = rest
            && let Err(e) = self.free_tail(job, Some(from))
        {
            report_owed(inode, &e);
        }
        Ok(())
    }

    /// Lets the change in, locks the whole file, with nothing owed behind its end, and keeps homing out.
    fn lock_for_resize<'a>(
        &'a self,
        inode: &'a Inode,
    ) -> Result<(Admission<'a>, RwLockReadGuard<'a, ()>, RangeGuard<'a>)> {
        let end = PageNr(u64::MAX);
        loop {
            self.settle_tail(inode, end)?;
            let admitted = self.admit_cost(self.cost_of_frees())?;
            let no_homing = self.homing.read();
            let range = self.lock_all_pages(inode);
            if !self.tail_in_the_way(inode, end) {
                return Ok((admitted, no_homing, range));
            }
        }
    }

    /// The caller holds the whole file. Returns what is left to be freed, and from where on.
    fn resize_locked<'a>(
        &self,
        inode: &'a Inode,
        size: u64,
        update: impl FnOnce(&mut InodeState),
    ) -> Result<Option<(TailJob<'a>, PageNr)>> {
        let (old, deleted) = {
            let state = inode.state.lock();
            (state.item.size, state.deleted)
        };
        if deleted {
            return Err(FsError::STALE);
        }
        let first = PageNr(self.page_size().pages_for(size));
        let mut changes = Vec::new();
        let mut next = None;
        let mut cut = None;
        // Everything that can fail comes before the first change in memory.
        if size < old {
            (changes, next) = self.free_step(inode, first)?;
            if !mutants::active(Mutant::KeepTruncatedTail) {
                cut = self.cut_page(inode, size)?;
            }
        }
        let freed = freed_blocks(&changes);
        if let Some(cut) = &cut {
            let len = (self.page_bytes() - cut.at) as u32;
            changes.push(Change::InlineZero { ino: inode.ino, offset: size, len });
        }
        let now = self.env.now();
        let mut job = None;
        self.apply_with_state(inode, changes, |state, changes| {
            state.item.size = size;
            state.disk_size = size;
            state.item.blocks = state.item.blocks.saturating_sub_signed(freed);
            if size != old {
                state.touch_content(now);
            }
            update(state);
            if next.is_some() {
                job = Some(self.owe_tail(inode, state, changes));
            }
            true
        })?;
        if let Some(cut) = cut {
            self.zero_cut(inode, cut);
        }
        if size < old {
            self.drop_frames(inode, first, PageNr(self.page_size().pages_for(old)));
            inode.state.lock().lost.remove(size..u64::MAX);
        }
        Ok(job.zip(next))
    }

    /// The page that a new end at `size` cuts, if it has bytes behind it that could show: bytes beyond
    /// the end are always zero, so growing the file later shows no old ones.
    fn cut_page(&self, inode: &Inode, size: u64) -> Result<Option<CutPage>> {
        let page = self.page_size().page_of(size);
        let at = (size - self.page_size().start_of(page)) as usize;
        let mut entry = [PageEntry::Hole];
        self.meta.pages(inode.ino, page, &mut entry)?;
        let patched = self.patches.lock().get(inode.ino, page).is_some();
        let cached = inode.unhomed.lock().contains_key(&page);
        if at == 0 || (!matches!(entry[0], PageEntry::Mapped(..)) && !patched && !cached) {
            return Ok(None);
        }
        let frame = self.load_frame(inode, page)?;
        Ok(Some(CutPage { page, frame, at }))
    }

    /// Zeros the cut page in the cache; the open batch has the zeros as inline data.
    fn zero_cut(&self, inode: &Inode, cut: CutPage) {
        let mut data = cut.frame.write();
        data.bytes_mut()[cut.at..].fill(0);
        data.dirty = match data.dirty {
            Some((from, to)) if from < cut.at => Some((from, to.min(cut.at))),
            Some(_) => {
                self.cache.note_clean();
                None
            }
            None => None,
        };
        self.cache.set_inline(&mut data, true);
        self.hold_way_home(&mut data);
        drop(data);
        inode.unhomed.lock().insert(cut.page, cut.frame);
        self.inodes.mark_dirty(inode.ino, self.env.monotonic_ns());
    }
}
