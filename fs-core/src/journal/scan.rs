//! Reading the journal of an epoch back: recovery, and a follower's first step.
//!
//! Torn tail or corruption (rule R5)? The chain of records ends where the next one is not valid. If
//! anything, a root slot or a later valid record of the epoch, says that a record at or behind that
//! point was durable, acknowledged data is damaged: recovery refuses. Otherwise the chain ends
//! there. Records past the highest such durable LSN count only while the data they map is what
//! their checksums say.

use std::collections::HashMap;
use std::rc::Rc;

use blockdev::{AlignedBuf, BlockDevice, IoClass};
use uuid::Uuid;

use super::sums::BlockSums;
use crate::error::{FsError, Result};
use crate::format::record::{RECORD_HEADER, RecordHeader, decode_changes, decode_record, peek_record};
use crate::format::{Change, JournalPart, JournalPoint};
use crate::mutants::{self, Mutant};
use crate::types::{BLOCK_SIZE, BlockNr, Lsn};

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
    /// Bytes that were checksummed on the way: a few times the ring at most, whatever it holds.
    pub(crate) summed: u64,
}

struct Scanner<'a> {
    device: &'a dyn BlockDevice,
    uuid: &'a Uuid,
    part: &'a JournalPart,
    segment_blocks: u32,
    cache: HashMap<u32, Rc<AlignedBuf>>,
    /// Bytes checksummed so far.
    summed: u64,
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
    let mut scanner = Scanner { device, uuid, part, segment_blocks, cache: HashMap::new(), summed: 0 };
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
    let mut out = ScanEnd { lsn: part.start.lsn, crc: part.start.crc, inodes: None, records: 0, summed: 0 };
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
            summed: 0,
        };
    }
    Ok(ScanEnd { summed: scanner.summed, ..out })
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
        let Some((addr, segment)) = self.block(at)? else { return Ok(None) };
        let bytes = &segment[at.block as usize * BLOCK_SIZE..];
        let next = peek_record(self.uuid, addr, bytes).filter(|h| {
            let follows = h.prev_crc == prev_crc || mutants::active(Mutant::SkipPreviousChecksum);
            h.epoch == self.part.epoch && h.lsn == lsn && follows
        });
        let Some(next) = next else { return Ok(None) };
        self.summed += u64::from(next.payload_len);
        Ok(decode_record(self.uuid, addr, bytes).map(|(h, _)| h))
    }

    /// The address of a block of the ring, and the segment that it is in.
    fn block(&mut self, at: At) -> Result<Option<(BlockNr, Rc<AlignedBuf>)>> {
        if at.block >= self.segment_blocks {
            return Ok(None);
        }
        Ok(self.segment(at.step)?.map(|(addr, segment)| (addr.plus(at.block.into()), segment)))
    }

    /// The changes of a record that was found good.
    fn changes(&mut self, at: At, header: &RecordHeader) -> Result<Vec<Change>> {
        let start = at.block as usize * BLOCK_SIZE + RECORD_HEADER;
        let segment = self.segment(at.step)?.map(|(_, segment)| segment);
        let payload = segment.as_deref().and_then(|s| s.get(start..start + header.payload_len as usize));
        let changes = payload.and_then(|payload| decode_changes(header, payload));
        changes.ok_or_else(|| {
            FsError::corrupt(
                "journal record",
                self.part.segments.first().copied().unwrap_or_default(),
                format!("record {} of epoch {} cannot be decoded", header.lsn, header.epoch),
            )
        })
    }

    /// The segment `step` places behind the part's first; `None` once around the ring.
    fn segment(&mut self, step: u32) -> Result<Option<(BlockNr, Rc<AlignedBuf>)>> {
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
            self.cache.insert(index, Rc::new(read?));
        }
        Ok(self.cache.get(&index).map(|b| (addr, b.clone())))
    }

    /// Highest durable LSN in any valid record of this epoch behind the chain's end.
    ///
    /// Every block may look like the start of a record that fills its segment. So only records that
    /// would change the answer are verified, from sums that are made once for each block.
    fn durable_beyond(&mut self, end: At, last: Lsn) -> Result<Lsn> {
        let mut durable = Lsn(0);
        let (uuid, epoch, segment_blocks) = (self.uuid, self.part.epoch, self.segment_blocks);
        for step in end.step..=self.part.segments.len() as u32 {
            let first = if step == end.step { end.block } else { 0 };
            let mut sums = BlockSums::default();
            let Some((addr, bytes)) = self.segment(step)? else { break };
            for block in first..segment_blocks {
                let at = block as usize * BLOCK_SIZE;
                let Some(h) = peek_record(uuid, addr.plus(block.into()), &bytes[at..]) else { continue };
                let proven = match mutants::active(Mutant::LaterRecordIsProof) {
                    true => h.lsn,
                    false => h.durable_lsn,
                };
                if h.epoch == epoch && h.lsn > last && proven > durable && sums.verify(&bytes, at, &h) {
                    durable = proven;
                }
            }
            self.summed += sums.summed();
        }
        Ok(durable)
    }
}

#[cfg(test)]
mod tests {
    use blockdev::RamDevice;

    use super::*;
    use crate::format::record::{RecordPlace, encode_record};
    use crate::types::Epoch;

    const SEGMENT: u32 = 256;
    const SEGMENTS: u64 = 8;
    const RING: u64 = SEGMENTS * SEGMENT as u64 * BLOCK_SIZE as u64;

    fn place(addr: u64, lsn: u64, durable: u64) -> RecordPlace {
        RecordPlace {
            addr: BlockNr(addr),
            epoch: Epoch(3),
            lsn: Lsn(lsn),
            durable_lsn: Lsn(durable),
            prev_crc: 0,
            inodes: 1,
            node_id: 0,
        }
    }

    fn scan(device: &RamDevice, uuid: &Uuid) -> Result<ScanEnd> {
        let part = JournalPart {
            epoch: Epoch(3),
            segments: (0..SEGMENTS).map(|i| BlockNr(16 + i * u64::from(SEGMENT))).collect(),
            ..JournalPart::default()
        };
        scan_part(device, uuid, &part, SEGMENT, Lsn(0), &mut |_| Ok(true), &mut |_, _| Ok(()))
    }

    /// A ring in which every block begins a record that runs to the end of its segment, each with a
    /// higher durable LSN than the one before: the largest sum of lengths that a ring can claim.
    fn hostile_ring(uuid: &Uuid) -> RamDevice {
        let device = RamDevice::new(RING + (1 << 20), 4096);
        for i in 1..SEGMENTS * u64::from(SEGMENT) {
            let addr = 16 + i;
            let (mut record, _) = encode_record(uuid, &place(addr, 1000 + i, i), &[0; 4000], 0);
            let rest = u64::from(SEGMENT) - i % u64::from(SEGMENT);
            let len = (rest * BLOCK_SIZE as u64) as u32 - RECORD_HEADER as u32;
            record[12..16].copy_from_slice(&len.to_le_bytes());
            record[8] ^= 1;
            device.write_at(addr * BLOCK_SIZE as u64, record, false, IoClass::Log).unwrap();
        }
        device
    }

    #[test]
    fn the_work_for_a_hostile_ring_is_bounded() {
        let uuid = Uuid::from_bytes([5; 16]);
        let end = scan(&hostile_ring(&uuid), &uuid).unwrap();
        assert_eq!((end.lsn, end.records), (Lsn(0), 0));
        assert!(end.summed > RING / 2, "{} bytes were checksummed: nothing was looked at", end.summed);
        assert!(end.summed <= 4 * RING, "{} bytes were checksummed for a ring of {RING}", end.summed);
    }

    #[test]
    fn a_good_record_in_a_hostile_ring_counts() {
        let uuid = Uuid::from_bytes([5; 16]);
        let device = hostile_ring(&uuid);
        let addr = 16 + 5 * u64::from(SEGMENT) + 77;
        let (record, _) = encode_record(&uuid, &place(addr, 99_999, 88_888), &[6; 300_000], 0);
        device.write_at(addr * BLOCK_SIZE as u64, record, false, IoClass::Log).unwrap();
        let error = scan(&device, &uuid).unwrap_err().to_string();
        assert!(error.contains("up to record 88888"), "{error}");
    }
}
