//! Disjoint ranges with values: a later insert overrides what it covers.

use std::collections::BTreeMap;

/// A value of a range that can be cut.
pub(crate) trait Slice: Clone {
    /// The value of the part that starts `skip` units in and is `len` units long.
    fn slice(&self, skip: u64, len: u64) -> Self;
}

/// The ranges.
#[derive(Clone, Debug)]
pub(crate) struct RangeMap<V> {
    ranges: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new() }
    }
}

impl<V: Slice> RangeMap<V> {
    /// Gives `[start, start + len)` the value, cutting older ranges. `len` is not 0 and the range
    /// does not wrap.
    pub(crate) fn insert(&mut self, start: u64, len: u64, value: V) {
        let end = start.saturating_add(len);
        if let Some((&s, &(l, _))) = self.ranges.range(..start).next_back()
            && s + l > start
            && let Some((l, v)) = self.ranges.remove(&s)
        {
            self.ranges.insert(s, (start - s, v.slice(0, start - s)));
            if s + l > end {
                self.ranges.insert(end, (s + l - end, v.slice(end - s, s + l - end)));
            }
        }
        while let Some((&s, &(l, _))) = self.ranges.range(start..end).next() {
            let Some((_, v)) = self.ranges.remove(&s) else { break };
            if s + l > end {
                self.ranges.insert(end, (s + l - end, v.slice(end - s, s + l - end)));
            }
        }
        self.ranges.insert(start, (end - start, value));
    }

    /// The parts of ranges that lie in `[start, start + len)`, as (start, length, range's start,
    /// value): the value belongs to the whole range.
    pub(crate) fn overlapping(&self, start: u64, len: u64) -> impl Iterator<Item = (u64, u64, u64, &V)> + '_ {
        let end = start.saturating_add(len);
        let first =
            self.ranges.range(..start).next_back().filter(|(s, (l, _))| *s + *l > start).map(|(s, _)| *s);
        self.ranges.range(first.unwrap_or(start)..end).map(move |(&s, (l, v))| {
            let from = s.max(start);
            let to = (s + l).min(end);
            (from, to - from, s, v)
        })
    }

    /// All ranges: (start, length, value).
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64, &V)> + '_ {
        self.ranges.iter().map(|(s, (l, v))| (*s, *l, v))
    }
}

impl Slice for bool {
    fn slice(&self, _skip: u64, _len: u64) -> Self {
        *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct At(u64);
    impl Slice for At {
        fn slice(&self, skip: u64, _len: u64) -> Self {
            At(self.0 + skip)
        }
    }

    /// Against an array, one cell a unit.
    #[test]
    fn agrees_with_an_array() {
        let mut state = 12345u64;
        let mut rnd = move |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..200 {
            let mut map = RangeMap::default();
            let mut cells = vec![None; 200];
            for k in 1..60 {
                let start = rnd(190);
                let len = 1 + rnd(10.min(200 - start));
                map.insert(start, len, At(k * 1000));
                for i in 0..len {
                    cells[(start + i) as usize] = Some(k * 1000 + i);
                }
            }
            let (from, n) = (rnd(100), 1 + rnd(100));
            let mut seen = vec![None; 200];
            for (start, len, origin, v) in map.overlapping(from, n) {
                for i in 0..len {
                    seen[(start + i) as usize] = Some(v.0 + start - origin + i);
                }
            }
            assert_eq!(seen[from as usize..(from + n) as usize], cells[from as usize..(from + n) as usize]);
        }
    }
}
