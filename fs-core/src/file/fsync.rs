//! fsync: the promise (contract C1).

use super::writeback::Which;
use crate::cache::FrameRef;
use crate::error::{FsError, Result};
use crate::format::Change;
use crate::fs::Inode;
use crate::mutants::{self, Mutant};
use crate::types::{Lsn, PageNr};
use crate::volume::{Cost, Volume};

/// Pages that one call puts into the journal at most: each has to be written home later.
const MAX_INLINE_PAGES: usize = 128;

impl Volume {
    /// See [`FsOps::fsync`](crate::api::FsOps::fsync).
    pub(crate) fn sync_file(&self, inode: &Inode, datasync: bool) -> Result<()> {
        if self.read_only() {
            return Ok(());
        }
        self.sync_pages(inode, PageNr(0), PageNr(u64::MAX), datasync)?;
        if inode.state.lock().lost.is_empty() { Ok(()) } else { Err(FsError::LostWrite(inode.ino)) }
    }

    /// Makes the bytes that a synchronous write has just written durable.
    pub(crate) fn sync_range(&self, inode: &Inode, offset: u64, len: usize, datasync: bool) -> Result<()> {
        let page_size = self.page_size();
        let last = page_size.page_of(offset + len as u64 - 1);
        self.sync_pages(inode, page_size.page_of(offset), last, datasync)
    }

    fn sync_pages(&self, inode: &Inode, first: PageNr, last: PageNr, datasync: bool) -> Result<()> {
        if let Some(reason) = self.commit.failure() {
            return Err(FsError::CommitFailed(reason));
        }
        self.check_writable()?;
        if mutants::active(Mutant::FsyncSkipsData) {
            return self.commit();
        }
        let mut durable = false;
        if !self.inline_dirty(inode, first, last)? {
            durable = self.fly_dirty(inode, first, last, !datasync)?;
            if !durable {
                self.write_pages(inode, first, last, Which::Dirty, usize::MAX)?;
            }
        }
        if !datasync {
            self.store_lazy(inode)?;
        }
        // A flight's record has, or follows, all that was applied before; what came later is not waited for.
        if durable || mutants::active(Mutant::FsyncSkipsCommit) {
            return Ok(());
        }
        self.commit()
    }

    /// Puts the dirty bytes of the pages into the open batch, if they are few. `false`: they are
    /// not, or a checkpoint is just sending inline data home.
    fn inline_dirty(&self, inode: &Inode, first: PageNr, last: PageNr) -> Result<bool> {
        let Some((lo, hi, pages)) = self.small_dirty(inode, first, last) else { return Ok(false) };
        let _admitted = self.admit_cost(Cost::inline(pages as u64, self.inline_limit()))?;
        let Some(_no_homing) = self.homing.try_read() else { return Ok(false) };
        let _range = self.lock_pages(inode, lo, hi, true);
        self.inline_frames(inode, lo, hi, pages)
    }

    /// Puts the dirty bytes of the pages into the open batch, in one step, unless they are too many, or
    /// in more than `most` pages. The caller holds `homing` and the pages, and was let in for that.
    pub(super) fn inline_frames(&self, inode: &Inode, lo: PageNr, hi: PageNr, most: usize) -> Result<bool> {
        let frames: Vec<(PageNr, FrameRef)> = {
            let unhomed = inode.unhomed.lock();
            unhomed.range(lo..=hi).map(|(p, f)| (*p, f.clone())).collect()
        };
        let size = inode.state.lock().item.size;
        let mut changes = Vec::new();
        let mut covered = 0;
        let mut bytes = 0;
        for (page, frame) in &frames {
            let data = frame.read();
            let Some((from, to)) = data.dirty else { continue };
            let start = self.page_size().start_of(*page);
            let to = to.min(size.saturating_sub(start) as usize);
            if from < to {
                covered = start + to as u64;
                bytes += to - from;
                let data = data.bytes()[from..to].to_vec();
                changes.push(Change::Inline { ino: inode.ino, offset: start + from as u64, data });
            }
        }
        if bytes > self.inline_limit() || changes.len() > most {
            return Ok(false); // it has grown since it was looked at
        }
        if !self.places_at_home(inode, &frames, size)? {
            return Ok(false);
        }
        let pages = changes.len();
        self.apply_inline(inode, changes, covered)?;
        for (_, frame) in &frames {
            let mut data = frame.write();
            if data.dirty.take().is_some() {
                self.cache.note_clean();
                self.cache.set_inline(&mut data, true);
            }
        }
        self.count_pages(&self.counters.inline_pages, pages);
        Ok(true)
    }

    fn apply_inline(&self, inode: &Inode, changes: Vec<Change>, covered: u64) -> Result<Option<Lsn>> {
        if changes.is_empty() {
            return Ok(None);
        }
        let lsn = self.apply_to_file(inode, changes, 0, |state| {
            let grows = state.disk_size < covered;
            state.disk_size = state.disk_size.max(covered);
            grows
        })?;
        Ok(Some(lsn))
    }

    /// Number of pages in the range that have dirty bytes.
    pub(super) fn dirty_pages_in(&self, inode: &Inode, first: PageNr, last: PageNr) -> usize {
        let unhomed = inode.unhomed.lock();
        unhomed.range(first..=last).filter(|(_, frame)| frame.read().dirty.is_some()).count()
    }

    /// The span of the dirty pages in the range and their number, if all of them together are small.
    fn small_dirty(&self, inode: &Inode, first: PageNr, last: PageNr) -> Option<(PageNr, PageNr, usize)> {
        let unhomed = inode.unhomed.lock();
        let mut span = None;
        let (mut bytes, mut pages) = (0, 0);
        for (page, frame) in unhomed.range(first..=last) {
            if let Some((from, to)) = frame.read().dirty {
                bytes += to - from;
                pages += 1;
                span = Some((span.map_or(*page, |(lo, _)| lo), *page));
            }
            if bytes > self.inline_limit() || pages > MAX_INLINE_PAGES {
                return None;
            }
        }
        // Nothing dirty: an empty span costs nothing and spares the caller the search.
        let (lo, hi) = span.unwrap_or((first, first));
        Some((lo, hi, pages))
    }
}
