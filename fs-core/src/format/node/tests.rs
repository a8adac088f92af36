use blockdev::AlignedBuf;
use blockdev::sim::Rng;
use uuid::Uuid;

use super::*;
use crate::format::{ItemKind, Key};
use crate::types::Ino;

const VOLUME: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_0fed_cba9_8765_4321);
const ADDR: BlockNr = BlockNr(77);
const STAMP: Stamp = Stamp { volume: VOLUME, epoch: Epoch(3), birth: Lsn(1000) };

fn key(n: u64) -> Key {
    Key::new(Ino(n / 3), [ItemKind::Inode, ItemKind::Map, ItemKind::Orphan][n as usize % 3], n * 5)
}

fn leaf(values: &[Vec<u8>]) -> Node {
    let mut builder = NodeBuilder::new(0);
    for (i, value) in values.iter().enumerate() {
        builder.push(&key(i as u64), value);
    }
    builder.finish(&STAMP, ADDR)
}

fn random_leaf(rng: &mut Rng) -> Node {
    let mut left = CAPACITY;
    let mut values = Vec::new();
    loop {
        let len = rng.below(900) as usize;
        if left < len + LEAF_OVERHEAD {
            return leaf(&values);
        }
        left -= len + LEAF_OVERHEAD;
        values.push((0..len).map(|_| rng.next_u64() as u8).collect());
    }
}

fn inner(children: u64) -> Node {
    let mut builder = NodeBuilder::new(2);
    for i in 0..children {
        let ptr = NodePtr { addr: BlockNr(4 * i + 4), birth: Lsn(i), crc: i as u32 };
        builder.push(&key(i), &ptr.encode());
    }
    builder.finish(&STAMP, ADDR)
}

fn reopen(bytes: &[u8], ptr: NodePtr) -> Result<Node> {
    Node::open(AlignedBuf::from_slice(bytes), ptr, VOLUME)
}

/// The node with `edit` made to its bytes and a right checksum; the pointer follows.
fn resealed(node: &Node, edit: impl FnOnce(&mut [u8])) -> (Vec<u8>, NodePtr) {
    let mut bytes = node.bytes().to_vec();
    edit(&mut bytes);
    let crc = checksum(&bytes);
    bytes[CRC_RANGE].copy_from_slice(&crc.to_le_bytes());
    (bytes, NodePtr { crc, ..node.ptr() })
}

/// Uses everything a node offers; only a validated node survives this without a panic.
fn use_all(node: &Node) {
    assert!(node.used() <= CAPACITY);
    for i in 0..node.len() {
        let key = node.key(i);
        assert_eq!(node.search(&key), Ok(i));
        assert_eq!(node.search_last(&key), Some(i));
        assert!(node.value(i).len() <= MAX_VALUE);
        if node.level() > 0 {
            assert!(node.child(i).plausible());
            let _ = node.child_expected(i, None);
        }
    }
}

fn detail(result: Result<Node>) -> String {
    match result {
        Err(FsError::Corrupt { block: ADDR, detail, .. }) => detail,
        other => panic!("expected a corrupt node at block {ADDR}: {other:?}"),
    }
}

#[test]
fn leaf_round_trip() {
    let values: Vec<Vec<u8>> = vec![vec![], vec![1], vec![2; MAX_VALUE], vec![], vec![3; 700]];
    let built = leaf(&values);
    let node = reopen(built.bytes(), built.ptr()).unwrap();
    assert_eq!((node.level(), node.len(), node.epoch()), (0, 5, Epoch(3)));
    for (i, value) in values.iter().enumerate() {
        assert_eq!((node.key(i), node.value(i)), (key(i as u64), &value[..]));
    }
    assert_eq!(node.used(), 5 * LEAF_OVERHEAD + MAX_VALUE + 701);
    use_all(&node);
}

#[test]
fn inner_round_trip() {
    let built = inner(440);
    let node = reopen(built.bytes(), built.ptr()).unwrap();
    assert_eq!((node.level(), node.len(), node.used()), (2, 440, 440 * 37));
    let child = node.child(7);
    assert_eq!(child, NodePtr { addr: BlockNr(32), birth: Lsn(7), crc: 7 });
    assert_eq!(NodePtr::decode(node.value(7)), Some(child));
    let expected = Expected { level: 1, first: Some(key(7)), below: Some(key(8)) };
    assert_eq!(node.child_expected(7, Some(key(900))), expected);
    assert_eq!(node.child_expected(439, Some(key(900))).below, Some(key(900)));
    use_all(&node);
}

/// The layout in `docs/FORMAT.md`, byte by byte.
#[test]
fn bytes_as_documented() {
    let node = leaf(&[b"hello".to_vec(), b"you".to_vec()]);
    let bytes = node.bytes();
    assert_eq!(&bytes[..8], b"dbfsnode");
    assert_eq!(bytes[8..12], node.ptr().crc.to_le_bytes());
    assert_eq!(bytes[12..16], [1, 0, 0, 0]);
    assert_eq!(&bytes[16..32], VOLUME.as_bytes());
    assert_eq!(bytes[32..40], 77u64.to_le_bytes());
    assert_eq!(bytes[40..48], 3u64.to_le_bytes());
    assert_eq!(bytes[48..56], 1000u64.to_le_bytes());
    assert_eq!(bytes[56..58], [2, 0]);
    assert_eq!(bytes[58..80], [0; 22]);
    assert_eq!(bytes[80..97], key(0).encode());
    assert_eq!(bytes[97..101], [0xfb, 0x3f, 5, 0]);
    assert_eq!(bytes[101..118], key(1).encode());
    assert_eq!(bytes[118..122], [0xf8, 0x3f, 3, 0]);
    assert!(bytes[122..NODE_SIZE - 8].iter().all(|b| *b == 0));
    assert_eq!(&bytes[NODE_SIZE - 8..], b"youhello");

    let node = inner(2);
    assert_eq!(node.bytes()[14], 2);
    assert_eq!(node.bytes()[117..134], key(1).encode());
    assert_eq!(node.bytes()[134..142], 8u64.to_le_bytes());
    assert_eq!(node.bytes()[142..150], 1u64.to_le_bytes());
    assert_eq!(node.bytes()[150..154], 1u32.to_le_bytes());
}

#[test]
fn any_flipped_bits_are_noticed() {
    let mut rng = Rng::new(1);
    for _ in 0..400 {
        let node = if rng.chance(0.3) { inner(1 + rng.below(440)) } else { random_leaf(&mut rng) };
        let mut bytes = node.bytes().to_vec();
        for _ in 0..1 + rng.below(3) {
            bytes[rng.below(NODE_SIZE as u64) as usize] ^= 1 << rng.below(8);
        }
        match reopen(&bytes, node.ptr()) {
            Ok(same) => assert_eq!(same.bytes(), node.bytes()),
            Err(e) => assert!(matches!(e, FsError::Corrupt { .. })),
        }
    }
}

/// Flips under a right checksum reach the checks of the structure: no panic, and what is accepted
/// can be used.
#[test]
fn hostile_bytes_with_right_checksum() {
    let mut rng = Rng::new(2);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..6000 {
        let node = if rng.chance(0.3) { inner(1 + rng.below(440)) } else { random_leaf(&mut rng) };
        // Mostly in the header and the table, where the structure is.
        let reach = if rng.chance(0.5) { 140 } else { 1000 };
        let (bytes, ptr) = resealed(&node, |bytes| {
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(reach) as usize;
                bytes[at] = if rng.chance(0.5) { rng.next_u64() as u8 } else { bytes[at] ^ 1 };
            }
        });
        match reopen(&bytes, ptr) {
            Ok(node) => {
                use_all(&node);
                accepted += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(accepted > 100 && refused > 1000, "{accepted} accepted, {refused} refused");
}

#[test]
fn random_bytes_and_wrong_lengths() {
    let mut rng = Rng::new(3);
    let node = random_leaf(&mut rng);
    for len in [0, 1, 79, 80, 4096, NODE_SIZE - 1, NODE_SIZE + 1] {
        let mut bytes = node.bytes().to_vec();
        bytes.resize(len, 0);
        assert!(detail(reopen(&bytes, node.ptr())).contains("bytes instead of"));
    }
    let garbage: Vec<u8> = (0..NODE_SIZE).map(|_| rng.next_u64() as u8).collect();
    assert!(detail(reopen(&garbage, node.ptr())).contains("magic"));
}

#[test]
fn each_field_is_checked() {
    let node = leaf(&[vec![1; 10], vec![2; 20], vec![3; 30]]);
    let edited = |edit: &dyn Fn(&mut [u8])| {
        let (bytes, ptr) = resealed(&node, edit);
        detail(reopen(&bytes, ptr))
    };
    assert!(edited(&|b| b[0] = b'x').contains("magic"));
    assert!(edited(&|b| b[12] = 2).contains("unknown version 2"));
    assert!(edited(&|b| b[14] = MAX_HEIGHT).contains("level 16"));
    assert!(edited(&|b| b[20] ^= 1).contains("belongs to volume"));
    assert!(edited(&|b| b[32] = 78).contains("written for block 78"));
    assert!(edited(&|b| b[48] ^= 1).contains("its parent says 1000"));
    assert!(edited(&|b| b[56] = 0).contains("empty"));
    assert!(edited(&|b| b[57] = 0xff).contains("too many items"));
    assert!(edited(&|b| b[88] = 200).contains("unknown kind 200"));
    assert!(edited(&|b| b.copy_within(80..97, 101)).contains("not above"));
    assert!(edited(&|b| b[97] ^= 1).contains("value 0"), "offset");
    assert!(edited(&|b| b[121] = 0xff).contains("value 1"), "length");
    // The checksum field is not covered by the checksum.
    let mut bytes = node.bytes().to_vec();
    bytes[9] ^= 1;
    assert!(detail(reopen(&bytes, node.ptr())).contains("its header says"));
    // Without the edit it is good, so that the edits were what was refused.
    let (bytes, ptr) = resealed(&node, |_| {});
    use_all(&reopen(&bytes, ptr).unwrap());
}

#[test]
fn children_are_checked() {
    let node = inner(3);
    let edited = |edit: &dyn Fn(&mut [u8])| {
        let (bytes, ptr) = resealed(&node, edit);
        detail(reopen(&bytes, ptr))
    };
    assert!(edited(&|b| b[97..105].fill(0)).contains("impossible block"));
    assert!(edited(&|b| b[97..105].fill(0xff)).contains("impossible block"));
    assert!(edited(&|b| b[110] = 1).contains("younger"));
}

/// The table must not run into the values, even when the values follow one another correctly.
#[test]
fn values_within_the_table_are_refused() {
    let node = leaf(&[vec![7; 4000], vec![7; 4000], vec![7; 4000], vec![7; 4000]]);
    let (bytes, ptr) = resealed(&node, |bytes| {
        // A fifth item whose value ends where the fourth starts, over the end of the table.
        let end = NODE_SIZE - 16000;
        let slot = HEADER_SIZE + 4 * LEAF_OVERHEAD;
        bytes[slot..slot + 17].copy_from_slice(&key(4).encode());
        bytes[slot + 17..slot + 19].copy_from_slice(&((end - 280) as u16).to_le_bytes());
        bytes[slot + 19..slot + 21].copy_from_slice(&280u16.to_le_bytes());
        bytes[56] = 5;
    });
    assert!(detail(reopen(&bytes, ptr)).contains("within the table"));
}

#[test]
fn a_parent_notices_another_node() {
    let node = leaf(&[vec![1], vec![2], vec![3]]);
    let good = Expected { level: 0, first: Some(key(0)), below: Some(key(3)) };
    node.check(&good).unwrap();
    node.check(&Expected { first: None, below: None, ..good }).unwrap();
    assert!(node.check(&Expected { level: 1, ..good }).is_err());
    assert!(node.check(&Expected { first: Some(key(1)), ..good }).is_err());
    assert!(node.check(&Expected { below: Some(key(2)), ..good }).is_err());
    // An older node of the same place and birth is found out by the checksum in the pointer.
    let older = leaf(&[vec![1], vec![2], vec![4]]);
    assert!(detail(reopen(older.bytes(), node.ptr())).contains("its parent says"));
}

#[test]
#[should_panic(expected = "no room")]
fn overfull_nodes_are_not_built() {
    leaf(&vec![vec![0; 4000]; 5]);
}
