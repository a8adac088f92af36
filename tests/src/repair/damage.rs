//! Damage to the metadata of a volume, and claim tickets that lie.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use blockdev::sim::SimDevice;
use blockdev::{AlignedBuf, BlockDevice, IoClass};
use fs_core::format::node::{Expected, Node, NodePtr};
use fs_core::format::{Chunk, ItemKind, Key, PageEntry, RootSlot, Superblock, Ticket};
use fs_core::tree::{NodeCache, TreeReader, TreeRoot, TreeVisitor, verify};
use fs_core::{BLOCK_SIZE, BlockNr, Epoch, FsError, NODE_BLOCKS};

use super::image::Aged;
use crate::rng::Rng;

/// What happens to some blocks.
#[derive(Clone, Debug)]
enum Hit {
    /// All zero.
    Zero(BlockNr),
    /// A bit of a byte.
    Flip(BlockNr, usize),
    /// Random bytes.
    Noise(BlockNr, u64),
    /// Two change places.
    Swap(BlockNr, BlockNr),
    /// The first has the content of the second, as after a misdirected write.
    Copy(BlockNr, BlockNr),
    /// A ticket with a right checksum that says something else.
    Forge(BlockNr, Ticket),
}

/// A set of them.
#[derive(Clone, Debug)]
pub struct Damage {
    hits: Vec<Hit>,
    tickets_only: bool,
}

/// What is where on the aged volume.
#[derive(Debug)]
pub(super) struct Map {
    /// Root slots, the newest first.
    pub(super) slots: Vec<BlockNr>,
    /// The ticket of the newest root's epoch.
    pub(super) ticket: BlockNr,
    pub(super) superblocks: Vec<BlockNr>,
    pub(super) journal: Vec<BlockNr>,
    pub(super) pending: Vec<BlockNr>,
    /// Nodes with their levels.
    pub(super) nodes: Vec<(u8, BlockNr)>,
    /// Nodes with pieces of the bitmap.
    pub(super) bitmaps: Vec<BlockNr>,
    /// Blocks with data of files.
    pub(super) data: Vec<BlockNr>,
    pub(super) superblock: Superblock,
    /// Epoch and claim of the root that counts.
    pub(super) root: (Epoch, u64),
}

#[derive(Default)]
struct Nodes {
    all: Vec<(u8, BlockNr)>,
    bitmaps: Vec<BlockNr>,
    data: Vec<BlockNr>,
    page_blocks: u32,
}

impl TreeVisitor for Nodes {
    fn node(&mut self, node: &Node, _: &Expected) {
        self.all.push((node.level(), node.ptr().addr));
    }
    fn item(&mut self, key: Key, value: &[u8]) {
        let leaf = self.all.last().expect("a leaf comes before its items").1;
        match key.kind {
            ItemKind::Bitmap if self.bitmaps.last() != Some(&leaf) => self.bitmaps.push(leaf),
            ItemKind::Map => {
                let chunk = Chunk::decode(value, self.page_blocks).expect("a good page map");
                self.data.extend(chunk.pages.iter().filter_map(PageEntry::blocks).map(|b| b.run().start));
            }
            _ => {}
        }
    }
    fn bad(&mut self, _: NodePtr, _: &Expected, _: FsError) {}
}

fn read(device: &dyn BlockDevice, at: BlockNr, blocks: usize) -> AlignedBuf {
    let buf = AlignedBuf::zeroed(blocks * BLOCK_SIZE);
    device.read_at(at.offset(), buf, IoClass::Data).expect("the simulator reads")
}

fn map(aged: &Aged) -> Map {
    let device: Arc<dyn BlockDevice> = Arc::new(aged.image.clone().into_ram());
    let sb = Superblock::decode(&read(device.as_ref(), BlockNr(0), 1), BlockNr(0)).expect("a superblock");
    let slots: Vec<BlockNr> = (0..u64::from(sb.slot_rows) * 2).map(|i| sb.slots_start.plus(i)).collect();
    let decode =
        |at: &BlockNr| RootSlot::decode(&read(device.as_ref(), *at, 1), &sb.uuid, *at).ok().flatten();
    let mut found: Vec<(RootSlot, BlockNr)> =
        slots.iter().filter_map(|at| Some((decode(at)?, *at))).collect();
    found.sort_by_key(|(s, _)| std::cmp::Reverse((s.epoch, s.seq)));
    let best = &found[0].0;
    let ptr = NodePtr { addr: best.tree.addr, birth: best.tree.birth, crc: best.tree.crc };
    let reader = TreeReader::new(Arc::new(NodeCache::new(device.clone(), sb.uuid, 1 << 20)));
    let mut nodes = Nodes { page_blocks: sb.page_size.blocks(), ..Nodes::default() };
    verify(&reader, &TreeRoot { ptr: Some(ptr), height: best.tree.height }, &mut nodes).expect("a tree");
    assert!(best.tree.height >= 3, "the tree has {} levels", best.tree.height);
    let part = best.journal.last().expect("a journal");
    let segment = |i: u32| part.segments[((part.start.segment + i) as usize) % part.segments.len()];
    let journal = (0..3).flat_map(|i| (0..sb.segment_blocks).map(move |b| (i, b)));
    let root = (best.epoch, best.claim);
    Map {
        root,
        journal: journal.map(|(i, b)| segment(i).plus(b.into())).collect(),
        slots: found.iter().map(|(_, at)| *at).collect(),
        superblocks: Superblock::copies(sb.total_blocks).to_vec(),
        pending: best.pending.iter().map(|r| r.start).collect(),
        ticket: Ticket::address(sb.slots_start, sb.slot_rows, best.epoch),
        nodes: nodes.all,
        bitmaps: nodes.bitmaps,
        data: nodes.data,
        superblock: sb,
    }
}

/// Where everything is.
pub(super) fn map_of(aged: &Aged) -> &'static Map {
    static MAP: OnceLock<Map> = OnceLock::new();
    MAP.get_or_init(|| map(aged))
}

impl Damage {
    /// Damage as `rng` says.
    pub fn choose(aged: &Aged, rng: &mut Rng) -> Self {
        let map = map_of(aged);
        if rng.one_in(6) {
            let hits = (0..*rng.pick(&[1, 1, 2, 3])).map(|_| ticket_hit(map, rng)).collect();
            return Damage { hits, tickets_only: true };
        }
        let mut hits = Vec::new();
        let mut spared = BTreeSet::from([*rng.pick(&map.superblocks)]);
        for _ in 0..*rng.pick(&[1, 1, 1, 2, 3, 6]) {
            let mut target = || match rng.weighted(&[30, 12, 8, 14, 6, 6, 4, 4]) {
                0 => node(map, rng, 0),
                1 => node(map, rng, 1),
                2 => node(map, rng, 2),
                3 => *rng.pick(&map.journal),
                4 => map.slots[rng.below(2) as usize],
                5 => *rng.pick(&map.superblocks),
                7 => ticket(map, rng).0,
                _ => map.pending.first().copied().unwrap_or(map.slots[0]),
            };
            let (at, other) = (target(), target());
            if !spared.insert(at) || spared.contains(&other) {
                continue;
            }
            hits.push(match rng.below(6) {
                0 | 1 => Hit::Zero(at),
                2 => Hit::Flip(at, rng.below(BLOCK_SIZE as u64) as usize),
                3 => Hit::Noise(at, rng.next_u64()),
                4 => Hit::Swap(at, other),
                _ => Hit::Copy(at, other),
            });
        }
        if rng.one_in(12) {
            hits.extend(map.slots[..2].iter().map(|at| Hit::Zero(*at)));
        }
        if rng.one_in(12) {
            hits.push(ticket_hit(map, rng));
        }
        Damage { hits, tickets_only: false }
    }

    /// Nothing but claim tickets is hit: nothing may be lost.
    pub fn is_tickets_only(&self) -> bool {
        self.tickets_only
    }

    /// Does it.
    pub fn apply(&self, device: &SimDevice) {
        let put = |at: BlockNr, bytes: &[u8]| {
            let buf = AlignedBuf::from_slice(bytes);
            device.write_at(at.offset(), buf, false, IoClass::Data).expect("the simulator writes");
        };
        for hit in &self.hits {
            match hit {
                Hit::Zero(at) => put(*at, &[0; BLOCK_SIZE]),
                Hit::Flip(at, byte) => {
                    let mut buf = read(device, *at, 1);
                    buf[*byte] ^= 0x10;
                    put(*at, &buf);
                }
                Hit::Noise(at, seed) => {
                    let mut rng = Rng::new(*seed);
                    let bytes: Vec<u8> =
                        (0..BLOCK_SIZE / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
                    put(*at, &bytes);
                }
                Hit::Swap(a, b) => {
                    let (x, y) = (read(device, *a, 1), read(device, *b, 1));
                    put(*a, &y);
                    put(*b, &x);
                }
                Hit::Copy(to, from) => put(*to, &read(device, *from, 1)),
                Hit::Forge(at, ticket) => {
                    let uuid = Superblock::decode(&read(device, BlockNr(0), 1), BlockNr(0)).map(|sb| sb.uuid);
                    let mut bytes = ticket.encode(&uuid.unwrap_or_default(), *at).to_vec();
                    bytes.resize(BLOCK_SIZE, 0);
                    put(*at, &bytes);
                }
            }
        }
        device.flush().expect("the simulator flushes");
    }
}

/// A block of a node of the live tree.
fn node(map: &Map, rng: &mut Rng, level: u8) -> BlockNr {
    let of_level: Vec<BlockNr> = map.nodes.iter().filter(|(l, _)| *l == level).map(|(_, at)| *at).collect();
    rng.pick(&of_level).plus(rng.below(NODE_BLOCKS.into()))
}

/// A ticket of an epoch near that of the root, mostly its own or the next one.
fn ticket(map: &Map, rng: &mut Rng) -> (BlockNr, Epoch) {
    let epoch = Epoch((map.root.0.0 + *rng.pick(&[0, 0, 1, 1, 2, 3])).saturating_sub(rng.below(2)));
    (Ticket::address(map.superblock.slots_start, map.superblock.slot_rows, epoch), epoch)
}

/// Damage to a ticket, or a forged one. Those of epochs that never were can only lie about what is not there.
fn ticket_hit(map: &Map, rng: &mut Rng) -> Hit {
    let (at, epoch) = ticket(map, rng);
    match rng.below(8) {
        0 => Hit::Zero(at),
        1 => Hit::Flip(at, rng.below(512) as usize),
        2 => Hit::Noise(at, rng.next_u64()),
        3 => Hit::Swap(at, ticket(map, rng).0),
        4 => Hit::Copy(at, ticket(map, rng).0),
        _ => {
            let rows = u64::from(map.superblock.slot_rows);
            let epoch = Epoch(epoch.0 + rows * *rng.pick(&[0, 0, 0, 1, 1 << 40]));
            let claim = *rng.pick(&[map.root.1, 12_345]);
            Hit::Forge(at, Ticket { epoch, claim, node_id: 0, complete: rng.one_in(2) })
        }
    }
}
