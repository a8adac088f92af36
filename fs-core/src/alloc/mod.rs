//! The block allocator: which blocks are free *now*, in memory.
//!
//! On disk, allocation bits advance only with checkpoints; here they live in atomic words per
//! block group, loaded when needed. Allocation takes no lock and does no I/O; everything that
//! clears bits or changes a group's state takes one short lock.
//!
//! # Rules kept here
//!
//! * R1: a freed run stays in limbo until [`Allocator::publish`] says that the record that freed it
//!   is known to be durable. Blocks of failed writes stay in quarantine until remount.
//! * R2: blocks come only from groups that [`Allocator::reserve_done`] has named, never from those
//!   that are [excluded](Allocator::exclude), and some groups stay free for a take-over.
//! * C9: space is [held](Allocator::hold) before an operation is acknowledged; users leave a reserve.
//!
//! # Order of calls at mount
//!
//! [`new`](Allocator::new), then [`exclude`](Allocator::exclude),
//! [`mark_used`](Allocator::mark_used) and [`free_deferred`](Allocator::free_deferred) for what
//! recovery has found, then [`set_free`](Allocator::set_free), which opens the allocator.

mod config;
mod cushion;
mod gate;
mod geometry;
mod group;
mod hints;
mod hold;
mod limbo;
mod load;
mod place;
mod release;
mod reserve;
mod reserved;
mod runset;
mod search;
mod slack;
mod stats;
mod table;
mod words;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex};

pub use config::Config;
pub use gate::IoGuard;
pub use geometry::{Geometry, MAX_BLOCKS, MAX_GROUP_BLOCKS, MAX_GROUPS, MIN_GROUP_BLOCKS};
pub use hold::{Hold, Purpose};
pub use place::{Class, Request};
pub use slack::{Slack, beside};
pub use stats::Stats;

use crate::error::{FsError, Result};
use crate::types::{BlockNr, BlockRun, GroupNr, Lsn};
use gate::Gate;
use geometry::Part;
use group::{Churn, Frame, Slot};
use hold::Space;
use limbo::Limbo;
use reserved::Reserved;
use runset::RunSet;
use stats::Counters;
use table::Segmented;
use words::Words;

/// Allocation bits of a group: one a block, lowest bit of the first word first, set = in use.
pub type GroupBits = Box<[u64]>;

/// Where the bits of a group come from when it is first needed.
pub trait GroupLoader: Send + Sync {
    /// The bits of `group`, `group_blocks / 64` words: the last checkpoint plus the logical changes
    /// since. Bits of blocks outside the volume do not matter.
    ///
    /// A free may show here only *after* [`Allocator::free_deferred`] was told of it (or the blocks
    /// would be used too early), and must show once [`Allocator::publish`] has let go of it (or they
    /// would never be used). Blocks allocated or marked used by this mount need not show.
    ///
    /// May block on I/O. Called without any lock that an allocation needs.
    fn load(&self, group: GroupNr) -> Result<GroupBits>;
}

/// Why blocks were not given.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AllocError {
    /// There is space, but not in reserved groups: make a reservation of these durable, call
    /// [`Allocator::reserve_done`], try again.
    #[error("{} more block groups have to be reserved", suggested.len())]
    NeedReservation {
        /// Groups worth reserving; never empty.
        suggested: Vec<GroupNr>,
    },
    /// Not enough free blocks. Blocks in limbo may come free when the journal is flushed.
    #[error("no free blocks left")]
    Full,
    /// Enough free blocks, but no such run.
    #[error("no free run of blocks is long enough")]
    Fragmented,
    /// Something else went wrong.
    #[error(transparent)]
    Failed(#[from] FsError),
}

impl From<AllocError> for FsError {
    /// For callers that cannot make a reservation: all lack of space becomes `ENOSPC`.
    fn from(error: AllocError) -> Self {
        match error {
            AllocError::Failed(error) => error,
            _ => FsError::NO_SPACE,
        }
    }
}

/// The allocator of one mounted volume. All methods may be called from any thread.
pub struct Allocator {
    /// `total_blocks` is that of the time of the mount; see [`Self::geometry`].
    base: Geometry,
    total: AtomicU64,
    config: Config,
    loader: Arc<dyn GroupLoader>,
    slots: Segmented<Slot>,
    /// Frames are recycled, never freed, so a stale number is harmless.
    frames: Segmented<OnceLock<Words>>,
    reserved: Reserved,
    space: Arc<Space>,
    churn: Churn,
    cursors: place::Cursors,
    /// Requests that need not leave slack.
    spare_again_in: AtomicU32,
    admin: Mutex<Admin>,
    /// A load has ended.
    loaded: Condvar,
    suggester: Mutex<reserve::Suggester>,
    /// Blocks that came free in groups that are not reserved, ever.
    unreserved_freed: AtomicU64,
    limbo_blocks: AtomicU64,
    gate: Arc<Gate>,
    counters: Counters,
}

/// What is changed under the lock.
#[derive(Default)]
struct Admin {
    limbo: Limbo,
    /// Blocks in use that the loader may not know of, in groups that are not loaded.
    overlay: RunSet,
    quarantine: RunSet,
    cushion: cushion::Cushion,
    /// Groups being loaded, with what was freed there meanwhile.
    loading: HashMap<u64, Vec<Part>>,
    free_frames: Vec<u32>,
    next_frame: u32,
    /// Where the next hunt for full groups begins.
    trim_cursor: u64,
    room: Vec<GroupNr>,
    discard: VecDeque<BlockRun>,
    /// [`Allocator::set_free`] was called.
    open: bool,
}

impl Allocator {
    /// An allocator that knows nothing yet; see the module's order of calls. Errors: a geometry
    /// that makes no sense. Does no I/O.
    pub fn new(geometry: Geometry, config: Config, loader: Arc<dyn GroupLoader>) -> Result<Self> {
        geometry.validate()?;
        Ok(Self {
            base: geometry,
            total: AtomicU64::new(geometry.total_blocks),
            space: Arc::new(Space::new(config.reserve_blocks)),
            config,
            loader,
            slots: Segmented::new(),
            frames: Segmented::new(),
            reserved: Reserved::new(),
            churn: Churn::default(),
            cursors: place::Cursors::default(),
            spare_again_in: AtomicU32::new(0),
            admin: Mutex::default(),
            loaded: Condvar::new(),
            suggester: Mutex::default(),
            unreserved_freed: AtomicU64::new(0),
            limbo_blocks: AtomicU64::new(0),
            gate: Arc::default(),
            counters: Counters::default(),
        })
    }

    /// The volume's present geometry; `total_blocks` grows with [`Self::grow`].
    pub fn geometry(&self) -> Geometry {
        Geometry { total_blocks: self.total.load(Ordering::SeqCst), ..self.base }
    }

    /// Opens the allocator: `total` blocks of the volume are free, not counting those in limbo and
    /// those marked used. Picks the groups that stay free for a take-over. May block on the loader.
    pub fn set_free(&self, total: u64) -> Result<()> {
        self.fill_room()?;
        let mut admin = self.admin.lock();
        if admin.open {
            return Err(FsError::Volume("free space was counted twice".into()));
        }
        admin.open = true;
        self.space.freed(total);
        self.space.give(total);
        Ok(())
    }

    /// Counts the free blocks of the whole volume, not counting those in limbo and those marked
    /// used. For a mount that has no count to trust; reads all allocation bits through the loader.
    /// Only exact while nothing is allocated or freed.
    pub fn count_free(&self) -> Result<u64> {
        (0..self.geometry().groups())
            .try_fold(0, |sum, g| Ok(sum + self.survey(GroupNr(g), None)?.free as u64))
    }

    /// Free blocks, reserved for users or not. Blocks in limbo or quarantine are not free.
    pub fn free_blocks(&self) -> u64 {
        self.space.free()
    }

    /// Free blocks that can still be claimed for `purpose`: without holds, excluded groups, the room
    /// for a take-over, and for users without the reserve.
    pub fn available_blocks(&self, purpose: Purpose) -> u64 {
        self.space.available(purpose)
    }

    /// Blocks claimed by [holds](Hold).
    pub fn held_blocks(&self) -> u64 {
        self.space.held()
    }

    /// Freed blocks that wait for their record to be published as durable.
    pub fn limbo_blocks(&self) -> u64 {
        self.limbo_blocks.load(Ordering::Relaxed)
    }

    /// Blocks out of use until remount because a write to them failed.
    pub fn quarantined_blocks(&self) -> u64 {
        self.admin.lock().quarantine.blocks()
    }

    /// Where new data leaves blocks free for what will replace it.
    pub fn slack(&self) -> Slack {
        self.config.slack
    }

    /// Counters since the mount.
    pub fn stats(&self) -> Stats {
        self.counters.snapshot()
    }

    /// Claims `blocks` ahead of an operation. Errors: [`AllocError::Full`]. Never blocks.
    pub fn hold(&self, blocks: u64, purpose: Purpose) -> std::result::Result<Hold, AllocError> {
        Hold::claim(&self.space, blocks, purpose).ok_or_else(|| self.full())
    }

    /// The volume has grown to `total_blocks`, all new ones free. Allocation goes on meanwhile. May
    /// block on the loader. Errors: smaller than before, too large, not open yet.
    pub fn grow(&self, total_blocks: u64) -> Result<()> {
        {
            let mut admin = self.admin.lock();
            let old = self.geometry();
            let new = Geometry { total_blocks, ..old };
            new.validate()?;
            if !admin.open || total_blocks < old.total_blocks {
                return Err(FsError::INVALID);
            }
            self.total.store(total_blocks, Ordering::SeqCst);
            let group_end = old.total_blocks.next_multiple_of(old.group_blocks as u64).min(total_blocks);
            for tail in new.without_fixed(old.total_blocks..group_end) {
                let run = BlockRun::new(BlockNr(tail.start), (tail.end - tail.start) as u32);
                for part in new.parts(run) {
                    self.clear_part(&mut admin, part)?;
                }
            }
            let fresh = new.without_fixed(group_end..total_blocks).map(|r| r.end - r.start).sum();
            self.unreserved_freed.fetch_add(fresh, Ordering::SeqCst);
            self.space.freed(fresh);
            self.space.give(fresh);
            self.churn.changed();
        }
        self.fill_room()
    }

    /// Frees waiting for `durable` or less may be used again, as far as every follower has passed
    /// them ([`Self::set_followers`]) and no I/O in flight is older ([`Self::io_guard`]); what has to
    /// wait is looked at again with the next call, which may name the same LSN. Call when a
    /// *flushed* record or slot carries this durable LSN (rule R1). Returns the number of blocks
    /// that became free. Never blocks on I/O.
    pub fn publish(&self, durable: Lsn) -> Result<u64> {
        let drained = self.gate.advance();
        self.admin.lock().limbo.advance(durable, drained);
        let freed = self.drain_limbo()?;
        self.refill_cushion();
        Ok(freed)
    }

    /// Keeps blocks that are freed from now on in limbo until the guard is dropped. Take it before
    /// looking up where data is, and drop it when the I/O there has ended.
    pub fn io_guard(&self) -> IoGuard {
        self.gate.enter()
    }

    /// The slowest follower that has a claim on freed blocks has applied the records up to
    /// `applied`; `None`: there is none. Takes effect with the next [`Self::publish`].
    pub fn set_followers(&self, applied: Option<Lsn>) {
        self.admin.lock().limbo.set_followers(applied);
    }

    /// Freed blocks, and runs of them, that could be used again but for the slowest follower.
    pub fn waiting_for_followers(&self) -> (u64, u64) {
        self.admin.lock().limbo.waiting_for_followers()
    }

    fn full(&self) -> AllocError {
        if self.limbo_blocks() > 0 {
            self.counters.limbo_waits.fetch_add(1, Ordering::Relaxed);
        }
        AllocError::Full
    }

    fn check_group(&self, group: GroupNr) -> Result<&Slot> {
        if group.0 >= self.geometry().groups() {
            return Err(FsError::Volume(format!("there is no block group {group}")));
        }
        Ok(self.slots.entry(group.0))
    }

    /// The frame of a loaded group; the caller has a pin or the admin lock.
    fn frame_of<'a>(&'a self, slot: &'a Slot) -> Option<Frame<'a>> {
        let words = self.frames.get(slot.frame() as u64)?.get()?;
        Some(Frame { words, hints: &slot.hints })
    }
}
