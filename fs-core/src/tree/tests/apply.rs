use std::collections::BTreeMap;

use blockdev::sim::Rng;

use super::harness::{Change, Harness, key, puts, value};
use crate::error::FsError;
use crate::format::Key;
use crate::format::node::MAX_VALUE;
use crate::tree::*;

#[test]
fn empty_batches_change_nothing() {
    let mut tree = Harness::new(1 << 20);
    assert!(tree.apply_and_check(&BTreeMap::new()).nodes.is_empty());
    tree.apply_and_check(&puts((0..5000).map(|n| (n, value(n, 50)))));
    let before = tree.root;
    tree.apply_and_check(&BTreeMap::new());
    assert_eq!(tree.root, before);
}

#[test]
fn deleting_from_an_empty_tree() {
    let mut tree = Harness::new(1 << 20);
    tree.apply_and_check(&BTreeMap::from([(key(3), Change::Delete)]));
    assert_eq!(tree.root, TreeRoot::default());
}

#[test]
fn grows_and_shrinks_over_several_levels() {
    let mut tree = Harness::new(1 << 20);
    // Four items a leaf, 440 leaves an inner node: three levels.
    tree.apply_and_check(&puts((0..4000).map(|n| (n, value(n, MAX_VALUE)))));
    assert_eq!(tree.root.height, 3);
    // One item in twenty survives, still one value each: 200 items, 50 leaves.
    let most = (0..4000).filter(|n| n % 20 != 0).map(|n| (key(n), Change::Delete)).collect();
    let walk = tree.apply_and_check(&most);
    assert_eq!((tree.root.height, walk.nodes.len()), (2, 51));
    let rest = (0..4000).skip(1).map(|n| (key(n), Change::Delete)).collect();
    let walk = tree.apply_and_check(&rest);
    assert_eq!((tree.root.height, walk.nodes.len()), (1, 1));
    tree.apply_and_check(&BTreeMap::from([(key(0), Change::Delete)]));
    assert_eq!(tree.root, TreeRoot::default());
}

/// Deletes in small batches, in random order: neighbours are merged on the way.
#[test]
fn slow_deletion_leaves_few_nodes() {
    let mut tree = Harness::new(16 << 20);
    tree.apply_and_check(&puts((0..20_000).map(|n| (n, value(n, 200)))));
    let mut order: Vec<u64> = (0..20_000).collect();
    Rng::new(5).shuffle(&mut order);
    for batch in order[..19_000].chunks(50) {
        tree.apply(&batch.iter().map(|n| (key(*n), Change::Delete)).collect()).unwrap();
    }
    let walk = tree.walk();
    assert!(walk.items == tree.model);
    assert!(walk.mean_fill() > 0.4, "mean fill {}", walk.mean_fill());
    assert_eq!(tree.root.height, 2);
}

/// A subtree that was not touched can become the whole tree; what stood above a single leaf goes.
#[test]
fn nodes_with_one_child_do_not_stay_on_top() {
    let mut tree = Harness::new(16 << 20);
    // 440 full leaves, and one more under an inner node of its own.
    tree.apply_and_check(&puts((0..1761).map(|n| (n, value(n, MAX_VALUE)))));
    assert_eq!(tree.root.height, 3);
    let walk = tree.apply_and_check(&(0..1760).map(|n| (key(n), Change::Delete)).collect());
    assert_eq!((tree.root.height, walk.nodes.len()), (1, 1));
    assert!(tree.sink.written.is_empty(), "nothing had to be written");
}

/// The last leaf has no right neighbour: what is left of it joins the left one.
#[test]
fn the_last_leaf_joins_its_left_neighbour() {
    let mut tree = Harness::new(16 << 20);
    tree.fill_percent = 50;
    let leaves = |walk: &super::harness::Walk| walk.leaf_fill.len();
    // Eight items of a sixteenth of a node in each leaf.
    let before = leaves(&tree.apply_and_check(&puts((0..80).map(|n| (n, value(n, 990))))));
    let most = (73..80).map(|n| (key(n), Change::Delete)).collect();
    let walk = tree.apply_and_check(&most);
    assert_eq!((before, leaves(&walk)), (10, 9));
}

/// Batches of one change, on badly filled nodes with large and small items, write no more than is
/// reserved for them (the harness checks each).
#[test]
fn single_changes_stay_within_the_worst_case() {
    let mut rng = Rng::new(6);
    let mut tree = Harness::new(64 << 20);
    let len = |rng: &mut Rng| [0, 40, 1500, MAX_VALUE][rng.below(4) as usize];
    tree.apply(&puts((0..8000).map(|n| (n, value(n, len(&mut rng)))))).unwrap();
    for round in 0..8 {
        for _ in 0..250 {
            let n = rng.below(8000);
            let put = rng.chance(0.4);
            let change = if put { Change::Put(value(n, len(&mut rng))) } else { Change::Delete };
            tree.apply(&BTreeMap::from([(key(n), change)])).unwrap();
        }
        let from = rng.below(8000);
        let gap = (from..from + 900).filter(|n| n % 7 != 0).map(|n| (key(n), Change::Delete));
        assert!(tree.apply_and_check(&gap.collect()).bad.is_empty(), "round {round}");
    }
}

/// Only the touched path is written again.
#[test]
fn a_small_change_writes_one_path() {
    let mut tree = Harness::new(16 << 20);
    tree.apply_and_check(&puts((0..40_000).map(|n| (n, value(n, 200)))));
    assert_eq!(tree.root.height, 3);
    let before = tree.walk().nodes;
    let after = tree.apply_and_check(&puts([(17_000, value(1, 200))])).nodes;
    assert_eq!(after.difference(&before).count(), 3);
    assert_eq!(after.len(), before.len());
    // Also at the end, behind a last leaf with little in it.
    let before = after;
    let after = tree.apply_and_check(&puts([(40_000, value(1, 200))])).nodes;
    assert_eq!(after.difference(&before).count(), 3);
}

/// A subtree emptied at the right edge lets the tree sink to what is left.
#[test]
fn emptied_edges() {
    for keep in [0..1u64, 0..600, 10_000..10_001, 19_999..20_000, 19_000..20_000] {
        let mut tree = Harness::new(16 << 20);
        tree.apply_and_check(&puts((0..20_000).map(|n| (n, value(n, 700)))));
        assert_eq!(tree.root.height, 3);
        let gone = (0..20_000).filter(|n| !keep.contains(n)).map(|n| (key(n), Change::Delete)).collect();
        let walk = tree.apply_and_check(&gone);
        assert!(walk.mean_fill() > 0.4 || walk.nodes.len() == 1, "{keep:?}");
        assert!(tree.root.height <= 2, "{keep:?}: height {}", tree.root.height);
    }
}

#[test]
fn a_failing_sink_leaves_the_old_tree() {
    let mut tree = Harness::new(16 << 20);
    tree.apply_and_check(&puts((0..10_000).map(|n| (n, value(n, 300)))));
    let (root, model) = (tree.root, tree.model.clone());
    for allowed in [0, 1, 5, 50] {
        tree.sink.allowed = Some(allowed);
        let all = puts((0..10_000).map(|n| (n, value(n + 1, 300))));
        assert_eq!(tree.apply(&all).unwrap_err().errno(), libc::ENOSPC);
        assert_eq!(tree.root, root);
        assert!(tree.walk().items == model);
    }
    tree.sink.allowed = None;
    tree.apply_and_check(&puts([(5, value(5, 5))]));
}

#[test]
fn updates_see_the_old_value() {
    let mut tree = Harness::new(1 << 20);
    tree.apply_and_check(&puts([(1, vec![1]), (3, vec![3])]));
    let context = tree.context();
    tree.sink.begin();
    let mut seen = Vec::new();
    {
        let seen = std::cell::RefCell::new(&mut seen);
        let changes = (0..5).map(|n| {
            let seen = &seen;
            let change = ItemChange::update(move |old| {
                seen.borrow_mut().push((n, old.map(<[u8]>::to_vec)));
                Ok(old.map(|_| vec![9, n as u8]))
            });
            (key(n), change)
        });
        tree.root = apply(&tree.reader, &tree.root, &context, changes, &mut tree.sink).unwrap();
    }
    assert_eq!(seen, [(0, None), (1, Some(vec![1])), (2, None), (3, Some(vec![3])), (4, None)]);
    let items: Vec<_> = tree.walk().items.into_iter().collect();
    assert_eq!(items, [(key(1), vec![9, 1]), (key(3), vec![9, 3])]);
}

#[test]
fn bad_changes_are_refused() {
    let mut tree = Harness::new(1 << 20);
    let context = tree.context();
    let mut run = |changes: Vec<(Key, ItemChange<'static>)>| {
        apply(&tree.reader, &tree.root, &context, changes, &mut tree.sink)
    };
    let put = |len| ItemChange::Put(vec![0; len]);
    assert!(run(vec![(key(2), put(1)), (key(1), put(1))]).is_err());
    assert!(run(vec![(key(2), put(1)), (key(2), put(1))]).is_err());
    assert!(run(vec![(key(2), put(MAX_VALUE + 1))]).is_err());
    let fails = ItemChange::update(|_| Err(FsError::NOT_PERMITTED));
    assert_eq!(run(vec![(key(2), fails)]).unwrap_err().errno(), libc::EPERM);
    // Wherever the stream is cut for looking ahead.
    for len in 100..300 {
        let mut long: Vec<_> = (0..len).map(|n| (key(n), put(1))).collect();
        long.push((key(len - 1), put(1)));
        assert!(run(long).is_err(), "{len} changes");
    }
    assert!(run(vec![(key(2), put(MAX_VALUE))]).is_ok());
}
