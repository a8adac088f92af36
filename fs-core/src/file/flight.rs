//! Large synchronous overwrites: the data flies together with the record that maps it (see
//! [`crate::volume::Flight`]).
//!
//! Only what is simple to take back flies: pages get as many new blocks as they had, the file keeps its
//! size, and no byte of the old content is in memory or in the journal only. All else is written first and
//! mapped then. Databases overwrite pages of files that have their size; so does a log that is used again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockdev::IoClass;

use super::map::{PageImage, Placed, freed_runs, requests_for};
use super::range_lock::RangeGuard;
use super::write::without_priv;
use crate::alloc::Hold;
use crate::api::IoFlags;
use crate::error::Result;
use crate::format::{Change, PageEntry};
use crate::fs::Inode;
use crate::mutants::{self, Mutant};
use crate::stats::Stage;
use crate::types::{BLOCK_SIZE, Lsn, PageNr};
use crate::volume::{Flight, Volume, WayBack};

impl Volume {
    /// What the pages have now, if their new images (consecutive pages) may fly. The caller holds the
    /// pages exclusively.
    pub(super) fn may_fly(
        &self,
        inode: &Inode,
        images: &[PageImage],
        end: u64,
        flags: IoFlags,
    ) -> Result<Option<Vec<PageEntry>>> {
        let (Some(first), Some(last)) = (images.first(), images.last()) else { return Ok(None) };
        let (first, last) = (first.page, last.page);
        {
            let state = inode.state.lock();
            let covered = state.item.size.min(self.page_size().start_of(PageNr(last.0 + 1)));
            let stripped = flags.kill_priv && without_priv(state.item.perm) != state.item.perm;
            if end > state.item.size || covered > state.disk_size || stripped {
                return Ok(None);
            }
        }
        let patched = || (first.0..=last.0).any(|p| self.patches.lock().get(inode.ino, PageNr(p)).is_some());
        let unhomed = || inode.unhomed.lock().range(first..=last).next().is_some();
        if (patched() || unhomed()) && !mutants::active(Mutant::FlyOverJournal) {
            return Ok(None);
        }
        let mut entries = vec![PageEntry::Hole; images.len()];
        self.meta.pages(inode.ino, first, &mut entries)?;
        let same = |(entry, image): (&PageEntry, &PageImage)| {
            entry.blocks().is_some_and(|b| usize::from(b.len) * BLOCK_SIZE == image.buf.len())
        };
        Ok(entries.iter().zip(images).all(same).then_some(entries))
    }

    /// Writes the images to their places and makes them durable, in one flight with the record that maps
    /// them. `before` is what their pages have; the caller holds these exclusively by `range`. With `sync` the
    /// inode's times are in the record, too. If the data cannot be written nothing has changed, and the new
    /// blocks are in quarantine.
    pub(super) fn write_in_flight(
        &self,
        inode: &Inode,
        (images, placed, before): (Vec<PageImage>, &[Placed], &[PageEntry]),
        hold: &mut Hold,
        sync: bool,
        range: RangeGuard<'_>,
    ) -> Result<()> {
        let (first, last) = match (images.first(), images.last()) {
            (Some(first), Some(last)) => (first.page, last.page),
            _ => return Ok(()),
        };
        let fua = self.device.capabilities().native_fua;
        let (requests, written) = requests_for(images, placed, IoClass::Data, fua);
        let changes = match self.map_changes(inode, written) {
            Ok((changes, _)) => changes,
            Err(e) => {
                self.take_back(placed, hold);
                return Err(e);
            }
        };
        let old = freed_runs(&changes);
        let way_back = WayBack::new(inode.ino, first, before, old, placed.iter().map(|p| p.run).collect());
        let writing = self.stats.time_for(Stage::Data, inode.usage.class());
        let flight = Flight::new(self.device.submit(requests), fua, way_back);
        drop(writing);
        self.count_data(placed);
        let applied = self.apply_flight(inode, changes, sync, &flight);
        let mut pages = Some(range);
        if mutants::active(Mutant::LandWithoutPages) {
            pages = None;
        }
        let lsn = match applied {
            Ok(lsn) => lsn,
            Err(e) => {
                match flight.land() {
                    Ok(()) => self.take_back(placed, hold),
                    Err(_) => placed.iter().for_each(|p| self.quarantine(p.run)),
                }
                return Err(e);
            }
        };
        self.counters.flights.fetch_add(1, Ordering::Relaxed);
        let committed = self.commit_to(lsn);
        if let Err(e) = flight.land() {
            // Done already, unless the volume stopped before anybody wrote the record.
            self.supersede(&[(lsn, flight)])?;
            return Err(e);
        }
        self.drop_frames(inode, first, last);
        drop(pages);
        committed
    }

    /// Maps the data of a flight.
    fn apply_flight(
        &self,
        inode: &Inode,
        mut changes: Vec<Change>,
        sync: bool,
        flight: &Arc<Flight>,
    ) -> Result<Lsn> {
        let mut state = inode.state.lock();
        let before = (state.item.clone(), state.lazy);
        state.touch_content(self.env.now());
        if sync {
            changes.push(state.put(inode.ino));
        }
        let applied = self.apply_flying(changes, 0, Some(flight.clone()));
        if applied.is_err() {
            (state.item, state.lazy) = before;
        }
        applied
    }
}
