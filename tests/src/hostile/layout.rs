//! Where the structures of an image are.

use blockdev::{AlignedBuf, BlockDevice, IoClass, RamDevice};
use fs_core::format::node::{Node, NodePtr};
use fs_core::format::record::{RecordHeader, decode_changes, decode_record};
use fs_core::format::{Change, Chunk, ItemKind, RootSlot, Superblock, Ticket};
use fs_core::{BLOCK_SIZE, BlockNr, BlockRun, Epoch, NODE_SIZE};

/// Reads bytes of an image.
pub fn read(device: &RamDevice, offset: u64, len: usize) -> Vec<u8> {
    let buf = device.read_at(offset, AlignedBuf::zeroed(len), IoClass::Data);
    buf.map(|b| b.to_vec()).unwrap_or_else(|_| vec![0; len])
}

/// Writes whole blocks of an image.
pub fn write(device: &RamDevice, offset: u64, bytes: &[u8]) {
    let _ = device.write_at(offset, AlignedBuf::from_slice(bytes), false, IoClass::Data);
}

/// A node of the tree.
#[derive(Clone, Debug)]
pub struct NodeAt {
    /// First block.
    pub addr: BlockNr,
    /// Index of its parent in [`Layout::nodes`], and of its entry there; `None`: the root.
    pub parent: Option<(usize, usize)>,
    /// Its level.
    pub level: u8,
}

/// A record of one of the journals that the root refers to.
#[derive(Clone, Debug)]
pub struct RecordAt {
    /// First block.
    pub addr: BlockNr,
    /// Its header.
    pub header: RecordHeader,
}

/// All structures that count.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The superblock.
    pub superblock: Superblock,
    /// The root.
    pub slot: RootSlot,
    /// Blocks of root slots that were ever written.
    pub slots: Vec<BlockNr>,
    /// Blocks of tickets that were ever written.
    pub tickets: Vec<BlockNr>,
    /// The tree, parents first.
    pub nodes: Vec<NodeAt>,
    /// Records, in order.
    pub records: Vec<RecordAt>,
    /// Blocks of data.
    pub data: Vec<BlockRun>,
}

impl Layout {
    /// Looks at a good image. Panics if it is not.
    pub fn of(device: &RamDevice) -> Self {
        let sb = Superblock::decode(&read(device, 0, BLOCK_SIZE), BlockNr(0)).expect("a superblock");
        let rows = u64::from(sb.slot_rows);
        let block = |i: u64| sb.slots_start.plus(i);
        let is_used = |b: &BlockNr| read(device, b.offset(), BLOCK_SIZE).iter().any(|b| *b != 0);
        let slots: Vec<BlockNr> = (0..rows * 2).map(block).filter(is_used).collect();
        let tickets: Vec<BlockNr> = (rows * 2..rows * 3).map(block).filter(is_used).collect();
        let decode = |b: &BlockNr| RootSlot::decode(&read(device, b.offset(), BLOCK_SIZE), &sb.uuid, *b);
        let found = slots.iter().filter_map(|b| decode(b).ok().flatten());
        let slot = found.max_by_key(|s| (s.epoch, s.seq)).expect("a root");
        let mut out = Self {
            superblock: sb,
            slot,
            slots,
            tickets,
            nodes: Vec::new(),
            records: Vec::new(),
            data: Vec::new(),
        };
        out.find_nodes(device);
        out.find_records(device);
        out
    }

    /// Address of the ticket of the root's epoch.
    pub fn ticket(&self) -> BlockNr {
        Ticket::address(self.superblock.slots_start, self.superblock.slot_rows, self.slot.epoch)
    }

    /// Addresses of the two root slots of an epoch.
    pub fn row(&self, epoch: Epoch) -> [BlockNr; 2] {
        let sb = &self.superblock;
        [0, 1].map(|i| RootSlot::address(sb.slots_start, sb.slot_rows, epoch, i))
    }

    fn find_nodes(&mut self, device: &RamDevice) {
        let tree = self.slot.tree;
        let root = NodePtr { addr: tree.addr, birth: tree.birth, crc: tree.crc };
        let mut todo = vec![(root, None)];
        while let Some((ptr, parent)) = todo.pop() {
            let bytes = read(device, ptr.addr.offset(), NODE_SIZE);
            let node = Node::open(AlignedBuf::from_slice(&bytes), ptr, self.superblock.uuid);
            let node = node.expect("a good node");
            let index = self.nodes.len();
            self.nodes.push(NodeAt { addr: ptr.addr, parent, level: node.level() });
            for i in 0..node.len() {
                if node.level() > 0 {
                    todo.push((node.child(i), Some((index, i))));
                } else if node.key(i).kind == ItemKind::Map {
                    let page_blocks = self.superblock.page_size.blocks();
                    let chunk = Chunk::decode(node.value(i), page_blocks).expect("a good map item");
                    self.data.extend(chunk.pages.iter().filter_map(|p| Some(p.blocks()?.run())));
                }
            }
        }
    }

    fn find_records(&mut self, device: &RamDevice) {
        let sb = &self.superblock;
        for part in &self.slot.journal {
            for segment in &part.segments {
                let bytes = read(device, segment.offset(), sb.segment_blocks as usize * BLOCK_SIZE);
                for block in 0..u64::from(sb.segment_blocks) {
                    let addr = segment.plus(block);
                    let Some((header, payload)) =
                        decode_record(&sb.uuid, addr, &bytes[block as usize * BLOCK_SIZE..])
                    else {
                        continue;
                    };
                    if header.epoch != part.epoch || header.lsn <= part.start.lsn {
                        continue;
                    }
                    for change in decode_changes(&header, payload).into_iter().flatten() {
                        if let Change::MapRun { run, .. } = change {
                            self.data.push(run.blocks(sb.page_size.blocks()));
                        }
                    }
                    self.records.push(RecordAt { addr, header });
                }
            }
        }
        self.records.sort_by_key(|r| r.header.lsn);
    }
}
