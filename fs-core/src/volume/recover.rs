//! Recovery: from the bytes on a device to the state that was promised.
//!
//! Only reads. The order is: superblock, root slots, journals oldest first. What was read may exist
//! only in the device's cache, so whoever goes on to serve flushes first (rule R7).

use blockdev::{AlignedBuf, BlockDevice, IoClass};

use super::patches::Patches;
use super::slots::{Rows, best_slot};
use crate::delta::{Delta, RunState};
use crate::error::{FsError, Result};
use crate::format::pending::{PendingEntry, decode_pending};
use crate::format::{Change, MappedRun, RootSlot, Superblock};
use crate::journal::{ScanEnd, scan_part};
use crate::mutants::{self, Mutant};
use crate::types::{BLOCK_SIZE, BlockNr, BlockRun, Epoch, Ino, Lsn, PageSize};

/// Counters that only ever grow stay far below this; larger ones were made to overflow.
pub(super) const MAX_NUMBER: u64 = 1 << 62;

/// The state of a volume as recovered.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The superblock.
    pub(crate) superblock: Superblock,
    /// Copies of the superblock that could not be used, and why.
    pub(crate) bad_superblocks: Vec<FsError>,
    /// The root it starts from.
    pub(crate) slot: RootSlot,
    /// All root slots and tickets, as they were when it was chosen.
    pub(crate) rows: Rows,
    /// The root's pending list.
    pub(crate) pending: Vec<PendingEntry>,
    /// Changes since the root.
    pub(crate) delta: Delta,
    /// Inline data not yet at home.
    pub(crate) patches: Patches,
    /// Where the last journal ends.
    pub(crate) end: ScanEnd,
    /// Records that changed something, by part.
    pub(crate) effective: Vec<bool>,
    /// Inodes of the volume.
    pub(crate) inodes: u64,
    /// Next inode number.
    pub(crate) next_ino: Ino,
    /// Records replayed.
    pub(crate) records: u64,
}

/// Reads the superblock from its first good copy. Gives what is wrong with those before it, too, be it
/// that they are damaged or that the device fails to read them.
pub(crate) fn read_superblock(device: &dyn BlockDevice) -> Result<(Superblock, Vec<FsError>)> {
    let caps = device.capabilities();
    let blocks = caps.size_bytes / BLOCK_SIZE as u64;
    let mut bad = Vec::new();
    for copy in Superblock::copies(blocks) {
        if copy.0 >= blocks {
            continue;
        }
        let read = device.read_at(copy.offset(), AlignedBuf::zeroed(BLOCK_SIZE), IoClass::Data);
        match read.map_err(FsError::from).and_then(|buf| Superblock::decode(&buf, copy)) {
            Ok(sb) if sb.total_blocks > blocks => {
                return Err(FsError::Volume(format!(
                    "{} has {} bytes, the volume on it needs {}: the device is truncated",
                    device.name(),
                    caps.size_bytes,
                    sb.total_blocks * BLOCK_SIZE as u64
                )));
            }
            Ok(sb) => return Ok((sb, bad)),
            Err(e @ FsError::Volume(_)) => return Err(e),
            Err(e) => bad.push(e),
        }
    }
    // What cannot be read may be a good one.
    let first = bad.iter().position(FsError::is_failed_read).unwrap_or(0);
    Err(bad
        .into_iter()
        .nth(first)
        .unwrap_or_else(|| FsError::Volume(format!("{} is too small to hold a dbfs volume", device.name()))))
}

/// A volume that is larger than its device lost its end: reads there would fail one by one, later.
fn check_device_size(device: &dyn BlockDevice, slot: &RootSlot) -> Result<()> {
    let bytes = device.capabilities().size_bytes;
    let needed = slot.total_blocks.saturating_mul(BLOCK_SIZE as u64);
    if needed <= bytes {
        return Ok(());
    }
    Err(FsError::Volume(format!(
        "{} has {bytes} bytes, the volume on it has grown to {needed}: the device is truncated; give it back \
         its size, or restore a whole copy",
        device.name()
    )))
}

fn read_pending(device: &dyn BlockDevice, sb: &Superblock, slot: &RootSlot) -> Result<Vec<PendingEntry>> {
    let Some(run) = slot.pending else { return Ok(Vec::new()) };
    let bad = || FsError::corrupt("pending list", run.start, "checksum mismatch or impossible values");
    let buf = device.read_at(run.start.offset(), AlignedBuf::zeroed(run.bytes()), IoClass::Data)?;
    let bytes = buf.get(..slot.pending_len as usize * 13).ok_or_else(bad)?;
    if crc32c::crc32c(bytes) != slot.pending_crc {
        return Err(bad());
    }
    let entries = decode_pending(bytes, slot.pending_len).ok_or_else(bad)?;
    // Each node is listed once as taken and once as freed at most.
    let blocks: u64 = entries.iter().map(|e| u64::from(e.run.len)).sum();
    let fits = |run: BlockRun| run.start >= sb.first_data_block && run.end().0 <= slot.total_blocks;
    if blocks > 2 * slot.total_blocks || !entries.iter().all(|e| fits(e.run)) {
        return Err(bad());
    }
    Ok(entries)
}

/// Recovers the volume's state in memory. Writes nothing.
pub(crate) fn recover(device: &dyn BlockDevice) -> Result<Recovered> {
    let (superblock, bad_superblocks) = read_superblock(device)?;
    let (slot, rows) = best_slot(device, &superblock)?;
    check_device_size(device, &slot)?;
    recover_from(device, superblock, bad_superblocks, slot, rows)
}

/// Recovers the state that `slot` leads to. Writes nothing.
pub(crate) fn recover_from(
    device: &dyn BlockDevice,
    superblock: Superblock,
    bad_superblocks: Vec<FsError>,
    slot: RootSlot,
    rows: Rows,
) -> Result<Recovered> {
    let pending = read_pending(device, &superblock, &slot)?;
    let page_size = superblock.page_size;
    let page_blocks = page_size.blocks();
    let mut unproven = UnprovenData::new(device, page_blocks, slot.total_blocks);
    let mut r = Recovered {
        pending,
        delta: Delta::default(),
        patches: Patches::default(),
        end: ScanEnd { lsn: Lsn(0), crc: 0, inodes: None, records: 0, summed: 0 },
        effective: Vec::new(),
        inodes: slot.inodes,
        next_ino: slot.next_ino.max(Ino::FIRST_FREE),
        records: 0,
        superblock,
        bad_superblocks,
        slot,
        rows,
    };
    for part in r.slot.journal.clone() {
        let mut effective = false;
        let (delta, patches) = (&mut r.delta, &mut r.patches);
        let mut replay = |h: &crate::format::record::RecordHeader, changes: &[Change]| {
            for change in changes {
                effective |= !matches!(change, Change::EpochStart { .. } | Change::Reserve { .. });
                check_change(change, r.slot.total_blocks, page_size, part.epoch)?;
                delta.apply(change, h.lsn, page_blocks);
                patches.apply(change, page_size.bytes());
            }
            check_memory(delta, part.epoch)
        };
        let mut data_ok = |changes: &[Change]| unproven.matches(changes);
        r.end = scan_part(
            device,
            &r.superblock.uuid,
            &part,
            r.superblock.segment_blocks,
            r.slot.durable_lsn,
            &mut data_ok,
            &mut replay,
        )?;
        r.inodes = r.end.inodes.unwrap_or(r.inodes);
        r.records += r.end.records;
        r.effective.push(effective);
    }
    check_mapped(&r.delta, r.slot.total_blocks)?;
    if mutants::active(Mutant::ReuseInodeNumbers) {
        return Ok(r);
    }
    r.next_ino = r.next_ino.max(Ino(r.delta.highest_ino.0.saturating_add(1)));
    Ok(r)
}

/// More changes than all the journals that a root may refer to can hold, unless they were made to fill
/// the memory.
const MAX_DELTA_BYTES: usize = 2 << 30;

fn check_memory(delta: &Delta, epoch: Epoch) -> Result<()> {
    if delta.memory <= MAX_DELTA_BYTES {
        return Ok(());
    }
    let detail = format!("up to epoch {epoch}: more changes than journals can hold");
    Err(FsError::corrupt("journal", BlockNr(0), detail))
}

/// No block is in two pages: the journal cannot map more pages than there are blocks. What a checkpoint
/// makes of the changes is bounded by that. Some more are let pass, for fsck to name them.
fn check_mapped(delta: &Delta, total_blocks: u64) -> Result<()> {
    let runs = delta.maps.values().flat_map(|map| map.iter());
    let mapped = runs.filter(|(.., state)| matches!(state, RunState::Blocks(_)));
    let pages = mapped.fold(0u64, |sum, (_, len, _)| sum.saturating_add(len));
    if pages <= 4 * total_blocks {
        return Ok(());
    }
    let detail = format!("it maps {pages} pages on a volume of {total_blocks} blocks");
    Err(FsError::corrupt("journal", BlockNr(0), detail))
}

/// Refuses changes whose numbers cannot be: a record may be valid and yet made by an attacker.
pub(crate) fn check_change(
    change: &Change,
    total_blocks: u64,
    page_size: PageSize,
    epoch: Epoch,
) -> Result<()> {
    let run_fits = |start: BlockNr, len: u64| start.0 > 0 && start.0 + len <= total_blocks;
    let page_bytes = page_size.bytes();
    let max_pages = page_size.pages_for(i64::MAX as u64);
    let in_page = |offset: u64, len: usize| {
        let end = offset.checked_add(len as u64);
        end.is_some_and(|end| end <= max_pages.saturating_mul(page_bytes as u64))
            && offset as usize % page_bytes + len <= page_bytes
    };
    let ok = match change {
        Change::MapRun { page, run, .. } => {
            page.0 < MAX_NUMBER && u32::from(run.last_blocks) <= page_size.blocks() && {
                let b = run.blocks(page_size.blocks());
                run_fits(b.start, b.len.into())
            }
        }
        Change::Free { run } => run_fits(run.start, run.len.into()),
        Change::Inline { offset, data, .. } => !data.is_empty() && in_page(*offset, data.len()),
        Change::InlineZero { offset, len, .. } => *len > 0 && in_page(*offset, *len as usize),
        Change::Unmap { page, pages, .. } => page.0.checked_add(*pages).is_some(),
        Change::PutItem { key, value } => {
            key.ino.0 < MAX_NUMBER && value.len() <= crate::format::node::MAX_VALUE
        }
        Change::DelItem { key } => key.ino.0 < MAX_NUMBER,
        Change::Reserve { .. } | Change::EpochStart { .. } => true,
    };
    if ok {
        Ok(())
    } else {
        Err(FsError::corrupt("journal record", BlockNr(0), format!("impossible change in epoch {epoch}")))
    }
}

/// Verifies the data of records that nothing proves to be durable.
pub(crate) struct UnprovenData<'a> {
    device: &'a dyn BlockDevice,
    page_blocks: u32,
    /// Blocks that may still be read. Such records use no block twice, for that takes a durable LSN
    /// (rule R1): they cannot map more than there are.
    left: u64,
}

/// Bytes of data verified at once.
const VERIFY_STEP: usize = 1 << 20;

impl<'a> UnprovenData<'a> {
    /// For a volume of `total_blocks`.
    pub(crate) fn new(device: &'a dyn BlockDevice, page_blocks: u32, total_blocks: u64) -> Self {
        Self { device, page_blocks, left: total_blocks }
    }

    /// The data that the changes map is on the device.
    pub(crate) fn matches(&mut self, changes: &[Change]) -> Result<bool> {
        if mutants::active(Mutant::SkipRecoveredData) {
            return Ok(true);
        }
        for change in changes {
            if let Change::MapRun { run: run @ MappedRun { crcs: Some(crcs), .. }, .. } = change
                && !self.run_matches(run, crcs)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn run_matches(&mut self, run: &MappedRun, crcs: &[u32]) -> Result<bool> {
        let blocks = run.blocks(self.page_blocks);
        let end = self.device.capabilities().size_bytes / BLOCK_SIZE as u64;
        let Some(left) = self.left.checked_sub(blocks.len.into()) else { return Ok(false) };
        if blocks.end().0 > end {
            return Ok(false);
        }
        self.left = left;
        let page_bytes = self.page_blocks as usize * BLOCK_SIZE;
        let pages = VERIFY_STEP / page_bytes;
        for (i, crcs) in crcs.chunks(pages).enumerate() {
            let at = blocks.start.offset() + (i * pages * page_bytes) as u64;
            let len = (crcs.len() * page_bytes).min((blocks.end().offset() - at) as usize);
            let buf = self.device.read_at(at, AlignedBuf::zeroed(len), IoClass::Data)?;
            if buf.chunks(page_bytes).zip(crcs).any(|(page, crc)| crc32c::crc32c(page) != *crc) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
