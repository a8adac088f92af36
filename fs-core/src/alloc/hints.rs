//! What failed searches of a group have found out.

use std::sync::atomic::AtomicU64;

use crate::atomic::AtomicWord;

/// Remembers which searches of a group have failed since bits were last cleared there, so that they
/// are not tried again. One word: a generation that clearing bits advances, and for each of four
/// alignments the smallest size class that is known not to be there.
pub(super) struct RunHints<W = AtomicU64>(W);

#[derive(Clone, Copy)]
pub(super) struct Hint(u64);

const ALIGNS: [u32; 4] = [1, 4, 16, 64];
const CLASS_BITS: u32 = 5;
const CLASS: u64 = (1 << CLASS_BITS) - 1;
const GENERATION_SHIFT: u32 = CLASS_BITS * ALIGNS.len() as u32;

impl<W: AtomicWord> RunHints<W> {
    pub fn new() -> Self {
        Self(W::new(0))
    }

    pub fn read(&self) -> Hint {
        Hint(self.0.load())
    }

    /// Bits were cleared (before this call): everything may be there again.
    pub fn reset(&self) {
        let mut old = self.0.load();
        while let Err(now) = self.0.exchange(old, ((old >> GENERATION_SHIFT) + 1) << GENERATION_SHIFT) {
            old = now;
        }
    }

    /// A search that began with `seen` has found no such run. Kept only if nothing was cleared
    /// since, so it can never hide a free run.
    pub fn record(&self, seen: Hint, need: u32, align: u32) {
        let Some(kind) = ALIGNS.iter().position(|&a| a >= align) else { return };
        let class = need.next_power_of_two().ilog2();
        if seen.fails_from(kind) <= class {
            return;
        }
        let shift = kind as u32 * CLASS_BITS;
        // Stored as class + 1, so that 0 means "nothing known".
        let new = seen.0 & !(CLASS << shift) | (class as u64 + 1) << shift;
        let _ = self.0.exchange(seen.0, new);
    }
}

impl Hint {
    /// Runs of 2^this blocks or more are known not to exist.
    fn fails_from(self, kind: usize) -> u32 {
        match (self.0 >> (kind as u32 * CLASS_BITS)) & CLASS {
            0 => u32::MAX,
            class => class as u32 - 1,
        }
    }

    /// Is it known that there is no such run?
    pub fn hopeless(self, need: u32, align: u32) -> bool {
        let class = need.ilog2();
        ALIGNS.iter().enumerate().any(|(kind, &a)| a <= align && self.fails_from(kind) <= class)
    }
}
