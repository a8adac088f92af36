//! A set of blocks kept as runs.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint, merged runs of block numbers.
#[derive(Default)]
pub(super) struct RunSet {
    runs: BTreeMap<u64, u64>,
    blocks: u64,
}

impl RunSet {
    /// Number of blocks in the set.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Adds blocks; some may be in the set already.
    pub fn insert(&mut self, mut add: Range<u64>) {
        // Touching neighbours merge, hence the ..= end.
        while let Some((&start, &end)) = self.runs.range(..=add.end).next_back() {
            if end < add.start {
                break;
            }
            self.runs.remove(&start);
            self.blocks -= end - start;
            add = add.start.min(start)..add.end.max(end);
        }
        self.blocks += add.end - add.start;
        self.runs.insert(add.start, add.end);
    }

    /// Takes blocks out; some may not be in the set.
    pub fn remove(&mut self, cut: Range<u64>) {
        loop {
            let Some(run) = self.overlaps(cut.clone()).next_back() else { return };
            self.runs.remove(&run.start);
            self.blocks -= run.end - run.start;
            if run.start < cut.start {
                self.insert(run.start..cut.start);
            }
            if run.end > cut.end {
                self.insert(cut.end..run.end);
            }
        }
    }

    /// The runs that have a block in common with `range`, whole, in order.
    pub fn overlaps(&self, range: Range<u64>) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        let before = self.runs.range(..range.start).next_back().filter(|(_, end)| **end > range.start);
        let first = before.map_or(range.start, |(&start, _)| start);
        let end = range.end.max(first);
        self.runs.range(first..end).map(|(&start, &end)| start..end)
    }

    /// Has the set a block in common with `range`?
    pub fn intersects(&self, range: Range<u64>) -> bool {
        self.overlaps(range).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::tests::cases;
    use super::*;

    proptest! {
        #![proptest_config(cases(300))]

        #[test]
        fn behaves_as_a_set(ops in proptest::collection::vec((any::<bool>(), 0u64..60, 1u64..20), 1..60)) {
            let mut set = RunSet::default();
            let mut model = BTreeSet::new();
            for (add, start, len) in ops {
                if add {
                    set.insert(start..start + len);
                    model.extend(start..start + len);
                } else {
                    set.remove(start..start + len);
                    model.retain(|b| !(start..start + len).contains(b));
                }
                let blocks: BTreeSet<u64> = set.overlaps(0..100).flatten().collect();
                prop_assert_eq!(&blocks, &model);
                prop_assert_eq!(set.blocks(), model.len() as u64);
                let touching = set.runs.iter().zip(set.runs.iter().skip(1)).any(|(a, b)| a.1 >= b.0);
                prop_assert!(!touching, "runs are merged");
                for at in 0..80 {
                    prop_assert_eq!(set.intersects(at..at + 2), model.range(at..at + 2).next().is_some());
                }
            }
        }
    }
}
