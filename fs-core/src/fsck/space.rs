//! Every block is in use once, or free, and the allocation bitmaps say so.

use super::blocks::BlockSet;
use super::report::{Findings, ProblemKind, run_text};
use crate::delta::{Delta, RangeMap};
use crate::format::bitmap::{BITMAP_BLOCKS, Piece, mark};
use crate::format::pending::PendingEntry;
use crate::format::{DataArea, RootSlot, Superblock};
use crate::types::{BlockNr, BlockRun, Ino};

/// Blocks and what the metadata says about them.
#[derive(Debug)]
pub(super) struct Space {
    /// In use, as found.
    used: BlockSet,
    /// In use, by the bitmaps.
    marked: BlockSet,
    area: DataArea,
    /// Claims still looked at. More than this would mean that blocks are used many times over.
    budget: u64,
    /// Runs that were claimed twice, the first few of them.
    twice: Vec<BlockRun>,
}

/// Runs used twice whose users are looked for.
const MAX_TWICE: usize = 32;

impl Space {
    /// For the volume of this root.
    pub(super) fn new(sb: &Superblock, slot: &RootSlot) -> Self {
        Self {
            used: BlockSet::default(),
            marked: BlockSet::default(),
            area: DataArea::new(sb, slot.total_blocks),
            budget: slot.total_blocks.saturating_mul(2),
            twice: Vec::new(),
        }
    }

    /// Far more blocks were claimed than there are: the rest is not worth looking at.
    pub(super) fn is_exhausted(&self) -> bool {
        self.budget == 0
    }

    /// Something uses a run. False: it cannot.
    pub(super) fn claim(
        &mut self,
        run: BlockRun,
        ino: Option<Ino>,
        findings: &mut Findings,
        owner: impl Fn() -> String,
    ) -> bool {
        self.budget = self.budget.saturating_sub(run.len.into());
        if !self.area.contains(run.start, run.len.into()) {
            findings.add(ProblemKind::OutOfRange, ino, Some(run.start), || {
                format!("{} uses {}, outside of the data area", owner(), run_text(run))
            });
            return false;
        }
        if let Some(twice) = self.used.set(run, true) {
            if self.twice.len() < MAX_TWICE {
                self.twice.push(twice);
            }
            findings.add(ProblemKind::DoubleUse, ino, Some(twice.start), || {
                format!("{} uses {}, which something else uses too", owner(), run_text(twice))
            });
        }
        true
    }

    /// The first of the runs that were claimed twice.
    pub(super) fn used_twice(&self) -> &[BlockRun] {
        &self.twice
    }

    /// A piece of the tree's bitmap.
    pub(super) fn bitmap(&mut self, piece: u64, words: &Piece, findings: &mut Findings) {
        let start = piece.saturating_mul(BITMAP_BLOCKS);
        if start >= self.area.end().0 {
            findings.add(ProblemKind::OutOfRange, None, None, || {
                format!("allocation bitmap {piece} lies beyond the end of the volume")
            });
            return;
        }
        let mut words = *words;
        let outside = self.cut_outside(start, &mut words);
        if outside > 0 {
            findings.add(ProblemKind::OutOfRange, None, Some(BlockNr(start)), || {
                format!("allocation bitmap {piece} marks {outside} blocks outside of the data area")
            });
        }
        self.marked.set_piece(piece, &words);
    }

    /// Clears the bits of blocks that cannot be allocated; returns how many were set.
    fn cut_outside(&self, start: u64, words: &mut Piece) -> u64 {
        let below = self.area.first().0.saturating_sub(start).min(BITMAP_BLOCKS);
        let end = (self.area.end().0 - start).min(BITMAP_BLOCKS);
        let copy = self.area.copy().and_then(|b| b.0.checked_sub(start)).filter(|b| *b < BITMAP_BLOCKS);
        mark(words, 0, below, false)
            + mark(words, end, BITMAP_BLOCKS - end, false)
            + copy.map_or(0, |bit| mark(words, bit, 1, false))
    }

    /// The bitmaps are complete: puts over them what they do not show yet.
    ///
    /// Blocks that a checkpoint's nodes took while it ran may have been freed as data by records
    /// behind it, so the nodes come last. Blocks that its nodes left may have been taken since.
    pub(super) fn apply(&mut self, pending: &[PendingEntry], delta: &Delta, findings: &mut Findings) {
        let mut net: RangeMap<bool> = RangeMap::default();
        for e in pending {
            net.insert(e.run.start.0, e.run.len.into(), e.used);
        }
        for (start, len, _) in net.iter().filter(|(.., used)| !**used) {
            self.mark(start, len, false, "pending list", findings);
        }
        for (start, len, used) in delta.blocks.iter() {
            self.mark(start, len, *used, "journal", findings);
        }
        for (start, len, _) in net.iter().filter(|(.., used)| **used) {
            self.mark(start, len, true, "pending list", findings);
        }
    }

    fn mark(&mut self, start: u64, len: u64, used: bool, by: &str, findings: &mut Findings) {
        if !self.area.contains(BlockNr(start), len) {
            findings.add(ProblemKind::OutOfRange, None, Some(BlockNr(start)), || {
                format!("the {by} names {len} blocks from block {start} on, outside of the data area")
            });
            return;
        }
        for_parts(start, len, &mut |run| {
            self.marked.set(run, used);
        });
    }

    /// Free blocks by the bitmaps.
    pub(super) fn free(&self) -> u64 {
        self.area.blocks().saturating_sub(self.marked.len())
    }

    /// All marked blocks and those of `kept`.
    pub(super) fn marked_runs(mut self, kept: &[BlockRun]) -> Vec<BlockRun> {
        for run in kept {
            self.marked.set(*run, true);
        }
        let mut runs = Vec::new();
        self.marked.without(&BlockSet::default(), &mut |run| {
            runs.push(run);
            true
        });
        runs
    }

    /// Compares the bitmaps with what is in use. `kept`: in use, and not to be marked.
    pub(super) fn compare(&mut self, kept: &[BlockRun], findings: &mut Findings) {
        for run in kept {
            if let Some(marked) = self.marked.set(*run, true) {
                findings.blocks(ProblemKind::Leak, marked, |blocks| {
                    format!("{blocks} of the journal or the pending list are marked used in the bitmap too")
                });
            }
        }
        self.used.without(&self.marked, &mut |run| {
            findings.blocks(ProblemKind::MarkedFree, run, |b| format!("{b} in use, but marked free"));
            true
        });
        self.marked.without(&self.used, &mut |run| {
            findings.blocks(ProblemKind::Leak, run, |b| format!("{b} marked used, but not in use"));
            true
        });
    }
}

/// Cuts a long range into runs.
fn for_parts(start: u64, len: u64, f: &mut dyn FnMut(BlockRun)) {
    let end = start.saturating_add(len);
    let mut at = start;
    while at < end {
        let n = (end - at).min(1 << 30);
        f(BlockRun::new(BlockNr(at), n as u32));
        at += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Change, MappedRun};
    use crate::fsck::tests::superblock;
    use crate::types::{Lsn, PageNr};

    fn run(start: u64, len: u32) -> BlockRun {
        BlockRun::new(BlockNr(start), len)
    }

    /// Nodes taken in blocks that were freed as data while their checkpoint ran stay in use; blocks
    /// that it left and that were taken since are in use, too.
    #[test]
    fn pending_frees_come_first_and_pending_nodes_last() {
        let sb = superblock();
        let slot = RootSlot { total_blocks: sb.total_blocks, ..RootSlot::default() };
        let (mut space, mut findings) = (Space::new(&sb, &slot), Findings::default());
        let mut words = [0; 128];
        mark(&mut words, 2000, 16, true);
        space.bitmap(0, &words, &mut findings);
        let pending =
            [PendingEntry { run: run(2000, 4), used: true }, PendingEntry { run: run(2008, 8), used: false }];
        let mut delta = Delta::default();
        delta.apply(&Change::Free { run: run(2000, 8) }, Lsn(5), 4);
        let mapped = MappedRun { start: BlockNr(2012), pages: 1, last_blocks: 4, crcs: None };
        delta.apply(&Change::MapRun { ino: Ino(20), page: PageNr(0), run: mapped }, Lsn(6), 4);
        space.apply(&pending, &delta, &mut findings);
        assert_eq!(space.marked_runs(&[run(3000, 2)]), [run(2000, 4), run(2012, 4), run(3000, 2)]);
        assert_eq!(findings.finish(|_| None).0, []);
    }

    #[test]
    fn what_lies_outside_of_the_data_area_is_found() {
        let sb = superblock();
        let slot = RootSlot { total_blocks: sb.total_blocks, ..RootSlot::default() };
        let (mut space, mut findings) = (Space::new(&sb, &slot), Findings::default());
        let mut words = [0; 128];
        mark(&mut words, 3, 1, true);
        space.bitmap(0, &words, &mut findings);
        let last = (sb.total_blocks - 1) / BITMAP_BLOCKS;
        let mut words = [0; 128];
        mark(&mut words, (sb.total_blocks - 1) % BITMAP_BLOCKS, 1, true);
        space.bitmap(last, &words, &mut findings);
        space.bitmap(last + 1, &words, &mut findings);
        space.apply(&[PendingEntry { run: run(5, 2), used: true }], &Delta::default(), &mut findings);
        let (problems, _) = findings.finish(|_| None);
        assert_eq!(problems.len(), 4, "{problems:#?}");
        assert!(problems.iter().all(|p| p.kind == ProblemKind::OutOfRange));
        assert!(space.marked_runs(&[]).is_empty());
    }
}
