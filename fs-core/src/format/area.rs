//! The data area: the blocks that anything but the fixed structures may be in.

use super::Superblock;
use crate::types::BlockNr;

/// The data area of a volume of some size: from the superblock's `first_data_block` to the last block
/// but one. The place of the third copy of the superblock as mkfs has chosen it stays out of it when
/// the volume grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataArea {
    first: u64,
    end: u64,
    copy: u64,
}

impl DataArea {
    /// That of the volume when it has `total_blocks`.
    pub fn new(sb: &Superblock, total_blocks: u64) -> Self {
        Self {
            first: sb.first_data_block.0,
            end: total_blocks.saturating_sub(1),
            copy: sb.total_blocks.saturating_sub(1),
        }
    }

    /// Its first block.
    pub fn first(&self) -> BlockNr {
        BlockNr(self.first)
    }

    /// The block behind its last one.
    pub fn end(&self) -> BlockNr {
        BlockNr(self.end)
    }

    /// The copy of the superblock in the middle of it, if the volume has grown.
    pub fn copy(&self) -> Option<BlockNr> {
        (self.first..self.end).contains(&self.copy).then_some(BlockNr(self.copy))
    }

    /// All of `len` blocks from `start` on belong to it. Takes any numbers.
    pub fn contains(&self, start: BlockNr, len: u64) -> bool {
        let Some(end) = start.0.checked_add(len) else { return false };
        start.0 >= self.first && end <= self.end && !(start.0..end).contains(&self.copy)
    }

    /// Number of its blocks.
    pub fn blocks(&self) -> u64 {
        self.end.saturating_sub(self.first) - u64::from(self.copy().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsck::tests::superblock;

    #[test]
    fn the_first_end_stays_out_of_a_grown_area() {
        let sb = superblock();
        let (first, old) = (sb.first_data_block.0, sb.total_blocks);
        let area = DataArea::new(&sb, old);
        assert_eq!((area.copy(), area.blocks()), (None, old - 1 - first));
        assert!(area.contains(BlockNr(old - 2), 1) && !area.contains(BlockNr(old - 1), 1));
        let grown = DataArea::new(&sb, old + 10);
        assert_eq!((grown.copy(), grown.blocks()), (Some(BlockNr(old - 1)), old + 8 - first));
        assert!(grown.contains(BlockNr(old - 5), 4) && grown.contains(BlockNr(old), 9));
        for (start, len) in [(old - 5, 5), (old - 1, 1), (old, 10), (first - 1, 2), (5, u64::MAX)] {
            assert!(!grown.contains(BlockNr(start), len), "{start} {len}");
        }
        assert_eq!(DataArea::new(&sb, old + 1).blocks(), area.blocks(), "one block more is the new copy");
    }
}
