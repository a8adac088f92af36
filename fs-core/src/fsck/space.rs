//! Every block is in use once, or free, and the allocation bitmaps say so.

use super::blocks::BlockSet;
use super::report::{Findings, ProblemKind, run_text};
use crate::delta::{Delta, RangeMap};
use crate::format::bitmap::{BITMAP_BLOCKS, Piece, mark};
use crate::format::pending::PendingEntry;
use crate::format::{RootSlot, Superblock};
use crate::types::{BlockNr, BlockRun, Ino};

/// Blocks and what the metadata says about them.
#[derive(Debug)]
pub(super) struct Space {
    /// In use, as found.
    used: BlockSet,
    /// In use, by the bitmaps.
    marked: BlockSet,
    first: u64,
    end: u64,
    /// Claims still looked at. More than this would mean that blocks are used many times over.
    budget: u64,
}

impl Space {
    /// For the volume of this root.
    pub(super) fn new(sb: &Superblock, slot: &RootSlot) -> Self {
        let end = slot.total_blocks.saturating_sub(1);
        Self {
            used: BlockSet::default(),
            marked: BlockSet::default(),
            first: sb.first_data_block.0,
            end,
            budget: end.saturating_mul(2),
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
        if run.start.0 < self.first || run.end().0 > self.end {
            findings.add(ProblemKind::OutOfRange, ino, Some(run.start), || {
                format!("{} uses {}, outside of the data area", owner(), run_text(run))
            });
            return false;
        }
        if let Some(twice) = self.used.set(run, true) {
            findings.add(ProblemKind::DoubleUse, ino, Some(twice.start), || {
                format!("{} uses {}, which something else uses too", owner(), run_text(twice))
            });
        }
        true
    }

    /// A piece of the tree's bitmap.
    pub(super) fn bitmap(&mut self, piece: u64, words: &Piece, findings: &mut Findings) {
        let start = piece.saturating_mul(BITMAP_BLOCKS);
        if start >= self.end {
            findings.volume(ProblemKind::OutOfRange, || {
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
        let below = self.first.saturating_sub(start).min(BITMAP_BLOCKS);
        let end = (self.end - start).min(BITMAP_BLOCKS);
        mark(words, 0, below, false) + mark(words, end, BITMAP_BLOCKS - end, false)
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
        if start < self.first || start.checked_add(len).is_none_or(|end| end > self.end) {
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
        (self.end - self.first).saturating_sub(self.marked.len())
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
