use std::ops::ControlFlow;
use std::sync::Arc;

use blockdev::sim::Rng;

use super::harness::{Change, Harness, key, puts, reader, value};
use crate::format::Key;
use crate::tree::*;

/// Every third key, in three levels.
fn tree() -> Harness {
    let mut tree = Harness::new(4 << 20);
    tree.apply_and_check(&puts((100..20_000).step_by(3).map(|n| (n, value(n, (n % 4000) as usize)))));
    assert_eq!(tree.root.height, 3);
    tree
}

#[test]
fn get_finds_what_is_there() {
    let tree = tree();
    for n in 0..20_100 {
        let found = tree.reader.get(&tree.root, &key(n)).unwrap();
        assert_eq!(found.as_deref(), tree.model.get(&key(n)).map(Vec::as_slice));
    }
    assert!(tree.reader.get(&TreeRoot::default(), &key(1)).unwrap().is_none());
}

#[test]
fn neighbours_are_found() {
    let tree = tree();
    let mut rng = Rng::new(9);
    for _ in 0..3000 {
        let k = key(rng.below(20_200));
        let next = tree.reader.first_from(&tree.root, &k).unwrap();
        let model = tree.model.range(k..).next();
        assert_eq!(next.as_ref().map(|(k, v)| (k, &v[..])), model.map(|(k, v)| (k, &v[..])));
        let last = tree.reader.last_below(&tree.root, &k).unwrap();
        let model = tree.model.range(..k).next_back();
        assert_eq!(last.as_ref().map(|(k, v)| (k, &v[..])), model.map(|(k, v)| (k, &v[..])));
    }
    let empty = TreeRoot::default();
    assert!(tree.reader.first_from(&empty, &key(0)).unwrap().is_none());
    assert!(tree.reader.last_below(&empty, &key(9)).unwrap().is_none());
}

fn scan(tree: &Harness, from: Key, to: Key, limit: usize) -> Vec<(Key, Vec<u8>)> {
    let mut found = Vec::new();
    let mut take = |key, value: &[u8]| {
        found.push((key, value.to_vec()));
        if found.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    tree.reader.scan(&tree.root, from, to, &mut take).unwrap();
    found
}

#[test]
fn scans_give_the_range_in_order() {
    let tree = tree();
    let mut rng = Rng::new(10);
    for _ in 0..300 {
        let start = rng.below(20_200);
        let (from, to) = (key(start), key(start + rng.below(600)));
        let model: Vec<_> = tree.model.range(from..=to).map(|(k, v)| (*k, v.clone())).collect();
        assert_eq!(scan(&tree, from, to, usize::MAX), model);
        let limit = 1 + rng.below(20) as usize;
        assert_eq!(scan(&tree, from, to, limit), model[..model.len().min(limit)]);
    }
    assert!(scan(&tree, key(500), key(400), usize::MAX).is_empty());
    assert_eq!(scan(&tree, key(0), key(1 << 40), usize::MAX).len(), tree.model.len());
}

/// A scan ends at its last key without reading what lies behind.
#[test]
fn scans_read_only_their_range() {
    let tree = tree();
    let cold = reader(&tree.device, 16 << 20);
    let (first, _) = tree.model.first_key_value().unwrap();
    cold.scan(&tree.root, *first, *first, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(cold.stats().reads, 3);
    assert_eq!((cold.stats().misses, cold.stats().hits, cold.stats().nodes), (3, 0, 3));
    cold.get(&tree.root, first).unwrap();
    assert_eq!((cold.stats().reads, cold.stats().hits), (3, 3));
}

#[test]
fn the_cache_is_bounded() {
    let tree = tree();
    let nodes = tree.walk().nodes.len() as u64;
    for (capacity, most) in [(0, 1), (100 << 10, 6), (1 << 20, 64), (8 << 20, 512)] {
        let cold = reader(&tree.device, capacity);
        for n in 0..20_000 {
            cold.get(&tree.root, &key(n)).unwrap();
        }
        let stats = cold.stats();
        assert!((1..=most).contains(&stats.nodes), "{} of {nodes} nodes in {capacity} B", stats.nodes);
        assert!(stats.hits > 0 || capacity == 0);
    }
}

#[test]
fn forgotten_nodes_are_read_again() {
    let tree = tree();
    tree.reader.get(&tree.root, &key(100)).unwrap();
    let before = tree.reader.stats();
    tree.reader.cache().forget(tree.root.ptr.unwrap());
    tree.reader.get(&tree.root, &key(100)).unwrap();
    assert_eq!(tree.reader.stats().misses, before.misses + 1);
}

/// An old tree stays readable beside the new one.
#[test]
fn old_trees_stay() {
    let mut tree = tree();
    let (root, model) = (tree.root, tree.model.clone());
    let changes =
        (0..20_000).map(|n| (key(n), if n % 2 == 0 { Change::Delete } else { Change::Put(vec![1]) }));
    tree.apply_and_check(&changes.collect());
    for n in (0..20_000).step_by(7) {
        let old = tree.reader.get(&root, &key(n)).unwrap();
        assert_eq!(old.as_deref(), model.get(&key(n)).map(Vec::as_slice));
    }
}

/// Threads that miss the same nodes read each once.
#[test]
fn concurrent_misses_share_reads() {
    let tree = tree();
    let nodes = tree.walk().nodes.len() as u64;
    let cold = reader(&tree.device, 64 << 20);
    let barrier = Arc::new(std::sync::Barrier::new(4));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                for n in 0..20_000 {
                    let found = cold.get(&tree.root, &key(n)).unwrap();
                    assert_eq!(found.as_deref(), tree.model.get(&key(n)).map(Vec::as_slice));
                }
            });
        }
    });
    assert_eq!(cold.stats().reads, nodes);
}
