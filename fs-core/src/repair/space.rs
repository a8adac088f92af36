//! Blocks for what the repair writes: only such as nothing has used that could still be wanted.

use crate::error::{FsError, Result};
use crate::format::{DataArea, GroupRange, Superblock};
use crate::fsck::BlockSet;
use crate::types::{BlockNr, BlockRun, GroupNr};

/// Gives out free blocks in ascending order, each once.
#[derive(Debug)]
pub(super) struct FreeSpace {
    taken: BlockSet,
    at: u64,
    first: u64,
    end: u64,
    group_blocks: u64,
    /// Runs that were given out.
    pub(super) given: Vec<BlockRun>,
}

impl FreeSpace {
    /// Of a volume of `total_blocks`; `taken` must stay as it is.
    pub(super) fn new(sb: &Superblock, total_blocks: u64, mut taken: BlockSet) -> Self {
        let area = DataArea::new(sb, total_blocks);
        area.copy().into_iter().for_each(|copy| taken.add(BlockRun::new(copy, 1)));
        Self {
            taken,
            at: area.first().0,
            first: area.first().0,
            end: area.end().0,
            group_blocks: sb.group_blocks.into(),
            given: Vec::new(),
        }
    }

    /// `len` free blocks in one group, aligned to `align`.
    pub(super) fn take(&mut self, len: u32, align: u64) -> Result<BlockRun> {
        let found = self.find(self.at, len, align).or_else(|| self.find(self.first, len, align));
        let Some(run) = found else {
            return Err(FsError::Volume(
                "there is not enough free space for the repair; enlarge the device and try again".into(),
            ));
        };
        self.taken.set(run, true);
        self.at = run.end().0;
        self.given.push(run);
        Ok(run)
    }

    fn find(&self, from: u64, len: u32, align: u64) -> Option<BlockRun> {
        let n = u64::from(len);
        let mut at = from.next_multiple_of(align);
        while at + n <= self.end {
            let run = BlockRun::new(BlockNr(at), len);
            let crosses = at / self.group_blocks != (at + n - 1) / self.group_blocks;
            match self.taken.last_in(run) {
                None if !crosses => return Some(run),
                None => at = (at / self.group_blocks + 1) * self.group_blocks,
                Some(last) => at = last.0 + 1,
            }
            at = at.next_multiple_of(align);
        }
        None
    }

    /// The groups that blocks were given out of, in at most `max` ranges.
    pub(super) fn groups(&self, max: usize) -> Vec<GroupRange> {
        let mut groups: Vec<u64> = self.given.iter().map(|r| r.start.0 / self.group_blocks).collect();
        groups.sort_unstable();
        groups.dedup();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for g in groups {
            match ranges.last_mut() {
                Some((_, end)) if *end == g => *end += 1,
                _ => ranges.push((g, g + 1)),
            }
        }
        while ranges.len() > max {
            let gap = |i: &usize| ranges[i + 1].0 - ranges[*i].1;
            let Some(i) = (0..ranges.len() - 1).min_by_key(gap) else { break };
            let (_, end) = ranges.remove(i + 1);
            ranges[i].1 = end;
        }
        let range = |(from, to): (u64, u64)| GroupRange { first: GroupNr(from), count: (to - from) as u32 };
        ranges.into_iter().map(range).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsck::tests::superblock;

    #[test]
    fn gives_free_blocks_once_and_within_groups() {
        let sb = superblock();
        let first = sb.first_data_block.0;
        let mut taken = BlockSet::default();
        taken.set(BlockRun::new(BlockNr(first), 6), true);
        let mut free = FreeSpace::new(&sb, sb.total_blocks, taken);
        let mut seen = BlockSet::default();
        for i in 0..40 {
            let run = free.take(if i % 2 == 0 { 4 } else { 100 }, 4).unwrap();
            assert!(run.start.0 >= first + 6 && run.start.0.is_multiple_of(4));
            assert_eq!(run.start.0 / 512, (run.end().0 - 1) / 512, "{run:?}");
            assert_eq!(seen.set(run, true), None);
        }
        assert_eq!(free.groups(64).len(), 1);
        assert!(free.take(513, 1).is_err());
    }
}
