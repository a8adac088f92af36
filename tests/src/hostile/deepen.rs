//! A third level for a small tree: the format asks for no least number of children, and a tree that grew to three levels by
//! itself has so many nodes that not each of its bytes can have a turn.

use blockdev::{AlignedBuf, RamDevice};
use fs_core::format::node::{Node, NodeBuilder, NodePtr, Stamp};
use fs_core::format::pending::{PendingEntry, decode_pending, encode_pending};
use fs_core::format::{RootPtr, RootSlot};
use fs_core::{BLOCK_SIZE, BlockNr, BlockRun, NODE_BLOCKS, NODE_SIZE};

use super::layout::{Layout, read, write};

/// Children of each of the new nodes but the last.
const CHILDREN: usize = 3;

/// Puts a level between the root of a tree of two levels and its leaves, as the same checkpoint could have written it.
/// Panics if the tree has no two levels, or there is no room in its pending list.
pub(super) fn deepen(device: &RamDevice, layout: &Layout) {
    let (sb, mut slot) = (&layout.superblock, layout.slot.clone());
    assert_eq!(slot.tree.height, 2, "levels of the tree");
    let old = NodePtr { addr: slot.tree.addr, birth: slot.tree.birth, crc: slot.tree.crc };
    let bytes = read(device, old.addr.offset(), NODE_SIZE);
    let root = Node::open(AlignedBuf::from_slice(&bytes), old, sb.uuid).expect("the root");
    assert!(root.len() > CHILDREN, "the root has {} children", root.len());
    let stamp = Stamp { volume: sb.uuid, epoch: root.epoch(), birth: old.birth };
    let put = |level: u8, entries: &[(fs_core::format::Key, NodePtr)], addr: BlockNr| {
        let mut builder = NodeBuilder::new(level);
        entries.iter().for_each(|(key, child)| builder.push(key, &child.encode()));
        let node = builder.finish(&stamp, addr);
        write(device, addr.offset(), node.bytes());
        (node.key(0), node.ptr())
    };
    let children: Vec<_> = (0..root.len()).map(|i| (root.key(i), root.child(i))).collect();
    let groups: Vec<_> = children.chunks(CHILDREN).collect();
    // The root's own place takes the first node; the others are at the end of the groups that the epoch may write to, where
    // nothing was ever written.
    let last = slot.reserved.iter().map(|r| r.first.0 + u64::from(r.count)).max().expect("reserved groups");
    let end = (last * u64::from(sb.group_blocks)).min(slot.total_blocks - 1);
    let new = BlockRun::new(
        BlockNr(end - groups.len() as u64 * u64::from(NODE_BLOCKS)),
        groups.len() as u32 * NODE_BLOCKS,
    );
    assert!(read(device, new.start.offset(), new.bytes()).iter().all(|b| *b == 0), "used blocks");
    let place = |i: usize| new.start.plus(i as u64 * u64::from(NODE_BLOCKS));
    let middle: Vec<_> = groups
        .iter()
        .enumerate()
        .map(|(i, group)| put(1, group, if i == 0 { old.addr } else { place(i) }))
        .collect();
    let (_, top) = put(2, &middle, place(0));
    slot.tree = RootPtr { addr: top.addr, birth: top.birth, crc: top.crc, height: 3 };
    slot.free_blocks -= u64::from(new.len);
    note_taken(device, &mut slot, new);
    let own = layout.row(slot.epoch)[(slot.seq % 2) as usize];
    write(device, own.offset(), &slot.encode(&sb.uuid, own).expect("it has the same parts"));
}

/// Adds the blocks to those that the checkpoint took for its nodes.
fn note_taken(device: &RamDevice, slot: &mut RootSlot, run: BlockRun) {
    let list = slot.pending.expect("a checkpoint that wrote nodes has a pending list");
    let mut bytes = read(device, list.start.offset(), list.bytes());
    let mut entries = decode_pending(&bytes, slot.pending_len).expect("a good list");
    entries.push(PendingEntry { run, used: true });
    let encoded = encode_pending(&entries);
    assert!(encoded.len() <= list.len as usize * BLOCK_SIZE, "room in the pending list");
    bytes[..encoded.len()].copy_from_slice(&encoded);
    write(device, list.start.offset(), &bytes);
    slot.pending_len = entries.len() as u32;
    slot.pending_crc = crc32c::crc32c(&encoded);
}
