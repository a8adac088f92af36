//! Where journals are: three areas, of which an epoch takes one that nobody needs.
//!
//! Nothing else is ever allocated there, so a mount finds room for its journal however full the volume
//! is (contract C9, rule R2). Three are enough, because a volume is served with at most two in use: its
//! own journal and the one of an epoch that ended in a crash. Who finds two in use and takes the third
//! makes a checkpoint first, and puts nothing into its journal before (see [`super::mount`]): should
//! that end in a crash, its own area is not needed by the next.

use crate::format::Superblock;
use crate::types::{BlockNr, GroupNr};

/// Number of areas.
pub(super) const AREAS: usize = 3;

/// The areas of a volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct JournalAreas {
    first: u64,
    /// Groups of each area.
    each: u64,
    group_blocks: u64,
    segment_blocks: u64,
    segments: u32,
}

impl JournalAreas {
    /// Where the superblock puts them.
    pub(super) fn new(sb: &Superblock) -> Self {
        Self {
            first: sb.first_journal_group().0,
            each: u64::from(sb.journal_groups) / AREAS as u64,
            group_blocks: sb.group_blocks.into(),
            segment_blocks: sb.segment_blocks.into(),
            segments: sb.segments,
        }
    }

    /// The groups of all areas.
    pub(super) fn all_groups(&self) -> Vec<GroupNr> {
        (0..AREAS).flat_map(|area| self.groups(area)).collect()
    }

    /// The groups of one area.
    pub(super) fn groups(&self, area: usize) -> Vec<GroupNr> {
        let first = self.first + area as u64 * self.each;
        (first..first + self.each).map(GroupNr).collect()
    }

    /// The segments in an area, none across a group's border.
    pub(super) fn segments(&self, area: usize) -> Vec<BlockNr> {
        let per_group = self.group_blocks / self.segment_blocks;
        let in_group = |g: GroupNr| {
            let start = g.0 * self.group_blocks;
            (0..per_group).map(move |n| BlockNr(start + n * self.segment_blocks))
        };
        self.groups(area).into_iter().flat_map(in_group).take(self.segments as usize).collect()
    }

    /// An area for a new journal: none that holds one of the `needed` segments, and rather none of the
    /// `excluded` groups, that an earlier epoch may still write to. If there is no other, one of the epoch
    /// before: it has ended before it was served, with a few records at the start of the ring: the new
    /// ring starts half way round. Never one that is `inherited`, excluded for an epoch before that.
    /// Returns the segments in the order of the ring, and the area's groups.
    pub(super) fn choose(
        &self,
        needed: impl Iterator<Item = BlockNr> + Clone,
        excluded: &[GroupNr],
        inherited: &[GroupNr],
    ) -> Option<(Vec<BlockNr>, Vec<GroupNr>)> {
        let holds_needed =
            |area| self.groups(area).iter().any(|g| needed.clone().any(|s| s.0 / self.group_blocks == g.0));
        let is_excluded = |area: &usize| self.groups(*area).iter().any(|g| excluded.contains(g));
        let free: Vec<usize> = (0..AREAS).filter(|area| !holds_needed(*area)).collect();
        let area = free.iter().copied().find(|area| !is_excluded(area));
        let is_inherited = |area: &usize| self.groups(*area).iter().any(|g| inherited.contains(g));
        let area = area.or(free.iter().copied().find(|area| !is_inherited(area)))?;
        let mut segments = self.segments(area);
        if is_excluded(&area) {
            let half = segments.len() / 2;
            segments.rotate_left(half);
        }
        Some((segments, self.groups(area)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn areas() -> JournalAreas {
        JournalAreas { first: 2, each: 2, group_blocks: 512, segment_blocks: 100, segments: 8 }
    }

    #[test]
    fn segments_stay_within_groups() {
        let a = areas();
        assert_eq!(a.groups(1), [GroupNr(4), GroupNr(5)]);
        let starts = [2048, 2148, 2248, 2348, 2448, 2560, 2660, 2760];
        assert_eq!(a.segments(1), starts.map(BlockNr));
    }

    #[test]
    fn what_is_needed_is_never_taken() {
        let a = areas();
        let choose_from = |needed: &[u64], excluded: &[u64], inherited: &[GroupNr]| {
            let needed: Vec<BlockNr> = needed.iter().map(|b| BlockNr(*b)).collect();
            let excluded: Vec<GroupNr> = excluded.iter().map(|g| GroupNr(*g)).collect();
            a.choose(needed.into_iter(), &excluded, inherited)
                .map(|(segments, groups)| (segments[0].0, groups[0].0))
        };
        let choose = |needed: &[u64], excluded: &[u64]| choose_from(needed, excluded, &[]);
        assert_eq!(choose(&[], &[]), Some((1024, 2)));
        assert_eq!(choose(&[1024, 1124], &[]), Some((2048, 4)));
        assert_eq!(choose(&[1024], &[5]), Some((3072, 6)));
        assert_eq!(choose(&[1024, 2760], &[4]), Some((3072, 6)));
        assert_eq!(choose(&[1024, 2760], &[6]), Some((3472, 6)), "half way round");
        let inherited = [GroupNr(7)];
        assert_eq!(
            choose_from(&[1024, 2760], &[6, 7], &inherited),
            None,
            "an epoch before the last one may write there"
        );
        assert_eq!(choose(&[1024, 2048, 3072], &[]), None);
    }
}
