//! Root slots: where a checkpoint becomes the state of the volume.
//!
//! An epoch owns one row of two slots and writes them in turn, so that a torn write never takes the
//! last good one. Its first act (the *claim*) writes both, one flush after the other.

use blockdev::AlignedBuf;
use uuid::Uuid;

use super::bytes::{Reader, Writer};
use super::superblock::MAX_SEGMENTS;
use crate::error::{FsError, Result};
use crate::mutants::{self, Mutant};
use crate::types::{BLOCK_SIZE, BlockNr, BlockRun, Epoch, GroupNr, Ino, Lsn};

const MAGIC: [u8; 8] = *b"dbfsROOT";
const VERSION: u32 = 1;
const CRC_AT: usize = 12;

/// Most earlier epochs whose journals a slot can refer to; a mount that would exceed it makes a
/// checkpoint first.
pub const MAX_PARTS: usize = 8;

/// Most ranges of reserved groups in a slot.
pub const MAX_RESERVED: usize = 64;

/// Most ranges of draining groups in a slot, of either kind.
pub const MAX_DRAINING: usize = 32;

/// Pointer to a tree node as stored in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootPtr {
    /// Address of the root node; 0: the tree is empty.
    pub addr: BlockNr,
    /// LSN of the checkpoint that wrote it.
    pub birth: Lsn,
    /// CRC32C of the node.
    pub crc: u32,
    /// Levels of the tree; 0: empty.
    pub height: u8,
}

/// A point in the journal: where the next record would be, and what came before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalPoint {
    /// Index into the part's segments.
    pub segment: u32,
    /// Block within the segment.
    pub block: u32,
    /// LSN of the record before this point.
    pub lsn: Lsn,
    /// Checksum of the record before this point.
    pub crc: u32,
}

/// The journal of one epoch, as far as this root still needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalPart {
    /// The epoch that wrote it.
    pub epoch: Epoch,
    /// Where replay starts.
    pub start: JournalPoint,
    /// Last record that counts and its checksum (the *cut*); `None` for the running epoch.
    pub end: Option<(Lsn, u32)>,
    /// First blocks of the segments, in the (cyclic) order of their use.
    pub segments: Vec<BlockNr>,
}

/// Range of reserved block groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupRange {
    /// First group.
    pub first: GroupNr,
    /// Number of groups.
    pub count: u32,
}

/// A decoded root slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootSlot {
    /// The epoch that wrote it.
    pub epoch: Epoch,
    /// Counts the roots of this epoch; the claim is 0.
    pub seq: u64,
    /// Node that wrote it.
    pub node_id: u32,
    /// Lease under which it was written (0: local lock only).
    pub lease_ballot: u64,
    /// Changes up to here are in the tree.
    pub checkpoint_lsn: Lsn,
    /// Durable when this slot was written.
    pub durable_lsn: Lsn,
    /// The tree.
    pub tree: RootPtr,
    /// Blocks that hold the list of this checkpoint's node allocations and frees, which the tree's
    /// bitmaps do not yet show; `None` if there are none.
    pub pending: Option<BlockRun>,
    /// Entries in the pending list.
    pub pending_len: u32,
    /// CRC32C of the pending list's entries.
    pub pending_crc: u32,
    /// Next inode number.
    pub next_ino: Ino,
    /// Free blocks by the tree's bitmaps with the pending list applied.
    pub free_blocks: u64,
    /// Size of the volume in blocks.
    pub total_blocks: u64,
    /// Number of inodes.
    pub inodes: u64,
    /// Number of the claim that made the epoch, as in its [`Ticket`](super::Ticket); 0: mkfs.
    pub claim: u64,
    /// Group ranges this epoch may write to (rule R2).
    pub reserved: Vec<GroupRange>,
    /// This epoch runs without the lock on the device.
    pub unlocked: bool,
    /// The epoch has ended well: nothing that it has written is still under way.
    pub ended: bool,
    /// Group ranges that earlier epochs, which held the lock, may still be writing to: no later one has
    /// proved with the lock that their I/O has drained (rule R2).
    pub draining: Vec<GroupRange>,
    /// Group ranges that earlier epochs without the lock may still be writing to.
    pub draining_unlocked: Vec<GroupRange>,
    /// Journals to replay, oldest first; the last one is this epoch's own.
    pub journal: Vec<JournalPart>,
}

impl RootSlot {
    /// Address of slot `index` (0 or 1) of `epoch`'s row.
    pub fn address(slots_start: BlockNr, rows: u32, epoch: Epoch, index: u64) -> BlockNr {
        slots_start.plus((epoch.0 % u64::from(rows)) * 2 + index % 2)
    }

    /// Encodes the slot for block `own`. Fails if it has too many parts for a block.
    pub fn encode(&self, uuid: &Uuid, own: BlockNr) -> Result<AlignedBuf> {
        let mut b = Vec::with_capacity(BLOCK_SIZE);
        b.extend_from_slice(&MAGIC);
        b.put_u32(VERSION);
        b.put_u32(0); // CRC_AT
        b.extend_from_slice(uuid.as_bytes());
        for v in [own.0, self.epoch.0, self.seq] {
            b.put_u64(v);
        }
        b.put_u32(self.node_id);
        b.put_u64(self.lease_ballot);
        b.put_u64(self.checkpoint_lsn.0);
        b.put_u64(self.durable_lsn.0);
        b.put_u64(self.tree.addr.0);
        b.put_u64(self.tree.birth.0);
        b.put_u32(self.tree.crc);
        b.put_u8(self.tree.height);
        let pending = self.pending.unwrap_or(BlockRun::new(BlockNr(0), 0));
        b.put_u64(pending.start.0);
        b.put_u32(pending.len);
        b.put_u32(self.pending_len);
        b.put_u32(self.pending_crc);
        for v in [self.next_ino.0, self.free_blocks, self.total_blocks, self.inodes] {
            b.put_u64(v);
        }
        b.put_u64(self.claim);
        b.put_u8(u8::from(self.unlocked) | u8::from(self.ended) << 1);
        b.extend_from_slice(&[0; 55]); // snapshot roots, reserved
        encode_ranges(&mut b, &self.reserved);
        encode_ranges(&mut b, &self.draining);
        encode_ranges(&mut b, &self.draining_unlocked);
        b.put_u16(self.journal.len() as u16);
        for part in &self.journal {
            encode_part(&mut b, part);
        }
        let draining = self.draining.len().max(self.draining_unlocked.len());
        if self.journal.len() > MAX_PARTS
            || self.reserved.len() > MAX_RESERVED
            || draining > MAX_DRAINING
            || b.len() > BLOCK_SIZE
        {
            return Err(FsError::Volume("the root slot is full: too many unfinished epochs".into()));
        }
        b.resize(BLOCK_SIZE, 0);
        let crc = crc32c::crc32c(&b);
        b[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        Ok(AlignedBuf::from_slice(&b))
    }

    /// Decodes what was read from block `own`. `Ok(None)`: never written (all zero).
    pub fn decode(bytes: &[u8], uuid: &Uuid, own: BlockNr) -> Result<Option<Self>> {
        let bad = |detail: &str| FsError::corrupt("root slot", own, detail);
        if bytes.len() != BLOCK_SIZE {
            return Err(bad("short read"));
        }
        if bytes.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        let mut copy = bytes.to_vec();
        let stored = u32::from_le_bytes([copy[12], copy[13], copy[14], copy[15]]);
        copy[CRC_AT..CRC_AT + 4].fill(0);
        if crc32c::crc32c(&copy) != stored && !mutants::active(Mutant::SkipSlotChecksum) {
            return Err(bad("checksum mismatch"));
        }
        let mut r = Reader::new(bytes);
        if r.array() != Some(MAGIC) || r.u32() != Some(VERSION) {
            return Err(bad("wrong magic number or version"));
        }
        r.u32();
        if r.array() != Some(*uuid.as_bytes()) {
            return Err(bad("it belongs to another volume"));
        }
        if r.u64() != Some(own.0) {
            return Err(bad("it belongs to another address"));
        }
        decode_body(&mut r).ok_or_else(|| bad("impossible values")).map(Some)
    }
}

fn encode_ranges(b: &mut Vec<u8>, ranges: &[GroupRange]) {
    b.put_u16(ranges.len() as u16);
    for r in ranges {
        b.put_u32(r.first.0 as u32);
        b.put_u32(r.count);
    }
}

fn decode_ranges(r: &mut Reader<'_>, most: usize) -> Option<Vec<GroupRange>> {
    let n = usize::from(r.u16()?);
    if n > most {
        return None;
    }
    (0..n).map(|_| Some(GroupRange { first: GroupNr(r.u32()?.into()), count: r.u32()? })).collect()
}

fn encode_part(b: &mut Vec<u8>, part: &JournalPart) {
    b.put_u64(part.epoch.0);
    b.put_u32(part.start.segment);
    b.put_u32(part.start.block);
    b.put_u64(part.start.lsn.0);
    b.put_u32(part.start.crc);
    let (lsn, crc) = part.end.map_or((u64::MAX, 0), |(lsn, crc)| (lsn.0, crc));
    b.put_u64(lsn);
    b.put_u32(crc);
    b.put_u16(part.segments.len() as u16);
    for s in &part.segments {
        b.put_u64(s.0);
    }
}

fn decode_body(r: &mut Reader<'_>) -> Option<RootSlot> {
    let mut slot = RootSlot {
        epoch: Epoch(r.u64()?),
        seq: r.u64()?,
        node_id: r.u32()?,
        lease_ballot: r.u64()?,
        checkpoint_lsn: Lsn(r.u64()?),
        durable_lsn: Lsn(r.u64()?),
        ..RootSlot::default()
    };
    slot.tree = RootPtr { addr: BlockNr(r.u64()?), birth: Lsn(r.u64()?), crc: r.u32()?, height: r.u8()? };
    let pending = BlockRun::new(BlockNr(r.u64()?), r.u32()?);
    slot.pending = (pending.len != 0).then_some(pending);
    slot.pending_len = r.u32()?;
    slot.pending_crc = r.u32()?;
    slot.next_ino = Ino(r.u64()?);
    slot.free_blocks = r.u64()?;
    slot.total_blocks = r.u64()?;
    slot.inodes = r.u64()?;
    slot.claim = r.u64()?;
    let flags = r.u8()?;
    (slot.unlocked, slot.ended) = (flags & 1 != 0, flags & 2 != 0);
    r.bytes(55)?;
    slot.reserved = decode_ranges(r, MAX_RESERVED)?;
    slot.draining = decode_ranges(r, MAX_DRAINING)?;
    slot.draining_unlocked = decode_ranges(r, MAX_DRAINING)?;
    let parts = r.u16()?;
    if parts == 0 || usize::from(parts) > MAX_PARTS {
        return None;
    }
    for _ in 0..parts {
        slot.journal.push(decode_part(r)?);
    }
    let own = slot.journal.last()?;
    (own.epoch == slot.epoch && own.end.is_none()).then_some(slot)
}

fn decode_part(r: &mut Reader<'_>) -> Option<JournalPart> {
    let epoch = Epoch(r.u64()?);
    let start = JournalPoint { segment: r.u32()?, block: r.u32()?, lsn: Lsn(r.u64()?), crc: r.u32()? };
    let (end_lsn, end_crc) = (r.u64()?, r.u32()?);
    let end = (end_lsn != u64::MAX).then_some((Lsn(end_lsn), end_crc));
    let n = r.u16()?;
    if n == 0 || u32::from(n) > MAX_SEGMENTS || start.segment >= u32::from(n) {
        return None;
    }
    let segments = (0..n).map(|_| r.u64().map(BlockNr)).collect::<Option<Vec<_>>>()?;
    Some(JournalPart { epoch, start, end, segments })
}
