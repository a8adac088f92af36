//! What a device was told to do, in terms of the format: which write was which record, slot or
//! node, and from when on it was durable.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use blockdev::sim::{CutOptions, EventKind, Outcome, SimDevice, Survivors};
use blockdev::{AlignedBuf, BlockDevice, IoClass};
use dbfs_fs_core::format::node::{Expected, MAGIC, Node, NodePtr};
use dbfs_fs_core::format::record::{RecordHeader, decode_changes, decode_record};
use dbfs_fs_core::format::{Change, Key, RootSlot, Superblock};
use dbfs_fs_core::tree::{NodeCache, TreeReader, TreeRoot, TreeVisitor, verify};
use dbfs_fs_core::{BLOCK_SIZE, BlockNr, FsError};

/// What a write was.
#[derive(Clone, Debug)]
pub enum What {
    Slot(Box<RootSlot>),
    Record(RecordHeader, Arc<Vec<Change>>),
    Node,
    /// Pages of files, lists of a checkpoint.
    Other,
}

/// A write.
#[derive(Clone, Debug)]
pub struct Write {
    pub seq: u64,
    pub submitted_at: u64,
    pub handle: u32,
    /// From here on it is sure to survive a power cut.
    pub durable_at: Option<u64>,
    pub failed: bool,
    pub late: bool,
    pub blocks: Range<u64>,
    pub what: What,
}

impl Write {
    /// It survives a power cut at `moment`.
    pub fn durable_by(&self, moment: u64) -> bool {
        self.durable_at.is_some_and(|at| at <= moment)
    }

    pub fn record(&self) -> Option<(&RecordHeader, &[Change])> {
        match &self.what {
            What::Record(header, changes) => Some((header, changes)),
            _ => None,
        }
    }

    pub fn slot(&self) -> Option<&RootSlot> {
        match &self.what {
            What::Slot(slot) => Some(slot),
            _ => None,
        }
    }

    /// The durable LSN that the write brings to the device.
    pub fn carries(&self) -> Option<u64> {
        self.record().map(|(h, _)| h.durable_lsn.0).or(self.slot().map(|s| s.durable_lsn.0))
    }
}

/// All of them.
pub struct Trace {
    pub superblock: Superblock,
    pub writes: Vec<Write>,
}

pub fn superblock(device: &SimDevice) -> Superblock {
    let first = BlockNr(0);
    let copy = Superblock::copies(device.capabilities().size_bytes / BLOCK_SIZE as u64)[0];
    assert_eq!(copy, first);
    let buf = device.read_at(0, AlignedBuf::zeroed(BLOCK_SIZE), IoClass::Data).unwrap();
    Superblock::decode(&buf, first).unwrap()
}

impl Trace {
    /// What was written since the log was `since` long. The device holds a volume.
    pub fn since(device: &SimDevice, since: u64) -> Self {
        let superblock = superblock(device);
        let events = device.events_since(since);
        let flushes: Vec<(u64, u64)> = events
            .iter()
            .filter(|e| matches!(e.kind, EventKind::Flush { honest: true }))
            .filter_map(|e| Some((e.submitted_at, e.acked_at?)))
            .collect();
        let mut writes = Vec::new();
        for e in &events {
            let EventKind::Write { offset, data, fua, outcome, late } = &e.kind else { continue };
            let first = offset / BLOCK_SIZE as u64;
            let failed = *outcome != Outcome::Done;
            let durable_at = e.acked_at.filter(|_| !failed).and_then(|acked| {
                let flushed = flushes.iter().filter(|(sub, _)| *sub >= acked).map(|(_, done)| *done).min();
                if *fua { Some(acked) } else { flushed }
            });
            writes.push(Write {
                seq: e.seq,
                submitted_at: e.submitted_at,
                handle: e.handle,
                durable_at,
                failed,
                late: *late,
                blocks: first..first + (data.len() / BLOCK_SIZE) as u64,
                what: classify(&superblock, first, data),
            });
        }
        Self { superblock, writes }
    }

    pub fn records(&self) -> impl Iterator<Item = (&Write, &RecordHeader, &[Change])> {
        self.writes.iter().filter_map(|w| w.record().map(|(h, c)| (w, h, c)))
    }

    pub fn slots(&self) -> impl Iterator<Item = (&Write, &RootSlot)> {
        self.writes.iter().filter_map(|w| w.slot().map(|s| (w, s)))
    }

    /// Writes to the area that is shared by data, nodes and journals.
    pub fn in_data_area(&self) -> impl Iterator<Item = &Write> {
        let end = self.superblock.total_blocks - 1;
        let area = self.superblock.first_data_block.0..end;
        self.writes.iter().filter(move |w| area.contains(&w.blocks.start))
    }
}

fn classify(sb: &Superblock, first: u64, data: &[u8]) -> What {
    let own = BlockNr(first);
    let slots = sb.slots_start.0..sb.slots_start.0 + u64::from(sb.slot_rows) * 2;
    if slots.contains(&first) {
        return match RootSlot::decode(&data[..BLOCK_SIZE.min(data.len())], &sb.uuid, own) {
            Ok(Some(slot)) => What::Slot(Box::new(slot)),
            _ => What::Other,
        };
    }
    if data.starts_with(&MAGIC) {
        return What::Node;
    }
    match decode_record(&sb.uuid, own, data) {
        Some((header, payload)) => {
            let changes = decode_changes(&header, payload).expect("the engine writes records it can read");
            What::Record(header, Arc::new(changes))
        }
        None => What::Other,
    }
}

/// Blocks that a root needs beside the data and its own journal: its nodes, its pending list, and
/// the journals of earlier epochs. Read from the device as it was when the log was `cut` long.
pub fn reach(device: &SimDevice, cut: u64, slot: &RootSlot, sb: &Superblock) -> BTreeSet<u64> {
    let options = CutOptions { in_flight: false, ..CutOptions::plain(Survivors::KeepAll) };
    let image = Arc::new(device.image_at(cut, &options).into_ram());
    let mut blocks = nodes_of(image, slot, sb);
    if let Some(run) = slot.pending {
        blocks.extend(run.start.0..run.end().0);
    }
    for part in &slot.journal[..slot.journal.len() - 1] {
        for s in &part.segments {
            blocks.extend(s.0..s.0 + u64::from(sb.segment_blocks));
        }
    }
    blocks
}

/// Blocks of the nodes of a root's tree. All of them have to be good.
pub fn nodes_of(device: Arc<dyn BlockDevice>, slot: &RootSlot, sb: &Superblock) -> BTreeSet<u64> {
    #[derive(Default)]
    struct Collect(BTreeSet<u64>);
    impl TreeVisitor for Collect {
        fn node(&mut self, node: &Node, _: &Expected) {
            let first = node.ptr().addr.0;
            self.0.extend(first..first + 4);
        }
        fn item(&mut self, _: Key, _: &[u8]) {}
        fn bad(&mut self, ptr: NodePtr, _: &Expected, error: FsError) {
            panic!("node {ptr:?} of a root is damaged: {error}");
        }
    }
    let tree = slot.tree;
    let ptr = (tree.height > 0).then_some(NodePtr { addr: tree.addr, birth: tree.birth, crc: tree.crc });
    let reader = TreeReader::new(Arc::new(NodeCache::new(device, sb.uuid, 1 << 20)));
    let mut seen = Collect::default();
    verify(&reader, &TreeRoot { ptr, height: tree.height }, &mut seen).unwrap();
    seen.0
}
