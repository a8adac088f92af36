//! From page images to mapped blocks: allocate, write, and the changes that make it so.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockdev::{AlignedBuf, IoClass};

use crate::alloc::{self, Class, Hold, Request as SpaceRequest};
use crate::error::{FsError, Result};
use crate::format::{Change, MappedRun, PageEntry};
use crate::fs::{Inode, InodeState};
use crate::mutants::{self, Mutant};
use crate::stats::Stage;
use crate::types::{BlockNr, BlockRun, PageNr};
use crate::volume::{Flight, Volume};

/// Consecutive pages that were written to consecutive blocks.
pub(crate) struct WrittenRun {
    /// First page.
    pub(crate) page: PageNr,
    /// Where and what.
    pub(crate) run: MappedRun,
}

/// Blocks for consecutive pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// First page.
    pub(crate) page: PageNr,
    /// The blocks, a whole page's for each but the last.
    pub(crate) run: BlockRun,
    /// Number of pages.
    pub(crate) pages: u32,
    /// The blocks are the places of the pages' frames.
    pub(crate) own: bool,
}

impl Placed {
    /// The pages' own parts.
    pub(crate) fn pages_of(&self, page_blocks: u32) -> impl Iterator<Item = (PageNr, BlockRun)> + use<> {
        let Self { page, run, pages, .. } = *self;
        (0..pages).map(move |i| {
            let at = i * page_blocks;
            let len = page_blocks.min(run.len - at);
            (PageNr(page.0 + u64::from(i)), BlockRun::new(run.start.plus(at.into()), len))
        })
    }

    /// Whether the place of the next page continues this one.
    pub(crate) fn joins(&self, page: PageNr, run: BlockRun, page_blocks: u32) -> bool {
        let whole = self.run.len == self.pages * page_blocks;
        self.own && whole && page.0 == self.page.0 + u64::from(self.pages) && run.start == self.run.end()
    }

    /// Adds the place of the next page.
    pub(crate) fn extend(&mut self, run: BlockRun) {
        self.run.len += run.len;
        self.pages += 1;
    }
}

/// Where new blocks for pages should be.
#[derive(Clone, Copy)]
pub(crate) struct Near<'a> {
    /// Behind these.
    pub(crate) goal: Option<BlockNr>,
    /// What a page has now: a few new blocks for it should be beside them.
    pub(crate) old: &'a dyn Fn(PageNr) -> Option<BlockNr>,
}

impl Near<'_> {
    /// For pages that have no blocks.
    pub(crate) fn behind(goal: Option<BlockNr>) -> Self {
        Self { goal, old: &|_| None }
    }
}

/// Why pages are not in their new blocks.
#[derive(Debug)]
pub(crate) enum Unwritten {
    /// A write has failed: all blocks are in quarantine.
    Quarantined(FsError),
    /// They were written, and not mapped.
    NotMapped(FsError),
    /// They were written and mapped, and the volume has stopped: nobody knows whether they are durable.
    NotDurable(FsError),
}

impl From<Unwritten> for FsError {
    fn from(unwritten: Unwritten) -> Self {
        match unwritten {
            Unwritten::Quarantined(e) | Unwritten::NotMapped(e) | Unwritten::NotDurable(e) => e,
        }
    }
}

impl Volume {
    /// Writes the images to their places (see [`send`](Self::send)) and maps them, with what `update` changes
    /// of the inode. The caller holds the pages exclusively. If it fails nothing has changed. Blocks of
    /// a failed write stay in quarantine; others that are not the frames' own are back in `hold`.
    pub(crate) fn write_and_map(
        &self,
        inode: &Inode,
        images: impl Iterator<Item = AlignedBuf>,
        placed: &[Placed],
        class: IoClass,
        hold: &mut Hold,
        update: impl FnOnce(&mut InodeState) -> bool,
    ) -> std::result::Result<(), Unwritten> {
        let writing = self.stats.time_for(Stage::Data, inode.usage.class());
        let written = self.write_images(images, placed, class);
        drop(writing);
        let written = written.map_err(Unwritten::Quarantined)?;
        let mapped = self
            .map_changes(inode, written)
            .and_then(|(changes, grown)| self.apply_to_file(inode, changes, grown, update));
        if mapped.is_err() {
            self.take_back(placed, hold);
        }
        mapped.map(drop).map_err(Unwritten::NotMapped)
    }

    /// Gives blocks back that nothing names, and no write to which has failed.
    pub(crate) fn return_blocks(&self, run: BlockRun, hold: &mut Hold) {
        if let Err(e) = self.space.alloc.return_unwritten(run, hold) {
            tracing::error!(error = %e, "blocks that were to be given back were not in use");
        }
    }

    /// Writes the images to their places and waits. Nothing is mapped yet. On failure the blocks are in
    /// quarantine.
    fn write_images(
        &self,
        images: impl Iterator<Item = AlignedBuf>,
        placed: &[Placed],
        class: IoClass,
    ) -> Result<Vec<WrittenRun>> {
        let (sent, written) = self.send(images, placed, class, false);
        let outcome = sent.finish(self);
        self.note_unflushed(self.count_data(placed));
        if let Err(e) = outcome {
            placed.iter().for_each(|p| self.quarantine(p.run));
            return Err(e);
        }
        Ok(written)
    }

    /// Counts data that was sent to its places. Returns the number of bytes.
    pub(super) fn count_data(&self, placed: &[Placed]) -> u64 {
        let bytes = placed.iter().map(|p| p.run.bytes() as u64).sum();
        self.counters.data_bytes.fetch_add(bytes, Ordering::Relaxed);
        bytes
    }

    /// What the page before `first`, `count` pages from there on, and the one behind them have.
    pub(super) fn entries_around(
        &self,
        inode: &Inode,
        first: PageNr,
        count: usize,
    ) -> Result<Vec<PageEntry>> {
        let mut entries = vec![PageEntry::Hole; count + 2];
        match first.0.checked_sub(1) {
            Some(before) => self.meta.pages(inode.ino, PageNr(before), &mut entries)?,
            None => self.meta.pages(inode.ino, first, &mut entries[1..])?,
        }
        Ok(entries)
    }

    /// Where the replacement of a page should be, by what the page before it, itself and the page behind it have.
    pub(super) fn beside(&self, around: &[PageEntry]) -> Option<BlockNr> {
        let start = |i: usize| around.get(i)?.blocks().map(|b| b.start);
        Some(alloc::beside(self.space.alloc.slack(), start(0), start(1)?, start(2)))
    }

    /// Finds blocks for pages in what is held; with `last_resort`, in the cushion, too. Takes nothing on
    /// failure.
    pub(crate) fn place_pages(
        &self,
        pages: &[(PageNr, u32)],
        near: Near<'_>,
        hold: &mut Hold,
        last_resort: bool,
    ) -> Result<Vec<Placed>> {
        let page_blocks = self.page_blocks();
        let mut placed: Vec<Placed> = Vec::new();
        let mut goal = near.goal;
        let mut rest = pages;
        while let Some((first, first_len)) = rest.first().copied() {
            // Pages that may share a run: consecutive, and only the last one short.
            let mut n = 1;
            let mut want = first_len;
            while n < rest.len() && rest[n].0.0 == first.0 + n as u64 && rest[n - 1].1 == page_blocks {
                want += rest[n].1;
                n += 1;
            }
            let min = want.min(page_blocks);
            let align = if min == page_blocks { page_blocks } else { 1 };
            let beside = if want <= self.space.alloc.slack().blocks() { (near.old)(first) } else { None };
            let goal_here = beside.or(goal);
            let request = SpaceRequest {
                goal: goal_here,
                beside,
                last_resort,
                ..SpaceRequest::new(want, min, align, Class::Data)
            };
            let run = match self.allocate_from(&request, hold) {
                Ok(run) => run,
                Err(e) => {
                    self.take_back(&placed, hold);
                    return Err(e);
                }
            };
            let (use_blocks, use_pages) = if run.len >= want {
                (want, n as u32)
            } else {
                (run.len / page_blocks * page_blocks, run.len / page_blocks)
            };
            if run.len > use_blocks {
                let spare = BlockRun::new(run.start.plus(use_blocks.into()), run.len - use_blocks);
                self.return_blocks(spare, hold);
            }
            let run = BlockRun::new(run.start, use_blocks);
            goal = Some(run.end());
            placed.push(Placed { page: first, run, pages: use_pages, own: false });
            rest = &rest[use_pages as usize..];
        }
        Ok(placed)
    }

    /// The changes that map what was written and free what was there before, and by how many blocks
    /// the file has grown. The caller holds the pages exclusively.
    fn map_changes(&self, inode: &Inode, written: Vec<WrittenRun>) -> Result<(Vec<Change>, i64)> {
        let mut mapping = Mapping::default();
        for w in written {
            let mut old = vec![PageEntry::Hole; w.run.pages as usize];
            self.meta.pages(inode.ino, w.page, &mut old)?;
            mapping.add(inode, w, &old, self.page_blocks());
        }
        Ok((mapping.changes, mapping.grown))
    }

    /// As [`map_changes`](Self::map_changes), for pages in `before` (ascending), which is what they have.
    pub(super) fn map_over(
        &self,
        inode: &Inode,
        written: Vec<WrittenRun>,
        before: &[(PageNr, PageEntry)],
    ) -> Vec<Change> {
        let mut mapping = Mapping::default();
        for w in written {
            let at = before.partition_point(|(page, _)| *page < w.page);
            let old: Vec<PageEntry> =
                before[at..].iter().take(w.run.pages as usize).map(|(_, entry)| *entry).collect();
            mapping.add(inode, w, &old, self.page_blocks());
        }
        mapping.changes
    }

    /// Applies changes of a file's mappings together with its inode, if `grown` or the caller's own
    /// change of the state make that necessary, and gives the allocator what was freed. If that
    /// fails, the inode is as it was: memory must not know what the disk will not.
    pub(crate) fn apply_to_file(
        &self,
        inode: &Inode,
        changes: Vec<Change>,
        grown: i64,
        update: impl FnOnce(&mut InodeState) -> bool,
    ) -> Result<crate::types::Lsn> {
        self.apply_with_state(inode, changes, |state, _| {
            state.item.blocks = state.item.blocks.saturating_add_signed(grown);
            update(state) || grown != 0
        })
    }

    /// As [`apply_to_file`](Self::apply_to_file); `update` may add changes, and says whether the
    /// inode has to be stored.
    pub(crate) fn apply_with_state(
        &self,
        inode: &Inode,
        mut changes: Vec<Change>,
        update: impl FnOnce(&mut InodeState, &mut Vec<Change>) -> bool,
    ) -> Result<crate::types::Lsn> {
        let mut state = inode.state.lock();
        let before = (state.item.clone(), state.disk_size, state.lazy);
        if update(&mut state, &mut changes) {
            changes.push(state.put(inode.ino));
        }
        let applied = self.apply_changes(changes, 0);
        if applied.is_err() {
            (state.item, state.disk_size, state.lazy) = before;
        }
        applied
    }

    /// Applies changes and hands freed blocks to the allocator, to be used again when rule R1 allows.
    pub(crate) fn apply_changes(&self, changes: Vec<Change>, inode_delta: i64) -> Result<crate::types::Lsn> {
        self.apply_flying(changes, inode_delta, None)
    }

    /// As [`apply_changes`](Self::apply_changes), for changes that map data which may still be in flight.
    pub(super) fn apply_flying(
        &self,
        changes: Vec<Change>,
        inode_delta: i64,
        flight: Option<Arc<Flight>>,
    ) -> Result<crate::types::Lsn> {
        let freed = freed_runs(&changes);
        let applied = self.meta.apply_with(changes, inode_delta, flight, |lsn| {
            freed.iter().try_for_each(|run| self.space.alloc.free_deferred(*run, lsn))
        });
        self.note_freed(freed.iter().map(|run| u64::from(run.len)).sum());
        if let Err(e @ FsError::Corrupt { .. }) = &applied {
            // A block is freed that is free: the metadata cannot be trusted to be changed further.
            self.commit.fail(&e.to_string());
        }
        applied
    }

    /// Keeps blocks whose write failed out of use until the next mount (rule R1).
    pub(crate) fn quarantine(&self, run: BlockRun) {
        if let Err(e) = self.space.alloc.quarantine(run) {
            tracing::error!(error = %e, "blocks of a failed write were not in use");
        }
    }

    /// Counts pages written by a path.
    pub(crate) fn count_pages(&self, counter: &std::sync::atomic::AtomicU64, pages: usize) {
        counter.fetch_add(pages as u64, Ordering::Relaxed);
    }
}

/// Changes of a file's mapping, and the blocks that it grows by.
#[derive(Default)]
struct Mapping {
    changes: Vec<Change>,
    grown: i64,
}

impl Mapping {
    /// Maps a run over what its pages have, which is freed.
    fn add(&mut self, inode: &Inode, written: WrittenRun, old: &[PageEntry], page_blocks: u32) {
        let WrittenRun { page, run } = written;
        let frees = free_changes(old);
        self.grown += i64::from(run.blocks(page_blocks).len) - freed_blocks(&frees);
        self.changes.push(Change::MapRun { ino: inode.ino, page, run });
        if !mutants::active(Mutant::LeakOldBlocks) {
            self.changes.extend(frees);
        }
    }
}

/// Frees the blocks of entries, joining neighbours.
pub(crate) fn free_changes(entries: &[PageEntry]) -> Vec<Change> {
    let mut runs: Vec<BlockRun> = Vec::new();
    for blocks in entries.iter().filter_map(PageEntry::blocks) {
        match runs.last_mut() {
            Some(run) if run.end() == blocks.start => run.len += u32::from(blocks.len),
            _ => runs.push(blocks.run()),
        }
    }
    runs.into_iter().map(|run| Change::Free { run }).collect()
}

/// Runs that the changes free.
pub(super) fn freed_runs(changes: &[Change]) -> Vec<BlockRun> {
    let run = |c: &Change| if let Change::Free { run } = c { Some(*run) } else { None };
    changes.iter().filter_map(run).collect()
}

/// Number of blocks that the changes free.
pub(crate) fn freed_blocks(changes: &[Change]) -> i64 {
    let len = |c: &Change| if let Change::Free { run } = c { i64::from(run.len) } else { 0 };
    changes.iter().map(len).sum()
}
