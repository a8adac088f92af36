//! Which groups this epoch may use (rule R2).

use std::sync::atomic::Ordering;

use super::Allocator;
use super::group::{Slot, State};
use crate::error::{FsError, Result};
use crate::types::GroupNr;

/// Groups in one suggestion, at most.
const MAX_SUGGESTED: usize = 64;
/// Groups looked at for the room for a take-over, at most.
const MAX_ROOM_LOOKS: usize = 4096;

/// Remembers what was suggested last, so that threads that run out of space together get the same
/// answer and one reservation serves them all.
#[derive(Default)]
pub(super) struct Suggester {
    /// Group after the last one suggested.
    next: u64,
    pending: Vec<GroupNr>,
    barren: Vec<Barren>,
}

/// A round over the volume that has found no group with a run of `need`.
struct Barren {
    need: (u32, u32),
    /// What [`Allocator::unreserved_freed`] was before: only such frees can change the answer.
    freed: u64,
    /// All groups could be looked at.
    exact: bool,
}

impl Barren {
    fn answers(&self, need: (u32, u32), freed: u64, slack: u64) -> bool {
        let covers = self.need.0 <= need.0 && self.need.1 <= need.1;
        covers && freed - self.freed <= slack && (self.exact || slack > 0)
    }
}

impl Suggester {
    fn forget_about(&mut self, barren: Barren) {
        self.barren.retain(|b| b.need != barren.need);
        self.barren.push(barren);
        if self.barren.len() > MAX_BARREN {
            self.barren.remove(0);
        }
    }
}

/// Rounds remembered.
const MAX_BARREN: usize = 8;

impl Allocator {
    /// The reservation of these groups is durable: allocate there from now on. Groups that are
    /// reserved already are skipped. Loads the groups: may block. Errors: a group that is excluded
    /// or kept as room, a loader that fails; groups before it in the list are reserved then.
    pub fn reserve_done(&self, groups: &[GroupNr]) -> Result<()> {
        for &group in groups {
            let slot = self.check_group(group)?;
            self.ensure_loaded(group)?;
            let _admin = self.admin.lock();
            let state = slot.state();
            if state.off_limits() {
                return Err(FsError::Volume(format!("block group {group} cannot be reserved")));
            }
            if state.reserved().is_none() {
                let free = slot.free.load(Ordering::SeqCst);
                self.reserved.push(group, free, |index| slot.set_reserved(index));
            }
        }
        self.churn.changed();
        self.trim();
        Ok(())
    }

    /// The groups reserved so far, in order.
    pub fn reserved_groups(&self) -> Vec<GroupNr> {
        (0..self.reserved.len()).filter_map(|index| self.reserved.group(index)).collect()
    }

    /// The groups kept as room for a take-over.
    pub fn room_groups(&self) -> Vec<GroupNr> {
        self.admin.lock().room.clone()
    }

    /// Blocks in the groups kept as room for a take-over. The volume's last group may be cut short.
    pub fn room_blocks(&self) -> u64 {
        let geometry = self.geometry();
        let blocks = |group: &GroupNr| {
            let (start, end) = geometry.usable(*group);
            u64::from(end - start) - u64::from(geometry.fixed_in(*group).is_some())
        };
        self.admin.lock().room.iter().map(blocks).sum()
    }

    /// Free blocks in reserved groups.
    pub fn reserved_free_blocks(&self) -> u64 {
        self.reserved.free()
    }

    /// Groups to reserve ahead of time, if the reserved ones are running out of free blocks. Also
    /// unloads full groups if many are loaded. May block on the loader. Cheap while nothing is due.
    pub fn needs_more(&self) -> Option<Vec<GroupNr>> {
        self.trim();
        if self.reserved.free() >= self.config.low_water_blocks {
            return None;
        }
        match self.suggest((1, 1), 0) {
            Ok(groups) => (!groups.is_empty()).then_some(groups),
            Err(error) => {
                tracing::warn!(%error, "cannot look for block groups to reserve");
                None
            }
        }
    }

    /// Groups that an earlier epoch has reserved and whose I/O is not proven to have drained: they
    /// are not used. Loads them: may block. Errors: reserved by this epoch already, or the loader's.
    pub fn exclude(&self, groups: &[GroupNr]) -> Result<()> {
        let mut refill = false;
        for &group in groups {
            let slot = self.check_group(group)?;
            self.ensure_loaded(group)?;
            let mut admin = self.admin.lock();
            let state = slot.state();
            if state.reserved().is_some() {
                return Err(FsError::Volume(format!("block group {group} is reserved")));
            }
            self.set_off_limits(slot, |slot| slot.set_excluded(true));
            if state.room() {
                // Room is for an epoch that could use it.
                slot.set_room(false);
                admin.room.retain(|&g| g != group);
                refill = true;
            }
        }
        if refill { self.fill_room() } else { Ok(()) }
    }

    /// The earlier epoch's I/O has drained: these groups may be reserved again.
    pub fn readmit(&self, groups: &[GroupNr]) -> Result<()> {
        for &group in groups {
            let slot = self.check_group(group)?;
            let _admin = self.admin.lock();
            self.set_off_limits(slot, |slot| slot.set_excluded(false));
            let blocks = self.base.group_blocks as u64;
            self.unreserved_freed.fetch_add(blocks, Ordering::SeqCst);
            self.churn.changed();
        }
        Ok(())
    }

    /// Runs `change` and keeps the count of claimable blocks right. The admin lock is held, and
    /// the group is loaded and not reserved, so its count is exact.
    fn set_off_limits(&self, slot: &Slot, change: impl FnOnce(&Slot)) {
        let before = slot.state().off_limits();
        change(slot);
        let after = slot.state().off_limits();
        let free = slot.free.load(Ordering::SeqCst) as u64;
        match (before, after) {
            (false, true) => self.space.withdraw(free),
            (true, false) => self.space.give(free),
            _ => {}
        }
    }

    /// Groups worth reserving, that have a run of `need` = (blocks, alignment). The answer "none" may
    /// be out of date by `slack` blocks freed since.
    pub(super) fn suggest(&self, need: (u32, u32), slack: u64) -> Result<Vec<GroupNr>> {
        let mut suggester = self.suggester.lock();
        suggester.pending.retain(|&g| reservable(self.slots.entry(g.0).state()));
        if suggester.pending.is_empty() {
            let freed = self.unreserved_freed.load(Ordering::SeqCst);
            if suggester.barren.iter().any(|b| b.answers(need, freed, slack)) {
                return Ok(Vec::new());
            }
            let result = self.collect(&mut suggester, need);
            if suggester.pending.is_empty() {
                suggester.forget_about(Barren { need, freed, exact: result.is_ok() });
            }
            // A coarse question is about quality only, which is not worth an error.
            result.or_else(|error| if slack > 0 { Ok(()) } else { Err(error) })?;
        }
        Ok(suggester.pending.clone())
    }

    /// One round over the volume. Groups with less than a sixteenth free only if there is no other.
    fn collect(&self, suggester: &mut Suggester, need: (u32, u32)) -> Result<()> {
        let groups = self.geometry().groups();
        let (mut sum, mut last_resort, mut failure) = (0, Vec::new(), None);
        for step in 0..groups {
            let group = GroupNr((suggester.next + step) % groups);
            if !reservable(self.state_of(group)) {
                continue;
            }
            let survey = match self.survey(group, Some(need).filter(|&need| need != (1, 1))) {
                Ok(survey) => survey,
                Err(error) => {
                    tracing::warn!(%group, %error, "block group cannot be used");
                    failure = Some(error);
                    continue;
                }
            };
            if !survey.fits || survey.free == 0 {
                continue;
            }
            if survey.free < self.base.group_blocks / 16 {
                last_resort.push((group, survey.free));
                last_resort.truncate(MAX_SUGGESTED);
                continue;
            }
            suggester.pending.push(group);
            sum += survey.free as u64;
            if sum >= self.config.batch_blocks || suggester.pending.len() == MAX_SUGGESTED {
                break;
            }
        }
        if suggester.pending.is_empty() {
            suggester.pending = last_resort.iter().map(|&(group, _)| group).collect();
        }
        match (suggester.pending.last(), failure) {
            (Some(last), _) => suggester.next = (last.0 + 1) % groups,
            (None, Some(error)) => return Err(error),
            (None, None) => {}
        }
        Ok(())
    }

    fn state_of(&self, group: GroupNr) -> State {
        // An untouched group is in the state of a fresh slot.
        self.slots.get(group.0).map_or_else(|| Slot::default().state(), Slot::state)
    }

    /// Gives the room for a take-over up: the caller is one, and finds no other space. False if there
    /// was none.
    pub fn release_room(&self) -> bool {
        let mut admin = self.admin.lock();
        let room = std::mem::take(&mut admin.room);
        for group in &room {
            self.set_off_limits(self.slots.entry(group.0), |slot| slot.set_room(false));
        }
        self.churn.changed();
        !room.is_empty()
    }

    /// Chooses groups as room for a take-over until there are enough: from the end of the volume,
    /// where reservations come last, those at least half free. Not others: on a full volume their few
    /// free blocks are what overwrites and deletes live on (contract C9).
    pub(super) fn fill_room(&self) -> Result<()> {
        let groups = self.geometry().groups();
        let wanted = (self.config.takeover_groups as u64).min(groups / 4) as usize;
        let missing = wanted.saturating_sub(self.room_groups().len());
        let mut chosen = Vec::new();
        let candidates = (0..groups).rev().map(GroupNr).filter(|&g| reservable(self.state_of(g)));
        for group in candidates.take(MAX_ROOM_LOOKS) {
            if chosen.len() >= missing {
                break;
            }
            match self.survey(group, None) {
                Ok(survey) if survey.free >= self.base.group_blocks / 2 => chosen.push(group),
                Ok(_) => {}
                Err(error) => tracing::warn!(%group, %error, "block group cannot be used"),
            }
        }
        chosen.into_iter().try_for_each(|group| self.keep_as_room(group))
    }

    fn keep_as_room(&self, group: GroupNr) -> Result<()> {
        self.ensure_loaded(group)?;
        let mut admin = self.admin.lock();
        let slot = self.slots.entry(group.0);
        if reservable(slot.state()) {
            self.set_off_limits(slot, |slot| slot.set_room(true));
            admin.room.push(group);
        }
        Ok(())
    }
}

pub(super) fn reservable(state: State) -> bool {
    state.reserved().is_none() && !state.off_limits()
}
