//! Flights: data that is written together with the record that maps it (rules R4, R6, R7).
//!
//! A large synchronous overwrite, or a sync of dirty pages, submits its data and maps it at once: the writes
//! belong to the batch of that mapping, and whoever writes the batch's record waits for them before it flushes.
//! So data and record share one round trip and one flush. The writer holds its pages until all of that is over:
//! nobody overwrites, cuts off or frees what is in flight, nor reads it from the device.
//!
//! A write that fails when its record is written, or on its way, is *superseded*: the next record gives the
//! pages their old blocks back. Recovery would stop at the record whose data is bad, so nothing behind it
//! is acknowledged until the superseding record is durable, and the device says so (rule R6). All that
//! happens within one lead of a group commit: see [`Volume::write_batches`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockdev::Pending;
use parking_lot::Mutex;

use super::Volume;
use super::commit::wait_all;
use crate::error::{FsError, Result};
use crate::format::{Change, MappedRun, PageEntry};
use crate::mutants::{self, Mutant};
use crate::types::{BlockRun, Ino, Lsn, PageNr};

/// Writes in flight, and what their pages had before.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Its writes are durable when they have completed.
    fua: bool,
    writes: Mutex<Writes>,
    way_back: WayBack,
}

#[derive(Debug)]
enum Writes {
    /// Not waited for yet.
    Submitted(Vec<Pending>),
    /// All of them have succeeded.
    Landed,
    /// One has failed.
    Lost(FsError),
    /// One has failed, and its pages have their old blocks again.
    Superseded(FsError),
}

/// How a file gets back what it had. The writer holds the pages, so it stays true.
#[derive(Debug)]
pub(crate) struct WayBack {
    /// Maps the old blocks and frees the new ones.
    changes: Vec<Change>,
    /// The old blocks, as the flight's record frees them.
    old: Vec<BlockRun>,
    /// The new blocks.
    new: Vec<BlockRun>,
}

impl WayBack {
    /// For pages of a file that have blocks now, which the flight's record frees as `old`; it writes to `new`.
    pub(crate) fn new(
        ino: Ino,
        before: &[(PageNr, PageEntry)],
        old: Vec<BlockRun>,
        new: Vec<BlockRun>,
    ) -> Self {
        let maps = before.iter().filter_map(|&(page, entry)| {
            let blocks = entry.blocks()?;
            let crcs = match entry {
                PageEntry::Mapped(_, crc) => Some(vec![crc]),
                PageEntry::Hole | PageEntry::Unwritten(_) => None,
            };
            let run = MappedRun { start: blocks.start, pages: 1, last_blocks: blocks.len, crcs };
            Some(Change::MapRun { ino, page, run })
        });
        let changes = maps.chain(new.iter().map(|run| Change::Free { run: *run })).collect();
        Self { changes, old, new }
    }
}

impl Flight {
    /// Writes that have been submitted, all of them with FUA or none.
    pub(crate) fn new(pending: Vec<Pending>, fua: bool, way_back: WayBack) -> Arc<Self> {
        Arc::new(Self { fua, writes: Mutex::new(Writes::Submitted(pending)), way_back })
    }

    /// The writes are durable when they have completed: they need no flush.
    pub(crate) fn is_fua(&self) -> bool {
        self.fua
    }

    /// Waits for the writes, or for who waits for them; what became of them.
    pub(crate) fn land(&self) -> Result<()> {
        let mut writes = self.writes.lock();
        if let Writes::Submitted(pending) = &mut *writes {
            *writes = match wait_all(std::mem::take(pending)) {
                Ok(()) => Writes::Landed,
                Err(e) => Writes::Lost(e),
            };
        }
        match &*writes {
            Writes::Lost(e) | Writes::Superseded(e) => Err(e.clone()),
            Writes::Submitted(_) | Writes::Landed => Ok(()),
        }
    }
}

impl Volume {
    /// Gives the pages of lost flights, each with the LSN of its record, their old blocks back. Returns the LSN
    /// of the last record that says so, which is still to be written. The new blocks stay out of use until the
    /// next mount.
    pub(crate) fn supersede(&self, lost: &[(Lsn, Arc<Flight>)]) -> Result<Lsn> {
        let mut last = Lsn(0);
        for (lsn, flight) in lost {
            let mut writes = flight.writes.lock();
            let Writes::Lost(error) = &*writes else { continue };
            let error = error.clone();
            tracing::warn!(%error, record = lsn.0, volume = %self.device.name(), "data could not be written; its pages keep what they had");
            let WayBack { changes, old, new } = &flight.way_back;
            if !mutants::active(Mutant::KeepLostMapping) {
                let recall = |_| {
                    if mutants::active(Mutant::LeaveRecalledInLimbo) {
                        return Ok(());
                    }
                    old.iter().try_for_each(|run| self.space.alloc.recall(*run, *lsn))
                };
                last = self.meta.apply_with(changes.clone(), 0, None, recall)?;
            }
            new.iter().for_each(|run| self.quarantine(*run));
            self.counters.lost_flights.fetch_add(1, Ordering::Relaxed);
            *writes = Writes::Superseded(error);
        }
        Ok(last)
    }
}
