//! Space for pages before they are written (contract C9): what a write has accepted, writeback can
//! place.
//!
//! A page that becomes dirty and needs more blocks than it has takes them at once: they are its
//! *place*. So ENOSPC comes out of the write, and it does not matter how broken the free space is by
//! the time the page is written. Writeback still looks for one run for all the pages it writes, as long
//! as there is one. A page whose bytes go into the journal takes a place in any case, for a checkpoint
//! must not wait for space on its way home. The others, which overwrite what is mapped, draw on the
//! reserve and the allocator's cushion when they are written: what they take, they give back.

use super::map::{Near, Placed};
use crate::alloc::{Hold, Purpose};
use crate::cache::{FrameData, FrameRef};
use crate::error::{FsError, Result};
use crate::format::PageEntry;
use crate::fs::Inode;
use crate::types::{BLOCK_SIZE, BlockNr, BlockRun, PageNr};
use crate::volume::Volume;

/// Places for consecutive pages that are about to become dirty. What is not used goes back.
pub(crate) struct Room<'a> {
    volume: &'a Volume,
    shares: Vec<Share>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    place: Option<BlockRun>,
    /// Blocks of the place, or that the page has.
    covered: u32,
}

/// How far the pages' way is that the space is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// They become dirty: what they need beyond the blocks they have.
    Dirty,
    /// They go into the journal: all that they need at home.
    Home,
}

/// Rounds of freeing space for what was promised to succeed; it must come to an end somehow.
const ROUNDS: usize = 100;
/// Rounds of them with checkpoints; in the others it waits for those who have the space.
const CHECKPOINT_ROUNDS: std::ops::RangeInclusive<usize> = 1..=2;
/// How long it waits for them in each round.
const WAIT: std::time::Duration = std::time::Duration::from_millis(2);

impl Room<'_> {
    /// Gives page number `i` its place. The caller holds the page exclusively.
    pub(crate) fn settle_in(&mut self, i: usize, data: &mut FrameData) {
        let Some(share) = self.shares.get_mut(i).map(std::mem::take) else { return };
        if let Some(place) = share.place
            && let Some(old) = data.place.replace(place)
        {
            self.volume.free_place(old);
        }
        data.covered = data.covered.max(share.covered);
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.shares.iter().filter_map(|share| share.place).for_each(|run| self.volume.free_place(run));
    }
}

impl Volume {
    /// Takes places for the pages `first..=last` of a file that will have `size` bytes; ENOSPC if there
    /// are none at the moment. The caller has the pages exclusively. May block on a reservation of
    /// block groups.
    pub(crate) fn hold_pages(
        &self,
        inode: &Inode,
        first: PageNr,
        last: PageNr,
        size: u64,
        until: Until,
    ) -> Result<Room<'_>> {
        let count = (last.0 - first.0 + 1) as usize;
        let mut room = Room { volume: self, shares: vec![Share::default(); count] };
        let (mut lacking, before) = self.pages_without_place(inode, first, count, size, until);
        if lacking.is_empty() {
            return Ok(room);
        }
        let around = self.entries_around(inode, first, count)?;
        let has = |page: PageNr| around[(page.0 - first.0) as usize + 1].blocks().map_or(0, |b| b.len.into());
        for (page, _) in &lacking {
            room.shares[(page.0 - first.0) as usize].covered = has(*page);
        }
        lacking.retain(|(page, needs)| until == Until::Home || has(*page) < *needs);
        let user = lacking.iter().map(|(page, needs)| u64::from(needs.saturating_sub(has(*page)))).sum();
        let over = lacking.iter().map(|(page, needs)| u64::from(has(*page).min(*needs))).sum();
        let mut hold = self.space.alloc.hold(user, Purpose::User)?;
        hold.merge(self.space.alloc.hold(over, Purpose::Overwrite)?);
        let goal = match before {
            Some(end) => Some(end),
            None => around[0].blocks().map(|b| b.run().end()),
        };
        let old = |page: PageNr| self.beside(&around[(page.0 - first.0) as usize..]);
        for placed in self.place_pages(&lacking, Near { goal, old: &old }, &mut hold, false)? {
            let pieces = placed.pages_of(self.page_blocks());
            for (page, run) in pieces {
                let share = &mut room.shares[(page.0 - first.0) as usize];
                *share = Share { place: Some(run), covered: share.covered.max(run.len) };
            }
        }
        Ok(room)
    }

    /// The pages that need a place for a file of `size` bytes, as far as their frames tell, with the
    /// blocks they need; and where the place of the page before them ends.
    fn pages_without_place(
        &self,
        inode: &Inode,
        first: PageNr,
        count: usize,
        size: u64,
        until: Until,
    ) -> (Vec<(PageNr, u32)>, Option<BlockNr>) {
        let unhomed = inode.unhomed.lock();
        let mut lacking = Vec::new();
        for page in (first.0..first.0 + count as u64).map(PageNr) {
            let needs = self.blocks_needed(page, size);
            let enough = unhomed.get(&page).is_some_and(|frame| {
                let data = frame.read();
                let place = data.place.map_or(0, |run| run.len);
                needs <= if until == Until::Home { place } else { data.covered.max(place) }
            });
            if !enough {
                lacking.push((page, needs));
            }
        }
        let before = first.0.checked_sub(1).and_then(|p| unhomed.get(&PageNr(p)));
        (lacking, before.and_then(|frame| frame.read().place.map(|run| run.end())))
    }

    /// Blocks that a page of a file of `size` bytes needs.
    pub(super) fn blocks_needed(&self, page: PageNr, size: u64) -> u32 {
        let valid = size.saturating_sub(self.page_size().start_of(page)).min(self.page_bytes() as u64);
        (valid as usize).div_ceil(BLOCK_SIZE) as u32
    }

    /// Gives up a place that was not written to.
    pub(crate) fn free_place(&self, run: BlockRun) {
        if let Err(e) = self.space.alloc.free_unwritten(run) {
            tracing::error!(error = %e, "the place of a page was not in use");
        }
    }

    /// Nothing of the frame waits to be written any more. Returns whether bytes of it were in the
    /// journal only.
    pub(crate) fn settle_frame(&self, data: &mut FrameData) -> bool {
        data.place.take().into_iter().for_each(|run| self.free_place(run));
        self.cache.settle(data)
    }

    /// Holds space for images (pages, and blocks of each) of pages that have `entries`; ENOSPC if there is none at the moment. Also
    /// tells whether all of it will come back. The caller has the pages exclusively.
    pub(crate) fn hold_for_images(
        &self,
        inode: &Inode,
        lens: &[(PageNr, u32)],
        entries: &[PageEntry],
    ) -> Result<(Hold, bool)> {
        let unhomed = inode.unhomed.lock();
        let (mut user, mut over) = (0, 0);
        for ((page, needs), entry) in lens.iter().zip(entries) {
            let needs = u64::from(*needs);
            // The place of a dirty page comes free when this write replaces it.
            let place = unhomed.get(page).and_then(|f| f.read().place);
            let has = entry.blocks().map_or(0, |b| u32::from(b.len)).max(place.map_or(0, |run| run.len));
            user += needs.saturating_sub(has.into());
            over += needs.min(has.into());
        }
        drop(unhomed);
        let mut hold = self.space.alloc.hold(user, Purpose::User)?;
        hold.merge(self.space.alloc.hold(over, Purpose::Overwrite)?);
        Ok((hold, user == 0))
    }

    /// Whether a write to these pages takes no more space than it gives back.
    pub(crate) fn only_overwrites(
        &self,
        inode: &Inode,
        first: PageNr,
        last: PageNr,
        size: u64,
    ) -> Result<bool> {
        let mut entries = vec![PageEntry::Hole; (last.0 - first.0 + 1) as usize];
        self.meta.pages(inode.ino, first, &mut entries)?;
        let has = |e: &PageEntry| e.blocks().map_or(0, |b| u32::from(b.len));
        let pages = (first.0..=last.0).map(PageNr);
        Ok(pages.zip(&entries).all(|(page, entry)| has(entry) >= self.blocks_needed(page, size)))
    }

    /// Sets aside blocks for the way home of a frame's page. Best effort: for what may not be refused.
    pub(crate) fn hold_way_home(&self, data: &mut FrameData) {
        let have = data.hold.as_ref().map_or(0, Hold::blocks) + data.place.map_or(0, |run| run.len.into());
        let missing = u64::from(self.page_blocks()).saturating_sub(have);
        let Ok(more) = self.space.alloc.hold(missing, Purpose::Essential) else { return };
        match &mut data.hold {
            Some(hold) => hold.merge(more),
            none => *none = Some(more),
        }
    }

    /// Takes places for dirty frames that have none, as their bytes will go into the journal; false:
    /// there is no such space now. The caller holds the pages exclusively.
    pub(crate) fn places_at_home(
        &self,
        inode: &Inode,
        frames: &[(PageNr, FrameRef)],
        size: u64,
    ) -> Result<bool> {
        for (page, frame) in frames {
            if frame.read().dirty.is_none() {
                continue;
            }
            match self.hold_pages(inode, *page, *page, size, Until::Home) {
                Ok(mut room) => room.settle_in(0, &mut frame.write()),
                Err(e) if is_full(&e) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Where to write the images of frames (pages, and blocks of each): in one run if there is one, else in the frames' places; and
    /// what is missing, in space from the reserve, which may be what they held. Takes nothing on failure.
    pub(crate) fn place_images(
        &self,
        inode: &Inode,
        frames: &[(PageNr, FrameRef)],
        lens: &[(PageNr, u32)],
        goal: Option<BlockNr>,
        hold: &mut Hold,
    ) -> Result<Vec<Placed>> {
        let place_of = |page: PageNr| {
            let at = frames.binary_search_by_key(&page, |(p, _)| *p).ok()?;
            frames[at].1.read().place
        };
        let mut placed: Vec<Placed> = Vec::new();
        let mut i = 0;
        while i < lens.len() {
            let (page, len) = lens[i];
            if let Some(run) = place_of(page).filter(|run| run.len >= len) {
                let run = BlockRun::new(run.start, len);
                let follows = placed.last_mut().filter(|p| p.joins(page, run, self.page_blocks()));
                match follows {
                    Some(last) => last.extend(run),
                    None => placed.push(Placed { page, run, pages: 1, own: true }),
                }
                i += 1;
                continue;
            }
            let n = lens[i..].iter().take_while(|(p, len)| place_of(*p).is_none_or(|r| r.len < *len)).count();
            let rest = &lens[i..i + n];
            let blocks = rest.iter().map(|(_, len)| u64::from(*len)).sum();
            // If it cannot be read whoever maps the page will be told.
            let old = |page| self.beside(&self.entries_around(inode, page, 1).ok()?);
            let near = Near { goal, old: &old };
            match self.top_up(hold, blocks).and_then(|()| self.place_pages(rest, near, hold, true)) {
                Ok(more) => placed.extend(more),
                Err(e) => {
                    self.take_back(&placed, hold);
                    return Err(e);
                }
            }
            i += n;
        }
        Ok(self.in_one_run(lens, goal, &placed).unwrap_or(placed))
    }

    /// A better layout for pages whose places are apart, if there is space to spare.
    fn in_one_run(
        &self,
        lens: &[(PageNr, u32)],
        goal: Option<BlockNr>,
        placed: &[Placed],
    ) -> Option<Vec<Placed>> {
        if placed.len() < 2 || placed.iter().any(|p| !p.own) {
            return None;
        }
        let blocks: u64 = lens.iter().map(|(_, len)| u64::from(*len)).sum();
        if self.space.alloc.available_blocks(Purpose::User) / 16 < blocks {
            return None;
        }
        let mut hold = self.space.alloc.hold(blocks, Purpose::User).ok()?;
        let better = self.place_pages(lens, Near::behind(goal), &mut hold, false).ok()?;
        if better.len() * 2 > placed.len() {
            self.take_back(&better, &mut hold);
            return None;
        }
        Some(better)
    }

    /// Gives back what was taken for pages and not written to; frames keep their own places.
    pub(crate) fn take_back(&self, placed: &[Placed], hold: &mut Hold) {
        placed.iter().filter(|p| !p.own).for_each(|p| self.return_blocks(p.run, hold));
    }

    /// Makes a hold at least as large as what will be written; what comes back is not the users'.
    fn top_up(&self, hold: &mut Hold, blocks: u64) -> Result<()> {
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
            self.make_room(round)?;
            outcome = f();
        }
        outcome
    }

    /// As [`Self::with_room`], for writeback and overwrites, which were promised to succeed: others may
    /// have the space that they need, but only for a moment.
    pub(crate) fn with_room_at_last<T>(&self, mut f: impl FnMut() -> Result<T>) -> Result<T> {
        let mut outcome = f();
        for round in 0..ROUNDS {
            if !outcome.as_ref().is_err_and(is_full) {
                return outcome;
            }
            if round > *CHECKPOINT_ROUNDS.end() {
                std::thread::sleep(WAIT);
            }
            self.make_room(round)?;
            outcome = f();
        }
        outcome
    }

    /// Makes blocks in limbo free; from the second round on also what followers keep and what checkpoints
    /// set free.
    fn make_room(&self, round: usize) -> Result<()> {
        let _one_at_a_time = self.space.reclaim.lock();
        let mut outcome = self.commit().and_then(|()| self.publish_durable());
        if round > 0 {
            self.revoke_claims();
        }
        if CHECKPOINT_ROUNDS.contains(&round) {
            // Twice: the second lets go of what the first has replaced.
            outcome = outcome.and_then(|()| self.checkpoint_again());
            outcome = outcome.and_then(|()| self.checkpoint_again());
            outcome = outcome.and_then(|()| self.publish_durable());
        }
        self.space.alloc.refill_cushion();
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
