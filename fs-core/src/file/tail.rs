//! The tail of a file: what lay behind its end when it was truncated.
//!
//! A truncation sets the size and frees what is behind it in one set of changes, if that is little.
//! If not, the first set says with an orphan item that the rest is still to be freed, and the rest
//! follows in steps, without any lock of the file, so that commits and checkpoints can keep up
//! with it. Until it is done nobody may map pages behind the end: old bytes would show. Whoever wants
//! to waits, or, if the truncation had to stop at an error, goes on with it first. After a crash the
//! orphan item lets the next mount go on.

use super::map::{free_changes, freed_blocks};
use super::range_lock::RangeGuard;
use crate::error::{FsError, Result};
use crate::format::{Change, ItemKind, Key, PageEntry};
use crate::fs::{Inode, InodeState};
use crate::types::{CHUNK_PAGES, Ino, PageNr, PageSize};
use crate::volume::Volume;

/// Chunks looked at at once.
const FREE_CHUNKS: u64 = 16;

/// Runs after which a step of freeing ends, so that its changes fit a journal record.
pub(crate) const FREE_RUNS: usize = 1000;

/// What an orphan item says: finish this.
pub(crate) const ORPHAN_DELETE: u8 = 1;
/// See [`ORPHAN_DELETE`].
pub(crate) const ORPHAN_TRUNCATE: u8 = 2;

/// What lies behind the end of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing, or space that was reserved there.
    #[default]
    Clean,
    /// Somebody is freeing what a truncation has cut off.
    Freeing,
    /// What a truncation has cut off is still there; freeing it has failed.
    Owed,
}

impl InodeState {
    /// Whether page `last` must not be mapped yet.
    fn tail_covers(&self, last: PageNr, page_size: PageSize) -> bool {
        self.tail != Tail::Clean && last.0 >= page_size.pages_for(self.item.size)
    }
}

/// The right and the duty to free a tail. If it is dropped half way, the tail is owed.
pub(crate) struct TailJob<'a> {
    inode: &'a Inode,
    left: Tail,
}

impl<'a> TailJob<'a> {
    /// Takes the job; the caller has seen under the same lock that nobody else has it.
    fn take(inode: &'a Inode, state: &mut InodeState) -> Self {
        state.tail = Tail::Freeing;
        Self { inode, left: Tail::Owed }
    }

    fn done(mut self) {
        self.left = Tail::Clean;
    }
}

impl Drop for TailJob<'_> {
    fn drop(&mut self) {
        self.inode.state.lock().tail = self.left;
        self.inode.tail_changed.notify_all();
    }
}

impl Volume {
    /// Lets a change in, with `admit`, and locks its pages, once nothing that a truncation has cut off
    /// is in their place. May have to free that: no lock may be held, nor any admission.
    pub(crate) fn lock_for_change<'a, A>(
        &self,
        inode: &'a Inode,
        first: PageNr,
        last: PageNr,
        admit: impl Fn() -> Result<A>,
    ) -> Result<(A, RangeGuard<'a>)> {
        loop {
            self.settle_tail(inode, last)?;
            let admitted = admit()?;
            let range = self.lock_pages(inode, first, last, true);
            // The next truncation needs all ranges.
            if !self.tail_in_the_way(inode, last) {
                return Ok((admitted, range));
            }
        }
    }

    /// Whether page `last` must not be mapped yet.
    pub(crate) fn tail_in_the_way(&self, inode: &Inode, last: PageNr) -> bool {
        inode.state.lock().tail_covers(last, self.page_size())
    }

    /// Waits until page `last` may be mapped, or makes it so. No lock may be held, nor any admission.
    pub(super) fn settle_tail(&self, inode: &Inode, last: PageNr) -> Result<()> {
        let mut state = inode.state.lock();
        while state.tail_covers(last, self.page_size()) {
            if state.tail == Tail::Freeing {
                inode.tail_changed.wait(&mut state);
                continue;
            }
            let job = TailJob::take(inode, &mut state);
            drop(state);
            self.free_tail(job, None)?;
            state = inode.state.lock();
        }
        Ok(())
    }

    /// Makes sure that nobody else frees blocks of a file that is to be deleted, or ever will.
    pub(crate) fn take_tail_for_good(&self, inode: &Inode) {
        let mut state = inode.state.lock();
        while state.tail == Tail::Freeing {
            inode.tail_changed.wait(&mut state);
        }
        state.tail = Tail::Freeing;
    }

    /// After a crash: what an orphan item says is behind the end of the file is to be freed.
    pub(crate) fn finish_truncation(&self, inode: &Inode) -> Result<()> {
        let job = TailJob::take(inode, &mut inode.state.lock());
        self.free_tail(job, None)
    }

    /// The duty that follows from a truncation, in the step that sets the new size.
    pub(super) fn owe_tail<'a>(
        &self,
        inode: &'a Inode,
        state: &mut InodeState,
        changes: &mut Vec<Change>,
    ) -> TailJob<'a> {
        if state.item.nlink > 0 {
            // A file without a name is an orphan already, and stays one.
            changes.push(Change::PutItem { key: orphan_key(inode), value: vec![ORPHAN_TRUNCATE] });
        }
        TailJob::take(inode, state)
    }

    /// Frees everything behind the end, from `from` on if what is before is done, in steps that each
    /// fit a record, and takes the file off the list of unfinished truncations. No lock may be held, nor
    /// any admission: checkpoints come in between.
    pub(super) fn free_tail(&self, job: TailJob<'_>, from: Option<PageNr>) -> Result<()> {
        let inode = job.inode;
        let end = || PageNr(self.page_size().pages_for(inode.state.lock().item.size));
        let mut from = from.unwrap_or_else(end);
        loop {
            let _admitted = self.admit_cost(self.cost_of_frees())?;
            let (changes, next) = self.free_step(inode, from)?;
            let freed = freed_blocks(&changes);
            self.apply_with_state(inode, changes, |state, changes| {
                state.item.blocks = state.item.blocks.saturating_sub_signed(freed);
                if next.is_none() && state.item.nlink > 0 {
                    changes.push(Change::DelItem { key: orphan_key(inode) });
                }
                freed != 0
            })?;
            match next {
                Some(page) => from = page,
                None => break,
            }
        }
        job.done();
        Ok(())
    }

    /// Changes that free some of what lies behind `from`, and where to go on. Nobody else may change
    /// mappings there.
    pub(crate) fn free_step(&self, inode: &Inode, mut from: PageNr) -> Result<(Vec<Change>, Option<PageNr>)> {
        let mut changes: Vec<Change> = Vec::new();
        let start = from;
        while changes.len() < FREE_RUNS {
            let Some(page) = self.meta.next_mapped(inode.ino, from)? else {
                // Also if nothing is mapped: recovery must drop bytes that are in the journal only.
                let pages = u64::MAX / 4 - start.0;
                changes.insert(0, Change::Unmap { ino: inode.ino, page: start, pages });
                return Ok((changes, None));
            };
            // No more runs than one chunk's beyond the limit.
            let chunks = ((FREE_RUNS - changes.len()) as u64 / CHUNK_PAGES).clamp(1, FREE_CHUNKS);
            let count = CHUNK_PAGES * (page.chunk() + chunks) - page.0;
            let mut entries = vec![PageEntry::Hole; count as usize];
            self.meta.pages(inode.ino, page, &mut entries)?;
            changes.extend(free_changes(&entries));
            from = PageNr(page.0 + count);
        }
        changes.insert(0, Change::Unmap { ino: inode.ino, page: start, pages: from.0 - start.0 });
        Ok((changes, Some(from)))
    }
}

/// Key of the orphan item of an inode.
pub(crate) fn orphan_key(inode: &Inode) -> Key {
    Key::new(Ino::SYSTEM, ItemKind::Orphan, inode.ino.0)
}

/// An error after which the rest of a truncation is left to whoever needs the space behind the end.
pub(super) fn report_owed(inode: &Inode, error: &FsError) {
    tracing::warn!(error = %error, ino = inode.ino.0, "a truncated file's blocks could not all be freed; the next write behind its end or the next mount will do it");
}
