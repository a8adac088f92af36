//! The path of an allocation: no lock, no I/O.

use std::sync::atomic::{AtomicU64, Ordering};

use super::group::{Kind, Slot, UNKNOWN, Wanted};
use super::hold::{Hold, Purpose};
use super::reserve::reservable;
use super::slack::{self, Slack};
use super::{AllocError, Allocator};
use crate::error::FsError;
use crate::mutants::{self, Mutant};
use crate::types::{BlockNr, BlockRun, GroupNr};

/// What the blocks are for. Each class has its own places to fill, so that short-lived tree nodes
/// do not cut up the space of large files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// File data. Without a hold it must leave the reserve.
    Data = 0,
    /// Nodes of the metadata tree. May use the reserve.
    Metadata = 1,
}

const CLASSES: usize = 2;

impl Class {
    fn purpose(self) -> Purpose {
        if self == Class::Data { Purpose::User } else { Purpose::Essential }
    }
}

/// What is asked of [`Allocator::alloc`].
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Blocks wanted; more than a group is cut to a group.
    pub want: u32,
    /// Fewest blocks that are of use. From 1 to `want`, at most a group.
    pub min: u32,
    /// Power of two that the first block is a multiple of; at most a group. A run shorter than
    /// wanted is a multiple of it long, if that is not below `min`.
    pub align: u32,
    /// Where the run should start: behind the file's last extent.
    pub goal: Option<BlockNr>,
    /// What the run replaces: if it is short it goes into the same window, if there is room (see `alloc/slack.rs`).
    pub beside: Option<BlockNr>,
    /// What the blocks are for.
    pub class: Class,
    /// May use the cushion when there is no other run.
    pub last_resort: bool,
    /// Requests of different lanes start in different places. Any number: a worker's, or an inode's.
    pub lane: u32,
}

impl Request {
    /// A request for `min` to `want` blocks of a class, without a goal; metadata may use the cushion.
    pub fn new(want: u32, min: u32, align: u32, class: Class) -> Self {
        let last_resort = class == Class::Metadata;
        Self { want, min, align, goal: None, beside: None, class, last_resort, lane: 0 }
    }

    /// The same with a goal.
    pub fn near(self, goal: BlockNr) -> Self {
        Self { goal: Some(goal), ..self }
    }

    fn check(&self, group_blocks: u32) -> Result<(), FsError> {
        let sizes = 1 <= self.min && self.min <= self.want && self.min <= group_blocks;
        let align = self.align.is_power_of_two() && self.align <= group_blocks;
        if sizes && align { Ok(()) } else { Err(FsError::INVALID) }
    }
}

/// Part of a group that has to be free for it to be reserved for replacements.
const WORTH_WHILE: u32 = 32;

/// Requests that take what they find, after one that has found nothing but slack: a search that finds nothing looks at
/// every reserved group.
const REST: u32 = 1024;

const LANES: usize = 8;
/// A position as `index in the reserved list << 16 | offset in the group`.
const UNSET: u64 = u64::MAX;

/// One a cache line, so that lanes do not disturb each other.
#[repr(align(64))]
struct Cursor(AtomicU64);

/// Where each lane of each class goes on.
pub(super) struct Cursors([Cursor; CLASSES * LANES]);

impl Default for Cursors {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Cursor(AtomicU64::new(UNSET))))
    }
}

impl Cursors {
    fn slot(&self, request: &Request) -> &AtomicU64 {
        &self.0[request.class as usize * LANES + request.lane as usize % LANES].0
    }

    /// Position in the list of `len` reserved groups and offset in the group.
    fn get(&self, request: &Request, len: u64) -> (u64, u32) {
        match self.slot(request).load(Ordering::Relaxed) {
            UNSET => {
                let class = request.class as u64 * len / CLASSES as u64;
                ((class + request.lane as u64 % LANES as u64) % len, 0)
            }
            at => ((at >> 16) % len, (at & 0xffff) as u32),
        }
    }

    fn set(&self, request: &Request, index: u64, offset: u32) {
        self.slot(request).store(index << 16 | offset as u64, Ordering::Relaxed);
    }
}

/// What to look for.
#[derive(Clone, Copy)]
pub(super) struct Sought {
    /// As many blocks, if there are.
    pub want: u32,
    /// Fewest blocks that are good enough for now.
    pub min: u32,
    /// Leave slack.
    pub spare: Slack,
}

impl Sought {
    /// First of all: before a large request is cut to pieces, fresh groups are asked for.
    fn new(request: &Request, want: u32, spare: Slack) -> Self {
        // No run is longer: it would be looked for in vain.
        let want = if spare == Slack::NONE { want } else { want.min(spare.longest_between()) };
        Self { want, min: (want / 16 / request.align * request.align).max(request.min), spare }
    }
}

/// A group to look in.
struct Place<'a> {
    group: GroupNr,
    slot: &'a Slot,
    index: u32,
}

impl Allocator {
    /// Allocates a run of `min` to `want` consecutive blocks within one group. The space is taken
    /// from `hold`, or else from what is available to the class. A hold that has fewer than `want`
    /// blocks bounds the run. Errors: see [`AllocError`]; `EINVAL` for a request that makes no
    /// sense or a hold below `min`. Takes no lock and does no I/O, except to find groups that
    /// should be reserved when the reserved ones are used up.
    pub fn alloc(&self, request: &Request, hold: Option<&mut Hold>) -> Result<BlockRun, AllocError> {
        request.check(self.base.group_blocks)?;
        let (min, want) = (request.min as u64, request.want.min(self.base.group_blocks) as u64);
        let Some(hold) = hold else {
            let purpose = request.class.purpose();
            let claim = self.space.claim(min, want, purpose).ok_or_else(|| self.full())?;
            let run = self.place(request, claim as u32);
            self.space.give(claim - run.as_ref().map_or(0, |run| run.len as u64));
            return run;
        };
        if hold.blocks() < min || !hold.is_on(&self.space) {
            return Err(FsError::INVALID.into());
        }
        let run = self.place(request, want.min(hold.blocks()) as u32)?;
        hold.consume(run.len as u64);
        Ok(run)
    }

    /// Finds a run for which space is claimed.
    fn place(&self, request: &Request, want: u32) -> Result<BlockRun, AllocError> {
        if let Some(group) = self.reservable_beside(request, want) {
            self.counters.reservation_waits.fetch_add(1, Ordering::Relaxed);
            return Err(AllocError::NeedReservation { suggested: vec![group] });
        }
        let mut sought = Sought::new(request, want, self.spared_by(request));
        loop {
            if let Some(run) = self.find(request, sought) {
                return Ok(run);
            }
            let slack = if sought.min > request.min { self.base.group_blocks as u64 } else { 0 };
            let mut suggested = self.suggest((sought.min, request.align), slack)?;
            if suggested.is_empty() && sought.spare != Slack::NONE {
                self.spare_again_in.store(REST, Ordering::Relaxed);
                sought = Sought::new(request, want, Slack::NONE);
                continue;
            }
            if suggested.is_empty() && sought.min > request.min {
                let coarse = sought.min;
                if let Some(run) = self.find(request, Sought { want: coarse, min: request.min, ..sought }) {
                    return Ok(run);
                }
                suggested = self.suggest((request.min, request.align), 0)?;
            }
            if suggested.is_empty() {
                if let Some(run) = self.take_from_cushion(request, want) {
                    return Ok(run);
                }
                let enough = self.reserved.free() >= request.min as u64;
                return Err(if enough { AllocError::Fragmented } else { self.full() });
            }
            if mutants::active(Mutant::AllocOutsideReservation) {
                self.reserve_done(&suggested)?;
                continue;
            }
            self.counters.reservation_waits.fetch_add(1, Ordering::Relaxed);
            return Err(AllocError::NeedReservation { suggested });
        }
    }

    /// The group of what is replaced, if it is not reserved and could be: once an epoch, so that the file's pages
    /// stay where they are.
    fn reservable_beside(&self, request: &Request, want: u32) -> Option<GroupNr> {
        let beside = request.beside.filter(|_| want <= self.config.slack.blocks())?;
        let group = self.base.group_of(beside);
        let slot = self.slots.get(group.0)?;
        let free = slot.free.load(Ordering::Relaxed);
        let worth_while = free == UNKNOWN || free >= self.base.group_blocks / WORTH_WHILE;
        (reservable(slot.state()) && worth_while).then_some(group)
    }

    /// What the request leaves to those that replace something.
    fn spared_by(&self, request: &Request) -> Slack {
        let slack = self.config.slack;
        let fits = request.min.max(request.align) <= slack.longest_between();
        let roomy = || {
            let available = self.space.available(Purpose::User);
            slack::is_roomy(available, self.total.load(Ordering::Relaxed))
        };
        let rested = || {
            let rest = self.spare_again_in.load(Ordering::Relaxed);
            if rest > 0 {
                // Requests that come at the same time may count as one.
                self.spare_again_in.store(rest - 1, Ordering::Relaxed);
            }
            rest == 0
        };
        if request.beside.is_none() && fits && roomy() && rested() { slack } else { Slack::NONE }
    }

    /// Searches until it succeeds or has failed without being disturbed. The number of tries is
    /// bounded because a long run may be nowhere while others free and allocate short ones.
    pub(super) fn find(&self, request: &Request, sought: Sought) -> Option<BlockRun> {
        const TRIES: usize = 16;
        let mut retries = 0;
        let mut run = None;
        for _ in 0..TRIES {
            let mark = self.churn.mark();
            run = self.search(request, sought, &mut retries);
            if run.is_some() || self.churn.quiet_since(mark) {
                break;
            }
            std::thread::yield_now();
        }
        match run {
            Some(run) => self.counters.allocated(run.len as u64, retries),
            None => self.counters.lost_races(retries),
        }
        run
    }

    /// Beside what is replaced; then everywhere for all that is wanted, then for a quarter, and so on down to
    /// `min`.
    fn search(&self, request: &Request, sought: Sought, retries: &mut u64) -> Option<BlockRun> {
        let Sought { want, min, spare } = sought;
        if self.reserved.free() < min as u64 {
            return None;
        }
        if let Some(run) = self.take_beside(request, want, retries) {
            return Some(run);
        }
        let goal = request.goal.and_then(|goal| self.reserved_place(goal));
        let wanted = Wanted { from: 0, need: want, want, align: request.align, spare };
        if let Some((place, from)) = &goal {
            let exact = Wanted { from: *from, need: min.max(want / 4), ..wanted };
            if let Some(run) = self.take_at(place, exact, retries) {
                return Some(run);
            }
        }
        let mut need = want;
        loop {
            if let Some((place, from)) = &goal {
                let near = Wanted { from: *from, need, ..wanted };
                if let Some(run) = self.take(place, near, retries) {
                    return Some(run);
                }
            }
            if let Some(run) = self.scan(request, Wanted { need, ..wanted }, retries) {
                return Some(run);
            }
            if need == min {
                return None;
            }
            need = (need / 4 / request.align * request.align).max(min);
        }
    }

    /// Goes round the reserved groups from the lane's cursor.
    fn scan(&self, request: &Request, wanted: Wanted, retries: &mut u64) -> Option<BlockRun> {
        let len = self.reserved.len();
        if len == 0 {
            return None;
        }
        let (first, from) = self.cursors.get(request, len);
        for (mut at, end) in [(first, len), (0, first)] {
            while let Some(index) = self.reserved.candidate(at, end) {
                at = index + 1;
                let Some(group) = self.reserved.group(index) else { break };
                let place = Place { group, slot: self.slots.entry(group.0), index: index as u32 };
                let from = if index == first { from } else { 0 };
                if let Some(run) = self.take(&place, Wanted { from, ..wanted }, retries) {
                    self.cursors.set(request, index, self.base.offset_in_group(run.end()));
                    return Some(run);
                }
            }
        }
        None
    }

    /// The place of `block`, if its group is reserved, and the offset there.
    fn reserved_place(&self, block: BlockNr) -> Option<(Place<'_>, u32)> {
        let group = self.base.group_of(block);
        let slot = self.slots.get(group.0)?;
        let index = slot.state().reserved()?;
        Some((Place { group, slot, index }, self.base.offset_in_group(block)))
    }

    fn take(&self, place: &Place<'_>, wanted: Wanted, retries: &mut u64) -> Option<BlockRun> {
        let free = place.slot.free.load(Ordering::SeqCst);
        if free == 0 {
            let still = || place.slot.free.load(Ordering::SeqCst) == 0;
            self.reserved.exhausted(place.index as u64, still);
        }
        if free < wanted.need || place.slot.hints.read().hopeless(wanted.need, wanted.align) {
            return None;
        }
        let _pin = place.slot.pin()?;
        let (start, len) = self.frame_of(place.slot)?.alloc(wanted, &self.churn, retries)?;
        Some(self.settle(place, start, len))
    }

    /// In the window of what is replaced, or one near it.
    fn take_beside(&self, request: &Request, want: u32, retries: &mut u64) -> Option<BlockRun> {
        let beside = request.beside.filter(|_| want <= self.config.slack.blocks())?;
        let (place, from) = self.reserved_place(beside)?;
        let _pin = place.slot.pin()?;
        let wanted = Wanted { from, need: want, want, align: request.align, spare: Slack::NONE };
        let frame = self.frame_of(place.slot)?;
        let mut windows = self.config.slack.windows_around(from, self.base.group_blocks);
        let (start, len) = windows.find_map(|window| frame.alloc_in(window, wanted, &self.churn, retries))?;
        Some(self.settle(&place, start, len))
    }

    fn take_at(&self, place: &Place<'_>, wanted: Wanted, retries: &mut u64) -> Option<BlockRun> {
        let _pin = place.slot.pin()?;
        let len = self.frame_of(place.slot)?.alloc_at(wanted, &self.churn, retries)?;
        Some(self.settle(place, wanted.from, len))
    }

    /// Counts a claimed run. The group is pinned until then, so that a group whose count is 0 and
    /// that nobody has pinned is really full.
    fn settle(&self, place: &Place<'_>, start: u32, len: u32) -> BlockRun {
        place.slot.free.fetch_sub(len, Ordering::SeqCst);
        self.reserved.sub_free(len);
        self.space.used(len as u64);
        self.base.run(place.group, start, len)
    }

    /// Allocates exactly this run, which lies in one group, if it is free and the group reserved.
    pub(super) fn claim_exactly(&self, run: BlockRun) -> bool {
        let Some((place, start)) = self.reserved_place(run.start) else { return false };
        if place.slot.state().kind() != Kind::Loaded {
            return false;
        }
        let Some(_pin) = place.slot.pin() else { return false };
        let mut retries = 0;
        let frame = self.frame_of(place.slot);
        let claimed = frame.is_some_and(|f| f.claim(start, run.len, &self.churn, &mut retries));
        if claimed {
            self.settle(&place, start, run.len);
        }
        claimed
    }
}
