//! Groups that earlier epochs may still be writing to (rule R2).
//!
//! A killed process's writes can land long after it is gone. That they have landed is proved by the lock
//! on the device, for epochs that held it: it is released only with their last request. So every root
//! slot carries on what the epochs before it had reserved, until an epoch with the lock drops it. What
//! epochs without the lock had reserved stays out of use, whoever comes. An epoch that ends well has
//! waited for all its requests and says so in its last root.

use super::group_ranges::compact;
use super::recover::Recovered;
use crate::format::slot::MAX_DRAINING;
use crate::format::{GroupRange, RootSlot};
use crate::mutants::{self, Mutant};
use crate::types::GroupNr;

/// What a new epoch must not write to.
#[derive(Debug, Default)]
pub(crate) struct Draining {
    locked: Vec<GroupRange>,
    unlocked: Vec<GroupRange>,
    /// Those of them that the epoch before had to leave alone itself.
    pub(super) inherited: Vec<GroupNr>,
}

impl Draining {
    /// As the epoch behind `recovered` has to see it; `exclusive`: it holds the lock.
    pub(crate) fn new(recovered: &Recovered, exclusive: bool) -> Self {
        if mutants::active(Mutant::IgnoreOldReservations) {
            return Self::default();
        }
        let slot = &recovered.slot;
        let groups = (slot.total_blocks - 1).div_ceil(recovered.superblock.group_blocks.into());
        let from_journal = recovered.delta.reserved.iter().map(|(first, count)| (*first, *count));
        let mut before: Vec<_> = pairs(&slot.reserved).chain(from_journal).collect();
        if slot.ended {
            before.clear();
        }
        let (mut locked, mut unlocked): (Vec<_>, Vec<_>) =
            (pairs(&slot.draining).collect(), pairs(&slot.draining_unlocked).collect());
        if exclusive {
            locked.clear();
        }
        let inherited = groups_of(&joined([&locked[..], &unlocked].concat(), groups));
        if slot.unlocked {
            unlocked.extend(before);
        } else if !exclusive {
            locked.extend(before);
        }
        Self { locked: joined(locked, groups), unlocked: joined(unlocked, groups), inherited }
    }

    /// The groups, each once.
    pub(crate) fn groups(&self) -> Vec<GroupNr> {
        let mut all = groups_of(&self.locked);
        all.extend(groups_of(&self.unlocked));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The claim, with what it has to hand on.
    pub(crate) fn note_in(self, claim: RootSlot) -> RootSlot {
        RootSlot { draining: self.locked, draining_unlocked: self.unlocked, ..claim }
    }
}

fn groups_of(ranges: &[GroupRange]) -> Vec<GroupNr> {
    ranges.iter().flat_map(|r| (r.first.0..r.first.0 + u64::from(r.count)).map(GroupNr)).collect()
}

fn pairs(ranges: &[GroupRange]) -> impl Iterator<Item = (GroupNr, u32)> {
    ranges.iter().map(|r| (r.first, r.count))
}

/// The groups of `ranges` that exist, as few ranges in order. There may be many that name all groups
/// each, for a hostile journal costs nothing.
fn joined(mut ranges: Vec<(GroupNr, u32)>, groups: u64) -> Vec<GroupRange> {
    ranges.sort_unstable();
    let mut out: Vec<GroupRange> = Vec::new();
    for (first, count) in ranges {
        let end = first.0.saturating_add(count.into()).min(groups);
        let behind = |r: &GroupRange| r.first.0 + u64::from(r.count);
        match out.last_mut() {
            Some(last) if behind(last) >= first.0 => {
                last.count = (end.max(behind(last)) - last.first.0) as u32;
            }
            _ if end > first.0 => out.push(GroupRange { first, count: (end - first.0) as u32 }),
            _ => {}
        }
    }
    compact(out, MAX_DRAINING, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u32) -> GroupRange {
        GroupRange { first: GroupNr(first), count }
    }

    #[test]
    fn ranges_are_joined_and_end_with_the_volume() {
        let ranges = [(5, 2), (0, 3), (2, 2), (30, u32::MAX), (7, 0), (40, 1), (9, 1)];
        let ranges = ranges.map(|(first, n)| (GroupNr(first), n)).to_vec();
        assert_eq!(joined(ranges, 32), [range(0, 4), range(5, 2), range(9, 1), range(30, 2)]);
        let all = vec![(GroupNr(0), u32::MAX); 1000];
        assert_eq!(joined(all, 32), [range(0, 32)]);
        let many = (0..100).map(|i| (GroupNr(i * 3), 1)).collect();
        let joined = joined(many, 1000);
        assert_eq!(joined.len(), MAX_DRAINING);
        assert!(
            (0..100).all(|i| joined
                .iter()
                .any(|r| (r.first.0..r.first.0 + u64::from(r.count)).contains(&(i * 3))))
        );
    }
}
