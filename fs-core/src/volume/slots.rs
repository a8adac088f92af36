//! Root slots and claim tickets: which root a volume starts from, and who else is about to take it.
//!
//! A root counts unless its epoch's ticket says otherwise: a ticket that was begun and not completed
//! belongs to a claim that was interrupted before it served anything; a completed one names the claim
//! whose roots count, so that a late write of another claimant of the same epoch does not. A completed
//! ticket without a root means that roots were lost, and with them perhaps acknowledged changes: then
//! the volume is refused.

use blockdev::{AlignedBuf, BlockDevice, IoClass};

use super::recover::MAX_NUMBER;
use crate::error::{FsError, Result};
use crate::format::record::decode_record;
use crate::format::{RootSlot, Superblock, Ticket};
use crate::mutants::{self, Mutant};
use crate::types::{BLOCK_SIZE, BlockNr, Epoch};

/// Blocks read at once.
const STEP: u64 = 256;

/// What was found in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found<T> {
    /// Never written.
    Empty,
    Damaged,
    Valid(T),
}

/// What tells one root from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RootMark {
    epoch: Epoch,
    seq: u64,
    claim: u64,
}

/// What a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    ticket: Found<Ticket>,
    roots: [Found<RootMark>; 2],
}

impl Row {
    /// The highest epoch that the row names.
    fn epoch(&self) -> Epoch {
        let ticket = if let Found::Valid(t) = self.ticket { t.epoch } else { Epoch(0) };
        let root = |r: &Found<RootMark>| if let Found::Valid(m) = r { m.epoch } else { Epoch(0) };
        ticket.max(root(&self.roots[0])).max(root(&self.roots[1]))
    }

    fn damaged_roots(&self) -> usize {
        self.roots.iter().filter(|r| **r == Found::Damaged).count()
    }
}

/// All rows, at one moment. By default none: not for claims.
#[derive(Debug, Default)]
pub(crate) struct Rows(Vec<Row>);

impl Rows {
    /// Reads tickets and root slots. `each` is shown every valid root, with the ticket of its row.
    fn read(
        device: &dyn BlockDevice,
        sb: &Superblock,
        mut each: impl FnMut(RootSlot, Found<Ticket>) -> Result<()>,
    ) -> Result<Self> {
        let rows = u64::from(sb.slot_rows);
        let empty = Row { ticket: Found::Empty, roots: [Found::Empty; 2] };
        let mut out = vec![empty; rows as usize];
        read_blocks(device, sb.slots_start.plus(2 * rows), rows, |i, own, bytes| {
            out[i].ticket = match Ticket::decode(bytes, &sb.uuid, own) {
                Ok(None) => Found::Empty,
                Ok(Some(ticket)) if ticket.epoch.0 < MAX_NUMBER => Found::Valid(ticket),
                _ => Found::Damaged,
            };
            Ok(())
        })?;
        read_blocks(device, sb.slots_start, 2 * rows, |i, own, bytes| {
            let row = &mut out[i / 2];
            row.roots[i % 2] = match RootSlot::decode(bytes, &sb.uuid, own) {
                Ok(None) => Found::Empty,
                Ok(Some(slot)) => {
                    let (epoch, seq, claim) = (slot.epoch, slot.seq, slot.claim);
                    let mark = RootMark { epoch, seq, claim };
                    each(slot, row.ticket)?;
                    Found::Valid(mark)
                }
                Err(_) => Found::Damaged,
            };
            Ok(())
        })?;
        Ok(Self(out))
    }

    /// The highest epoch that anybody has claimed, or begun to.
    pub(super) fn last_epoch(&self) -> Epoch {
        self.0.iter().map(Row::epoch).max().unwrap_or_default()
    }

    fn row(&self, epoch: Epoch) -> &Row {
        &self.0[(epoch.0 % self.0.len() as u64) as usize]
    }

    /// Refuses, if an epoch behind `best` may have acknowledged changes and its roots are gone.
    fn check_nothing_lost(&self, sb: &Superblock, best: Epoch) -> Result<()> {
        let lost = |epoch: Epoch, what: &str| {
            let at = RootSlot::address(sb.slots_start, sb.slot_rows, epoch, 0);
            let detail =
                format!("{what} epoch {epoch} are damaged or lost; it may have acknowledged changes");
            Err(FsError::corrupt("root slots", at, detail))
        };
        for row in &self.0 {
            if let Found::Valid(ticket) = row.ticket
                && ticket.complete
                && ticket.epoch > best
            {
                return lost(ticket.epoch, "the claim was completed, but both roots of");
            }
        }
        let last = self.last_epoch().0.min(best.0 + self.0.len() as u64 - 2);
        for epoch in (best.0 + 1..=last + 1).map(Epoch) {
            let row = self.row(epoch);
            match row.ticket {
                Found::Valid(ticket) if ticket.epoch == epoch => {} // interrupted
                _ if row.damaged_roots() == 2 => return lost(epoch, "both roots of"),
                // An interrupted claim damages one of the three at most.
                Found::Damaged if row.damaged_roots() > 0 => return lost(epoch, "ticket and root of"),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether nobody else has claimed or begun to claim an epoch behind `base` since `self` was read,
    /// and what `own` has written is still there.
    pub(super) fn still_alone(
        &self,
        device: &dyn BlockDevice,
        sb: &Superblock,
        base: Epoch,
        own: &Ticket,
    ) -> Result<bool> {
        let now = Self::read(device, sb, |_, _| Ok(()))?;
        let mine = now.row(own.epoch);
        let foreign_root = mine
            .roots
            .iter()
            .any(|r| matches!(r, Found::Valid(m) if m.epoch == own.epoch && m.claim != own.claim));
        let others = self.0.iter().zip(&now.0).enumerate();
        let changed = others
            .filter(|(i, _)| *i as u64 != own.epoch.0 % self.0.len() as u64)
            .any(|(_, (before, now))| before != now && now.epoch() > base);
        Ok(mine.ticket == Found::Valid(*own) && !foreign_root && !changed)
    }
}

fn read_blocks(
    device: &dyn BlockDevice,
    start: BlockNr,
    blocks: u64,
    mut each: impl FnMut(usize, BlockNr, &[u8]) -> Result<()>,
) -> Result<()> {
    for first in (0..blocks).step_by(STEP as usize) {
        let n = STEP.min(blocks - first);
        let at = start.plus(first);
        let buf = AlignedBuf::zeroed(n as usize * BLOCK_SIZE);
        let buf = device.read_at(at.offset(), buf, IoClass::Data)?;
        for (i, bytes) in buf.chunks_exact(BLOCK_SIZE).enumerate() {
            each((first + i as u64) as usize, at.plus(i as u64), bytes)?;
        }
    }
    Ok(())
}

/// Whether the epoch of `own`, or a claim of a higher one, still lets it write.
pub(super) fn superseded(device: &dyn BlockDevice, sb: &Superblock, own: &Ticket) -> Result<Option<Epoch>> {
    let rows = u64::from(sb.slot_rows);
    let mut by = None;
    read_blocks(device, sb.slots_start.plus(2 * rows), rows, |_, at, bytes| {
        if let Ok(Some(t)) = Ticket::decode(bytes, &sb.uuid, at)
            && t.complete
            && (t.epoch > own.epoch || (t.epoch == own.epoch && t.claim != own.claim))
        {
            by = Some(t.epoch);
        }
        Ok(())
    })?;
    Ok(by)
}

/// Reads all root slots and tickets; returns the root to start from and everything that was seen.
///
/// A slot that is not valid may be a torn write, which is harmless, as long as its row has a valid
/// one of its epoch.
pub(crate) fn best_slot(device: &dyn BlockDevice, sb: &Superblock) -> Result<(RootSlot, Rows)> {
    let mut best: Option<RootSlot> = None;
    let rows = Rows::read(device, sb, |slot, ticket| {
        let rank = |s: &RootSlot| match mutants::active(Mutant::OldEpochWins) {
            true => (s.seq, s.epoch.0),
            false => (s.epoch.0, s.seq),
        };
        if best.as_ref().is_none_or(|b| rank(b) < rank(&slot)) && counts(device, sb, &slot, ticket)? {
            best = Some(slot);
        }
        Ok(())
    })?;
    let best = best.ok_or_else(|| {
        FsError::corrupt("root slots", sb.slots_start, "none of them is valid: the volume cannot be opened")
    })?;
    rows.check_nothing_lost(sb, best.epoch)?;
    check_slot(&best, sb)?;
    Ok((best, rows))
}

/// See the module.
fn counts(device: &dyn BlockDevice, sb: &Superblock, slot: &RootSlot, ticket: Found<Ticket>) -> Result<bool> {
    match ticket {
        Found::Valid(t) if t.epoch == slot.epoch && t.complete => Ok(t.claim == slot.claim),
        Found::Valid(t) if t.epoch == slot.epoch => Ok(slot.seq > 0 || has_served(device, sb, slot)?),
        _ => Ok(true),
    }
}

/// The epoch of a claim whose ticket is not complete has written its first record: it had completed
/// the ticket before, and that write was lost.
pub(crate) fn has_served(device: &dyn BlockDevice, sb: &Superblock, claim: &RootSlot) -> Result<bool> {
    let Some(part) = claim.journal.last() else { return Ok(false) };
    let first = part.segments.get(part.start.segment as usize).copied().unwrap_or_default();
    let at = BlockNr(first.0.saturating_add(part.start.block.into()));
    if at < sb.first_data_block
        || at.0 >= claim.total_blocks.min(device.capabilities().size_bytes / BLOCK_SIZE as u64)
    {
        return Ok(false);
    }
    let buf = device.read_at(at.offset(), AlignedBuf::zeroed(BLOCK_SIZE), IoClass::Data)?;
    Ok(decode_record(&sb.uuid, at, &buf).is_some_and(|(h, _)| h.epoch == claim.epoch))
}

/// Refuses a slot whose numbers cannot be.
pub(crate) fn check_slot(slot: &RootSlot, sb: &Superblock) -> Result<()> {
    let fits = |start: BlockNr, len: u64| {
        start >= sb.first_data_block && start.0.checked_add(len).is_some_and(|end| end <= slot.total_blocks)
    };
    let segment = u64::from(sb.segment_blocks);
    let sane = slot.total_blocks >= sb.total_blocks
        && slot.journal.iter().all(|p| p.segments.iter().all(|s| fits(*s, segment)))
        && slot.journal.iter().all(|p| p.start.block <= sb.segment_blocks)
        && slot.pending.is_none_or(|r| fits(r.start, r.len.into()) && r.len <= sb.group_blocks)
        && slot.free_blocks <= slot.total_blocks
        && (slot.tree.height == 0) == (slot.tree.addr.0 == 0)
        && slot.total_blocks < 1 << 44
        && slot.journal.iter().all(|p| p.start.lsn.0 < MAX_NUMBER)
        && [slot.epoch.0, slot.checkpoint_lsn.0, slot.durable_lsn.0, slot.next_ino.0, slot.inodes]
            .iter()
            .all(|n| *n < MAX_NUMBER);
    if sane {
        Ok(())
    } else {
        Err(FsError::corrupt("root slot", sb.slots_start, format!("epoch {}: impossible values", slot.epoch)))
    }
}
