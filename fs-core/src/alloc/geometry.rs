//! How the volume is cut into block groups.

use std::ops::Range;

use crate::error::{FsError, Result};
use crate::types::{BlockNr, BlockRun, GroupNr};

/// Smallest block group, in blocks.
pub const MIN_GROUP_BLOCKS: u32 = 512;
/// Largest block group, in blocks (128 MiB).
pub const MAX_GROUP_BLOCKS: u32 = 32768;
/// Largest volume, in blocks (1 EiB): byte offsets stay far from overflow.
pub const MAX_BLOCKS: u64 = 1 << 48;
/// Most block groups: group tables are indexed with that in mind.
pub const MAX_GROUPS: u64 = 1 << 32;

/// Size of a volume and of its block groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks on the volume. The last group may be cut short.
    pub total_blocks: u64,
    /// First block that may be allocated; what lies before belongs to fixed structures.
    pub first_data_block: BlockNr,
    /// Blocks in a group: a power of two from 512 to 32768.
    pub group_blocks: u32,
    /// A block that is never given out: where a copy of the superblock was when the volume was smaller.
    /// May lie behind the end.
    pub fixed_block: Option<BlockNr>,
}

/// The part of a run that lies in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub group: GroupNr,
    /// First block, counted from the start of the group.
    pub start: u32,
    pub len: u32,
}

impl Geometry {
    /// Refuses a geometry the allocator cannot work with.
    pub fn validate(&self) -> Result<()> {
        let size = self.group_blocks;
        if !size.is_power_of_two() || !(MIN_GROUP_BLOCKS..=MAX_GROUP_BLOCKS).contains(&size) {
            return Err(FsError::Volume(format!("a block group cannot have {size} blocks")));
        }
        if self.first_data_block.0 >= self.total_blocks {
            return Err(FsError::Volume(format!("no room for data in {} blocks", self.total_blocks)));
        }
        if self.total_blocks > MAX_BLOCKS || self.groups() > MAX_GROUPS {
            return Err(FsError::Volume(format!("{} blocks are too many", self.total_blocks)));
        }
        Ok(())
    }

    /// Number of block groups, the last one perhaps cut short.
    pub fn groups(&self) -> u64 {
        self.total_blocks.div_ceil(self.group_blocks as u64)
    }

    /// The group that holds `block`.
    pub fn group_of(&self, block: BlockNr) -> GroupNr {
        GroupNr(block.0 / self.group_blocks as u64)
    }

    /// First block of `group`.
    pub fn group_start(&self, group: GroupNr) -> BlockNr {
        BlockNr(group.0 * self.group_blocks as u64)
    }

    /// `u64` words that hold the bits of one group.
    pub fn group_words(&self) -> usize {
        (self.group_blocks / 64) as usize
    }

    /// Position of `block` in its group.
    pub(super) fn offset_in_group(&self, block: BlockNr) -> u32 {
        (block.0 & (self.group_blocks as u64 - 1)) as u32
    }

    /// The run at `start` in `group`.
    pub(super) fn run(&self, group: GroupNr, start: u32, len: u32) -> BlockRun {
        BlockRun::new(self.group_start(group).plus(start as u64), len)
    }

    /// Refuses a run that is empty or not within the blocks that can be allocated.
    pub(super) fn check(&self, run: BlockRun) -> Result<()> {
        let end = run.start.0.checked_add(run.len as u64);
        let inside = end.is_some_and(|end| end <= self.total_blocks) && run.start >= self.first_data_block;
        if run.len == 0 || !inside {
            return Err(corrupt(run, "outside the volume"));
        }
        if self.fixed_block.is_some_and(|fixed| run.start <= fixed && fixed < run.end()) {
            return Err(corrupt(run, "a copy of the superblock is there"));
        }
        Ok(())
    }

    /// Cuts a checked run at the borders of groups.
    pub(super) fn parts(&self, run: BlockRun) -> impl Iterator<Item = Part> + use<> {
        let geometry = *self;
        let mut left = run;
        std::iter::from_fn(move || {
            if left.len == 0 {
                return None;
            }
            let start = geometry.offset_in_group(left.start);
            let len = left.len.min(geometry.group_blocks - start);
            let part = Part { group: geometry.group_of(left.start), start, len };
            left = BlockRun::new(left.start.plus(len as u64), left.len - len);
            Some(part)
        })
    }

    /// What of a range of blocks is left without the one that is never given out.
    pub(super) fn without_fixed(&self, blocks: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let inside = self.fixed_block.map(|b| b.0).filter(|b| blocks.contains(b));
        let (cut, rest) = inside.map_or((blocks.end, blocks.end), |fixed| (fixed, fixed + 1));
        [blocks.start..cut, rest..blocks.end].into_iter().filter(|range| !range.is_empty())
    }

    /// Where in `group` the block is that is never given out.
    pub(super) fn fixed_in(&self, group: GroupNr) -> Option<u32> {
        let fixed = self.fixed_block.filter(|block| self.group_of(*block) == group)?;
        Some(self.offset_in_group(fixed))
    }

    /// The offsets in `group` that can be allocated at all, but for [`Self::fixed_in`]: `start..end`.
    pub(super) fn usable(&self, group: GroupNr) -> (u32, u32) {
        let first = self.group_start(group).0;
        let size = self.group_blocks as u64;
        let start = self.first_data_block.0.saturating_sub(first).min(size);
        let end = self.total_blocks.saturating_sub(first).min(size);
        (start as u32, end.max(start) as u32)
    }
}

/// A contradiction between what the caller says and the allocation bits.
pub(super) fn corrupt(run: BlockRun, why: &str) -> FsError {
    FsError::corrupt("allocation bitmap", run.start, format!("run of {} blocks: {why}", run.len))
}
