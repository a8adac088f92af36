//! How full leaves are.

use std::collections::BTreeMap;

use blockdev::sim::Rng;

use super::harness::{Change, Harness, key, puts, value};

/// Appending at the end, in batches of any size, leaves full nodes behind.
#[test]
fn appending_leaves_full_nodes() {
    for batch in [1, 10, 100, 3000] {
        let mut tree = Harness::new(16 << 20);
        for start in (0..6000).step_by(batch) {
            let items = (start as u64..(start + batch) as u64).map(|n| (n, value(n, 300)));
            tree.apply(&puts(items)).unwrap();
        }
        let fill = tree.walk().leaf_fill;
        let full = fill[..fill.len() - 1].iter().all(|f| *f > 0.97);
        assert!(full, "batches of {batch}: {fill:?}");
    }
}

/// Appending at the end of one inode while others follow.
#[test]
fn appending_in_the_middle() {
    let mut tree = Harness::new(16 << 20);
    let behind = (100_000..101_000).map(|n| (n, value(n, 300)));
    let before = (0..1000).map(|n| (n, value(n, 300)));
    tree.apply(&puts(before.chain(behind))).unwrap();
    for start in (1000..7000).step_by(7) {
        tree.apply(&puts((start..start + 7).map(|n| (n, value(n, 300))))).unwrap();
    }
    let walk = tree.walk();
    assert!(walk.mean_fill() > 0.75, "mean fill {}", walk.mean_fill());
}

/// Items that grow from small to their full size, each touched at random: dense page maps of a
/// file that is overwritten at random.
#[test]
fn growing_items_rewritten_in_whole_regions() {
    let mut tree = Harness::new(16 << 20);
    let mut rng = Rng::new(7);
    tree.apply(&puts((0..4000).map(|n| (n, value(n, 30))))).unwrap();
    for _ in 0..40 {
        let changes: BTreeMap<_, _> =
            (0..1500).map(|_| (key(rng.below(4000)), Change::Append(value(1, 60), 900))).collect();
        tree.apply(&changes).unwrap();
        let fill = tree.walk().mean_fill();
        assert!(fill > 0.75, "mean fill {fill}");
    }
}

/// New items at random places, a few a batch, so that each batch touches leaves far apart.
#[test]
fn scattered_inserts() {
    let mut tree = Harness::new(16 << 20);
    let mut order: Vec<u64> = (0..12_000).collect();
    Rng::new(8).shuffle(&mut order);
    for batch in order.chunks(20) {
        tree.apply(&puts(batch.iter().map(|n| (*n, value(*n, 300))))).unwrap();
    }
    let walk = tree.walk();
    assert!(walk.items == tree.model);
    assert!(walk.mean_fill() > 0.75, "mean fill {}", walk.mean_fill());
    let poor = walk.leaf_fill.iter().filter(|fill| **fill < 0.4).count();
    assert!(poor * 20 < walk.leaf_fill.len(), "{poor} of {} leaves are poor", walk.leaf_fill.len());
}

/// The target fill leaves room in long runs.
#[test]
fn the_target_fill_is_kept() {
    let mut tree = Harness::new(16 << 20);
    tree.fill_percent = 80;
    tree.apply(&puts((0..6000).map(|n| (n, value(n, 100))))).unwrap();
    let fill = tree.walk().mean_fill();
    assert!((0.77..0.82).contains(&fill), "mean fill {fill}");
}
