//! Choices from bytes: what a fuzzer mutates, and what a seed is spread into.

use crate::rng::Rng;

/// Gives numbers from its bytes; zeros when they are used up.
#[derive(Clone, Debug)]
pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    /// A script of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    /// A number in `0..n`; 0 if `n` is 0. Takes as few bytes as `n` needs.
    pub fn below(&mut self, n: usize) -> usize {
        let bytes = (usize::BITS - n.saturating_sub(1).leading_zeros()).div_ceil(8);
        let number = (0..bytes).fold(0usize, |sum, _| sum << 8 | usize::from(self.byte()));
        number.checked_rem(n).unwrap_or(0)
    }

    /// Eight bytes as a number.
    pub fn number(&mut self) -> u64 {
        (0..8).fold(0, |sum, _| sum << 8 | u64::from(self.byte()))
    }

    /// One of `choices`; the first of none is a mistake of the caller.
    pub fn pick<'c, T>(&mut self, choices: &'c [T]) -> &'c T {
        &choices[self.below(choices.len())]
    }
}

/// Bytes of a script that follow from a seed.
pub fn random(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let len = rng.between(8, 96);
    (0..len).map(|_| rng.next_u64() as u8).collect()
}
