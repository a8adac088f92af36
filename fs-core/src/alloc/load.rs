//! Getting the bits of groups into memory, and out of it.

use std::sync::atomic::Ordering;

use super::geometry::Part;
use super::group::{Frame, Kind, Slot, UNKNOWN};
use super::words::{Words, spans};
use super::{Admin, Allocator, GroupBits, search};
use crate::error::{FsError, Result};
use crate::types::GroupNr;

/// What a look at a group has found.
pub(super) struct Survey {
    pub free: u32,
    /// The run that was asked for is there.
    pub fits: bool,
}

impl Allocator {
    /// Makes the bits of `group` live. Blocks on the loader; waits if another thread is at it.
    pub(super) fn ensure_loaded(&self, group: GroupNr) -> Result<()> {
        let slot = self.check_group(group)?;
        let mut admin = self.admin.lock();
        loop {
            match slot.state().kind() {
                Kind::Loaded | Kind::Full => return Ok(()),
                Kind::Loading => self.loaded.wait(&mut admin),
                Kind::Absent => break,
            }
        }
        slot.set_kind(Kind::Loading);
        admin.loading.insert(group.0, Vec::new());
        drop(admin);
        let load = Load { allocator: self, slot, group };
        let bits = self.loader.load(group);
        load.finish(bits)
    }

    /// Counts the free blocks of a group and looks for a run of `need` = (blocks, alignment). An
    /// absent group stays absent. May block on the loader.
    pub(super) fn survey(&self, group: GroupNr, need: Option<(u32, u32)>) -> Result<Survey> {
        let slot = self.check_group(group)?;
        loop {
            let known = slot.free.load(Ordering::SeqCst);
            match slot.state().kind() {
                Kind::Full => return Ok(Survey { free: 0, fits: false }),
                Kind::Loading => self.ensure_loaded(group)?,
                Kind::Loaded => {
                    let Some(_pin) = slot.pin() else { continue };
                    let Some(frame) = self.frame_of(slot) else { continue };
                    let fits = fits(|i| frame.words.word(i), frame.words.len(), need);
                    return Ok(Survey { free: known, fits });
                }
                Kind::Absent if known != UNKNOWN && need.is_none_or(|(n, _)| known < n) => {
                    return Ok(Survey { free: known, fits: need.is_none() });
                }
                Kind::Absent => {
                    if let Some(survey) = self.survey_absent(group, slot, need)? {
                        return Ok(survey);
                    }
                }
            }
        }
    }

    fn survey_absent(&self, group: GroupNr, slot: &Slot, need: Option<(u32, u32)>) -> Result<Option<Survey>> {
        let mark = self.churn.mark();
        let mut bits = self.check_bits(group, self.loader.load(group)?)?;
        let admin = self.admin.lock();
        if slot.state().kind() != Kind::Absent {
            return Ok(None);
        }
        self.add_live_state(&admin, group, &mut bits);
        let free = count_free(&bits);
        // Frees that came after the loader's look are missing: good enough for now, not to keep.
        let keep = self.churn.mark() == mark;
        slot.free.store(if keep { free } else { UNKNOWN }, Ordering::SeqCst);
        Ok(Some(Survey { free, fits: fits(|i| bits[i], bits.len(), need) }))
    }

    fn check_bits(&self, group: GroupNr, bits: GroupBits) -> Result<GroupBits> {
        if bits.len() == self.base.group_words() {
            return Ok(bits);
        }
        let detail = format!("{} words for group {group}", bits.len());
        Err(FsError::corrupt("allocation bitmap", self.base.group_start(group), detail))
    }

    /// Adds to loaded bits what is in use although the loader may not know.
    fn add_live_state(&self, admin: &Admin, group: GroupNr, bits: &mut [u64]) {
        let first = self.base.group_start(group).0;
        let all = first..first + self.base.group_blocks as u64;
        for run in admin.overlay.overlaps(all.clone()).chain(admin.limbo.overlaps(all.clone())) {
            let (start, end) = (run.start.max(all.start), run.end.min(all.end));
            set(bits, (start - first) as u32, (end - start) as u32);
        }
        let (start, end) = self.geometry().usable(group);
        set(bits, 0, start);
        set(bits, end, self.base.group_blocks - end);
        if let Some(fixed) = self.base.fixed_in(group) {
            set(bits, fixed, 1);
        }
    }

    fn install(&self, admin: &mut Admin, group: GroupNr, slot: &Slot, bits: &[u64]) {
        let first = self.base.group_start(group).0;
        admin.overlay.remove(first..first + self.base.group_blocks as u64);
        let free = count_free(bits);
        slot.free.store(free, Ordering::SeqCst);
        if free == 0 {
            slot.set_kind(Kind::Full);
        } else {
            self.give_frame(admin, slot, bits.iter().copied());
        }
        self.counters.group_loads.fetch_add(1, Ordering::Relaxed);
    }

    fn give_frame<'a>(
        &'a self,
        admin: &mut Admin,
        slot: &'a Slot,
        bits: impl Iterator<Item = u64>,
    ) -> Frame<'a> {
        let index = admin.free_frames.pop().unwrap_or_else(|| {
            admin.next_frame += 1;
            admin.next_frame - 1
        });
        let words = self.frames.entry(index as u64).get_or_init(|| Words::full(self.base.group_words()));
        words.fill(bits);
        let frame = Frame { words, hints: &slot.hints };
        frame.cleared();
        slot.set_frame(index);
        slot.set_kind(Kind::Loaded);
        frame
    }

    /// The frame of a loaded or full group. The caller holds the admin lock and is about to clear
    /// bits there.
    pub(super) fn live_frame<'a>(&'a self, admin: &mut Admin, slot: &'a Slot) -> Option<Frame<'a>> {
        match slot.state().kind() {
            Kind::Loaded => self.frame_of(slot),
            Kind::Full => Some(self.give_frame(admin, slot, std::iter::repeat(!0))),
            Kind::Absent | Kind::Loading => None,
        }
    }

    /// Unloads full groups if too many are loaded. Looks at a bounded number of groups.
    pub(super) fn trim(&self) {
        const LOOKS: u64 = 256;
        let mut admin = self.admin.lock();
        let len = self.reserved.len();
        for _ in 0..LOOKS.min(len) {
            let loaded = admin.next_frame as usize - admin.free_frames.len();
            if loaded <= self.config.max_loaded_groups as usize {
                return;
            }
            admin.trim_cursor = (admin.trim_cursor + 1) % len;
            if let Some(group) = self.reserved.group(admin.trim_cursor) {
                self.unload_if_full(&mut admin, self.slots.entry(group.0));
            }
        }
    }

    fn unload_if_full(&self, admin: &mut Admin, slot: &Slot) {
        if slot.free.load(Ordering::SeqCst) != 0 || !slot.close() {
            return;
        }
        let frame = slot.frame();
        let full = self.frame_of(slot).is_some_and(|f| f.words.count_free() == 0);
        if full {
            admin.free_frames.push(frame);
            self.counters.group_unloads.fetch_add(1, Ordering::Relaxed);
        } else {
            slot.set_kind(Kind::Loaded);
            self.churn.changed();
        }
    }
}

/// A load under way: whatever happens, the group does not stay in state `Loading`.
struct Load<'a> {
    allocator: &'a Allocator,
    slot: &'a Slot,
    group: GroupNr,
}

impl Load<'_> {
    fn finish(&self, bits: Result<GroupBits>) -> Result<()> {
        let mut bits = self.allocator.check_bits(self.group, bits?)?;
        let mut admin = self.allocator.admin.lock();
        for Part { start, len, .. } in admin.loading.remove(&self.group.0).unwrap_or_default() {
            for (i, mask) in spans(start, len) {
                bits[i] &= !mask;
            }
        }
        self.allocator.add_live_state(&admin, self.group, &mut bits);
        self.allocator.install(&mut admin, self.group, self.slot, &bits);
        Ok(())
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        let mut admin = self.allocator.admin.lock();
        if self.slot.state().kind() == Kind::Loading {
            admin.loading.remove(&self.group.0);
            self.slot.free.store(UNKNOWN, Ordering::SeqCst);
            self.slot.set_kind(Kind::Absent);
        }
        self.allocator.loaded.notify_all();
    }
}

fn fits(word: impl Fn(usize) -> u64, words: usize, need: Option<(u32, u32)>) -> bool {
    need.is_none_or(|(n, align)| search::find(word, words, 0, n, align).is_some())
}

fn count_free(bits: &[u64]) -> u32 {
    bits.iter().map(|word| word.count_zeros()).sum()
}

fn set(bits: &mut [u64], start: u32, len: u32) {
    for (i, mask) in spans(start, len) {
        bits[i] |= mask;
    }
}
