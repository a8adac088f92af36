//! Space for pages before they have blocks (contract C9): what a write has accepted, writeback can
//! place.
//!
//! A page that becomes dirty takes a [`Hold`] for what it needs beyond the blocks it has. A page whose
//! bytes go into the journal holds all that its way home needs, for a checkpoint must not wait for
//! space. Writeback turns the holds into blocks; for the rest, which comes back when the old blocks are
//! free again, it draws on the reserve.

use std::sync::Arc;

use super::map::PageImage;
use crate::alloc::{Hold, Purpose};
use crate::cache::{Frame, FrameData};
use crate::error::{FsError, Result};
use crate::format::PageEntry;
use crate::fs::Inode;
use crate::types::{BLOCK_SIZE, PageNr};
use crate::volume::Volume;

/// Space for consecutive pages that are about to become dirty.
pub(crate) struct Room {
    /// What each page gets.
    shares: Vec<u64>,
    hold: Hold,
}

/// How far the pages' way is that the space is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// They become dirty: what they need beyond the blocks they have.
    Dirty,
    /// They go into the journal: all that they need at home.
    Home,
}

/// Rounds of freeing space for writeback, which must come to an end somehow.
const ROUNDS: usize = 4;

impl Room {
    /// Gives page number `i` its share. The caller holds it exclusively.
    pub(crate) fn settle_in(&mut self, i: usize, data: &mut FrameData) {
        let share = self.shares.get_mut(i).map(std::mem::take).unwrap_or(0);
        let Some(share) = self.hold.take(share) else { return };
        match &mut data.hold {
            Some(hold) => hold.merge(share),
            none => *none = Some(share),
        }
    }
}

impl Volume {
    /// Holds space for the pages `first..=last`; ENOSPC if there is none at the moment. The caller has
    /// the pages exclusively. Never waits.
    pub(crate) fn hold_pages(
        &self,
        inode: &Inode,
        first: PageNr,
        last: PageNr,
        until: Until,
    ) -> Result<Room> {
        let page_blocks = u64::from(self.page_blocks());
        let held: Vec<Option<u64>> = {
            let unhomed = inode.unhomed.lock();
            let held =
                |p| unhomed.get(&PageNr(p)).and_then(|f| f.data.read().hold.as_ref().map(Hold::blocks));
            (first.0..=last.0).map(held).collect()
        };
        let has = self.blocks_of(inode, first, &held)?;
        let (mut shares, mut user, mut over) = (Vec::with_capacity(held.len()), 0, 0);
        for (held, has) in held.iter().zip(has) {
            let lacks = if held.is_some() { 0 } else { page_blocks.saturating_sub(has) };
            let rest = match until {
                Until::Dirty => 0,
                Until::Home => page_blocks.saturating_sub(held.unwrap_or(0) + lacks),
            };
            user += lacks;
            over += rest;
            shares.push(lacks + rest);
        }
        Ok(Room { shares, hold: self.hold_both(user, over)? })
    }

    /// Blocks that the pages from `first` on have; not looked up where something is held already.
    fn blocks_of(&self, inode: &Inode, first: PageNr, held: &[Option<u64>]) -> Result<Vec<u64>> {
        if held.iter().all(Option::is_some) {
            return Ok(vec![0; held.len()]);
        }
        let mut entries = vec![PageEntry::Hole; held.len()];
        self.meta.pages(inode.ino, first, &mut entries)?;
        Ok(entries.iter().map(|e| e.blocks().map_or(0, |b| b.len.into())).collect())
    }

    /// Holds new space for users, and space that comes back.
    fn hold_both(&self, user: u64, over: u64) -> Result<Hold> {
        let mut hold = self.space.alloc.hold(user, Purpose::User)?;
        hold.merge(self.space.alloc.hold(over, Purpose::Overwrite)?);
        Ok(hold)
    }

    /// Holds space for the images of consecutive pages; ENOSPC if there is none at the moment. The
    /// caller has the pages exclusively.
    pub(crate) fn hold_for_images(&self, inode: &Inode, first: PageNr, images: &[PageImage]) -> Result<Hold> {
        let mut entries = vec![PageEntry::Hole; images.len()];
        self.meta.pages(inode.ino, first, &mut entries)?;
        let unhomed = inode.unhomed.lock();
        let (mut user, mut over) = (0, 0);
        for (image, entry) in images.iter().zip(&entries) {
            let needs = (image.buf.len() / BLOCK_SIZE) as u64;
            // What a dirty page holds comes free when this write replaces it.
            let frame = unhomed.get(&image.page);
            let held = frame.and_then(|f| f.data.read().hold.as_ref().map(Hold::blocks)).unwrap_or(0);
            let has = entry.blocks().map_or(0, |b| u64::from(b.len)) + held;
            user += needs.saturating_sub(has);
            over += needs.min(has);
        }
        drop(unhomed);
        self.hold_both(user, over)
    }

    /// Adds to what a frame holds until its page can get home. Best effort: for what may not be refused.
    pub(crate) fn hold_way_home(&self, data: &mut FrameData) {
        let have = data.hold.as_ref().map_or(0, Hold::blocks);
        let missing = u64::from(self.page_blocks()).saturating_sub(have);
        let Ok(more) = self.space.alloc.hold(missing, Purpose::Essential) else { return };
        match &mut data.hold {
            Some(hold) => hold.merge(more),
            none => *none = Some(more),
        }
    }

    /// Holds what dirty frames lack for their way home; false: there is no such space now.
    pub(crate) fn hold_ways_home(&self, frames: &[(PageNr, Arc<Frame>)]) -> bool {
        let page_blocks = u64::from(self.page_blocks());
        let lacks = |data: &FrameData| {
            let have = data.hold.as_ref().map_or(0, Hold::blocks);
            if data.dirty.is_some() { page_blocks.saturating_sub(have) } else { 0 }
        };
        let total = frames.iter().map(|(_, f)| lacks(&f.data.read())).sum();
        let Ok(mut hold) = self.space.alloc.hold(total, Purpose::Overwrite) else { return false };
        for (_, frame) in frames {
            let mut data = frame.data.write();
            let lacks = lacks(&data);
            if let Some(share) = hold.take(lacks).filter(|_| lacks > 0) {
                match &mut data.hold {
                    Some(hold) => hold.merge(share),
                    none => *none = Some(share),
                }
            }
        }
        true
    }

    /// Makes a hold at least as large as what will be written; what comes back is not the users'.
    pub(crate) fn top_up(&self, hold: &mut Hold, blocks: u64) -> Result<()> {
        let missing = blocks.saturating_sub(hold.blocks());
        let more = self.space.alloc.hold(missing, Purpose::Overwrite).or_else(|_| {
            self.reclaim_limbo()?;
            Ok::<_, FsError>(self.space.alloc.hold(missing, Purpose::Overwrite)?)
        })?;
        hold.merge(more);
        Ok(())
    }

    /// Tries `f` again after having freed what can be freed, as long as it finds no space. Called with
    /// no lock held.
    pub(crate) fn with_room<T>(&self, mut f: impl FnMut() -> Result<T>) -> Result<T> {
        let mut outcome = f();
        for round in 0..2 {
            if !outcome.as_ref().is_err_and(is_full) {
                return outcome;
            }
            // Dirty pages hold more than they need.
            let written = self.writeback_some(usize::MAX).map(drop);
            self.excuse(written)?;
            self.make_room(round > 0)?;
            outcome = f();
        }
        outcome
    }

    /// As [`Self::with_room`], for writeback, which was promised to succeed: others may have the space
    /// that it needs only for a moment.
    pub(crate) fn with_room_at_last<T>(&self, mut f: impl FnMut() -> Result<T>) -> Result<T> {
        let mut outcome = f();
        for round in 0..ROUNDS {
            if !outcome.as_ref().is_err_and(is_full) {
                return outcome;
            }
            self.make_room(round > 0)?;
            std::thread::yield_now();
            outcome = f();
        }
        outcome
    }

    /// Makes blocks in limbo free, and on request what checkpoints set free.
    fn make_room(&self, checkpoints: bool) -> Result<()> {
        let _one_at_a_time = self.space.reclaim.lock();
        let mut outcome = self.commit().and_then(|()| self.publish_durable());
        if checkpoints {
            // Twice: the second lets go of what the first has replaced.
            outcome = outcome.and_then(|()| self.checkpoint_again());
            outcome = outcome.and_then(|()| self.checkpoint_again());
            outcome = outcome.and_then(|()| self.publish_durable());
        }
        self.excuse(outcome)
    }

    /// The failure of work for all is not the fault of who happened to do it, unless the volume has
    /// stopped.
    pub(crate) fn excuse(&self, outcome: Result<()>) -> Result<()> {
        let Err(e) = outcome else { return Ok(()) };
        self.check_writable()?;
        tracing::warn!(error = %e, volume = %self.device.name(), "could not free space; it will be tried again");
        Ok(())
    }
}

/// There was no space. (A device that has none says so in another way.)
pub(crate) fn is_full(error: &FsError) -> bool {
    matches!(error, FsError::Posix(libc::ENOSPC))
}
