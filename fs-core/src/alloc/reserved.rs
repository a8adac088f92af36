//! The groups this epoch may write to (rule R2), in the order they were reserved.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::table::Segmented;
use crate::types::GroupNr;

/// An append-only list of groups with a bit for each that says "may have free blocks".
pub(super) struct Reserved {
    groups: Segmented<AtomicU64>,
    /// Hints: a set bit may lie, a clear bit may not (see [`Self::exhausted`]).
    summary: Segmented<AtomicU64>,
    len: AtomicU64,
    /// Free blocks in reserved groups, never less than there are.
    free: AtomicI64,
}

impl Reserved {
    pub fn new() -> Self {
        let (groups, summary) = (Segmented::new(), Segmented::new());
        Self { groups, summary, len: AtomicU64::new(0), free: AtomicI64::new(0) }
    }

    pub fn len(&self) -> u64 {
        self.len.load(Ordering::SeqCst)
    }

    pub fn free(&self) -> u64 {
        self.free.load(Ordering::SeqCst).max(0) as u64
    }

    pub fn add_free(&self, blocks: u32) {
        self.free.fetch_add(blocks as i64, Ordering::SeqCst);
    }

    pub fn sub_free(&self, blocks: u32) {
        self.free.fetch_sub(blocks as i64, Ordering::SeqCst);
    }

    /// Appends a group. Callers exclude each other. `mark` is called with the group's position
    /// before anybody can find it.
    pub fn push(&self, group: GroupNr, free: u32, mark: impl FnOnce(u32)) {
        let index = self.len();
        self.groups.entry(index).store(group.0, Ordering::SeqCst);
        self.summary.entry(index / 64);
        mark(index as u32);
        self.add_free(free);
        self.may_have_free(index);
        self.len.store(index + 1, Ordering::SeqCst);
    }

    /// The group at a position below [`Self::len`].
    pub fn group(&self, index: u64) -> Option<GroupNr> {
        Some(GroupNr(self.groups.get(index)?.load(Ordering::SeqCst)))
    }

    /// Bits are about to be cleared, or were, in the group at `index`.
    pub fn may_have_free(&self, index: u64) {
        self.summary.entry(index / 64).fetch_or(1 << (index % 64), Ordering::SeqCst);
    }

    /// The group at `index` seemed to have no free block. `still` looks again once the hint is
    /// gone: who frees counts first and sets the hint after, so one of the two sees the other.
    pub fn exhausted(&self, index: u64, still: impl FnOnce() -> bool) {
        self.summary.entry(index / 64).fetch_and(!(1 << (index % 64)), Ordering::SeqCst);
        if !still() {
            self.may_have_free(index);
        }
    }

    /// First position in `from..end` that may have free blocks.
    pub fn candidate(&self, from: u64, end: u64) -> Option<u64> {
        let mut at = from;
        while at < end {
            let word = self.summary.get(at / 64)?.load(Ordering::SeqCst) >> (at % 64);
            if word != 0 {
                let found = at + word.trailing_zeros() as u64;
                return (found < end).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_follow_the_hints() {
        let list = Reserved::new();
        for n in 0..200 {
            list.push(GroupNr(n * 3), 1, |index| assert_eq!(index as u64, n));
        }
        assert_eq!((list.len(), list.free()), (200, 200));
        assert_eq!(list.group(150), Some(GroupNr(450)));
        for n in 0..199 {
            list.exhausted(n, || true);
        }
        assert_eq!(list.candidate(0, 200), Some(199));
        assert_eq!(list.candidate(0, 199), None);
        list.exhausted(199, || false);
        assert_eq!(list.candidate(3, 200), Some(199));
        list.may_have_free(70);
        assert_eq!(list.candidate(70, 200), Some(70));
        assert_eq!(list.candidate(71, 200), Some(199));
    }
}
