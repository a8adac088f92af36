//! Writeback: dirty pages, and pages whose bytes are in the journal only, go to new blocks.
//!
//! A page is written and mapped under its exclusive range lock: what is mapped is the newest version,
//! and no direct write can come in between (rule R8).

use blockdev::{AlignedBuf, IoClass};
use std::ops::ControlFlow;

use super::map::{Placed, Unwritten};
use super::room::is_full;
use crate::alloc::{Hold, Purpose};
use crate::cache::FrameRef;
use crate::error::{FsError, Result};
use crate::fs::Inode;
use crate::mutants::{self, Mutant};
use crate::types::{BLOCK_SIZE, BlockRun, Ino, PageNr};
use crate::volume::Volume;

/// Most bytes written and mapped in one step.
pub(super) const STEP_BYTES: usize = 1 << 20;

/// Which pages to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Dirty ones.
    Dirty,
    /// Those that became dirty before this (monotonic ns).
    DirtySince(u64),
    /// Those with bytes in the journal only.
    Inline,
}

impl Volume {
    /// Writes up to `max` dirty pages of one file. They are mapped when this returns, not durable.
    pub(crate) fn writeback_inode(&self, inode: &Inode, max: usize) -> Result<usize> {
        self.write_pages(inode, PageNr(0), PageNr(u64::MAX), Which::Dirty, max)
    }

    /// Writes pages of `first..=last`.
    pub(crate) fn write_pages(
        &self,
        inode: &Inode,
        first: PageNr,
        last: PageNr,
        which: Which,
        max: usize,
    ) -> Result<usize> {
        let mut written = 0;
        let mut from = first;
        while written < max {
            let mut step = (STEP_BYTES / self.page_bytes()).min(max - written);
            let mut admitted = None;
            if which != Which::Inline {
                admitted = self.try_admit(self.cost_of_pages(step as u64), Purpose::Essential);
                // With little room, page by page.
                step = if admitted.is_some() { step } else { 1 };
            }
            let pages: Vec<PageNr> = {
                let unhomed = inode.unhomed.lock();
                let wanted = unhomed.range(from..=last).filter(|(_, f)| wants(f, which)).map(|(p, _)| *p);
                wanted.take(step).collect()
            };
            let (Some(lo), Some(hi)) = (pages.first().copied(), pages.last().copied()) else { break };
            let outcome = match which {
                // A checkpoint runs; what its pages need is held.
                Which::Inline => self.write_step(inode, lo, hi, which),
                _ => self.with_room_at_last(|| {
                    let _admitted = match admitted.take() {
                        Some(admitted) => admitted,
                        None => self.admit_cost(self.cost_of_pages(step as u64))?,
                    };
                    self.write_step(inode, lo, hi, which)
                }),
            };
            written += outcome?;
            if hi >= last {
                break;
            }
            from = PageNr(hi.0 + 1);
        }
        Ok(written)
    }

    /// Writes what is wanted between `lo` and `hi`.
    fn write_step(&self, inode: &Inode, lo: PageNr, hi: PageNr, which: Which) -> Result<usize> {
        let _range =
            (!mutants::active(Mutant::WritebackWithoutLock)).then(|| self.lock_pages(inode, lo, hi, true));
        let frames: Vec<(PageNr, FrameRef)> = {
            let unhomed = inode.unhomed.lock();
            unhomed.range(lo..=hi).filter(|(_, f)| wants(f, which)).map(|(p, f)| (*p, f.clone())).collect()
        };
        let (size, deleted) = {
            let state = inode.state.lock();
            (state.item.size, state.deleted)
        };
        if frames.is_empty() || deleted {
            return Ok(0);
        }
        match self.write_out(inode, &frames, size) {
            // Page by page, there may be space: each step gives back what its pages had.
            Err(e) if is_full(&e) && frames.len() > 1 => {
                frames.iter().map(|one| self.write_out(inode, std::slice::from_ref(one), size)).sum()
            }
            outcome => outcome,
        }
    }

    /// Writes and maps the pages of some frames, in one step. The caller holds them exclusively.
    fn write_out(&self, inode: &Inode, frames: &[(PageNr, FrameRef)], size: u64) -> Result<usize> {
        let lens = self.lens_of(frames, size);
        let n = lens.len();
        if let Some((last, _)) = lens.last() {
            if mutants::active(Mutant::CleanBeforeWrite) {
                self.clean(inode, frames);
            }
            let covered = size.min(self.page_size().start_of(PageNr(last.0 + 1)));
            self.write_from_places(inode, frames, &lens, |placed, hold| {
                let images = self.images_of(frames, size);
                self.write_and_map(inode, images, placed, IoClass::Background, hold, |state| {
                    let grows = state.disk_size < covered;
                    state.disk_size = state.disk_size.max(covered);
                    grows
                })
            })?;
        }
        let homed = self.clean(inode, frames);
        self.count_pages(&self.counters.writeback_pages, n);
        self.count_pages(&self.counters.inline_homed, homed);
        Ok(n)
    }

    /// The frames' pages, but for those behind the end of a file of `size` bytes, with the blocks that each needs.
    pub(super) fn lens_of(&self, frames: &[(PageNr, FrameRef)], size: u64) -> Vec<(PageNr, u32)> {
        let lens = frames.iter().map(|(page, _)| (*page, self.blocks_needed(*page, size)));
        // Beyond the end: nothing of it may be seen.
        lens.filter(|(_, blocks)| *blocks > 0).collect()
    }

    /// The content of these pages as it is when they are asked for.
    pub(super) fn images_of(
        &self,
        frames: &[(PageNr, FrameRef)],
        size: u64,
    ) -> impl Iterator<Item = AlignedBuf> {
        frames.iter().filter_map(move |(page, frame)| {
            let len = self.blocks_needed(*page, size) as usize * BLOCK_SIZE;
            (len > 0).then(|| {
                let mut buf = self.buffer_for(len);
                buf.copy_from_slice(&frame.read().bytes()[..len]);
                buf
            })
        })
    }

    /// Finds places for images of these pages and blocks, those of their frames first, and has `write` write and map
    /// them there. What is missing comes from the reserve: the write was accepted when it was buffered. On failure the
    /// frames have what they had before, but for blocks that are in quarantine.
    pub(super) fn write_from_places(
        &self,
        inode: &Inode,
        frames: &[(PageNr, FrameRef)],
        lens: &[(PageNr, u32)],
        write: impl FnOnce(&[Placed], &mut Hold) -> std::result::Result<(), Unwritten>,
    ) -> Result<()> {
        let goal = self.goal_near(inode, lens[0].0)?;
        let mut hold = self.space.alloc.hold(0, Purpose::Overwrite)?;
        let mut shares = Vec::with_capacity(frames.len());
        for (_, frame) in frames {
            let share = frame.write().hold.take();
            shares.push(share.as_ref().map(Hold::blocks));
            share.into_iter().for_each(|share| hold.merge(share));
        }
        let outcome = self.place_images(inode, frames, lens, goal, &mut hold).and_then(|placed| {
            let outcome = write(&placed, &mut hold);
            if !matches!(outcome, Err(Unwritten::NotMapped(_))) {
                self.leave_places(frames, &placed);
            }
            outcome.map_err(FsError::from)
        });
        if outcome.is_err() {
            for ((_, frame), share) in frames.iter().zip(shares) {
                frame.write().hold = share.and_then(|n| hold.take(n.min(hold.blocks())));
            }
        }
        outcome
    }

    /// The places that were written to are no longer the frames': they belong to the file, or are in
    /// quarantine. What of them was not needed is free.
    fn leave_places(&self, frames: &[(PageNr, FrameRef)], placed: &[Placed]) {
        for (page, run) in placed.iter().filter(|p| p.own).flat_map(|p| p.pages_of(self.page_blocks())) {
            let Ok(at) = frames.binary_search_by_key(&page, |(p, _)| *p) else { continue };
            if let Some(place) = frames[at].1.write().place.take()
                && place.len > run.len
            {
                self.free_place(BlockRun::new(run.end(), place.len - run.len));
            }
        }
    }

    /// The frames are at home: returns how many had bytes in the journal.
    pub(super) fn clean(&self, inode: &Inode, frames: &[(PageNr, FrameRef)]) -> usize {
        let mut homed = 0;
        let mut unhomed = inode.unhomed.lock();
        for (page, frame) in frames {
            homed += usize::from(self.settle_frame(&mut frame.write()));
            unhomed.remove(page);
        }
        homed
    }

    /// Writes up to `max` dirty pages of any files, oldest files first.
    pub fn writeback_some(&self, max: usize) -> Result<usize> {
        let mut written = 0;
        self.for_dirty_inodes(&mut |inode| {
            written += self.writeback_inode(inode, max - written)?;
            Ok(if written < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(written)
    }

    /// Writes all dirty pages and lazy times; nothing is made durable yet.
    pub fn writeback_all(&self) -> Result<()> {
        self.check_writable()?;
        self.for_dirty_inodes(&mut |inode| {
            self.writeback_inode(inode, usize::MAX)?;
            self.store_lazy(inode)?;
            Ok(ControlFlow::Continue(()))
        })?;
        self.bound_unflushed()
    }

    /// Writes what has been dirty for too long (bounded dirty age, contract C1).
    pub(crate) fn writeback_old(&self) -> Result<()> {
        let Some(limit) = self.env.monotonic_ns().checked_sub(self.options.dirty_age_ns) else {
            return Ok(());
        };
        self.for_dirty_inodes(&mut |inode| {
            let which = Which::DirtySince(limit);
            self.write_pages(inode, PageNr(0), PageNr(u64::MAX), which, usize::MAX)?;
            let old = self.inodes.dirty.lock().get(&inode.ino).is_some_and(|since| *since <= limit);
            if old {
                self.store_lazy(inode)?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        self.bound_unflushed()
    }

    /// Stores times that were changed lazily, and takes the inode off the dirty list if nothing else
    /// keeps it there.
    pub(crate) fn store_lazy(&self, inode: &Inode) -> Result<()> {
        let lazy = inode.state.lock().lazy;
        let _admitted = lazy.then(|| self.admit()).transpose()?;
        let mut state = inode.state.lock();
        if lazy && state.lazy && !state.deleted {
            let change = state.put(inode.ino);
            self.meta.apply(vec![change], 0)?;
        }
        let mut dirty = self.inodes.dirty.lock();
        if inode.unhomed.lock().is_empty() {
            dirty.remove(&inode.ino);
        } else if let Some(since) = dirty.get_mut(&inode.ino) {
            *since = self.env.monotonic_ns();
        }
        Ok(())
    }

    /// Writes home every page whose bytes are in the journal only, so that a checkpoint can leave
    /// the journal behind. The caller holds `homing` exclusively: no new ones appear.
    pub(crate) fn home_inline(&self) -> Result<()> {
        let patched: Vec<(Ino, PageNr)> = self.patches.lock().iter().collect();
        // A journal can patch more pages than fit into memory: so many at a time.
        let at_once = (self.cache.capacity() / 4 / self.page_bytes()).max(1);
        for (i, (ino, page)) in patched.into_iter().enumerate() {
            if i > 0 && i.is_multiple_of(at_once) {
                self.write_inline()?;
            }
            let inode = match self.inodes.get(&self.meta, ino) {
                Err(FsError::Posix(libc::ESTALE)) => continue, // deleted meanwhile
                inode => inode?,
            };
            let _range = self.lock_pages(&inode, page, page, true);
            if self.patches.lock().get(ino, page).is_none() {
                continue;
            }
            match self.load_frame(&inode, page) {
                // The page is lost: what the journal has of it cannot make it whole. It stays
                // unreadable; all others must not wait for it for ever.
                Err(FsError::DataChecksum { .. }) => {}
                frame => drop(frame?),
            }
        }
        self.write_inline()
    }

    /// Writes home the pages in memory whose bytes are in the journal only.
    fn write_inline(&self) -> Result<()> {
        if mutants::active(Mutant::SkipHoming) {
            return Ok(());
        }
        self.for_dirty_inodes(&mut |inode| {
            self.write_pages(inode, PageNr(0), PageNr(u64::MAX), Which::Inline, usize::MAX)?;
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Calls `f` for every inode that has something to be written, oldest first, until it breaks.
    /// An error with one file does not keep the others from the device; the first one is returned.
    fn for_dirty_inodes(&self, f: &mut dyn FnMut(&Inode) -> Result<ControlFlow<()>>) -> Result<()> {
        let mut list: Vec<(u64, Ino)> =
            self.inodes.dirty.lock().iter().map(|(ino, since)| (*since, *ino)).collect();
        list.sort_unstable();
        let mut first_error = None;
        for (_, ino) in list {
            let outcome = match self.inodes.get(&self.meta, ino) {
                Ok(inode) => f(&inode),
                Err(FsError::Posix(_)) => {
                    self.inodes.dirty.lock().remove(&ino);
                    continue; // deleted meanwhile
                }
                Err(e) => Err(e),
            };
            match outcome {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                Err(e) => {
                    first_error.get_or_insert(e);
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

fn wants(frame: &FrameRef, which: Which) -> bool {
    let data = frame.read();
    match which {
        Which::Dirty => data.dirty.is_some(),
        Which::DirtySince(limit) => data.dirty.is_some() && data.since_ns <= limit,
        Which::Inline => data.inline,
    }
}
