//! Forgery: structures say something else, and all checksums are right.

use blockdev::RamDevice;
use fs_core::format::record::{RECORD_HEADER, RecordPlace, encode_record};
use fs_core::format::{Change, ItemKind, Key, MappedRun, Superblock};
use fs_core::{BLOCK_SIZE, BlockNr, BlockRun, GroupNr, Ino, Lsn, NODE_SIZE, PageNr};

use super::aged::Aged;
use super::layout::{read, write};
use super::script::Script;

const BLOCK: usize = BLOCK_SIZE;
/// Where a node's table starts, the size of an inner entry, and where in it the child's checksum is.
const NODE_HEADER: usize = 80;
const INNER_ENTRY: usize = 37;
const CHILD_CRC: usize = 33;
const LEAF_SLOT: usize = 21;
/// Where root slots keep the checksums of the tree's root and of the pending list.
const SLOT_TREE_CRC: usize = 100;
const SLOT_PENDING_CRC: usize = 121;

/// Changes a copy of the image in a few places, as the script says. Returns what was done.
pub fn forge(aged: &Aged, script: &mut Script<'_>) -> (RamDevice, String) {
    let device = aged.image.snapshot();
    let mut forger = Forger { aged, device, done: Vec::new() };
    for _ in 0..1 + script.below(4) {
        match script.below(8) {
            0 => forger.superblock(script),
            1 => forger.slot(script),
            2 => forger.ticket(script),
            3 => forger.record(script),
            4 => forger.new_record(script),
            5 => forger.pending(script),
            _ => forger.node(script),
        }
        if script.is_empty() {
            break;
        }
    }
    (forger.device, forger.done.join("; "))
}

pub(super) struct Forger<'a> {
    pub(super) aged: &'a Aged,
    pub(super) device: RamDevice,
    pub(super) done: Vec<String>,
}

/// Puts the CRC32C of `bytes`, taken with its own field as zero, at `at`.
pub(super) fn seal(bytes: &mut [u8], at: usize) -> u32 {
    bytes[at..at + 4].fill(0);
    let crc = crc(bytes);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    crc
}

fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Numbers that are likely to be on a border.
pub(super) fn number(aged: &Aged, script: &mut Script<'_>) -> u64 {
    let total = aged.layout.slot.total_blocks;
    match script.below(6) {
        0 => script.byte().into(),
        1 => script.number(),
        2 => {
            let near = [
                0u64,
                1 << 7,
                1 << 8,
                1 << 15,
                1 << 16,
                1 << 31,
                1 << 32,
                1 << 44,
                1 << 48,
                1 << 62,
                1 << 63,
            ];
            script.pick(&near).wrapping_add(script.below(5) as u64).wrapping_sub(2)
        }
        3 => total.wrapping_add(script.below(9) as u64).wrapping_sub(4),
        4 => script.pick(&aged.layout.nodes).addr.0,
        _ => script.pick(&aged.layout.data).start.0,
    }
}

/// Changes a number of 1, 2, 4, 6 or 8 bytes somewhere in `bytes[from..to]`.
fn edit(aged: &Aged, bytes: &mut [u8], from: usize, to: usize, script: &mut Script<'_>) -> String {
    let width = *script.pick(&[1usize, 2, 4, 6, 8]);
    let at = from + script.below((to.saturating_sub(from + width - 1)).max(1));
    let width = width.min(bytes.len().saturating_sub(at));
    let mut old = [0; 8];
    old[..width].copy_from_slice(&bytes[at..at + width]);
    let old = u64::from_le_bytes(old);
    let new = match script.below(4) {
        0 => old ^ 1 << script.below(8 * width.max(1)),
        1 => old.wrapping_add(script.below(5) as u64).wrapping_sub(2),
        _ => number(aged, script),
    };
    bytes[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
    format!("{width} bytes at {at}: {old} is {new}")
}

impl Forger<'_> {
    pub(super) fn note(&mut self, what: &str, how: String) {
        self.done.push(format!("{what}: {how}"));
    }

    fn superblock(&mut self, script: &mut Script<'_>) {
        let sb = &self.aged.layout.superblock;
        let mut bytes = read(&self.device, 0, BLOCK);
        let how = edit(self.aged, &mut bytes, 40, 176, script);
        for copy in Superblock::copies(sb.total_blocks) {
            bytes[32..40].copy_from_slice(&copy.0.to_le_bytes());
            seal(&mut bytes, 12);
            write(&self.device, copy.offset(), &bytes);
        }
        self.note("superblock", how);
    }

    /// Both slots of the newest row become the newest root, changed.
    fn slot(&mut self, script: &mut Script<'_>) {
        let layout = &self.aged.layout;
        let row = layout.row(layout.slot.epoch);
        let mut bytes = self.newest_slot();
        let how = edit(self.aged, &mut bytes, 40, 600, script);
        self.put_slots(&row, bytes);
        self.note("root slots", how);
    }

    fn newest_slot(&self) -> Vec<u8> {
        let slot = &self.aged.layout.slot;
        let row = self.aged.layout.row(slot.epoch);
        read(&self.device, row[(slot.seq % 2) as usize].offset(), BLOCK)
    }

    /// Puts the newest root where it was.
    fn put_root(&self, root: Vec<u8>) {
        let slot = &self.aged.layout.slot;
        self.put_slots(&self.aged.layout.row(slot.epoch)[(slot.seq % 2) as usize..][..1], root);
    }

    fn put_slots(&self, places: &[BlockNr], mut bytes: Vec<u8>) {
        for own in places {
            bytes[32..40].copy_from_slice(&own.0.to_le_bytes());
            seal(&mut bytes, 12);
            write(&self.device, own.offset(), &bytes);
        }
    }

    fn ticket(&mut self, script: &mut Script<'_>) {
        let sb = &self.aged.layout.superblock;
        let row = script.below(sb.slot_rows as usize) as u64;
        let own = match script.below(2) {
            0 => self.aged.layout.ticket(),
            _ => sb.slots_start.plus(u64::from(sb.slot_rows) * 2 + row),
        };
        let mut bytes = read(&self.device, self.aged.layout.ticket().offset(), 512);
        bytes[32..40].copy_from_slice(&own.0.to_le_bytes());
        let how = edit(self.aged, &mut bytes, 40, 64, script);
        seal(&mut bytes, 12);
        bytes.resize(BLOCK, 0);
        write(&self.device, own.offset(), &bytes);
        self.note("ticket", how);
    }

    /// Changes a record, and the checksums of those that follow.
    fn record(&mut self, script: &mut Script<'_>) {
        let records = &self.aged.layout.records;
        let chosen = script.below(records.len());
        let mut before = None;
        for (i, r) in records.iter().enumerate().skip(chosen) {
            let len = RECORD_HEADER + r.header.payload_len as usize;
            let mut bytes = read(&self.device, r.addr.offset(), r.header.blocks() as usize * BLOCK);
            if i == chosen {
                let from = if script.below(8) == 0 { 48 } else { RECORD_HEADER };
                let how = edit(self.aged, &mut bytes, from, len, script);
                self.done.push(format!("record {}: {how}", r.header.lsn));
            }
            if let Some(crc) = before {
                bytes[72..76].copy_from_slice(&u32::to_le_bytes(crc));
            }
            before = Some(seal(&mut bytes[..len], 8));
            write(&self.device, r.addr.offset(), &bytes);
        }
    }

    /// Puts a record with changes of its own behind the last one.
    fn new_record(&mut self, script: &mut Script<'_>) {
        let Some(last) = self.aged.layout.records.last() else { return };
        let header = read(&self.device, last.addr.offset(), RECORD_HEADER);
        let prev_crc = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let changes: Vec<Change> = (0..1 + script.below(40)).map(|_| self.change(script)).collect();
        let addr = last.addr.plus(last.header.blocks().into());
        let place = RecordPlace {
            addr,
            epoch: last.header.epoch,
            lsn: last.header.lsn.next(),
            durable_lsn: if script.below(2) == 0 { last.header.lsn.next() } else { Lsn(1) },
            prev_crc,
            inodes: last.header.inodes,
            node_id: 0,
        };
        let mut payload = Vec::new();
        changes.iter().for_each(|c| c.encode(&mut payload));
        let (record, _) =
            encode_record(&self.aged.layout.superblock.uuid, &place, &payload, changes.len() as u32);
        write(&self.device, addr.offset(), &record);
        self.note("a new record", format!("{changes:?}"));
    }

    fn change(&self, script: &mut Script<'_>) -> Change {
        let kinds = [
            ItemKind::Inode,
            ItemKind::Symlink,
            ItemKind::DirEntry,
            ItemKind::Map,
            ItemKind::Xattr,
            ItemKind::Orphan,
            ItemKind::Bitmap,
        ];
        let n = |script: &mut Script<'_>| number(self.aged, script);
        let ino = |script: &mut Script<'_>| Ino(script.below(90) as u64);
        let key = |script: &mut Script<'_>| {
            let kind = *script.pick(&kinds);
            let system = matches!(kind, ItemKind::Orphan | ItemKind::Bitmap);
            Key::new(if system { Ino(0) } else { ino(script) }, kind, script.below(100) as u64)
        };
        match script.below(9) {
            0 => {
                let len = script.below(200);
                Change::PutItem { key: key(script), value: (0..len).map(|_| script.byte()).collect() }
            }
            1 => Change::DelItem { key: key(script) },
            2 => {
                let pages = 1 + script.below(100) as u32;
                let crcs = (script.below(2) == 0).then(|| vec![7; pages as usize]);
                let run = MappedRun { start: BlockNr(n(script) % (1 << 44)), pages, last_blocks: 1, crcs };
                Change::MapRun { ino: ino(script), page: PageNr(n(script)), run }
            }
            3 => Change::Unmap { ino: ino(script), page: PageNr(n(script)), pages: n(script) },
            4 => Change::Free {
                run: BlockRun::new(BlockNr(n(script) % (1 << 44)), 1 + script.below(70_000) as u32),
            },
            5 => Change::Inline { ino: ino(script), offset: n(script), data: vec![9; 1 + script.below(100)] },
            6 => Change::InlineZero { ino: ino(script), offset: n(script), len: n(script) as u32 },
            7 => Change::Reserve { first: GroupNr(n(script)), count: n(script) as u32 },
            _ => Change::Free { run: *script.pick(&self.aged.layout.data) },
        }
    }

    fn pending(&mut self, script: &mut Script<'_>) {
        let slot = &self.aged.layout.slot;
        let Some(run) = slot.pending else { return };
        let len = slot.pending_len as usize * 13;
        let mut bytes = read(&self.device, run.start.offset(), run.bytes());
        let how = edit(self.aged, &mut bytes, 0, len, script);
        write(&self.device, run.start.offset(), &bytes);
        let mut root = self.newest_slot();
        root[SLOT_PENDING_CRC..SLOT_PENDING_CRC + 4].copy_from_slice(&crc(&bytes[..len]).to_le_bytes());
        self.put_root(root);
        self.note("pending list", how);
    }

    /// Changes a node and the checksums on the way to it.
    fn node(&mut self, script: &mut Script<'_>) {
        let nodes = &self.aged.layout.nodes;
        let at = script.below(nodes.len());
        let mut bytes = read(&self.device, nodes[at].addr.offset(), NODE_SIZE);
        let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
        let (from, to) = if nodes[at].level > 0 {
            (NODE_HEADER, NODE_HEADER + count * INNER_ENTRY)
        } else {
            self.leaf_range(&bytes, count, script)
        };
        let (from, to) = if script.below(12) == 0 { (12, NODE_HEADER) } else { (from, to) };
        let how = edit(self.aged, &mut bytes, from, to.clamp(from + 1, NODE_SIZE), script);
        self.done.push(format!("node {} of level {}: {how}", nodes[at].addr, nodes[at].level));
        self.put_node(at, bytes);
    }

    /// Writes a node, and those above it with the right checksums.
    pub(super) fn put_node(&mut self, mut at: usize, mut bytes: Vec<u8>) {
        let nodes = &self.aged.layout.nodes;
        loop {
            let crc = seal(&mut bytes, 8).to_le_bytes();
            write(&self.device, nodes[at].addr.offset(), &bytes);
            match nodes[at].parent {
                Some((parent, entry)) => {
                    bytes = read(&self.device, nodes[parent].addr.offset(), NODE_SIZE);
                    let field = NODE_HEADER + entry * INNER_ENTRY + CHILD_CRC;
                    bytes[field..field + 4].copy_from_slice(&crc);
                    at = parent;
                }
                None => {
                    let mut root = self.newest_slot();
                    root[SLOT_TREE_CRC..SLOT_TREE_CRC + 4].copy_from_slice(&crc);
                    return self.put_root(root);
                }
            }
        }
    }

    /// Bytes of a leaf worth changing: mostly those of one value.
    fn leaf_range(&self, bytes: &[u8], count: usize, script: &mut Script<'_>) -> (usize, usize) {
        let table = (NODE_HEADER, NODE_HEADER + count * LEAF_SLOT);
        if count == 0 || script.below(5) == 0 {
            return table;
        }
        let slot = NODE_HEADER + script.below(count) * LEAF_SLOT;
        let Some(field) = bytes.get(slot + 17..slot + 21) else { return table };
        let start = usize::from(u16::from_le_bytes([field[0], field[1]]));
        let len = usize::from(u16::from_le_bytes([field[2], field[3]]));
        if len == 0 || start + len > NODE_SIZE { table } else { (start, start + len) }
    }
}
