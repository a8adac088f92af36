//! Reading the journal of an epoch back: recovery, and a follower's first step.
//!
//! Torn tail or corruption (rule R5)? The chain of records ends where the next one is not valid. If
//! anything, a root slot or a later valid record of the epoch, says that a record at or behind that
//! point was durable, acknowledged data is damaged: recovery refuses. Otherwise the chain ends
//! there. Records past the highest such durable LSN count only while the data they map is what
//! their checksums say.

use std::collections::HashMap;

use blockdev::{AlignedBuf, BlockDevice, IoClass};
use uuid::Uuid;

use crate::error::{FsError, Result};
use crate::format::record::{RecordHeader, decode_changes, decode_record};
use crate::format::{Change, JournalPart, JournalPoint};
use crate::mutants::{self, Mutant};
use crate::types::{BLOCK_SIZE, BlockNr, Epoch, Lsn};

/// Where the records that count end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScanEnd {
    /// Last record that counts (or the one before the part's start).
    pub(crate) lsn: Lsn,
    /// Its checksum.
    pub(crate) crc: u32,
    /// Inodes of the volume after it, if any record was read.
    pub(crate) inodes: Option<u64>,
    /// Records that count.
    pub(crate) records: u64,
}

struct Scanner<'a> {
    device: &'a dyn BlockDevice,
    uuid: &'a Uuid,
    part: &'a JournalPart,
    segment_blocks: u32,
    cache: HashMap<u32, AlignedBuf>,
}

/// A place in the ring: segments counted from the part's first, and a block within.
#[derive(Clone, Copy, Debug)]
struct At {
    step: u32,
    block: u32,
}

/// Replays `part`: calls `replay` with each record that counts, in order.
///
/// `slot_durable` is the durable LSN in the best root slot. `data_ok` says whether the data that the
/// changes of a record map is on the device as its checksums say; it is only asked for records past
/// the highest durable LSN of the running (last) part.
pub(crate) fn scan_part(
    device: &dyn BlockDevice,
    uuid: &Uuid,
    part: &JournalPart,
    segment_blocks: u32,
    slot_durable: Lsn,
    data_ok: &mut dyn FnMut(&[Change]) -> Result<bool>,
    replay: &mut dyn FnMut(&RecordHeader, &[Change]) -> Result<()>,
) -> Result<ScanEnd> {
    let mut scanner = Scanner { device, uuid, part, segment_blocks, cache: HashMap::new() };
    let (chain, end) = scanner.walk_chain()?;
    let mut durable = slot_durable;
    for (_, header) in &chain {
        durable = durable.max(header.durable_lsn);
    }
    let last = chain.last().map_or(part.start.lsn, |(_, h)| h.lsn);
    match part.end {
        Some((lsn, crc)) => {
            let reached = chain.last().map_or((part.start.lsn, part.start.crc), |(_, h)| (h.lsn, h.crc));
            if reached != (lsn, crc) {
                return Err(scanner.damaged(last.next(), lsn));
            }
        }
        None => {
            if !mutants::active(Mutant::IgnoreLaterRecords) {
                durable = durable.max(scanner.durable_beyond(end, last)?);
            }
            if durable > last && !mutants::active(Mutant::CutAtDamage) {
                return Err(scanner.damaged(last.next(), durable));
            }
        }
    }
    let mut out = ScanEnd { lsn: part.start.lsn, crc: part.start.crc, inodes: None, records: 0 };
    for (at, header) in chain {
        let changes = scanner.changes(at, &header)?;
        if part.end.is_none() && header.lsn > durable && !data_ok(&changes)? {
            break;
        }
        replay(&header, &changes)?;
        out = ScanEnd {
            lsn: header.lsn,
            crc: header.crc,
            inodes: Some(header.inodes),
            records: out.records + 1,
        };
    }
    Ok(out)
}

impl Scanner<'_> {
    fn damaged(&self, lsn: Lsn, durable: Lsn) -> FsError {
        let JournalPoint { segment, .. } = self.part.start;
        let block = self.part.segments.get(segment as usize).copied().unwrap_or_default();
        FsError::corrupt(
            "journal",
            block,
            format!(
                "record {lsn} of epoch {} is missing or damaged, although everything up to record \
                 {durable} was acknowledged; refusing to drop acknowledged changes",
                self.part.epoch
            ),
        )
    }

    /// All records from the part's start that chain up, with their places.
    fn walk_chain(&mut self) -> Result<(Vec<(At, RecordHeader)>, At)> {
        let mut chain = Vec::new();
        let mut at = At { step: 0, block: self.part.start.block };
        let (mut lsn, mut crc) = (self.part.start.lsn, self.part.start.crc);
        let limit = self.part.end.map(|(lsn, _)| lsn);
        while limit.is_none_or(|l| lsn < l) {
            let mut found = self.header_at(at, lsn.next(), crc)?.map(|h| (at, h));
            if found.is_none() && at.block > 0 {
                let next = At { step: at.step + 1, block: 0 };
                found = self.header_at(next, lsn.next(), crc)?.map(|h| (next, h));
            }
            let Some((place, header)) = found else { break };
            (lsn, crc) = (header.lsn, header.crc);
            at = At { step: place.step, block: place.block + header.blocks() };
            if at.block >= self.segment_blocks {
                at = At { step: place.step + 1, block: 0 };
            }
            chain.push((place, header));
        }
        Ok((chain, at))
    }

    fn header_at(&mut self, at: At, lsn: Lsn, prev_crc: u32) -> Result<Option<RecordHeader>> {
        let epoch = self.part.epoch;
        let header = self.record_at(at)?.map(|(h, _)| h);
        Ok(header.filter(|h| {
            let follows = h.prev_crc == prev_crc || mutants::active(Mutant::SkipPreviousChecksum);
            h.epoch == epoch && h.lsn == lsn && follows
        }))
    }

    fn record_at(&mut self, at: At) -> Result<Option<(RecordHeader, &[u8])>> {
        let (uuid, segment_blocks) = (self.uuid, self.segment_blocks);
        if at.block >= segment_blocks {
            return Ok(None);
        }
        let Some((addr, bytes)) = self.segment(at.step)? else { return Ok(None) };
        let rest = &bytes[at.block as usize * BLOCK_SIZE..];
        Ok(decode_record(uuid, addr.plus(at.block.into()), rest))
    }

    fn changes(&mut self, at: At, header: &RecordHeader) -> Result<Vec<Change>> {
        let record = self.record_at(at)?;
        let changes = record.and_then(|(h, payload)| decode_changes(&h, payload));
        changes.ok_or_else(|| {
            FsError::corrupt(
                "journal record",
                self.part.segments.first().copied().unwrap_or_default(),
                format!("record {} of epoch {} cannot be decoded", header.lsn, header.epoch),
            )
        })
    }

    /// The segment `step` places behind the part's first; `None` once around the ring.
    fn segment(&mut self, step: u32) -> Result<Option<(BlockNr, &AlignedBuf)>> {
        let n = self.part.segments.len() as u32;
        if step >= n {
            return Ok(None);
        }
        let index = (self.part.start.segment + step) % n;
        let addr = self.part.segments[index as usize];
        if !self.cache.contains_key(&index) {
            let buf = AlignedBuf::zeroed(self.segment_blocks as usize * BLOCK_SIZE);
            let read = self.device.read_at(addr.offset(), buf, IoClass::Data);
            if read.is_err() && mutants::active(Mutant::ReadErrorIsTornTail) {
                return Ok(None);
            }
            self.cache.insert(index, read?);
        }
        Ok(self.cache.get(&index).map(|b| (addr, b)))
    }

    /// Highest durable LSN in any valid record of this epoch behind the chain's end.
    fn durable_beyond(&mut self, end: At, last: Lsn) -> Result<Lsn> {
        let mut durable = Lsn(0);
        let epoch: Epoch = self.part.epoch;
        for step in end.step..=self.part.segments.len() as u32 {
            let first = if step == end.step { end.block } else { 0 };
            for block in first..self.segment_blocks {
                if let Some((h, _)) = self.record_at(At { step, block })?
                    && h.epoch == epoch
                    && h.lsn > last
                {
                    let proven =
                        if mutants::active(Mutant::LaterRecordIsProof) { h.lsn } else { h.durable_lsn };
                    durable = durable.max(proven);
                }
            }
        }
        Ok(durable)
    }
}
