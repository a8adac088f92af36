//! Journal records: a checksummed list of changes, at a block of a journal segment.

use blockdev::AlignedBuf;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::change::Change;
use crate::mutants::{self, Mutant};
use crate::types::{BLOCK_SIZE, BlockNr, Epoch, Lsn};

const MAGIC: [u8; 4] = *b"dbJR";
const VERSION: u16 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone)]
#[repr(C)]
struct Raw {
    magic: [u8; 4],
    version: U16,
    flags: U16,
    crc: U32,
    payload_len: U32,
    uuid: [u8; 16],
    own_addr: U64,
    epoch: U64,
    lsn: U64,
    durable_lsn: U64,
    inodes: U64,
    prev_crc: U32,
    node_id: U32,
    changes: U32,
    reserved: [u8; 12],
}

/// Bytes of the header in front of the payload.
pub const RECORD_HEADER: usize = 96;
const _: () = assert!(size_of::<Raw>() == RECORD_HEADER);

/// What a record's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Epoch that wrote it.
    pub epoch: Epoch,
    /// Its number.
    pub lsn: Lsn,
    /// Durable when it was built.
    pub durable_lsn: Lsn,
    /// Checksum of the record before.
    pub prev_crc: u32,
    /// Its own checksum (of header and payload).
    pub crc: u32,
    /// Number of changes.
    pub changes: u32,
    /// Inodes of the volume after this record.
    pub inodes: u64,
    /// Bytes of payload.
    pub payload_len: u32,
}

impl RecordHeader {
    /// Blocks the record takes.
    pub fn blocks(&self) -> u32 {
        record_blocks(self.payload_len as usize)
    }
}

/// Blocks that a record with this much payload takes.
pub fn record_blocks(payload_len: usize) -> u32 {
    (RECORD_HEADER + payload_len).div_ceil(BLOCK_SIZE) as u32
}

/// A new record's place in the journal.
#[derive(Clone, Copy, Debug)]
pub struct RecordPlace {
    /// Its first block.
    pub addr: BlockNr,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its number.
    pub lsn: Lsn,
    /// What is durable now.
    pub durable_lsn: Lsn,
    /// Checksum of the record before.
    pub prev_crc: u32,
    /// Inodes of the volume after this record.
    pub inodes: u64,
    /// The node that writes.
    pub node_id: u32,
}

/// Encodes a record, padded to whole blocks; returns it with its checksum.
pub fn encode_record(uuid: &Uuid, place: &RecordPlace, payload: &[u8], changes: u32) -> (AlignedBuf, u32) {
    let mut raw = Raw {
        magic: MAGIC,
        version: VERSION.into(),
        flags: 0.into(),
        crc: 0.into(),
        payload_len: (payload.len() as u32).into(),
        uuid: *uuid.as_bytes(),
        own_addr: place.addr.0.into(),
        epoch: place.epoch.0.into(),
        lsn: place.lsn.0.into(),
        durable_lsn: place.durable_lsn.0.into(),
        inodes: place.inodes.into(),
        prev_crc: place.prev_crc.into(),
        node_id: place.node_id.into(),
        changes: changes.into(),
        reserved: [0; 12],
    };
    let crc = crc32c::crc32c_append(crc32c::crc32c(raw.as_bytes()), payload);
    raw.crc = crc.into();
    let mut buf = AlignedBuf::zeroed(record_blocks(payload.len()) as usize * BLOCK_SIZE);
    buf[..RECORD_HEADER].copy_from_slice(raw.as_bytes());
    buf[RECORD_HEADER..RECORD_HEADER + payload.len()].copy_from_slice(payload);
    (buf, crc)
}

/// What the record that starts at `addr` says of itself; no checksum is verified. `bytes` runs to the
/// end of what may belong to it (the rest of the segment). `None`: there is no record of this volume,
/// or it would be longer than `bytes`.
pub fn peek_record(uuid: &Uuid, addr: BlockNr, bytes: &[u8]) -> Option<RecordHeader> {
    let (raw, rest) = Raw::ref_from_prefix(bytes).ok()?;
    if raw.magic != MAGIC
        || raw.version.get() != VERSION
        || raw.uuid != *uuid.as_bytes()
        || raw.own_addr.get() != addr.0
        || raw.payload_len.get() as usize > rest.len()
    {
        return None;
    }
    Some(RecordHeader {
        epoch: Epoch(raw.epoch.get()),
        lsn: Lsn(raw.lsn.get()),
        durable_lsn: Lsn(raw.durable_lsn.get()),
        prev_crc: raw.prev_crc.get(),
        crc: raw.crc.get(),
        changes: raw.changes.get(),
        inodes: raw.inodes.get(),
        payload_len: raw.payload_len.get(),
    })
}

/// Checksum of the header at the start of `bytes`, its own field taken as zero. That of the record is
/// this continued over the payload.
pub fn header_checksum(bytes: &[u8]) -> u32 {
    let Ok((raw, _)) = Raw::read_from_prefix(bytes) else { return 0 };
    crc32c::crc32c(Raw { crc: 0.into(), ..raw }.as_bytes())
}

/// Decodes and verifies the record that starts at `addr`. `bytes` runs to the end of what may
/// belong to it (the rest of the segment). `None`: not a whole valid record of this volume.
pub fn decode_record<'a>(uuid: &Uuid, addr: BlockNr, bytes: &'a [u8]) -> Option<(RecordHeader, &'a [u8])> {
    let header = peek_record(uuid, addr, bytes)?;
    let payload = bytes.get(RECORD_HEADER..)?.get(..header.payload_len as usize)?;
    let crc = crc32c::crc32c_append(header_checksum(bytes), payload);
    let good = crc == header.crc || mutants::active(Mutant::SkipRecordChecksum);
    good.then_some((header, payload))
}

/// Decodes the changes of a record's payload; `None` if malformed.
pub fn decode_changes(header: &RecordHeader, payload: &[u8]) -> Option<Vec<Change>> {
    Change::decode_all(payload, header.changes)
}
