//! What flies: data together with the record that maps it (see [`crate::volume::Flight`]). Large synchronous
//! overwrites do, and the last step of a sync of dirty pages.
//!
//! Only what is simple to take back flies: pages get as many new blocks as they had, the file keeps its
//! size, and no byte of the old content is in the journal only. All else is written first and mapped then.
//! Databases overwrite pages of files that have their size; so does a log that is used again.
//!
//! A synchronous write holds its pages exclusively until it is durable: they are in flight and nowhere else.
//! A sync lets readers in as soon as the pages are mapped: they find them in memory, where they stay, dirty,
//! until they have arrived. Who wants to change them waits. A sync locks its pages one by one, so
//! that it keeps nobody from those between them. Pages that another sync has in flight it leaves to that one:
//! their record comes before its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockdev::{AlignedBuf, IoClass};

use super::map::{Placed, Unwritten, freed_runs};
use super::range_lock::RangeGuard;
use super::room::is_full;
use super::write::without_priv;
use super::writeback::{STEP_BYTES, Which};
use crate::alloc::{Hold, Purpose};
use crate::api::IoFlags;
use crate::cache::FrameRef;
use crate::error::Result;
use crate::format::{Change, PageEntry};
use crate::fs::{Inode, InodeState};
use crate::mutants::{self, Mutant};
use crate::stats::Stage;
use crate::types::{Lsn, PageNr};
use crate::volume::{Flight, Volume, WayBack};

/// Most pages of a sync that fly: each may be a range of its own, and be taken back by changes of its own.
const MOST_PAGES: usize = 64;

/// Most places of a flight that use FUA: each write waits for the medium, where one flush would do for all of them.
const MOST_FUA: usize = 8;

/// What pages have before they fly, ascending.
type Before = Vec<(PageNr, PageEntry)>;

/// What a sync finds dirty.
#[derive(Default)]
struct Found {
    /// The last pages, ascending, that are nobody else's.
    pages: Vec<PageNr>,
    /// Syncs that have others in flight.
    others: Vec<Arc<Flight>>,
    /// There may be more.
    more: bool,
}

/// A flight, and the record that maps it.
struct Airborne {
    lsn: Lsn,
    flight: Arc<Flight>,
}

impl Volume {
    /// What the pages have now (`entries`), if a synchronous write of them (of so many blocks each) that
    /// ends at `end` may fly. The caller holds the pages exclusively.
    pub(super) fn may_fly(
        &self,
        inode: &Inode,
        lens: &[(PageNr, u32)],
        entries: &[PageEntry],
        end: u64,
        flags: IoFlags,
    ) -> Result<Option<Before>> {
        let (Some((first, _)), Some((last, _))) = (lens.first(), lens.last()) else { return Ok(None) };
        {
            let state = inode.state.lock();
            let covered = state.item.size.min(self.page_size().start_of(PageNr(last.0 + 1)));
            let stripped = flags.kill_priv && without_priv(state.item.perm) != state.item.perm;
            if end > state.item.size || covered > state.disk_size || stripped {
                return Ok(None);
            }
        }
        let unhomed = inode.unhomed.lock().range(*first..=*last).next().is_some();
        if unhomed && !mutants::active(Mutant::FlyOverJournal) {
            return Ok(None);
        }
        let before = lens.iter().map(|(page, _)| *page).zip(entries.iter().copied()).collect();
        Ok(self.taken_back_simply(inode, lens, before))
    }

    /// What the pages have now.
    fn entries_of(&self, inode: &Inode, lens: &[(PageNr, u32)]) -> Result<Before> {
        let mut before = Vec::with_capacity(lens.len());
        for run in lens.chunk_by(|(a, _), (b, _)| a.0 + 1 == b.0) {
            let mut entries = vec![PageEntry::Hole; run.len()];
            self.meta.pages(inode.ino, run[0].0, &mut entries)?;
            before.extend(run.iter().map(|(page, _)| *page).zip(entries));
        }
        Ok(before)
    }

    /// What the pages have now (`before`), if that is as many blocks as they will have, and all of their content.
    fn taken_back_simply(&self, inode: &Inode, lens: &[(PageNr, u32)], before: Before) -> Option<Before> {
        let patched = lens.iter().any(|(page, _)| self.patches.lock().get(inode.ino, *page).is_some());
        if patched && !mutants::active(Mutant::FlyOverJournal) {
            return None;
        }
        let same = |((_, entry), (_, len)): (&(PageNr, PageEntry), &(PageNr, u32))| {
            entry.blocks().is_some_and(|b| u32::from(b.len) == *len)
        };
        before.iter().zip(lens).all(same).then_some(before)
    }

    /// Writes the images to their places and makes them durable, in one flight with the record that maps
    /// them. `before` is what their pages have; the caller holds these exclusively by `range`. With `sync` the
    /// inode's times are in the record, too. If the data cannot be written nothing has changed, and the new
    /// blocks are in quarantine.
    pub(super) fn write_in_flight(
        &self,
        inode: &Inode,
        (images, placed, before): (impl Iterator<Item = AlignedBuf>, &[Placed], &[(PageNr, PageEntry)]),
        hold: &mut Hold,
        sync: bool,
        range: RangeGuard<'_>,
    ) -> Result<()> {
        let (Some((first, _)), Some((last, _))) = (before.first(), before.last()) else { return Ok(()) };
        let now = self.env.now();
        let airborne = self.take_off(inode, (images, placed, before), hold, |state| {
            state.touch_content(now);
            sync
        })?;
        let mut pages = Some(range);
        if mutants::active(Mutant::LandWithoutPages) {
            pages = None;
        }
        let arrived = self.arrive(airborne);
        if !matches!(arrived, Err(Unwritten::Quarantined(_))) {
            self.drop_frames(inode, *first, *last);
        }
        drop(pages);
        Ok(arrived?)
    }

    /// Writes the dirty pages of `first..=last` for somebody who waits until they are durable: the last of
    /// them, as many as a step of writeback has, fly. True: they are durable, and with `sync` the inode's times,
    /// too; so is all that was applied before. False: some are left to writeback, and nothing was made durable.
    pub(super) fn fly_dirty(&self, inode: &Inode, first: PageNr, last: PageNr, sync: bool) -> Result<bool> {
        let Found { pages, others, more } = self.find_dirty(inode, first, last);
        let Some(lo) = pages.first().copied() else { return Ok(false) };
        if more && lo > first && !mutants::active(Mutant::SyncLastStepOnly) {
            self.write_pages(inode, first, PageNr(lo.0 - 1), Which::Dirty, usize::MAX)?;
        }
        let cost = self.cost_of_pages(pages.len() as u64).or_back(pages.len() as u64);
        // Writeback knows what to do if there is little room.
        let Some(_admitted) = self.try_admit(cost, Purpose::Essential) else { return Ok(false) };
        let range = self.lock_each_page(inode, &pages);
        let frames: Vec<(PageNr, FrameRef)> = {
            let unhomed = inode.unhomed.lock();
            let frames = pages.iter().filter_map(|page| Some((*page, unhomed.get(page)?.clone())));
            // Who was faster has mapped them.
            frames.filter(|(_, frame)| frame.read().dirty.is_some()).collect()
        };
        let durable = self.fly_frames(inode, &frames, sync, range)?;
        // They were mapped before: as these pages are durable, the others are, or are lost and dirty.
        Ok(durable && others.iter().all(|flight| flight.land().is_ok()))
    }

    /// The last dirty pages in the range, one step's, and who has more of them in flight.
    fn find_dirty(&self, inode: &Inode, first: PageNr, last: PageNr) -> Found {
        let most = (STEP_BYTES / self.page_bytes()).min(MOST_PAGES);
        let mut found = Found::default();
        for (page, frame) in inode.unhomed.lock().range(first..=last).rev() {
            let data = frame.read();
            match &data.sync {
                Some(flight) if found.others.iter().any(|other| Arc::ptr_eq(other, flight)) => {}
                Some(flight) => found.others.push(flight.clone()),
                None if data.dirty.is_some() => found.pages.push(*page),
                None => {}
            }
            if found.pages.len() == most {
                found.more = true;
                break;
            }
        }
        found.pages.reverse();
        found
    }

    /// The frames' part of [`fly_dirty`](Self::fly_dirty). The caller holds their pages exclusively by `range`.
    fn fly_frames(
        &self,
        inode: &Inode,
        frames: &[(PageNr, FrameRef)],
        sync: bool,
        range: RangeGuard<'_>,
    ) -> Result<bool> {
        let (size, disk_size, deleted) = {
            let state = inode.state.lock();
            (state.item.size, state.disk_size, state.deleted)
        };
        let Some((last, _)) = frames.last() else { return Ok(false) };
        let covered = size.min(self.page_size().start_of(PageNr(last.0 + 1)));
        let inline = || frames.iter().any(|(_, frame)| frame.read().inline);
        if deleted || covered > disk_size || (inline() && !mutants::active(Mutant::FlyOverJournal)) {
            return Ok(false);
        }
        let lens = self.lens_of(frames, size);
        if lens.len() != frames.len() {
            return Ok(false); // what is behind the end does not fly, and would be taken for clean
        }
        let before = self.entries_of(inode, &lens)?;
        let Some(before) = self.taken_back_simply(inode, &lens, before) else { return Ok(false) };
        let mut pages = Some(range);
        let outcome = self.write_from_places(inode, frames, &lens, |placed, hold| {
            let images = self.images_of(frames, size);
            let airborne =
                self.take_off(inode, (images, placed, &before), hold, |state| sync && state.lazy)?;
            frames.iter().for_each(|(_, frame)| frame.write().sync = Some(airborne.flight.clone()));
            // Only now: readers may have used the old blocks until here. From here on they find the frames.
            match mutants::active(Mutant::LandWithoutPages) {
                true => pages = None,
                false => pages.iter().for_each(RangeGuard::share),
            }
            if mutants::active(Mutant::CleanInFlight) {
                self.clean(inode, frames);
            }
            self.arrive(airborne)
        });
        frames.iter().for_each(|(_, frame)| frame.write().sync = None);
        match outcome {
            Err(e) if is_full(&e) => return Ok(false),
            outcome => outcome?,
        }
        self.clean(inode, frames);
        drop(pages);
        self.count_pages(&self.counters.writeback_pages, frames.len());
        Ok(true)
    }

    /// Submits the writes of the images to their places, and maps them, with what `update` changes of the inode
    /// (if it says that it has). `before` is what their pages have; the caller holds them exclusively. If it
    /// fails nothing has changed, but blocks of a failed write are in quarantine.
    fn take_off(
        &self,
        inode: &Inode,
        (images, placed, before): (impl Iterator<Item = AlignedBuf>, &[Placed], &[(PageNr, PageEntry)]),
        hold: &mut Hold,
        update: impl FnOnce(&mut InodeState) -> bool,
    ) -> std::result::Result<Airborne, Unwritten> {
        let fua = self.device.capabilities().native_fua && placed.len() <= MOST_FUA;
        let writing = self.stats.time_for(Stage::Data, inode.usage.class());
        let (sent, written) = self.send(images, placed, IoClass::Data, fua);
        let changes = self.map_over(inode, written, before);
        let way_back =
            WayBack::new(inode.ino, before, freed_runs(&changes), placed.iter().map(|p| p.run).collect());
        let flight = Flight::new(sent.submit(self), fua, way_back);
        drop(writing);
        self.count_data(placed);
        match self.apply_flight(inode, changes, &flight, update) {
            Ok(lsn) => {
                self.counters.flights.fetch_add(1, Ordering::Relaxed);
                Ok(Airborne { lsn, flight })
            }
            Err(e) if flight.land().is_ok() => {
                self.take_back(placed, hold);
                Err(Unwritten::NotMapped(e))
            }
            Err(e) => {
                placed.iter().for_each(|p| self.quarantine(p.run));
                Err(Unwritten::Quarantined(e))
            }
        }
    }

    /// Maps the data of a flight.
    fn apply_flight(
        &self,
        inode: &Inode,
        mut changes: Vec<Change>,
        flight: &Arc<Flight>,
        update: impl FnOnce(&mut InodeState) -> bool,
    ) -> Result<Lsn> {
        let mut state = inode.state.lock();
        let before = (state.item.clone(), state.lazy);
        if update(&mut state) {
            changes.push(state.put(inode.ino));
        }
        let applied = self.apply_flying(changes, 0, Some(flight.clone()));
        if applied.is_err() {
            (state.item, state.lazy) = before;
        }
        applied
    }

    /// Makes what has taken off durable. If its data is lost its pages have what they had before.
    fn arrive(&self, Airborne { lsn, flight }: Airborne) -> std::result::Result<(), Unwritten> {
        let committed = self.commit_to(lsn);
        if let Err(e) = flight.land() {
            // Done already, unless the volume stopped before anybody wrote the record.
            self.supersede(&[(lsn, flight)]).map_err(Unwritten::Quarantined)?;
            return Err(Unwritten::Quarantined(e));
        }
        committed.map_err(Unwritten::NotDurable)
    }
}
