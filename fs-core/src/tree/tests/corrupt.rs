//! Damaged and hostile trees.

use std::ops::ControlFlow;

use blockdev::sim::Rng;
use blockdev::{AlignedBuf, BlockDevice, IoClass};

use super::harness::{Harness, VOLUME, Walk, key, puts, reader, value, walk};
use crate::error::FsError;
use crate::format::node::{NodeBuilder, NodePtr, Stamp};
use crate::tree::*;
use crate::types::{BlockNr, Epoch, Lsn, NODE_SIZE};

fn tree() -> Harness {
    let mut tree = Harness::new(4 << 20);
    tree.apply_and_check(&puts((0..6000).map(|n| (n, value(n, 400 + (n % 3000) as usize)))));
    assert_eq!(tree.root.height, 3);
    tree
}

fn read(tree: &Harness, addr: BlockNr) -> AlignedBuf {
    tree.device.read_at(addr.offset(), AlignedBuf::zeroed(NODE_SIZE), IoClass::Data).unwrap()
}

fn write(tree: &Harness, addr: BlockNr, bytes: AlignedBuf) {
    tree.device.write_at(addr.offset(), bytes, false, IoClass::Data).unwrap();
}

/// Every bad node is reported with its range, everything else is still visited.
#[test]
fn verify_goes_on_after_bad_nodes() {
    let tree = tree();
    let good = tree.walk();
    let leaves: Vec<_> = good.ptrs.iter().filter(|(_, e)| e.level == 0).collect();
    let mut broken = [3, 700, leaves.len() - 1].map(|i| *leaves[i]);
    for (ptr, _) in &broken {
        let mut bytes = read(&tree, ptr.addr);
        bytes[NODE_SIZE - 1] ^= 1;
        write(&tree, ptr.addr, bytes);
    }
    let found = tree.walk();
    broken.sort_by_key(|(_, e)| e.first);
    let bad: Vec<_> = found.bad.iter().map(|(ptr, e, _)| (*ptr, *e)).collect();
    assert_eq!(bad, broken);
    assert!(found.bad.iter().all(|(.., e)| matches!(e, FsError::Corrupt { .. })));
    let lost = |k: &crate::format::Key| {
        broken.iter().any(|(_, e)| e.first.is_none_or(|f| f <= *k) && e.below.is_none_or(|b| *k < b))
    };
    let rest = tree.model.iter().filter(|(k, _)| !lost(k)).map(|(k, v)| (*k, v.clone()));
    assert!(found.items == rest.collect());
}

/// Reads report the bad node, and do not cache the error.
#[test]
fn reads_and_changes_report_bad_nodes() {
    let mut tree = tree();
    let (ptr, expected) = *tree.walk().ptrs.iter().filter(|(_, e)| e.level == 0).nth(20).unwrap();
    let first = expected.first.unwrap();
    let (good, mut bytes) = (read(&tree, ptr.addr), read(&tree, ptr.addr));
    bytes[100] ^= 4;
    write(&tree, ptr.addr, bytes);
    tree.reader = reader(&tree.device, 4 << 20);
    let is_bad = |e: FsError| matches!(e, FsError::Corrupt { block, .. } if block == ptr.addr);
    assert!(is_bad(tree.reader.get(&tree.root, &first).unwrap_err()));
    let all = tree.reader.scan(&tree.root, key(0), key(1 << 30), &mut |_, _| ControlFlow::Continue(()));
    assert!(is_bad(all.unwrap_err()));
    let root = tree.root;
    assert!(is_bad(tree.apply(&puts((0..6000).map(|n| (n, vec![])))).unwrap_err()));
    assert_eq!(tree.root, root);
    write(&tree, ptr.addr, good);
    assert_eq!(tree.reader.get(&root, &first).unwrap().as_deref(), tree.model.get(&first).map(|v| &v[..]));
}

/// A write that went to another node's place, and one that was lost, are both noticed.
#[test]
fn misdirected_and_lost_writes() {
    let mut tree = tree();
    let leaves: Vec<NodePtr> =
        tree.walk().ptrs.iter().filter(|(_, e)| e.level == 0).map(|(ptr, _)| *ptr).collect();
    let stranger = read(&tree, leaves[0].addr);
    write(&tree, leaves[1].addr, stranger);
    assert_eq!(tree.walk().bad.len(), 1);

    // The block of a node holds its predecessor: same volume, address, and even birth.
    let before = read(&tree, leaves[2].addr);
    let stamp = Stamp { volume: VOLUME, epoch: Epoch(1), birth: leaves[2].birth };
    let mut builder = NodeBuilder::new(0);
    builder.push(&key(0), b"older");
    let older = builder.finish(&stamp, leaves[2].addr);
    write(&tree, leaves[2].addr, AlignedBuf::from_slice(older.bytes()));
    assert_eq!(tree.walk().bad.len(), 2);
    write(&tree, leaves[2].addr, before);
    assert_eq!(tree.walk().bad.len(), 1);
    tree.root.height += 1;
    assert_eq!(tree.walk().bad.len(), 1, "a root of another level");
}

#[test]
fn impossible_roots() {
    let tree = tree();
    let ptr = tree.root.ptr.unwrap();
    let far = NodePtr { addr: BlockNr(1 << 40), ..ptr };
    let overflowing = NodePtr { addr: BlockNr(u64::MAX), ..ptr };
    for root in [
        TreeRoot { ptr: None, height: 2 },
        TreeRoot { ptr: Some(ptr), height: 0 },
        TreeRoot { ptr: Some(ptr), height: 200 },
        TreeRoot { ptr: Some(overflowing), height: 3 },
    ] {
        assert!(!root.is_plausible());
        assert!(verify(&tree.reader, &root, &mut Walk::default()).is_err());
        let _ = tree.reader.get(&root, &key(1));
        let _ = tree.reader.last_below(&root, &key(1));
    }
    let root = TreeRoot { ptr: Some(far), height: 3 };
    let beyond = tree.reader.get(&root, &key(1)).unwrap_err();
    assert!(matches!(beyond, FsError::Corrupt { block: BlockNr(0x100_0000_0000), .. }), "{beyond}");
    assert_eq!(walk(&tree.reader, &root).bad.len(), 1);
}

/// Nodes with right checksums that were linked by an attacker: shared children and loops end in a
/// report.
#[test]
fn hostile_links_end() {
    let tree = tree();
    let stamp = Stamp { volume: VOLUME, epoch: Epoch(1), birth: Lsn(1) };
    let mut next = 1000;
    let mut put = |node: NodeBuilder| {
        next += 4;
        let node = node.finish(&stamp, BlockNr(next));
        write(&tree, BlockNr(next), AlignedBuf::from_slice(node.bytes()));
        node.ptr()
    };
    let mut leaf = NodeBuilder::new(0);
    leaf.push(&key(0), b"x");
    let mut below = put(leaf);
    // Each level points 100 times at the one node below: 100^9 paths, if ranges were not checked.
    for level in 1..10 {
        let mut node = NodeBuilder::new(level);
        for i in 0..100 {
            node.push(&key(i), &below.encode());
        }
        below = put(node);
    }
    let found = walk(&tree.reader, &TreeRoot { ptr: Some(below), height: 10 });
    assert_eq!((found.nodes.len(), found.bad.len()), (1, 100));
    let all = tree.reader.scan(&TreeRoot { ptr: Some(below), height: 10 }, key(0), key(1000), &mut |_, _| {
        ControlFlow::Continue(())
    });
    assert!(all.is_err());
}

/// Random damage anywhere on the device: reads, scans and walks end without a panic, and never
/// give a wrong value.
#[test]
fn random_damage_is_never_believed() {
    let tree = tree();
    let nodes: Vec<BlockNr> = tree.walk().nodes.into_iter().collect();
    let mut rng = Rng::new(11);
    for _ in 0..30 {
        let addr = nodes[rng.below(nodes.len() as u64) as usize];
        let mut bytes = read(&tree, addr);
        bytes[rng.below(NODE_SIZE as u64) as usize] ^= 1 << rng.below(8);
        write(&tree, addr, bytes);
    }
    let cold = reader(&tree.device, 4 << 20);
    let mut bad = 0;
    for (k, v) in &tree.model {
        match cold.get(&tree.root, k) {
            Ok(found) => assert_eq!(found.as_deref(), Some(&v[..])),
            Err(_) => bad += 1,
        }
    }
    assert!(bad > 0);
}
