//! What has a fixed place: the copies of the superblock and the root slots.

use std::collections::BTreeMap;

use blockdev::{AlignedBuf, BlockDevice, IoClass};

use super::report::{Findings, ProblemKind};
use super::text;
use crate::error::Result;
use crate::format::{RootSlot, Superblock};
use crate::types::{BLOCK_SIZE, BlockNr, Epoch};

/// Slots read at once.
const STEP: u64 = 256;

/// A root slot as found.
pub(crate) struct FoundSlot {
    /// Its row.
    pub(crate) row: u64,
    /// Which of the row's two.
    pub(crate) index: u64,
    /// Its block.
    pub(crate) block: BlockNr,
    /// Its content; `None`: never written.
    pub(crate) content: Result<Option<RootSlot>>,
}

/// Reads all root slots and calls `f` with each that was ever written.
pub(crate) fn for_each_slot(
    device: &dyn BlockDevice,
    sb: &Superblock,
    f: &mut dyn FnMut(FoundSlot),
) -> Result<()> {
    let blocks = u64::from(sb.slot_rows) * 2;
    for first in (0..blocks).step_by(STEP as usize) {
        let n = STEP.min(blocks - first);
        let at = sb.slots_start.plus(first);
        let buf = AlignedBuf::zeroed(n as usize * BLOCK_SIZE);
        let buf = device.read_at(at.offset(), buf, IoClass::Background)?;
        for (i, bytes) in buf.chunks_exact(BLOCK_SIZE).enumerate() {
            let (number, block) = (first + i as u64, at.plus(i as u64));
            let content = RootSlot::decode(bytes, &sb.uuid, block);
            if !matches!(content, Ok(None)) {
                f(FoundSlot { row: number / 2, index: number % 2, block, content });
            }
        }
    }
    Ok(())
}

/// Reads a copy of the superblock.
pub(crate) fn read_copy(device: &dyn BlockDevice, copy: BlockNr) -> Result<Superblock> {
    let buf = device.read_at(copy.offset(), AlignedBuf::zeroed(BLOCK_SIZE), IoClass::Background)?;
    Superblock::decode(&buf, copy)
}

/// All copies of the superblock must be there and agree, on a volume of `total_blocks`.
pub(super) fn check_superblocks(
    device: &dyn BlockDevice,
    sb: &Superblock,
    total_blocks: u64,
    findings: &mut Findings,
) {
    for copy in sb.copies_at(total_blocks) {
        let (kind, wrong) = match read_copy(device, copy) {
            Ok(other) if other == *sb => continue,
            Ok(_) => (ProblemKind::Superblock, "it differs from the others".to_owned()),
            Err(e) => (ProblemKind::of(&e, ProblemKind::Superblock), text(&e)),
        };
        findings.add(kind, None, Some(copy), || format!("copy of the superblock at block {copy}: {wrong}"));
    }
}

/// Every valid slot must be where its epoch and number say. Returns notes on damaged ones: a torn
/// write is harmless while the row has another.
pub(super) fn check_slots(
    device: &dyn BlockDevice,
    sb: &Superblock,
    best: &RootSlot,
    findings: &mut Findings,
) -> Vec<String> {
    let mut notes = Vec::new();
    let mut rows: BTreeMap<u64, RootSlot> = BTreeMap::new();
    let outcome = for_each_slot(device, sb, &mut |found| {
        let FoundSlot { row, index, block, content } = found;
        match content {
            Ok(Some(slot)) => {
                if let Some(wrong) = misplaced(&slot, sb, row, index, rows.get(&row)) {
                    findings.add(ProblemKind::RootSlot, None, Some(block), || {
                        format!("root slot {block}: {wrong}")
                    });
                }
                rows.insert(row, slot);
            }
            Ok(None) => {}
            Err(e) => notes.push(format!("a damaged root slot that is not needed: {}", text(&e))),
        }
    });
    if let Err(e) = outcome {
        findings.volume(ProblemKind::Device, || text(&e));
    }
    check_best(best, sb, findings);
    notes
}

/// Blocks of valid root slots that [`check_slots`] finds in a wrong place.
pub(crate) fn misplaced_slots(device: &dyn BlockDevice, sb: &Superblock) -> Result<Vec<BlockNr>> {
    let (mut out, mut rows) = (Vec::new(), BTreeMap::<u64, RootSlot>::new());
    for_each_slot(device, sb, &mut |FoundSlot { row, index, block, content }| {
        let Ok(Some(slot)) = content else { return };
        if misplaced(&slot, sb, row, index, rows.get(&row)).is_some() {
            out.push(block);
        }
        rows.insert(row, slot);
    })?;
    Ok(out)
}

fn misplaced(
    slot: &RootSlot,
    sb: &Superblock,
    row: u64,
    index: u64,
    first: Option<&RootSlot>,
) -> Option<String> {
    if slot.epoch.0 % u64::from(sb.slot_rows) != row {
        return Some(format!("epoch {} does not belong into row {row}", slot.epoch));
    }
    // The claim (number 0) is written to both; after it they take turns.
    if slot.seq > 0 && slot.seq % 2 != index {
        return Some(format!("root {} of epoch {} is in the wrong one of its row", slot.seq, slot.epoch));
    }
    let first = first.filter(|f| f.epoch == slot.epoch)?;
    let (old, new) = if first.seq <= slot.seq { (first, slot) } else { (slot, first) };
    (old.checkpoint_lsn > new.checkpoint_lsn || old.durable_lsn > new.durable_lsn)
        .then(|| format!("root {} of epoch {} is behind root {}", new.seq, new.epoch, old.seq))
}

/// What the root that counts says about itself.
fn check_best(slot: &RootSlot, sb: &Superblock, findings: &mut Findings) {
    let mut wrong = |what: String| findings.volume(ProblemKind::RootSlot, || what);
    if slot.checkpoint_lsn > slot.durable_lsn {
        wrong(format!(
            "the root's checkpoint (record {}) is ahead of what was durable (record {})",
            slot.checkpoint_lsn, slot.durable_lsn
        ));
    }
    if slot.tree.birth > slot.checkpoint_lsn {
        wrong(format!("the tree (record {}) is younger than its root slot", slot.tree.birth));
    }
    let groups = slot.total_blocks.div_ceil(u64::from(sb.group_blocks));
    for r in &slot.reserved {
        if r.count == 0 || r.first.0 + u64::from(r.count) > groups {
            wrong(format!("{} groups from {} on are reserved, of {groups}", r.count, r.first));
        }
    }
    let mut before = Epoch(0);
    let mut end = crate::types::Lsn(0);
    for part in &slot.journal {
        let stop = part.end.map_or(part.start.lsn, |(lsn, _)| lsn);
        if part.epoch <= before || part.start.lsn < end || stop < part.start.lsn {
            wrong(format!("the journal of epoch {} is out of order", part.epoch));
        }
        (before, end) = (part.epoch, stop);
    }
}
