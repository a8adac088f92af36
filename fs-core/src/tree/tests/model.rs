//! Random batches against a `BTreeMap`.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::harness::{Change, Harness, key, value};
use crate::format::Key;

/// A batch: where, how dense, how many, and what.
#[derive(Clone, Debug)]
struct Batch {
    start: u64,
    stride: u64,
    count: u64,
    kind: Kind,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Put,
    Delete,
    Append,
    Mixed,
}

fn batch(keys: u64) -> impl Strategy<Value = Batch> {
    let kind = prop_oneof![
        4 => Just(Kind::Put),
        3 => Just(Kind::Delete),
        2 => Just(Kind::Append),
        3 => Just(Kind::Mixed)
    ];
    let count = prop_oneof![3 => 0..20u64, 2 => 20..400u64, 1 => 400..4000u64];
    let stride = prop_oneof![3 => Just(1u64), 2 => 2..10u64, 2 => 10..200u64];
    let len = prop_oneof![2 => 0..40usize, 2 => 40..600usize, 1 => 600..=4000usize];
    (0..keys, stride, count, kind, len).prop_map(|(start, stride, count, kind, len)| Batch {
        start,
        stride,
        count,
        kind,
        len,
    })
}

fn changes(batch: &Batch, keys: u64) -> BTreeMap<Key, Change> {
    let mut out = BTreeMap::new();
    for i in 0..batch.count {
        let n = batch.start + i * batch.stride;
        if n >= keys {
            break;
        }
        // Lengths vary within the batch, up to the longest.
        let len = (batch.len * (1 + n as usize % 7) / 4).min(4000);
        let change = match (batch.kind, n % 3) {
            (Kind::Put, _) | (Kind::Mixed, 0) => Change::Put(value(n + batch.count, len)),
            (Kind::Delete, _) | (Kind::Mixed, 1) => Change::Delete,
            (Kind::Append | Kind::Mixed, _) => Change::Append(value(n, len / 2), 4000),
        };
        out.insert(key(n), change);
    }
    out
}

/// The same cases in every run.
fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 40,
        rng_seed: RngSeed::Fixed(12),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn batches_match_a_map(batches in prop::collection::vec(batch(20_000), 1..14), small_cache: bool, fill in 50u8..=100) {
        let mut tree = Harness::new(if small_cache { 0 } else { 64 << 20 });
        tree.fill_percent = fill;
        for batch in &batches {
            tree.apply_and_check(&changes(batch, 20_000));
        }
        let all: BTreeMap<Key, Change> = tree.model.keys().map(|k| (*k, Change::Delete)).collect();
        let walk = tree.apply_and_check(&all);
        prop_assert!(walk.nodes.is_empty());
        prop_assert_eq!(tree.root, Default::default());
    }
}
