use blockdev::sim::Rng;

use super::harness::{key, value};
use crate::format::node::{CAPACITY, LEAF_OVERHEAD};
use crate::tree::pack::{Packer, WINDOW};

fn packer(lens: &[usize]) -> Packer {
    let mut packer = Packer::new(0);
    for (i, len) in lens.iter().enumerate() {
        packer.push(key(i as u64), &value(i as u64, *len), true);
    }
    packer
}

fn sizes(lens: &[usize], cuts: &[usize]) -> Vec<usize> {
    let mut start = 0;
    let node = |n: &usize| {
        let size = lens[start..start + n].iter().map(|len| len + LEAF_OVERHEAD).sum();
        start += n;
        size
    };
    cuts.iter().map(node).collect()
}

/// Whatever the lengths: all items go somewhere, nothing overflows, and no node is used without
/// need.
#[test]
fn cuts_fit_and_are_few() {
    let mut rng = Rng::new(20);
    for _ in 0..3000 {
        let longest = [10, 300, 1500, 4001][rng.below(4) as usize];
        let mut lens = Vec::new();
        let mut size = 0;
        let target = rng.below(WINDOW as u64) as usize;
        while size < target {
            lens.push(rng.below(longest) as usize);
            size += lens[lens.len() - 1] + LEAF_OVERHEAD;
        }
        let packer = packer(&lens);
        let (edge, inner) = (packer.edge_cuts(CAPACITY), packer.inner_cuts());
        assert_eq!(edge.len(), inner.len());
        for cuts in [edge, inner] {
            assert_eq!(cuts.iter().sum::<usize>(), lens.len());
            assert!(sizes(&lens, &cuts).iter().all(|size| (1..=CAPACITY).contains(size)), "{lens:?}");
        }
    }
}

#[test]
fn small_items_are_spread_evenly() {
    for items in [170, 250, 400] {
        let lens = vec![100; items];
        let packer = packer(&lens);
        let cuts = packer.inner_cuts();
        let (least, most) = (cuts.iter().min().unwrap(), cuts.iter().max().unwrap());
        assert!(most - least <= 1, "{cuts:?}");
        assert_eq!(cuts.len(), (items * 121).div_ceil(CAPACITY));
    }
}

/// Four large items of five fit into one node: spreading them must not need a third.
#[test]
fn large_items_that_do_not_spread() {
    let lens = [3000, 3000, 3000, 3000, 4000, 4000, 4000, 4000];
    let packer = packer(&lens);
    let cuts = packer.inner_cuts();
    assert_eq!(cuts.len(), 2);
    assert!(sizes(&lens, &cuts).iter().all(|size| *size <= CAPACITY));
}

#[test]
fn taking_keeps_the_rest_in_order() {
    let mut packer = packer(&[5; 100]);
    let mut n = 0;
    for take in [1, 40, 0, 59] {
        packer.take(take, &mut |k, v| {
            assert_eq!((*k, v), (key(n), &value(n, 5)[..]));
            n += 1;
        });
        assert_eq!(packer.size(), (100 - n as usize) * (5 + LEAF_OVERHEAD));
    }
    assert!(packer.is_empty());
}
