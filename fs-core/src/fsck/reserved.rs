//! The block groups that the running epoch may write to (rule R2).

use crate::types::{BlockRun, Lsn};
use crate::volume::Recovered;

/// What the last epoch has reserved, as far as it is still known.
#[derive(Debug)]
pub(super) struct Reserved {
    group_blocks: u64,
    /// Ranges of groups, ascending and disjoint: first, and behind the last.
    groups: Vec<(u64, u64)>,
    /// What was born behind this record was written by that epoch.
    since: Lsn,
    /// The last record there is.
    last: Lsn,
}

impl Reserved {
    /// By the root slot and the journal.
    pub(super) fn new(recovered: &Recovered) -> Self {
        let slot = recovered.slot.reserved.iter().map(|r| (r.first.0, r.count));
        let journal = recovered.delta.reserved.iter().map(|(first, n)| (first.0, *n));
        let mut all: Vec<(u64, u64)> =
            slot.chain(journal).map(|(first, n)| (first, first.saturating_add(n.into()))).collect();
        all.sort_unstable();
        let mut groups: Vec<(u64, u64)> = Vec::new();
        for (from, to) in all {
            match groups.last_mut() {
                Some(last) if last.1 >= from => last.1 = last.1.max(to),
                _ => groups.push((from, to)),
            }
        }
        let since = recovered.slot.journal.last().map_or(Lsn(u64::MAX), |own| own.start.lsn);
        Self {
            group_blocks: recovered.superblock.group_blocks.into(),
            groups,
            since,
            last: recovered.end.lsn,
        }
    }

    /// The epoch may write to this run.
    pub(super) fn covers(&self, run: BlockRun) -> bool {
        let first = run.start.0 / self.group_blocks;
        let last = run.end().0.saturating_sub(1) / self.group_blocks;
        let behind = self.groups.partition_point(|(from, _)| *from <= first);
        behind.checked_sub(1).is_some_and(|i| last < self.groups[i].1)
    }

    /// Nothing can be of this birth yet.
    pub(super) fn is_future(&self, birth: Lsn) -> bool {
        birth > self.last
    }

    /// Data of this birth was written by the epoch, and where it must not be.
    pub(super) fn is_violated(&self, birth: Lsn, run: BlockRun) -> bool {
        birth > self.since && !self.covers(run)
    }
}
