//! Letting changes in: whoever is let in finds space in the journal, and the next checkpoint finds
//! space for the nodes that the change costs (contract C9).
//!
//! An [`Admission`] is held while an operation makes its changes. It has room for the worst case. When
//! it ends, what the changes cost the next checkpoint stays set aside, the rest goes back. So a
//! checkpoint never fails for lack of space, and it is what makes space: it lets go of the journal behind
//! it, and of the nodes it has replaced.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Volume;
use crate::alloc::{Hold, Purpose};
use crate::error::{FsError, Result};
use crate::file::FREE_RUNS;
use crate::format::bitmap::BITMAP_BLOCKS;
use crate::stats::Stage;
use crate::types::{CHUNK_PAGES, NODE_BLOCKS};

/// Journal bytes that it takes at most to write a page home, in the long run.
const HOMING_BYTES: usize = 256;
/// Bitmap items in a node, about.
const PIECES_PER_NODE: u64 = 15;
/// Attempts at making room before the operation is refused.
const ROUNDS: usize = 4;
/// Waits for others who have been let in.
const WAITS: usize = 2000;
/// How long each of them takes at most.
const WAIT: Duration = Duration::from_millis(10);

/// What an operation changes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Items of the tree, and pages that go into the journal.
    items: u64,
    /// Bytes in the journal.
    bytes: u64,
}

impl Cost {
    /// A change of a few names and inodes.
    pub(crate) const SMALL: Cost = Cost { items: 10, bytes: 24 << 10 };

    /// A change of an inode and of `items` items of it with `bytes` in all.
    pub(crate) fn items(items: u64, bytes: usize) -> Cost {
        Cost { items: Self::SMALL.items + items, bytes: Self::SMALL.bytes + bytes as u64 + 32 * items }
    }

    /// The same change of `pages` pages, and one that takes it back.
    pub(crate) fn or_back(self, pages: u64) -> Cost {
        Cost { bytes: self.bytes + 80 * pages, ..self }
    }

    /// A change of a few inodes and the bytes of `pages` pages, `bytes` in all.
    pub(crate) fn inline(pages: u64, bytes: usize) -> Cost {
        Cost { items: Self::SMALL.items + pages, bytes: Self::SMALL.bytes + bytes as u64 + 64 * pages }
    }
}

/// Space that is set aside for changes: for those that the tree does not have yet, and for those to come.
#[derive(Debug)]
pub(crate) struct Admissions {
    /// For the next checkpoint, or the one that runs.
    nodes: Mutex<Option<Hold>>,
    /// Bytes in the journal for those who have been let in.
    bytes: AtomicU64,
    /// Blocks for their nodes.
    blocks: AtomicU64,
    /// How many have been let in.
    inside: Mutex<usize>,
    left: Condvar,
}

/// Leave to make changes, until it is dropped.
#[derive(Debug)]
pub(crate) struct Admission<'a> {
    volume: &'a Volume,
    hold: Option<Hold>,
    bytes: u64,
}

impl Admissions {
    pub(super) fn new() -> Self {
        Self {
            nodes: Mutex::default(),
            bytes: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            inside: Mutex::default(),
            left: Condvar::new(),
        }
    }

    /// Takes space for a node of a checkpoint, or as much as there is.
    pub(super) fn take(&self, blocks: u64) -> Option<Hold> {
        self.nodes.lock().as_mut()?.take(blocks)
    }

    /// Blocks set aside for the next checkpoint.
    pub(crate) fn held(&self) -> u64 {
        self.nodes.lock().as_ref().map_or(0, Hold::blocks)
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let admissions = &self.volume.admissions;
        // The changes are in the open batch by now, and are counted there.
        admissions.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        admissions.blocks.fetch_sub(self.hold.as_ref().map_or(0, Hold::blocks), Ordering::SeqCst);
        self.volume.set_nodes_aside(self.hold.take());
        *admissions.inside.lock() -= 1;
        admissions.left.notify_all();
    }
}

impl Volume {
    /// Lets an operation in that may change a little, and must not be refused on a full volume. Called
    /// with no lock held; blocks on a checkpoint if there is no room. An error is that of the volume, or
    /// that of the checkpoint without which there is no room.
    pub(crate) fn admit(&self) -> Result<Admission<'_>> {
        self.admit_at(Cost::SMALL, Purpose::Essential)
    }

    /// As [`Self::admit`], for what takes space for good: ENOSPC when the volume is full.
    pub(crate) fn admit_growth(&self) -> Result<Admission<'_>> {
        self.admit_growth_of(Cost::SMALL)
    }

    /// As [`Self::admit_growth`], for an operation of this cost.
    pub(crate) fn admit_growth_of(&self, cost: Cost) -> Result<Admission<'_>> {
        self.admit_at(cost, Purpose::User)
    }

    /// As [`Self::admit`], for an operation of this cost.
    pub(crate) fn admit_cost(&self, cost: Cost) -> Result<Admission<'_>> {
        self.admit_at(cost, Purpose::Essential)
    }

    /// What it costs at most to give `pages` pages in a row new blocks.
    pub(crate) fn cost_of_pages(&self, pages: u64) -> Cost {
        let runs = 2 * pages;
        let pieces = runs.min(self.total_blocks() / BITMAP_BLOCKS + 1);
        let items = Cost::SMALL.items + pages / CHUNK_PAGES + 2 + pieces;
        Cost { items, bytes: Cost::SMALL.bytes + 80 * pages }
    }

    fn admit_at(&self, cost: Cost, purpose: Purpose) -> Result<Admission<'_>> {
        self.check_writable()?;
        let pressed = self.meta.pressure().0 > 2 * self.meta.max_operation() || self.is_crowded();
        if !pressed && let Some(admission) = self.try_admit(cost, purpose) {
            return Ok(admission);
        }
        let _queued = self.stats.time(Stage::Queue);
        if self.meta.pressure().0 > 2 * self.meta.max_operation() {
            self.commit()?;
        }
        if self.is_crowded() {
            let outcome = self.checkpoint_again();
            self.excuse(outcome)?;
        }
        let mut refused = FsError::NO_SPACE;
        let mut waits = 0;
        // A second checkpoint lets go of what the first has replaced; users get no more than that.
        for round in 0..if purpose == Purpose::User { 2 } else { ROUNDS } {
            loop {
                if let Some(admission) = self.try_admit(cost, purpose) {
                    return Ok(admission);
                }
                if waits == WAITS || !self.fits_alone(cost, purpose) || !self.wait_for_others() {
                    break;
                }
                waits += 1;
            }
            if purpose == Purpose::User {
                // Dirty pages may have taken more than they need.
                let written = self.writeback_some(usize::MAX).map(drop);
                self.excuse(written)?;
            }
            if round > 0 {
                self.revoke_claims();
            }
            if let Err(e) = self.checkpoint_again().and_then(|()| self.publish_durable()) {
                self.check_writable()?;
                refused = e;
            }
        }
        if let Some(admission) = self.try_admit(cost, purpose) {
            return Ok(admission);
        }
        match purpose {
            // There is room in the journal: the reserve is meant to do for the rest.
            Purpose::Essential if self.has_room_for_records(cost.bytes, true) => Ok(self.enter(cost, None)),
            _ => Err(refused),
        }
    }

    /// What one step of freeing a large file costs at most.
    pub(crate) fn cost_of_frees(&self) -> Cost {
        let runs = FREE_RUNS as u64 + 2 * CHUNK_PAGES;
        let pieces = runs.min(self.total_blocks() / BITMAP_BLOCKS + 1);
        Cost { items: Cost::SMALL.items + pieces, bytes: Cost::SMALL.bytes + 16 * runs }
    }

    /// The changes in memory, or pages with bytes in the journal only, take too much memory.
    fn is_crowded(&self) -> bool {
        let inline = self.cache.inline_pages() * self.page_bytes();
        self.meta.pressure().1 >= self.options.delta_bytes * 2 || inline > self.cache.capacity() / 2
    }

    /// Lets an operation in if there is room for it at once.
    pub(crate) fn try_admit(&self, cost: Cost, purpose: Purpose) -> Option<Admission<'_>> {
        let blocks = self.blocks_for_nodes(self.nodes_for(cost.items));
        let hold = self.space.alloc.hold(blocks, purpose).ok()?;
        self.has_room_for_records(cost.bytes, true).then(|| self.enter(cost, Some(hold)))
    }

    /// Whether there would be room if nobody else were inside.
    fn fits_alone(&self, cost: Cost, purpose: Purpose) -> bool {
        let blocks = self.blocks_for_nodes(self.nodes_for(cost.items));
        let inside = self.admissions.blocks.load(Ordering::SeqCst);
        self.space.alloc.available_blocks(purpose) + inside >= blocks
            && self.has_room_for_records(cost.bytes, false)
    }

    fn enter(&self, cost: Cost, hold: Option<Hold>) -> Admission<'_> {
        *self.admissions.inside.lock() += 1;
        self.admissions.bytes.fetch_add(cost.bytes, Ordering::SeqCst);
        self.admissions.blocks.fetch_add(hold.as_ref().map_or(0, Hold::blocks), Ordering::SeqCst);
        Admission { volume: self, hold, bytes: cost.bytes }
    }

    /// Waits a little if others are inside, who will give back what they do not need; false: nobody is.
    fn wait_for_others(&self) -> bool {
        let mut inside = self.admissions.inside.lock();
        if *inside == 0 {
            return false;
        }
        self.admissions.left.wait_for(&mut inside, WAIT);
        true
    }

    /// Whether the journal has room for `bytes` more beside what is waiting and, if `others` count, the
    /// operations that have been let in, and for a checkpoint, which must write all inline pages home: many pages may
    /// have little in the journal each, but each takes its change of the map then. Records do not cross
    /// segments, so up to half of a segment stays empty.
    fn has_room_for_records(&self, bytes: u64, others: bool) -> bool {
        let most = self.meta.max_operation() as u64;
        let homing = (self.cache.inline_pages() * HOMING_BYTES) as u64;
        let waiting = self.meta.pressure().0 as u64;
        let inside = if others { self.admissions.bytes.load(Ordering::SeqCst) } else { 0 };
        let journal = self.commit.journal.lock();
        let (free, all) = (journal.free_segments(), journal.segment_count());
        let spare = (all / 3).max(4).min(all / 2);
        let wanted = (2 * (bytes + inside + waiting)).div_ceil(most) + homing.div_ceil(most);
        // The smallest journals there can be have room for one operation at a time.
        free >= spare + wanted || (free + 1 == all && inside == 0 && waiting == 0)
    }

    /// Nodes that a checkpoint writes at most, in practice, for so many changed items: two leaves each
    /// and, in a high tree, a node of each level between them and the upper two.
    fn nodes_for(&self, items: u64) -> u64 {
        let height = u64::from(self.meta.tree_size().0);
        items * (2 + height.saturating_sub(2))
    }

    /// Nodes that a checkpoint writes at most even if nothing has changed: the path to the bitmaps of
    /// the nodes that the last one took and left.
    fn nodes_for_nothing(&self) -> u64 {
        let (height, pending) = self.meta.tree_size();
        let bitmaps = self.total_blocks() / (BITMAP_BLOCKS * PIECES_PER_NODE) + 1;
        2 * (u64::from(height) + 1) + bitmaps.min(pending as u64)
    }

    /// Blocks for nodes, and for their entries in the pending list.
    fn blocks_for_nodes(&self, nodes: u64) -> u64 {
        nodes * u64::from(NODE_BLOCKS) + nodes / 64
    }

    /// Sets aside what the next checkpoint needs, from `more` first. What is too much goes back.
    pub(super) fn set_nodes_aside(&self, more: Option<Hold>) {
        let mut nodes = self.admissions.nodes.lock();
        let mut held = nodes.take();
        match (&mut held, more) {
            (Some(held), Some(more)) => held.merge(more),
            (none @ None, more) => *none = more,
            _ => {}
        }
        let inline = self.cache.inline_pages() + self.space.patched_pages(self.page_blocks());
        let items = (self.meta.changed_items() + inline) as u64;
        let wanted = self.blocks_for_nodes(self.nodes_for(items) + self.nodes_for_nothing()) + 1;
        let have = held.as_ref().map_or(0, Hold::blocks);
        if let Some(held) = held.as_mut().filter(|_| have > wanted) {
            held.give_back(have - wanted);
        } else if have < wanted
            && let Ok(missing) = self.space.alloc.hold(wanted - have, Purpose::Essential)
        {
            match &mut held {
                Some(held) => held.merge(missing),
                none => *none = Some(missing),
            }
        }
        *nodes = held;
    }
}
