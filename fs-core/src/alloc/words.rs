//! Allocation bits in atomic words: claimed without a lock, one compare-and-swap a word.

use std::sync::atomic::AtomicU64;

use crate::atomic::AtomicWord;
use crate::mutants::{self, Mutant};

/// What became of an attempt to claim a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// All bits were free and are now set.
    Done,
    /// Some bit was set; nothing was changed.
    Busy,
    /// Some bit was set; bits of other words were set for a moment, which others may have seen.
    RolledBack,
}

/// The bits of a block group (set = not available).
pub(super) struct Words<W = AtomicU64> {
    words: Box<[W]>,
}

impl<W: AtomicWord> Words<W> {
    /// `words` words, all bits set.
    pub fn full(words: usize) -> Self {
        Self { words: (0..words).map(|_| W::new(!0)).collect() }
    }

    /// Number of words.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// The bits of one word. `i` is below [`Self::len`].
    pub fn word(&self, i: usize) -> u64 {
        self.words[i].load()
    }

    /// Replaces all bits. Only while nobody else can reach them.
    pub fn fill(&self, bits: impl Iterator<Item = u64>) {
        for (word, bits) in self.words.iter().zip(bits) {
            word.store(bits);
        }
    }

    /// Sets the bits of a run if all are free; counts lost races in `retries`.
    pub fn claim(&self, start: u32, len: u32, retries: &mut u64) -> Claim {
        for (done, (i, mask)) in spans(start, len).enumerate() {
            if !self.claim_word(i, mask, retries) {
                for (i, mask) in spans(start, len).take(done) {
                    self.words[i].fetch_and(!mask);
                }
                return if done == 0 { Claim::Busy } else { Claim::RolledBack };
            }
        }
        Claim::Done
    }

    fn claim_word(&self, i: usize, mask: u64, retries: &mut u64) -> bool {
        let word = &self.words[i];
        let mut old = word.load();
        while old & mask == 0 {
            if mutants::active(Mutant::NonAtomicClaim) {
                std::thread::yield_now();
                word.store(old | mask);
                return true;
            }
            match word.exchange(old, old | mask) {
                Ok(_) => return true,
                Err(now) => old = now,
            }
            *retries += 1;
        }
        false
    }

    /// Are all bits of the run set?
    pub fn all_set(&self, start: u32, len: u32) -> bool {
        spans(start, len).all(|(i, mask)| self.words[i].load() & mask == mask)
    }

    /// Clears the bits of a run, or nothing and `false` if one of them is clear already. Callers
    /// that clear must exclude each other; claims may go on beside it.
    pub fn clear(&self, start: u32, len: u32) -> bool {
        if !self.all_set(start, len) {
            return false;
        }
        for (i, mask) in spans(start, len) {
            self.words[i].fetch_and(!mask);
        }
        true
    }

    /// Sets the bits of a run, whatever they were; returns how many were clear.
    pub fn set(&self, start: u32, len: u32) -> u32 {
        spans(start, len).map(|(i, mask)| (mask & !self.words[i].fetch_or(mask)).count_ones()).sum()
    }

    /// Number of clear bits.
    pub fn count_free(&self) -> u32 {
        self.words.iter().map(|w| w.load().count_zeros()).sum()
    }
}

/// The words a run touches, each with the mask of its bits.
pub(super) fn spans(start: u32, len: u32) -> impl Iterator<Item = (usize, u64)> {
    let end = start + len;
    let mut at = start;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let bit = at % 64;
        let n = (64 - bit).min(end - at);
        let i = (at / 64) as usize;
        at += n;
        Some((i, (!0u64 >> (64 - n)) << bit))
    })
}
