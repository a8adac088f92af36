//! Looking at every block of the volume for what carries a magic number: tree nodes and records.
//!
//! Only taken when something that leads to them is damaged.

use std::collections::BTreeMap;

use blockdev::{AlignedBuf, BlockDevice, IoClass};

use super::Progress;
use crate::error::Result;
use crate::format::node::{MAGIC, Node, NodePtr};
use crate::format::record::{RECORD_HEADER, RecordHeader, decode_record};
use crate::format::{Key, Superblock};
use crate::types::{BLOCK_SIZE, BlockNr, BlockRun, Epoch, Lsn, NODE_BLOCKS, NODE_SIZE};

/// Blocks read at once, and those that the last ones of them may need behind them.
const STEP: u64 = 256;
const TAIL: u64 = NODE_BLOCKS as u64 - 1;

/// First bytes of a record.
const RECORD_MAGIC: [u8; 4] = *b"dbJR";

/// A valid tree node, live or left behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct FoundNode {
    pub(super) ptr: NodePtr,
    pub(super) level: u8,
    pub(super) epoch: Epoch,
    pub(super) first: Key,
    pub(super) last: Key,
}

/// A valid journal record.
#[derive(Clone, Copy, Debug)]
pub(super) struct FoundRecord {
    pub(super) addr: BlockNr,
    pub(super) header: RecordHeader,
}

/// What was found. About 90 bytes a node and 80 a record.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) nodes: Vec<FoundNode>,
    /// By LSN: several, if an epoch was cut and another one wrote on.
    pub(super) records: BTreeMap<Lsn, Vec<FoundRecord>>,
}

impl Scan {
    /// Highest epoch of anything.
    pub(super) fn epoch(&self) -> Epoch {
        let nodes = self.nodes.iter().map(|n| n.epoch);
        nodes.chain(self.all_records().map(|r| r.header.epoch)).max().unwrap_or_default()
    }

    /// Drops nodes of epochs later than `known` that have left no record: an epoch begins with one, so
    /// these are of a repair that was interrupted before it had a root. Gives the highest epoch that
    /// is left.
    pub(super) fn drop_rootless(&mut self, known: Epoch) -> Epoch {
        let last = self.all_records().map(|r| r.header.epoch).fold(known, Epoch::max);
        self.nodes.retain(|n| n.epoch <= last);
        last
    }

    /// Highest number of a record, or of one up to which a node has the changes.
    pub(super) fn lsn(&self) -> Lsn {
        let nodes = self.nodes.iter().map(|n| n.ptr.birth).max();
        nodes.max(self.records.keys().next_back().copied()).unwrap_or_default()
    }

    /// All records.
    pub(super) fn all_records(&self) -> impl Iterator<Item = &FoundRecord> {
        self.records.values().flatten()
    }

    /// The blocks of all that was found.
    pub(super) fn runs(&self) -> impl Iterator<Item = BlockRun> + '_ {
        let nodes = self.nodes.iter().map(|n| BlockRun::new(n.ptr.addr, NODE_BLOCKS));
        nodes.chain(self.all_records().map(|r| BlockRun::new(r.addr, r.header.blocks())))
    }

    /// Adds a record unless it is there.
    pub(super) fn add_record(&mut self, found: FoundRecord) {
        let same = self.records.entry(found.header.lsn).or_default();
        if same.iter().all(|r| r.addr != found.addr) {
            same.push(found);
        }
    }
}

/// Scans the volume's data area and what the device has behind it: a root that is lost may have been that
/// of a larger volume.
pub(super) fn scan(device: &dyn BlockDevice, sb: &Superblock, progress: &Progress<'_>) -> Result<Scan> {
    let mut out = Scan::default();
    let end = device.capabilities().size_bytes / BLOCK_SIZE as u64;
    let mut at = sb.first_data_block.0;
    while at < end {
        let n = STEP.min(end - at);
        let len = (n + TAIL).min(end - at) as usize * BLOCK_SIZE;
        let buf = device.read_at(at * BLOCK_SIZE as u64, AlignedBuf::zeroed(len), IoClass::Background)?;
        for i in 0..n as usize {
            look(device, sb, BlockNr(at + i as u64), &buf[i * BLOCK_SIZE..], end, &mut out)?;
        }
        at += n;
        progress.show("looking for tree nodes", at - sb.first_data_block.0, end - sb.first_data_block.0);
    }
    Ok(out)
}

fn look(
    device: &dyn BlockDevice,
    sb: &Superblock,
    addr: BlockNr,
    bytes: &[u8],
    end: u64,
    out: &mut Scan,
) -> Result<()> {
    if bytes.starts_with(&MAGIC) {
        out.nodes.extend(node_in(sb, addr, bytes));
    } else if bytes.starts_with(&RECORD_MAGIC)
        && let Some(header) = record_at(device, sb, addr, bytes, end)?
    {
        out.add_record(FoundRecord { addr, header });
    }
    Ok(())
}

/// The node in `bytes`, if it is a valid one that was written for this place.
fn node_in(sb: &Superblock, addr: BlockNr, bytes: &[u8]) -> Option<FoundNode> {
    let bytes = bytes.get(..NODE_SIZE)?;
    let crc = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    let birth = Lsn(u64::from_le_bytes(bytes.get(48..56)?.try_into().ok()?));
    let ptr = NodePtr { addr, birth, crc };
    let node = Node::open(AlignedBuf::from_slice(bytes), ptr, sb.uuid).ok()?;
    let last = node.key(node.len() - 1);
    Some(FoundNode { ptr, level: node.level(), epoch: node.epoch(), first: node.key(0), last })
}

/// The header of the valid record at `addr`, whose first block is in `bytes`.
pub(super) fn record_at(
    device: &dyn BlockDevice,
    sb: &Superblock,
    addr: BlockNr,
    bytes: &[u8],
    end: u64,
) -> Result<Option<RecordHeader>> {
    let Some(len) = bytes.get(12..16).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes) else {
        return Ok(None);
    };
    let whole = (RECORD_HEADER + len as usize).div_ceil(BLOCK_SIZE) as u64;
    if bytes.get(16..32) != Some(sb.uuid.as_bytes().as_slice())
        || whole > u64::from(sb.segment_blocks)
        || addr.0 + whole > end
    {
        return Ok(None);
    }
    if whole as usize * BLOCK_SIZE <= bytes.len() {
        return Ok(decode_record(&sb.uuid, addr, bytes).map(|(h, _)| h));
    }
    let buf = AlignedBuf::zeroed(whole as usize * BLOCK_SIZE);
    let buf = device.read_at(addr.offset(), buf, IoClass::Background)?;
    Ok(decode_record(&sb.uuid, addr, &buf).map(|(h, _)| h))
}
