//! Fuzz targets: each takes any bytes and must come back.
//!
//! `tests/fuzz` gives them to cargo-fuzz; [`mutated`] tries them without it. Checksums, magic numbers and
//! addresses are made right first, or nothing would ever be looked at behind them.

use blockdev::AlignedBuf;
use fs_core::format::bitmap::{decode_piece, encode_piece};
use fs_core::format::dirent::{decode_bucket, encode_bucket};
use fs_core::format::node::{Expected, Node, NodePtr};
use fs_core::format::pending::decode_pending;
use fs_core::format::record::{RECORD_HEADER, decode_changes, decode_record};
use fs_core::format::xattr::decode_xattr;
use fs_core::format::{Change, Chunk, InodeItem, ItemKind, RootSlot, Superblock, Ticket};
use fs_core::{BLOCK_SIZE, BlockNr, Lsn, NODE_SIZE};
use uuid::Uuid;

use super::drive::small;
use super::forge::{forge, seal};
use super::layout::read;
use super::probe::probe;
use super::script::Script;
use crate::rng::Rng;

const UUID: Uuid = Uuid::from_bytes([7; 16]);
const OWN: BlockNr = BlockNr(600);

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Takes any bytes. Panics if something is wrong.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "superblock", run: superblock },
    Target { name: "slot", run: slot },
    Target { name: "journal", run: journal },
    Target { name: "node", run: node },
    Target { name: "page_map", run: page_map },
    Target { name: "items", run: items },
    Target { name: "image", run: image },
];

/// Runs the target of this name. Panics if there is none.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|t| t.name == name).expect("a target of this name");
    (target.run)(data);
}

/// `len` bytes that begin with `data`, their head replaced.
fn shaped(data: &[u8], len: usize, head: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = data[..data.len().min(len)].to_vec();
    bytes.resize(len, 0);
    for (at, value) in head {
        bytes[*at..*at + value.len()].copy_from_slice(value);
    }
    bytes
}

fn superblock(data: &[u8]) {
    let version = 1u32.to_le_bytes();
    let head: [(usize, &[u8]); 3] = [(0, b"dbfsSB\r\n"), (8, &version), (32, &[0; 8])];
    let mut bytes = shaped(data, BLOCK_SIZE, &head);
    seal(&mut bytes, 12);
    if let Ok(sb) = Superblock::decode(&bytes, BlockNr(0)) {
        let again = Superblock::decode(&sb.encode(BlockNr(0)), BlockNr(0)).expect("what was encoded");
        assert_eq!(sb.total_blocks, again.total_blocks);
    }
}

fn slot(data: &[u8]) {
    let (version, own) = (1u32.to_le_bytes(), OWN.0.to_le_bytes());
    let head: [(usize, &[u8]); 4] = [(0, b"dbfsROOT"), (8, &version), (16, UUID.as_bytes()), (32, &own)];
    let mut bytes = shaped(data, BLOCK_SIZE, &head);
    seal(&mut bytes, 12);
    if let Ok(Some(slot)) = RootSlot::decode(&bytes, &UUID, OWN) {
        let again = RootSlot::decode(&slot.encode(&UUID, OWN).expect("it fits"), &UUID, OWN);
        assert_eq!(Some(slot), again.expect("what was encoded"));
    }
    let mut bytes = shaped(data, 512, &[(0, b"dbfsCLAM"), (8, &version), (16, UUID.as_bytes()), (32, &own)]);
    seal(&mut bytes, 12);
    if let Ok(Some(ticket)) = Ticket::decode(&bytes, &UUID, OWN) {
        assert_eq!(
            Ticket::decode(&ticket.encode(&UUID, OWN), &UUID, OWN).expect("what was encoded"),
            Some(ticket)
        );
    }
}

fn journal(data: &[u8]) {
    let len = data.len().max(RECORD_HEADER);
    let (version, own) = (1u16.to_le_bytes(), OWN.0.to_le_bytes());
    let payload = ((len - RECORD_HEADER) as u32).to_le_bytes();
    let head: [(usize, &[u8]); 5] =
        [(0, b"dbJR"), (4, &version), (12, &payload), (16, UUID.as_bytes()), (32, &own)];
    let mut bytes = shaped(data, len, &head);
    seal(&mut bytes, 8);
    let (header, payload) = decode_record(&UUID, OWN, &bytes).expect("a record with a right checksum");
    for change in decode_changes(&header, payload).into_iter().flatten() {
        let mut encoded = Vec::new();
        change.encode(&mut encoded);
        assert!(encoded.len() <= change.encoded_len());
        assert_eq!(Change::decode_all(&encoded, 1), Some(vec![change]));
    }
}

fn node(data: &[u8]) {
    let (version, own) = (1u16.to_le_bytes(), OWN.0.to_le_bytes());
    let birth = 9u64.to_le_bytes();
    let head: [(usize, &[u8]); 5] =
        [(0, b"dbfsnode"), (12, &version), (16, UUID.as_bytes()), (32, &own), (48, &birth)];
    let mut bytes = shaped(data, NODE_SIZE, &head);
    let ptr = NodePtr { addr: OWN, birth: Lsn(9), crc: seal(&mut bytes, 8) };
    let Ok(node) = Node::open(AlignedBuf::from_slice(&bytes), ptr, UUID) else { return };
    let _ = node.check(&Expected { level: 0, first: None, below: None });
    for i in 0..node.len() {
        assert_eq!(node.search(&node.key(i)), Ok(i));
        if node.level() > 0 {
            assert!(node.child(i).plausible());
            let _ = node.child_expected(i, None);
        } else {
            item(node.key(i).kind, node.value(i));
        }
    }
}

fn item(kind: ItemKind, value: &[u8]) {
    match kind {
        ItemKind::Inode => {
            if let Some(item) = InodeItem::decode(value) {
                assert_eq!(InodeItem::decode(&item.encode()), Some(item));
            }
        }
        ItemKind::DirEntry => {
            if let Some(names) = decode_bucket(value) {
                assert_eq!(decode_bucket(&encode_bucket(&names)), Some(names));
            }
        }
        ItemKind::Map => page_map(value),
        ItemKind::Xattr => {
            let _ = decode_xattr(value);
        }
        ItemKind::Bitmap => {
            if let Some(words) = decode_piece(value) {
                let encoded = encode_piece(&words);
                assert_eq!(encoded.map_or(Some([0; 128]), |b| decode_piece(&b)), Some(words));
            }
        }
        _ => {}
    }
}

fn page_map(data: &[u8]) {
    for page_blocks in [1, 2, 4, 8, 16] {
        if let Some(chunk) = Chunk::decode(data, page_blocks)
            && let Some(encoded) = chunk.encode(page_blocks)
        {
            assert_eq!(Chunk::decode(&encoded, page_blocks), Some(chunk));
        }
    }
}

fn items(data: &[u8]) {
    let Some((kind, value)) = data.split_first() else { return };
    let _ = decode_pending(value, u32::from(*kind));
    let _ = decode_pending(value, u32::MAX);
    item(ItemKind::from_u8(kind % 40).unwrap_or(ItemKind::Inode), value);
}

fn image(data: &[u8]) {
    let (image, what) = forge(small(), &mut Script::new(data));
    if let Err(e) = probe(&image, None) {
        panic!("{what}: {e}");
    }
}

/// Inputs to begin with: (target, bytes), from an aged volume.
pub fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let aged = small();
    let (device, layout) = (&aged.image, &aged.layout);
    let mut out = vec![("superblock", read(device, 0, BLOCK_SIZE))];
    out.extend(layout.slots.iter().map(|b| ("slot", read(device, b.offset(), BLOCK_SIZE))));
    out.extend(layout.tickets.iter().map(|b| ("slot", read(device, b.offset(), 512))));
    for r in &layout.records {
        let len = RECORD_HEADER + r.header.payload_len as usize;
        out.push((
            "journal",
            read(device, r.addr.offset(), r.header.blocks() as usize * BLOCK_SIZE)[..len].to_vec(),
        ));
    }
    for at in &layout.nodes {
        let bytes = read(device, at.addr.offset(), NODE_SIZE);
        let field = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let crc = u32::from_le_bytes(std::array::from_fn(|i| bytes[8 + i]));
        let ptr = NodePtr { addr: at.addr, birth: Lsn(field(48)), crc };
        if let Ok(node) = Node::open(AlignedBuf::from_slice(&bytes), ptr, layout.superblock.uuid)
            && node.level() == 0
        {
            for i in 0..node.len() {
                let kind = node.key(i).kind;
                let target = if kind == ItemKind::Map { "page_map" } else { "items" };
                let tag = (target == "items").then_some(kind as u8);
                out.push((target, tag.into_iter().chain(node.value(i).iter().copied()).collect()));
            }
        }
        out.push(("node", bytes));
    }
    out.extend((0..32).map(|seed| ("image", super::script::random(seed))));
    out
}

/// An input of the corpus, mutated: bits flipped, numbers changed, parts of another one spliced in.
pub fn mutated(corpus: &[(&'static str, Vec<u8>)], seed: u64) -> (&'static str, Vec<u8>) {
    let mut rng = Rng::new(seed);
    let (name, bytes) = rng.pick(corpus);
    let mut bytes = bytes.clone();
    for _ in 0..rng.between(1, 5) {
        let len = bytes.len() as u64;
        let at = rng.below(len) as usize;
        match rng.below(5) {
            0 if len > 0 => bytes[at] ^= 1 << rng.below(8),
            1 => {
                let value = *rng.pick(&[0, 1, 0x7f, 0xff, 0xffff, 1 << 31, u64::MAX, 1 << 44, 1 << 63]);
                let width = 1usize << rng.below(4);
                let bytes = bytes.get_mut(at..at + width);
                bytes.into_iter().for_each(|b| b.copy_from_slice(&value.to_le_bytes()[..width]));
            }
            2 => bytes.truncate(at),
            3 => {
                let (_, other) = rng.pick(corpus);
                let from = rng.below(other.len() as u64) as usize;
                let n = (rng.below(200) as usize).min(other.len() - from).min(bytes.len() - at);
                bytes[at..at + n].copy_from_slice(&other[from..from + n]);
            }
            _ => {
                // Small numbers next to what is there: counts, lengths, levels.
                if let Some(b) = bytes.get_mut(at) {
                    *b = b.wrapping_add(rng.below(5) as u8).wrapping_sub(2);
                }
            }
        }
    }
    (name, bytes)
}
