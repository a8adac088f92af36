//! Sets of blocks: a bit each, kept in pieces, so that only what is in use takes memory.

use std::collections::BTreeMap;

use crate::format::bitmap::{BITMAP_BLOCKS, Piece};
use crate::types::{BlockNr, BlockRun};

const NONE: Piece = [0; (BITMAP_BLOCKS / 64) as usize];

/// Bits of a piece; a piece that is all set takes no memory to speak of.
#[derive(Debug)]
enum Bits {
    All,
    /// The bits, and how many are set.
    Some(Box<Piece>, u64),
}

/// A set of blocks.
#[derive(Debug, Default)]
pub(crate) struct BlockSet {
    pieces: BTreeMap<u64, Bits>,
    len: u64,
}

impl BlockSet {
    /// Number of blocks in it.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Replaces a whole piece.
    pub(crate) fn set_piece(&mut self, piece: u64, words: &Piece) {
        self.len -= ones(&self.words(piece));
        self.len += ones(words);
        self.store(piece, *words);
    }

    /// The bits of a piece.
    pub(crate) fn words(&self, piece: u64) -> Piece {
        match self.pieces.get(&piece) {
            None => NONE,
            Some(Bits::All) => [u64::MAX; NONE.len()],
            Some(Bits::Some(words, _)) => **words,
        }
    }

    /// The pieces that have blocks in it.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = u64> + '_ {
        self.pieces.keys().copied()
    }

    /// All blocks of the run are in it.
    pub(crate) fn contains(&self, run: BlockRun) -> bool {
        (run.start.0..run.end().0).all(|b| self.has(b))
    }

    /// Some block of the run is in it.
    pub(crate) fn touches(&self, run: BlockRun) -> bool {
        self.last_in(run).is_some()
    }

    /// The last block of the run that is in it.
    pub(crate) fn last_in(&self, run: BlockRun) -> Option<BlockNr> {
        (run.start.0..run.end().0).rev().find(|b| self.has(*b)).map(BlockNr)
    }

    fn has(&self, block: u64) -> bool {
        match self.pieces.get(&(block / BITMAP_BLOCKS)) {
            None => false,
            Some(Bits::All) => true,
            Some(Bits::Some(words, _)) => {
                let bit = block % BITMAP_BLOCKS;
                words[(bit / 64) as usize] & 1 << (bit % 64) != 0
            }
        }
    }

    /// Calls `f` with each maximal run.
    pub(crate) fn for_each(&self, f: &mut dyn FnMut(BlockRun)) {
        self.without(&BlockSet::default(), &mut |run| {
            f(run);
            true
        });
    }

    /// Calls `f` with runs of the blocks that are in both.
    pub(crate) fn common(&self, other: &BlockSet, f: &mut dyn FnMut(BlockRun)) {
        let mut rest = BlockSet::default();
        self.without(other, &mut |run| {
            rest.set(run, true);
            true
        });
        self.without(&rest, &mut |run| {
            f(run);
            true
        });
    }

    fn store(&mut self, piece: u64, words: Piece) {
        match ones(&words) {
            0 => self.pieces.remove(&piece),
            BITMAP_BLOCKS => self.pieces.insert(piece, Bits::All),
            n => self.pieces.insert(piece, Bits::Some(Box::new(words), n)),
        };
    }

    /// Puts a run in or takes it out. Returns the first part of it, if any, that was so already.
    pub(crate) fn set(&mut self, run: BlockRun, used: bool) -> Option<BlockRun> {
        let mut already: Option<BlockRun> = None;
        let (mut at, end) = (run.start.0, run.end().0);
        while at < end {
            let piece = at / BITMAP_BLOCKS;
            let to = end.min((piece + 1) * BITMAP_BLOCKS);
            self.set_in_piece(piece, at, to, used, &mut already);
            at = to;
        }
        already
    }

    fn set_in_piece(&mut self, piece: u64, at: u64, to: u64, used: bool, already: &mut Option<BlockRun>) {
        let base = piece * BITMAP_BLOCKS;
        let bits = self.pieces.entry(piece).or_insert_with(|| Bits::Some(Box::new(NONE), 0));
        if let Bits::All = bits {
            *bits = Bits::Some(Box::new([u64::MAX; NONE.len()]), BITMAP_BLOCKS);
        }
        let Bits::Some(words, set) = bits else { return };
        let mut block = at;
        while block < to {
            let bit = block - base;
            let n = (64 - bit % 64).min(to - block);
            let mask = (u64::MAX >> (64 - n)) << (bit % 64);
            let word = &mut words[(bit / 64) as usize];
            let same = if used { *word & mask } else { !*word & mask };
            let changed = u64::from(mask.count_ones() - same.count_ones());
            if used {
                *word |= mask;
                *set += changed;
                self.len += changed;
            } else {
                *word &= !mask;
                *set -= changed;
                self.len -= changed;
            }
            note_same(already, base + bit - bit % 64, same);
            block += n;
        }
        match *set {
            0 => {
                self.pieces.remove(&piece);
            }
            BITMAP_BLOCKS => *bits = Bits::All,
            _ => {}
        }
    }

    /// Puts a run in.
    pub(crate) fn add(&mut self, run: BlockRun) {
        self.set(run, true);
    }

    /// Calls `f` with each maximal run of blocks that are in `self` and not in `other`, until it
    /// returns false.
    pub(crate) fn without(&self, other: &BlockSet, f: &mut dyn FnMut(BlockRun) -> bool) {
        let mut open: Option<BlockRun> = None;
        for (&piece, bits) in &self.pieces {
            if matches!((bits, other.pieces.get(&piece)), (Bits::All, Some(Bits::All))) {
                continue;
            }
            let (mine, theirs) = (self.words(piece), other.words(piece));
            for (i, (a, b)) in mine.iter().zip(&theirs).enumerate() {
                let mut rest = a & !b;
                while rest != 0 {
                    let from = rest.trailing_zeros();
                    let len = (rest >> from).trailing_ones();
                    rest &= !(u64::MAX >> (64 - len) << from);
                    let start = piece * BITMAP_BLOCKS + i as u64 * 64 + u64::from(from);
                    let joins = open.is_some_and(|o| o.end().0 == start && o.len < 1 << 31);
                    match &mut open {
                        Some(o) if joins => o.len += len,
                        _ => {
                            if let Some(done) = open.replace(BlockRun::new(BlockNr(start), len))
                                && !f(done)
                            {
                                return;
                            }
                        }
                    }
                }
            }
        }
        if let Some(last) = open {
            f(last);
        }
    }
}

fn ones(words: &Piece) -> u64 {
    words.iter().map(|w| u64::from(w.count_ones())).sum()
}

/// Extends or starts the first run of blocks that were as they should become.
fn note_same(already: &mut Option<BlockRun>, word_start: u64, same: u64) {
    if same == 0 {
        return;
    }
    let from = same.trailing_zeros();
    let len = (same >> from).trailing_ones();
    let start = word_start + u64::from(from);
    match already {
        None => *already = Some(BlockRun::new(BlockNr(start), len)),
        Some(run) if run.end().0 == start => run.len += len,
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn run(start: u64, len: u32) -> BlockRun {
        BlockRun::new(BlockNr(start), len)
    }

    #[test]
    fn agrees_with_a_plain_set() {
        let mut state = 7u64;
        let mut rnd = move |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let (mut set, mut plain) = (BlockSet::default(), BTreeSet::new());
        for _ in 0..600 {
            let (start, len, used) = (rnd(40_000), 1 + rnd(3000), rnd(3) > 0);
            let blocks = start..start + len;
            let first = blocks.clone().find(|b| plain.contains(b) == used);
            let already = set.set(run(start, len as u32), used);
            assert_eq!(already.map(|r| r.start.0), first);
            if let Some(r) = already {
                assert!((r.start.0..r.end().0).all(|b| plain.contains(&b) == used));
            }
            for b in blocks {
                if used {
                    plain.insert(b)
                } else {
                    plain.remove(&b)
                };
            }
            assert_eq!(set.len(), plain.len() as u64);
        }
        let mut seen = Vec::new();
        set.without(&BlockSet::default(), &mut |r| {
            seen.extend(r.start.0..r.end().0);
            true
        });
        assert_eq!(seen, plain.iter().copied().collect::<Vec<_>>());
    }

    #[test]
    fn difference_is_found_in_full_pieces_too() {
        let (mut a, mut b) = (BlockSet::default(), BlockSet::default());
        a.set(run(0, 3 * BITMAP_BLOCKS as u32), true);
        b.set(run(0, 3 * BITMAP_BLOCKS as u32), true);
        b.set(run(BITMAP_BLOCKS - 2, 5), false);
        let mut seen = Vec::new();
        a.without(&b, &mut |r| {
            seen.push(r);
            true
        });
        assert_eq!(seen, [run(BITMAP_BLOCKS - 2, 5)]);
    }

    #[test]
    fn pieces_are_replaced() {
        let mut a = BlockSet::default();
        a.set(run(0, 100), true);
        let mut words = NONE;
        words[1] = 0b101;
        a.set_piece(0, &words);
        assert_eq!(a.len(), 2);
        a.set_piece(0, &NONE);
        assert_eq!(a.len(), 0);
    }
}
