//! The life of blocks after their allocation: freed, in limbo, in quarantine, free again.

use std::sync::atomic::Ordering;

use super::geometry::{Part, corrupt};
use super::group::{Kind, UNKNOWN};
use super::hold::{Hold, Purpose};
use super::{Admin, Allocator};
use crate::error::{FsError, Result};
use crate::mutants::{self, Mutant};
use crate::types::{BlockNr, BlockRun, Lsn};

/// Runs that leave limbo under one hold of the lock, so that a huge delete does not keep it.
const DRAIN_BATCH: usize = 256;

impl Allocator {
    /// The record `lsn` frees this run. It is used again only after [`Self::publish`] with that LSN
    /// or a later one. Call when new I/O cannot find the run any more (older I/O is waited for if
    /// it holds an [`IoGuard`](super::IoGuard)), and before the loader can see the free. Errors: the
    /// run is free already, in limbo, in quarantine, or outside the volume; nothing is freed then.
    /// In a group that is not loaded, a free of free blocks is noticed only with
    /// [`check_frees`](super::Config::check_frees), which may block on the loader; otherwise this
    /// never blocks on I/O.
    pub fn free_deferred(&self, run: BlockRun, lsn: Lsn) -> Result<()> {
        if self.config.check_frees {
            self.geometry().check(run)?;
            self.base.parts(run).try_for_each(|part| self.ensure_loaded(part.group))?;
        }
        let mut admin = self.admin.lock();
        self.check_used(&admin, run)?;
        if mutants::active(Mutant::ReuseBeforePublish) {
            return self.base.parts(run).try_for_each(|part| self.clear_part(&mut admin, part));
        }
        let generation = self.gate.generation();
        for part in self.base.parts(run) {
            let start = self.base.run(part.group, part.start, part.len).start;
            admin.limbo.insert(start.0, part.len, lsn, generation);
        }
        self.limbo_blocks.fetch_add(run.len as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The record `lsn`, which freed this run by [`Self::free_deferred`], is superseded by one that uses it again:
    /// it leaves limbo, in use. Call before the loader can see that. Errors: it does not wait for that
    /// record. Never blocks on I/O.
    pub fn recall(&self, run: BlockRun, lsn: Lsn) -> Result<()> {
        self.geometry().check(run)?;
        let mut admin = self.admin.lock();
        for part in self.base.parts(run) {
            let start = self.base.run(part.group, part.start, part.len).start;
            if !admin.limbo.recall(start.0, part.len, lsn) {
                return Err(corrupt(run, "called back although it is not in limbo"));
            }
            self.limbo_blocks.fetch_sub(part.len.into(), Ordering::Relaxed);
            // A load that is under way may have seen it free.
            self.keep_used_when_loaded(&mut admin, part);
        }
        Ok(())
    }

    /// Gives back blocks that were allocated but neither written nor named in the journal; they are
    /// free at once. Errors as for [`Self::free_deferred`]. Never blocks on I/O.
    pub fn free_unwritten(&self, run: BlockRun) -> Result<()> {
        let mut admin = self.admin.lock();
        self.check_allocated(&admin, run)?;
        self.base.parts(run).try_for_each(|part| self.absorb(&mut admin, part))
    }

    /// As [`Self::free_unwritten`], for blocks that were allocated from `hold`: it has them again, and
    /// nobody else can get them in between.
    pub fn return_unwritten(&self, run: BlockRun, hold: &mut Hold) -> Result<()> {
        let mut admin = self.admin.lock();
        self.check_allocated(&admin, run)?;
        for part in self.base.parts(run) {
            let rest = self.keep_units(&mut admin, part);
            if rest.len > 0 {
                self.clear_bits(&mut admin, rest)?;
            }
            hold.restore(part.len.into());
        }
        Ok(())
    }

    /// Refuses what this mount cannot have allocated.
    fn check_allocated(&self, admin: &Admin, run: BlockRun) -> Result<()> {
        self.check_used(admin, run)?;
        for part in self.base.parts(run) {
            let state = self.slots.get(part.group.0).map(|slot| slot.state());
            if state.is_none_or(|s| s.reserved().is_none()) {
                return Err(corrupt(run, "cannot have been allocated by this mount"));
            }
        }
        Ok(())
    }

    /// A write to this run failed: it stays out of use until the volume is mounted again, whatever
    /// the journal says about it. Errors as for [`Self::free_deferred`]. Never blocks on I/O.
    pub fn quarantine(&self, run: BlockRun) -> Result<()> {
        if mutants::active(Mutant::SkipQuarantine) {
            return self.free_unwritten(run);
        }
        let mut admin = self.admin.lock();
        self.check_used(&admin, run)?;
        let blocks = run.start.0..run.end().0;
        admin.quarantine.insert(blocks);
        for part in self.base.parts(run) {
            self.keep_used_when_loaded(&mut admin, part);
        }
        Ok(())
    }

    /// Marks a run in use that the loader may not know of: journal segments, what recovery has
    /// replayed. Only before [`Self::set_free`], whose count leaves these blocks out. Blocks may be
    /// marked twice. Errors: outside the volume, in limbo, too late. Never blocks on I/O.
    pub fn mark_used(&self, run: BlockRun) -> Result<()> {
        let mut admin = self.admin.lock();
        self.geometry().check(run)?;
        if admin.open {
            return Err(FsError::Volume("blocks were marked used after the mount".into()));
        }
        if admin.limbo.intersects(run.start.0..run.end().0) {
            return Err(corrupt(run, "marked used while in limbo"));
        }
        for part in self.base.parts(run) {
            self.mark_part(&mut admin, part);
        }
        Ok(())
    }

    fn mark_part(&self, admin: &mut Admin, part: Part) {
        let slot = self.slots.entry(part.group.0);
        let state = slot.state();
        if let (Kind::Loaded, Some(frame)) = (state.kind(), self.frame_of(slot)) {
            let fresh = frame.words.set(part.start, part.len);
            slot.free.fetch_sub(fresh, Ordering::SeqCst);
            if state.reserved().is_some() {
                self.reserved.sub_free(fresh);
            }
            if state.off_limits() {
                self.space.give(fresh as u64);
            }
        } else {
            self.keep_used_when_loaded(admin, part);
        }
    }

    /// Sees to it that blocks are in use when their group gets loaded.
    fn keep_used_when_loaded(&self, admin: &mut Admin, part: Part) {
        let slot = self.slots.entry(part.group.0);
        if matches!(slot.state().kind(), Kind::Absent | Kind::Loading) {
            let run = self.base.run(part.group, part.start, part.len);
            admin.overlay.insert(run.start.0..run.end().0);
            slot.free.store(UNKNOWN, Ordering::SeqCst);
        }
    }

    /// Refuses a run that cannot be freed. Where the group is not loaded, only the loader could
    /// tell whether the blocks are in use.
    fn check_used(&self, admin: &Admin, run: BlockRun) -> Result<()> {
        self.geometry().check(run)?;
        let blocks = run.start.0..run.end().0;
        if admin.limbo.intersects(blocks.clone()) {
            return Err(corrupt(run, "freed twice"));
        }
        if admin.quarantine.intersects(blocks) {
            return Err(corrupt(run, "freed while in quarantine"));
        }
        for part in self.base.parts(run) {
            let Some(slot) = self.slots.get(part.group.0) else { continue };
            let loaded = slot.state().kind() == Kind::Loaded;
            let frame = loaded.then(|| self.frame_of(slot)).flatten();
            if frame.is_some_and(|f| !f.words.all_set(part.start, part.len)) {
                return Err(corrupt(run, "freed although it is free"));
            }
        }
        Ok(())
    }

    /// Lets go of what may leave limbo.
    pub(super) fn drain_limbo(&self) -> Result<u64> {
        let (mut freed, mut result) = (0, Ok(()));
        loop {
            let mut admin = self.admin.lock();
            for _ in 0..DRAIN_BATCH {
                let Some((start, len)) = admin.limbo.pop() else { return result.map(|()| freed) };
                self.limbo_blocks.fetch_sub(len as u64, Ordering::Relaxed);
                let run = BlockRun::new(BlockNr(start), len);
                for part in self.base.parts(run) {
                    match self.absorb(&mut admin, part) {
                        Ok(()) => freed += len as u64,
                        Err(error) => result = Err(error),
                    }
                }
                self.counters.reused_blocks.fetch_add(len as u64, Ordering::Relaxed);
                self.note_discardable(&mut admin, run);
            }
        }
    }

    /// Makes blocks free. Order matters: counts that searches use as upper bounds go up before the
    /// bits clear, hints and [`Churn`](super::group::Churn) after, and claims come last.
    pub(super) fn clear_part(&self, admin: &mut Admin, part: Part) -> Result<()> {
        self.clear_bits(admin, part)?;
        if !self.slots.entry(part.group.0).state().off_limits() {
            self.space.give(part.len as u64);
        }
        Ok(())
    }

    /// All of [`Self::clear_part`] but that the blocks can be claimed.
    pub(super) fn clear_bits(&self, admin: &mut Admin, part: Part) -> Result<()> {
        let slot = self.slots.entry(part.group.0);
        let state = slot.state();
        let run = self.base.run(part.group, part.start, part.len);
        if let Some(frame) = self.live_frame(admin, slot) {
            if !frame.words.all_set(part.start, part.len) {
                return Err(corrupt(run, "freed although it is free"));
            }
            slot.free.fetch_add(part.len, Ordering::SeqCst);
            if state.reserved().is_some() {
                self.reserved.add_free(part.len);
            }
            frame.words.clear(part.start, part.len);
            frame.cleared();
            if let Some(index) = state.reserved() {
                self.reserved.may_have_free(index as u64);
            }
        } else {
            self.clear_unloaded(admin, part, run);
        }
        self.churn.changed();
        self.space.freed(part.len as u64);
        if state.reserved().is_none() {
            self.unreserved_freed.fetch_add(part.len as u64, Ordering::SeqCst);
        }
        Ok(())
    }

    fn clear_unloaded(&self, admin: &mut Admin, part: Part, run: BlockRun) {
        admin.overlay.remove(run.start.0..run.end().0);
        if let Some(freed) = admin.loading.get_mut(&part.group.0) {
            freed.push(part);
            return;
        }
        let more = |free: u32| (free != UNKNOWN).then(|| free.saturating_add(part.len));
        let slot = self.slots.entry(part.group.0);
        // Refused if unknown, and stays so.
        let _ = slot.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
    }

    fn note_discardable(&self, admin: &mut Admin, run: BlockRun) {
        if self.config.discard_queue == 0 {
            return;
        }
        if admin.discard.len() >= self.config.discard_queue {
            admin.discard.pop_front();
        }
        admin.discard.push_back(run);
    }

    /// Up to `max` runs that have left limbo and are still free, allocated again so that nobody
    /// writes there while they are discarded; return each with [`Self::free_unwritten`]. Only runs
    /// in reserved groups (rule R2). Empty unless [`discard_queue`](super::Config::discard_queue)
    /// is set.
    pub fn take_discardable(&self, max: usize) -> Vec<BlockRun> {
        let mut taken = Vec::new();
        while taken.len() < max {
            let Some(run) = self.admin.lock().discard.pop_front() else { break };
            if self.space.claim(run.len as u64, run.len as u64, Purpose::User).is_none() {
                continue;
            }
            if self.claim_exactly(run) {
                taken.push(run);
            } else {
                self.space.give(run.len as u64);
            }
        }
        taken
    }
}
