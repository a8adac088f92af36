//! Building nodes.

use blockdev::AlignedBuf;
use uuid::Uuid;
use zerocopy::IntoBytes;

use super::{
    CRC_RANGE, HEADER_SIZE, Header, InnerEntry, LEAF_OVERHEAD, LeafSlot, MAGIC, MAX_VALUE, Node, NodePtr,
    VERSION, checksum,
};
use crate::format::Key;
use crate::types::{BlockNr, Epoch, Lsn, NODE_SIZE};

/// Who writes a node, and when.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// The volume.
    pub volume: Uuid,
    /// The running epoch.
    pub epoch: Epoch,
    /// LSN of the checkpoint the node is written for.
    pub birth: Lsn,
}

/// Fills one node with items in ascending order.
#[derive(Debug)]
pub struct NodeBuilder {
    buf: AlignedBuf,
    level: u8,
    count: u16,
    /// Where the table of items ends.
    table: usize,
    /// Where the values of a leaf start.
    heap: usize,
    /// First and last key.
    ends: Option<(Key, Key)>,
}

impl NodeBuilder {
    /// An empty node of `level`.
    pub fn new(level: u8) -> Self {
        Self {
            buf: AlignedBuf::zeroed(NODE_SIZE),
            level,
            count: 0,
            table: HEADER_SIZE,
            heap: NODE_SIZE,
            ends: None,
        }
    }

    /// Appends an item to a leaf, or a child with its encoded pointer to an inner node. `key` must
    /// be above all earlier ones. Panics if there is no room: callers know the size of what they
    /// pack.
    pub fn push(&mut self, key: &Key, value: &[u8]) {
        debug_assert!(self.level == 0 || value.len() == NodePtr::SIZE);
        assert!(value.len() <= MAX_VALUE);
        if self.level > 0 {
            self.append(&key.encode());
            self.append(value);
        } else {
            assert!(self.table + LEAF_OVERHEAD + value.len() <= self.heap, "no room in the node");
            let heap = self.heap - value.len();
            self.buf[heap..self.heap].copy_from_slice(value);
            self.heap = heap;
            let (offset, len) = ((heap as u16).into(), (value.len() as u16).into());
            self.append(LeafSlot { key: key.encode(), offset, len }.as_bytes());
        }
        self.ends = Some((self.ends.map_or(*key, |(first, _)| first), *key));
        self.count += 1;
    }

    /// The finished node, for the block `addr`; the bytes to write there are [`Node::bytes`].
    /// Panics if nothing was pushed.
    pub fn finish(mut self, stamp: &Stamp, addr: BlockNr) -> Node {
        let header = Header {
            magic: MAGIC,
            crc: 0.into(),
            version: VERSION.into(),
            level: self.level,
            reserved1: 0,
            volume: stamp.volume.into_bytes(),
            address: addr.0.into(),
            epoch: stamp.epoch.0.into(),
            birth: stamp.birth.0.into(),
            count: self.count.into(),
            reserved2: [0; 22],
        };
        self.buf[..HEADER_SIZE].copy_from_slice(header.as_bytes());
        let crc = checksum(&self.buf);
        self.buf[CRC_RANGE].copy_from_slice(&crc.to_le_bytes());
        let ptr = NodePtr { addr, birth: stamp.birth, crc };
        let ends = self.ends.expect("a node is not empty");
        debug_assert_eq!(Node::validate(&self.buf, &ptr, stamp.volume), Ok((self.level, self.count, ends)));
        Node { buf: self.buf, ptr, level: self.level, count: self.count, ends }
    }

    fn append(&mut self, bytes: &[u8]) {
        let end = self.table + bytes.len();
        self.buf[self.table..end].copy_from_slice(bytes);
        self.table = end;
    }
}

const _: () = assert!(size_of::<InnerEntry>() == Key::SIZE + NodePtr::SIZE);
