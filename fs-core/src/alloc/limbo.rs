//! Freed blocks that must not be used yet (rule R1).

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};
use std::ops::Range;

use crate::types::Lsn;

/// Runs that wait for the record that freed them to be *known* durable: until a flushed record or
/// slot says so, recovery would verify the old mapping against the new bytes.
///
/// Runs are cut at group borders by the caller.
#[derive(Default)]
pub(super) struct Limbo {
    by_block: BTreeMap<u64, u32>,
    /// Length and I/O generation (see `gate`) by record and first block.
    by_lsn: BTreeMap<(Lsn, u64), (u32, u64)>,
    /// Records up to here are known to be durable.
    durable: Lsn,
    /// Blocks and runs that such records have freed.
    ready: (u64, u64),
    /// The slowest follower has applied the records up to here.
    followers: Option<Lsn>,
    /// No I/O in flight can touch what was freed in a generation before this one.
    drained: u64,
}

impl Limbo {
    /// Puts a run away that the record `lsn` frees, in an I/O generation. The caller has checked
    /// [`Self::intersects`].
    pub fn insert(&mut self, start: u64, len: u32, lsn: Lsn, generation: u64) {
        self.by_block.insert(start, len);
        self.by_lsn.insert((lsn, start), (len, generation));
        if lsn <= self.durable {
            self.count_ready(len);
        }
    }

    fn count_ready(&mut self, len: u32) {
        self.ready = (self.ready.0 + u64::from(len), self.ready.1 + 1);
    }

    /// Takes out a run that the record `lsn` has freed, and that is used again; false: it is not here, or
    /// the record is known to be durable.
    pub fn recall(&mut self, start: u64, len: u32, lsn: Lsn) -> bool {
        let freed = self.by_lsn.get(&(lsn, start)).is_some_and(|(l, _)| *l == len);
        let here = freed && lsn > self.durable;
        if here {
            self.by_lsn.remove(&(lsn, start));
            self.by_block.remove(&start);
        }
        here
    }

    /// Is a block of `range` in limbo?
    pub fn intersects(&self, range: Range<u64>) -> bool {
        self.overlaps(range).next().is_some()
    }

    /// The runs that have a block in common with `range`, whole.
    pub fn overlaps(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let whole = |(&start, &len): (&u64, &u32)| start..start + len as u64;
        let before = self.by_block.range(..range.start).next_back().map(whole);
        let before = before.filter(|run| run.end > range.start);
        before.into_iter().chain(self.by_block.range(range).map(whole))
    }

    /// Notes that all records up to `durable` are known to be durable, and that I/O on what was freed
    /// before the generation `drained` has ended. Never goes back.
    pub fn advance(&mut self, durable: Lsn, drained: u64) {
        self.drained = self.drained.max(drained);
        if durable <= self.durable {
            return;
        }
        let last = |lsn: Lsn| (lsn, u64::MAX);
        let more = self.by_lsn.range((Excluded(last(self.durable)), Included(last(durable))));
        let more: Vec<u32> = more.map(|(_, (len, _))| *len).collect();
        more.into_iter().for_each(|len| self.count_ready(len));
        self.durable = durable;
    }

    /// Notes how far the slowest follower with a claim has come; `None` when there is none.
    pub fn set_followers(&mut self, applied: Option<Lsn>) {
        self.followers = applied;
    }

    /// Blocks and runs that could be used again but for the slowest follower.
    pub fn waiting_for_followers(&self) -> (u64, u64) {
        let oldest = self.by_lsn.first_key_value().map(|(key, _)| key.0);
        let behind = oldest.zip(self.followers).is_some_and(|(lsn, f)| f < lsn && lsn <= self.durable);
        if behind { self.ready } else { (0, 0) }
    }

    /// Takes out one run that may be used again.
    pub fn pop(&mut self) -> Option<(u64, u32)> {
        let bound = self.followers.map_or(self.durable, |f| f.min(self.durable));
        let entry = self.by_lsn.first_entry()?;
        let (lsn, start) = *entry.key();
        let (len, generation) = *entry.get();
        if lsn > bound || generation >= self.drained {
            return None;
        }
        entry.remove();
        self.by_block.remove(&start);
        self.ready = (self.ready.0 - u64::from(len), self.ready.1 - 1);
        Some((start, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(limbo: &mut Limbo) -> Vec<(u64, u32)> {
        std::iter::from_fn(|| limbo.pop()).collect()
    }

    #[test]
    fn leaves_in_lsn_order_up_to_the_durable_one() {
        let mut limbo = Limbo::default();
        limbo.insert(50, 4, Lsn(7), 0);
        limbo.insert(10, 4, Lsn(9), 0);
        limbo.insert(30, 4, Lsn(8), 0);
        assert_eq!(drain(&mut limbo), []);
        limbo.advance(Lsn(8), 1);
        assert_eq!(drain(&mut limbo), [(50, 4), (30, 4)]);
        limbo.advance(Lsn(3), 1);
        assert_eq!(drain(&mut limbo), []);
        limbo.advance(Lsn(9), 1);
        assert_eq!(drain(&mut limbo), [(10, 4)]);
    }

    #[test]
    fn what_is_recalled_does_not_come_free() {
        let mut limbo = Limbo::default();
        limbo.insert(50, 4, Lsn(7), 0);
        limbo.insert(60, 4, Lsn(7), 0);
        assert!(!limbo.recall(50, 3, Lsn(7)) && !limbo.recall(50, 4, Lsn(8)) && !limbo.recall(51, 4, Lsn(7)));
        assert!(limbo.recall(50, 4, Lsn(7)));
        assert!(!limbo.recall(50, 4, Lsn(7)) && !limbo.intersects(50..54));
        limbo.advance(Lsn(9), 0);
        assert!(!limbo.recall(60, 4, Lsn(7)), "it may be used by others at any time");
        limbo.advance(Lsn(9), 1);
        assert_eq!(drain(&mut limbo), [(60, 4)]);
    }

    #[test]
    fn waits_for_the_slowest_follower() {
        let mut limbo = Limbo::default();
        limbo.insert(10, 1, Lsn(5), 0);
        limbo.insert(11, 1, Lsn(6), 0);
        limbo.set_followers(Some(Lsn(5)));
        limbo.advance(Lsn(6), 1);
        assert_eq!(limbo.waiting_for_followers(), (0, 0));
        assert_eq!(drain(&mut limbo), [(10, 1)]);
        limbo.insert(20, 7, Lsn(6), 0);
        limbo.insert(30, 9, Lsn(7), 0);
        assert_eq!(limbo.waiting_for_followers(), (8, 2));
        limbo.set_followers(None);
        assert_eq!(limbo.waiting_for_followers(), (0, 0));
        assert_eq!(drain(&mut limbo), [(11, 1), (20, 7)]);
        limbo.set_followers(Some(Lsn(6)));
        limbo.advance(Lsn(9), 1);
        assert_eq!(limbo.waiting_for_followers(), (9, 1));
    }

    #[test]
    fn waits_for_io_in_flight() {
        let mut limbo = Limbo::default();
        limbo.insert(10, 1, Lsn(5), 3);
        limbo.insert(11, 1, Lsn(6), 4);
        limbo.advance(Lsn(6), 3);
        assert_eq!(drain(&mut limbo), []);
        limbo.advance(Lsn(6), 4);
        assert_eq!(drain(&mut limbo), [(10, 1)]);
        limbo.advance(Lsn(6), 5);
        assert_eq!(drain(&mut limbo), [(11, 1)]);
    }

    #[test]
    fn knows_its_blocks() {
        let mut limbo = Limbo::default();
        limbo.insert(10, 5, Lsn(1), 0);
        limbo.insert(20, 5, Lsn(2), 0);
        assert!(limbo.intersects(14..15) && limbo.intersects(0..11) && limbo.intersects(12..13));
        assert!(!limbo.intersects(15..20) && !limbo.intersects(25..30) && !limbo.intersects(0..10));
        assert_eq!(limbo.overlaps(12..22).collect::<Vec<_>>(), [10..15, 20..25]);
    }
}
