//! The journal of a volume that recovery refuses: what can still be replayed, and what cannot.
//!
//! Records chain up by number and checksum, across epochs. So they can be put in order wherever they
//! are found: in the segments that a root names, or anywhere on the volume.

use std::collections::{BTreeMap, BTreeSet};

use blockdev::{AlignedBuf, BlockDevice, IoClass};

use super::scan::{FoundRecord, Scan, record_at};
use crate::delta::Delta;
use crate::error::Result;
use crate::format::record::{decode_changes, decode_record};
use crate::format::{Change, RootSlot, Superblock};
use crate::journal::ScanEnd;
use crate::types::{BLOCK_SIZE, Epoch, Ino, Lsn};
use crate::volume::{Patches, Recovered, Rows, UnprovenData, check_change, recover_from};

/// Acknowledged records that are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    /// The first of them.
    pub(super) first: Lsn,
    /// The last one that is known to have been acknowledged.
    pub(super) last: Lsn,
    /// Inodes that records behind the gap change.
    pub(super) inodes: BTreeSet<Ino>,
}

/// A state that the volume can be brought to.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) recovered: Recovered,
    pub(super) cut: Option<Cut>,
    /// The pending list is lost: the bitmaps cannot tell live nodes from others.
    pub(super) pending_lost: bool,
}

/// The state that `slot` leads to, as a mount would recover it or, if it would refuse, as far as the
/// records reach. `scan`: records that no root leads to.
pub(super) fn recover_leniently(
    device: &dyn BlockDevice,
    sb: &Superblock,
    slot: &RootSlot,
    scan: Option<&Scan>,
) -> Result<Candidate> {
    if scan.is_none()
        && let Ok(recovered) = recover_from(device, sb.clone(), Vec::new(), slot.clone(), Rows::default())
    {
        return Ok(Candidate { recovered, cut: None, pending_lost: false });
    }
    let empty = RootSlot { journal: Vec::new(), ..slot.clone() };
    let (slot, pending_lost) = match recover_from(device, sb.clone(), Vec::new(), empty, Rows::default()) {
        Ok(_) => (slot.clone(), false),
        Err(_) => (RootSlot { pending: None, pending_len: 0, ..slot.clone() }, true),
    };
    let mut records = Scan::default();
    read_segments(device, sb, &slot, &mut records)?;
    for found in scan.iter().flat_map(|s| s.all_records()) {
        records.add_record(*found);
    }
    let start = slot.journal.first().map(|p| (p.start.lsn, Some(p.start.crc)));
    let start = start.unwrap_or((slot.checkpoint_lsn, None));
    let pending = RootSlot { journal: Vec::new(), ..slot.clone() };
    let mut recovered = recover_from(device, sb.clone(), Vec::new(), pending, Rows::default())?;
    recovered.slot = slot;
    let cut = replay(device, sb, &mut recovered, start, &records.records)?;
    Ok(Candidate { recovered, cut, pending_lost })
}

/// All valid records in the segments that the root names.
fn read_segments(device: &dyn BlockDevice, sb: &Superblock, slot: &RootSlot, out: &mut Scan) -> Result<()> {
    for first in slot.journal.iter().flat_map(|p| &p.segments) {
        let len = sb.segment_blocks as usize * BLOCK_SIZE;
        let buf = device.read_at(first.offset(), AlignedBuf::zeroed(len), IoClass::Background)?;
        for (i, bytes) in buf.chunks_exact(BLOCK_SIZE).enumerate() {
            let addr = first.plus(i as u64);
            if let Some(header) = record_at(device, sb, addr, bytes, slot.total_blocks)? {
                out.add_record(FoundRecord { addr, header });
            }
        }
    }
    Ok(())
}

/// Replays the records behind `start` as far as they follow each other.
fn replay(
    device: &dyn BlockDevice,
    sb: &Superblock,
    r: &mut Recovered,
    start: (Lsn, Option<u32>),
    records: &BTreeMap<Lsn, Vec<FoundRecord>>,
) -> Result<Option<Cut>> {
    let (page_blocks, page_bytes) = (sb.page_size.blocks(), sb.page_size.bytes());
    let mut durable = r.slot.durable_lsn;
    durable = records.values().flatten().map(|f| f.header.durable_lsn).fold(durable, Lsn::max);
    (r.delta, r.patches) = (Delta::default(), Patches::default());
    r.end = ScanEnd { lsn: start.0, crc: start.1.unwrap_or(0), inodes: None, records: 0, summed: 0 };
    let mut unproven = UnprovenData::new(device, page_blocks, r.slot.total_blocks);
    let (mut crc, mut epoch) = (start.1, Epoch(0));
    while let Some(found) = next(records, r.end.lsn.next(), crc, epoch) {
        let header = found.header;
        let Some(changes) = changes_of(device, sb, found)? else { break };
        let mut checks =
            changes.iter().map(|c| check_change(c, r.slot.total_blocks, sb.page_size, header.epoch));
        if checks.any(|c| c.is_err()) {
            break;
        }
        if header.lsn > durable && !unproven.matches(&changes)? {
            break;
        }
        for change in &changes {
            r.delta.apply(change, header.lsn, page_blocks);
            r.patches.apply(change, page_bytes);
        }
        r.records += 1;
        r.inodes = header.inodes;
        r.end = ScanEnd {
            lsn: header.lsn,
            crc: header.crc,
            inodes: Some(header.inodes),
            records: r.end.records + 1,
            summed: 0,
        };
        (crc, epoch) = (Some(header.crc), header.epoch);
    }
    r.next_ino = r.next_ino.max(Ino(r.delta.highest_ino.0.saturating_add(1)));
    if durable <= r.end.lsn {
        return Ok(None);
    }
    let mut cut = Cut { first: r.end.lsn.next(), last: durable, inodes: BTreeSet::new() };
    for found in records.range(cut.first..).flat_map(|(_, same)| same) {
        let changes = changes_of(device, sb, found)?.unwrap_or_default();
        cut.inodes.extend(changes.iter().filter_map(touched));
    }
    Ok(Some(cut))
}

/// The record `lsn` that follows the one with checksum `crc`. If there are several, a later epoch
/// has cut the earlier one there.
fn next(
    records: &BTreeMap<Lsn, Vec<FoundRecord>>,
    lsn: Lsn,
    crc: Option<u32>,
    epoch: Epoch,
) -> Option<&FoundRecord> {
    let follows =
        |f: &&FoundRecord| f.header.epoch >= epoch && crc.is_none_or(|crc| f.header.prev_crc == crc);
    records.get(&lsn)?.iter().filter(follows).max_by_key(|f| f.header.epoch)
}

fn changes_of(device: &dyn BlockDevice, sb: &Superblock, found: &FoundRecord) -> Result<Option<Vec<Change>>> {
    let buf = AlignedBuf::zeroed(found.header.blocks() as usize * BLOCK_SIZE);
    let buf = device.read_at(found.addr.offset(), buf, IoClass::Background)?;
    let record = decode_record(&sb.uuid, found.addr, &buf);
    Ok(record.and_then(|(header, payload)| decode_changes(&header, payload)))
}

/// The inode whose content or attributes a change is about.
fn touched(change: &Change) -> Option<Ino> {
    match change {
        Change::PutItem { key, .. } | Change::DelItem { key } => (key.ino != Ino::SYSTEM).then_some(key.ino),
        Change::MapRun { ino, .. }
        | Change::Unmap { ino, .. }
        | Change::Inline { ino, .. }
        | Change::InlineZero { ino, .. } => Some(*ino),
        _ => None,
    }
}
