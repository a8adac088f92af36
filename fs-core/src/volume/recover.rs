//! Recovery: from the bytes on a device to the state that was promised.
//!
//! Only reads. The order is: superblock, root slots, journals oldest first. What was read may exist
//! only in the device's cache, so whoever goes on to serve flushes first (rule R7).

use std::collections::{BTreeMap, HashMap};

use blockdev::{AlignedBuf, BlockDevice, IoClass};

use crate::delta::Delta;
use crate::error::{FsError, Result};
use crate::format::pending::{PendingEntry, decode_pending};
use crate::format::{Change, MappedRun, RootSlot, Superblock};
use crate::journal::{ScanEnd, scan_part};
use crate::mutants::{self, Mutant};
use crate::types::{BLOCK_SIZE, BlockNr, Epoch, Ino, Lsn, PageNr};

/// Bytes of a page that are in the journal and not yet at home, oldest first: offset within the
/// page, bytes.
pub(crate) type PagePatches = Vec<(usize, Vec<u8>)>;

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Patches {
    pages: HashMap<Ino, BTreeMap<PageNr, PagePatches>>,
}

/// Counters that only ever grow stay far below this; larger ones were made to overflow.
const MAX_NUMBER: u64 = 1 << 62;

/// The state of a volume as recovered.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The superblock.
    pub(crate) superblock: Superblock,
    /// Copies of the superblock that could not be used, and why.
    pub(crate) bad_superblocks: Vec<FsError>,
    /// The root it starts from.
    pub(crate) slot: RootSlot,
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

/// Reads the superblock from its first good copy.
pub(crate) fn read_superblock(device: &dyn BlockDevice) -> Result<(Superblock, Vec<FsError>)> {
    let caps = device.capabilities();
    let blocks = caps.size_bytes / BLOCK_SIZE as u64;
    let mut bad = Vec::new();
    for copy in Superblock::copies(blocks) {
        if copy.0 >= blocks {
            continue;
        }
        let buf = device.read_at(copy.offset(), AlignedBuf::zeroed(BLOCK_SIZE), IoClass::Data)?;
        match Superblock::decode(&buf, copy) {
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
    Err(bad
        .into_iter()
        .next()
        .unwrap_or_else(|| FsError::Volume(format!("{} is too small to hold a dbfs volume", device.name()))))
}

/// Reads all root slots; returns the one to start from.
///
/// A slot that is not valid may be a torn write, which is harmless, as long as its row has a valid
/// one of its epoch. A row that must belong to a later epoch, with both slots damaged, is not: that
/// epoch may have acknowledged changes.
pub(crate) fn best_slot(device: &dyn BlockDevice, sb: &Superblock) -> Result<RootSlot> {
    let blocks = u64::from(sb.slot_rows) * 2;
    let mut best: Option<RootSlot> = None;
    let mut damaged = Vec::new();
    const STEP: u64 = 256;
    for first in (0..blocks).step_by(STEP as usize) {
        let n = STEP.min(blocks - first);
        let at = sb.slots_start.plus(first);
        let len = n as usize * BLOCK_SIZE;
        let buf = device.read_at(at.offset(), AlignedBuf::zeroed(len), IoClass::Data)?;
        for (i, bytes) in buf.chunks_exact(BLOCK_SIZE).enumerate() {
            let own = at.plus(i as u64);
            match RootSlot::decode(bytes, &sb.uuid, own) {
                Ok(None) => {}
                Ok(Some(slot)) => {
                    let rank = |s: &RootSlot| match mutants::active(Mutant::OldEpochWins) {
                        true => (s.seq, s.epoch.0),
                        false => (s.epoch.0, s.seq),
                    };
                    if best.as_ref().is_none_or(|b| rank(b) < rank(&slot)) {
                        best = Some(slot);
                    }
                }
                Err(_) => damaged.push(first + i as u64),
            }
        }
    }
    let best = best.ok_or_else(|| {
        FsError::corrupt("root slots", sb.slots_start, "none of them is valid: the volume cannot be opened")
    })?;
    let next_row = (best.epoch.0 + 1) % u64::from(sb.slot_rows);
    if damaged.contains(&(next_row * 2)) && damaged.contains(&(next_row * 2 + 1)) {
        return Err(FsError::corrupt(
            "root slots",
            sb.slots_start.plus(next_row * 2),
            format!("both roots of epoch {} are damaged; it may have acknowledged changes", best.epoch.0 + 1),
        ));
    }
    check_slot(&best, sb)?;
    Ok(best)
}

fn check_slot(slot: &RootSlot, sb: &Superblock) -> Result<()> {
    let fits = |start: BlockNr, len: u64| {
        start >= sb.first_data_block && start.0.checked_add(len).is_some_and(|end| end <= slot.total_blocks)
    };
    let segment = u64::from(sb.segment_blocks);
    let sane = slot.total_blocks >= sb.total_blocks
        && slot.journal.iter().all(|p| p.segments.iter().all(|s| fits(*s, segment)))
        && slot.journal.iter().all(|p| p.start.block <= sb.segment_blocks)
        && slot.pending.is_none_or(|r| fits(r.start, r.len.into()) && r.len < 1 << 20)
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

fn read_pending(device: &dyn BlockDevice, slot: &RootSlot) -> Result<Vec<PendingEntry>> {
    let Some(run) = slot.pending else { return Ok(Vec::new()) };
    let buf = device.read_at(run.start.offset(), AlignedBuf::zeroed(run.bytes()), IoClass::Data)?;
    let bad = || FsError::corrupt("pending list", run.start, "checksum mismatch or impossible values");
    let bytes = buf.get(..slot.pending_len as usize * 13).ok_or_else(bad)?;
    if crc32c::crc32c(bytes) != slot.pending_crc {
        return Err(bad());
    }
    decode_pending(bytes, slot.pending_len).ok_or_else(bad)
}

/// Recovers the volume's state in memory. Writes nothing.
pub(crate) fn recover(device: &dyn BlockDevice) -> Result<Recovered> {
    let (superblock, bad_superblocks) = read_superblock(device)?;
    let slot = best_slot(device, &superblock)?;
    let pending = read_pending(device, &slot)?;
    let page_blocks = superblock.page_size.blocks();
    let page_bytes = superblock.page_size.bytes();
    let mut r = Recovered {
        pending,
        delta: Delta::default(),
        patches: Patches::default(),
        end: ScanEnd { lsn: Lsn(0), crc: 0, inodes: None, records: 0 },
        effective: Vec::new(),
        inodes: slot.inodes,
        next_ino: slot.next_ino.max(Ino::FIRST_FREE),
        records: 0,
        superblock,
        bad_superblocks,
        slot,
    };
    for part in r.slot.journal.clone() {
        let mut effective = false;
        let (delta, patches) = (&mut r.delta, &mut r.patches);
        let mut replay = |h: &crate::format::record::RecordHeader, changes: &[Change]| {
            for change in changes {
                effective |= !matches!(change, Change::EpochStart { .. } | Change::Reserve { .. });
                check_change(change, r.slot.total_blocks, page_blocks, page_bytes, part.epoch)?;
                delta.apply(change, h.lsn, page_blocks);
                patches.apply(change, page_bytes);
            }
            Ok(())
        };
        let mut data_ok = |changes: &[Change]| data_matches(device, changes, page_blocks);
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
    if mutants::active(Mutant::ReuseInodeNumbers) {
        return Ok(r);
    }
    r.next_ino = r.next_ino.max(Ino(r.delta.highest_ino.0.saturating_add(1)));
    Ok(r)
}

/// Refuses changes whose numbers cannot be: a record may be valid and yet made by an attacker.
fn check_change(
    change: &Change,
    total_blocks: u64,
    page_blocks: u32,
    page_bytes: usize,
    epoch: Epoch,
) -> Result<()> {
    let run_fits = |start: BlockNr, len: u64| start.0 > 0 && start.0 + len <= total_blocks;
    let ok = match change {
        Change::MapRun { page, run, .. } => {
            page.0 < MAX_NUMBER && u32::from(run.last_blocks) <= page_blocks && {
                let b = run.blocks(page_blocks);
                run_fits(b.start, b.len.into())
            }
        }
        Change::Free { run } => run_fits(run.start, run.len.into()),
        Change::Inline { offset, data, .. } => {
            !data.is_empty() && *offset as usize % page_bytes + data.len() <= page_bytes
        }
        Change::InlineZero { offset, len, .. } => {
            *len > 0 && *offset as usize % page_bytes + *len as usize <= page_bytes
        }
        Change::Unmap { page, pages, .. } => page.0.checked_add(*pages).is_some(),
        Change::PutItem { key, value } => {
            key.ino.0 < MAX_NUMBER && value.len() <= crate::format::node::MAX_VALUE
        }
        Change::DelItem { key } => key.ino.0 < MAX_NUMBER,
        Change::Reserve { first, count } => {
            first.0.checked_add((*count).into()).is_some_and(|end| end <= total_blocks)
        }
        _ => true,
    };
    if ok {
        Ok(())
    } else {
        Err(FsError::corrupt("journal record", BlockNr(0), format!("impossible change in epoch {epoch}")))
    }
}

/// The data that the changes map is on the device.
fn data_matches(device: &dyn BlockDevice, changes: &[Change], page_blocks: u32) -> Result<bool> {
    if mutants::active(Mutant::SkipRecoveredData) {
        return Ok(true);
    }
    for change in changes {
        if let Change::MapRun { run: run @ MappedRun { crcs: Some(crcs), .. }, .. } = change {
            let blocks = run.blocks(page_blocks);
            let end = device.capabilities().size_bytes / BLOCK_SIZE as u64;
            if blocks.end().0 > end {
                return Ok(false);
            }
            let buf =
                device.read_at(blocks.start.offset(), AlignedBuf::zeroed(blocks.bytes()), IoClass::Data)?;
            let pages = buf.chunks(page_blocks as usize * BLOCK_SIZE);
            if pages.zip(crcs).any(|(page, crc)| crc32c::crc32c(page) != *crc) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

impl Patches {
    fn apply(&mut self, change: &Change, page_bytes: usize) {
        let mut add = |ino: Ino, offset: u64, bytes: Vec<u8>| {
            let page = PageNr(offset / page_bytes as u64);
            let at = (offset % page_bytes as u64) as usize;
            let list = self.pages.entry(ino).or_default().entry(page).or_default();
            if at == 0 && bytes.len() == page_bytes {
                list.clear(); // the whole page: what was there before does not matter
            }
            list.push((at, bytes));
        };
        match change {
            Change::Inline { ino, offset, data } => add(*ino, *offset, data.clone()),
            Change::InlineZero { ino, offset, len } => add(*ino, *offset, vec![0; *len as usize]),
            Change::MapRun { ino, page, run } if run.crcs.is_some() => {
                self.drop_range(*ino, *page, run.pages.into());
            }
            Change::Unmap { ino, page, pages } => self.drop_range(*ino, *page, *pages),
            _ => {}
        }
    }

    fn drop_range(&mut self, ino: Ino, first: PageNr, pages: u64) {
        let Some(map) = self.pages.get_mut(&ino) else { return };
        let end = PageNr(first.0.saturating_add(pages));
        let gone: Vec<PageNr> = map.range(first..end).map(|(p, _)| *p).collect();
        for page in gone {
            map.remove(&page);
        }
        if map.is_empty() {
            self.pages.remove(&ino);
        }
    }

    /// The patches of a page, which stay.
    pub(crate) fn get(&self, ino: Ino, page: PageNr) -> Option<&PagePatches> {
        self.pages.get(&ino)?.get(&page)
    }

    /// The pages that have patches.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ino, PageNr)> + '_ {
        self.pages.iter().flat_map(|(ino, pages)| pages.keys().map(|p| (*ino, *p)))
    }

    /// Forgets the patches of a page.
    pub(crate) fn remove(&mut self, ino: Ino, page: PageNr) -> Option<PagePatches> {
        let map = self.pages.get_mut(&ino)?;
        let out = map.remove(&page);
        if map.is_empty() {
            self.pages.remove(&ino);
        }
        out
    }
}
