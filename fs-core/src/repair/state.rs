//! The state of the volume that the repair starts from: which root, which records behind it, and what
//! stands in for what is lost.

use std::sync::Arc;

use blockdev::{AlignedBuf, BlockDevice, IoClass};

use super::replay::{Candidate, recover_leniently};
use super::report::{Class, Log};
use super::salvage::{Loss, from_other_root, from_scan, live_blocks, rebuild};
use super::scan::{Scan, scan};
use super::shadow::Shadow;
use super::walk::Source;
use super::{Progress, epoch_after};
use crate::error::{FsError, Result};
use crate::format::{
    ItemKind, JournalPart, JournalPoint, Key, PageEntry, RootPtr, RootSlot, Superblock, Ticket,
};
use crate::fsck::{BlockSet, FoundSlot, Item, for_each_slot};
use crate::types::{BLOCK_SIZE, BlockNr, BlockRun, Epoch, Ino, Lsn, NODE_BLOCKS};
use crate::volume::{Recovered, best_slot, check_slot, has_served, tree_root};

/// Roots that are tried.
const MAX_ROOTS: usize = 4;

/// Where the repair starts.
#[derive(Debug)]
pub(super) struct State {
    pub(super) recovered: Recovered,
    pub(super) source: Source,
    pub(super) loss: Loss,
    /// Something was lost: data has to be verified, for mappings may be old.
    pub(super) is_lossy: bool,
    /// Addresses of nodes that were rebuilt on the shadow.
    pub(super) rebuilt: Vec<BlockNr>,
    /// A key below each of them: they have to be written anew.
    pub(super) rewrite: Vec<Key>,
    /// Journals and the pending list of the root.
    pub(super) kept: Vec<BlockRun>,
    /// What another attempt may need.
    pub(super) wanted: Vec<BlockRun>,
    pub(super) next_epoch: Epoch,
    pub(super) next_lsn: Lsn,
}

/// What the root slots and tickets say.
struct Slots {
    /// The valid root slots, the newest first.
    valid: Vec<RootSlot>,
    /// Slots that are damaged: twice their row, plus the index; for tickets the row.
    damaged: Damage,
    /// Highest epoch that any of them names.
    epoch: Epoch,
    /// A mount would refuse the volume, or there is damage where the next epoch would be.
    suspicious: bool,
}

/// Damaged root slots and tickets.
#[derive(Debug, Default)]
pub(super) struct Damage {
    slots: Vec<u64>,
    tickets: Vec<u64>,
}

impl Damage {
    /// The row looks like that of an epoch whose roots were lost.
    pub(super) fn looks_lost(&self, row: u64) -> bool {
        let slots = (0..2).filter(|i| self.slots.contains(&(row * 2 + i))).count();
        slots == 2 || (slots == 1 && self.tickets.contains(&row))
    }

    /// Something in the row is damaged.
    pub(super) fn is_at(&self, row: u64) -> bool {
        self.tickets.contains(&row) || self.slots.iter().any(|slot| slot / 2 == row)
    }
}

fn read_slots(device: &dyn BlockDevice, sb: &Superblock) -> Result<Slots> {
    let (tickets, bad_tickets) = read_tickets(device, sb)?;
    let mut damaged = Damage { slots: Vec::new(), tickets: bad_tickets };
    let mut valid: Vec<RootSlot> = Vec::new();
    let mut epoch = tickets.iter().map(|t| t.epoch).max().unwrap_or_default();
    for_each_slot(device, sb, &mut |found: FoundSlot| match found.content {
        Ok(Some(slot)) if check_slot(&slot, sb).is_ok() => {
            epoch = epoch.max(slot.epoch);
            // Another claimant of the same epoch has won. One that loses writes nothing behind its claim.
            let lost = |t: &Ticket| t.epoch == slot.epoch && t.complete && t.claim != slot.claim;
            let idle = || slot.seq == 0 && matches!(has_served(device, sb, &slot), Ok(false));
            if !(tickets.iter().any(lost) && idle()) {
                valid.push(slot);
            }
        }
        Ok(None) => {}
        _ => damaged.slots.push(found.row * 2 + found.index),
    })?;
    valid.sort_by_key(|s| std::cmp::Reverse((s.epoch, s.seq)));
    let best = best_slot(device, sb).map(|(slot, _)| (slot.epoch, slot.seq));
    if let Ok(best) = best {
        // Those before it are of claims that were interrupted.
        valid.retain(|s| (s.epoch, s.seq) <= best);
    }
    let next = valid.first().map(|s| (s.epoch.0 + 1) % u64::from(sb.slot_rows));
    let near =
        next.is_none_or(|row| damaged.slots.iter().any(|d| d / 2 == row) || damaged.tickets.contains(&row));
    Ok(Slots { valid, damaged, epoch, suspicious: best.is_err() || near })
}

/// The tickets, and the rows of damaged ones.
fn read_tickets(device: &dyn BlockDevice, sb: &Superblock) -> Result<(Vec<Ticket>, Vec<u64>)> {
    let (mut tickets, mut bad) = (Vec::new(), Vec::new());
    for row in 0..u64::from(sb.slot_rows) {
        let own = Ticket::address(sb.slots_start, sb.slot_rows, Epoch(row));
        let buf = device.read_at(own.offset(), AlignedBuf::zeroed(BLOCK_SIZE), IoClass::Background)?;
        match Ticket::decode(&buf, &sb.uuid, own) {
            Ok(Some(ticket)) if ticket.epoch.0 < MAX_EPOCH => tickets.push(ticket),
            Ok(None) => {}
            _ => bad.push(row),
        }
    }
    Ok((tickets, bad))
}

/// Epochs stay far below this.
const MAX_EPOCH: u64 = 1 << 62;

/// A root with what its tree has lost.
struct Prepared {
    candidate: Candidate,
    source: Source,
    score: u64,
}

/// Finds the state to start from. `deep`: look for a newer root, even if nothing is wrong with the
/// newest one that a slot leads to.
pub(super) fn find(
    shadow: &Arc<Shadow>,
    sb: &Superblock,
    deep: bool,
    progress: &Progress<'_>,
    log: &mut Log,
) -> Result<State> {
    let device: &Arc<dyn BlockDevice> = &(shadow.clone() as Arc<dyn BlockDevice>);
    let slots = read_slots(device.as_ref(), sb)?;
    let newest = slots.valid.first();
    let size = device.capabilities().size_bytes / BLOCK_SIZE as u64;
    let first = newest.map(|slot| prepare(device, sb, slot, None)).transpose()?;
    // What cannot be read is not lost: there is nothing to look for.
    shadow.refuse_unreadable()?;
    let whole = first.as_ref().is_some_and(|p| p.score == 0);
    let mut scanned = None;
    let (mut seen, mut last_epoch) = ((Epoch(0), Lsn(0)), Epoch(0));
    if deep || slots.suspicious || !whole {
        let mut found = scan(device.as_ref(), sb, progress)?;
        if let Some(p) = &first {
            drop_data(&mut found, p);
        }
        seen = (found.epoch(), found.lsn());
        last_epoch = found.drop_rootless(newest.map_or(Epoch(0), |s| s.epoch));
        scanned = Some(found);
    }
    let mut rebuilt = Vec::new();
    let mut rewrite = Vec::new();
    let mut prepared = Vec::new();
    let mut extra = Vec::new();
    if let Some(scan) = &scanned
        && (!whole
            || slots.epoch > newest.map_or(Epoch(0), |s| s.epoch)
            || last_epoch > newest.map_or(Epoch(0), |s| s.epoch))
    {
        extra = roots_from_scan(scan, newest, size);
    }
    if let (true, true, Some(p)) = (whole, extra.is_empty(), first) {
        prepared.push(p);
    } else {
        let scan = scanned.as_ref();
        // The slots of older epochs lead to nothing that is still there, unless the newest have
        // done nothing.
        let roots = slots.valid.iter().take(MAX_ROOTS).chain(&extra);
        for slot in roots {
            let mut p = prepare(device, sb, slot, scan)?;
            if let Some(scan) = scan {
                rebuild_inner(device, sb, &mut p, scan, &mut rebuilt, &mut rewrite)?;
            }
            prepared.push(p);
        }
        weigh(&mut prepared, &slots, scan);
    }
    let best = (0..prepared.len()).min_by_key(|i| (prepared[*i].score, *i)).ok_or_else(|| {
        FsError::Volume("there is no root, and nothing of a tree is left on the volume".into())
    })?;
    let base = prepared.swap_remove(best);
    if newest != Some(&base.candidate.recovered.slot) && !same_root(newest, &base.candidate.recovered.slot) {
        let slot = &base.candidate.recovered.slot;
        log.act(Class::Root, None, || {
            format!("the root of epoch {} as of record {} is taken", slot.epoch, slot.checkpoint_lsn)
        });
        let said = newest.map_or(sb.total_blocks, |s| s.total_blocks);
        if slot.total_blocks > said {
            log.act(Class::Counters, None, || {
                format!(
                    "the volume has {} blocks, all of the device: nothing else says whether it had grown",
                    slot.total_blocks
                )
            });
        }
    }
    let found = Found { slots: &slots, scan: scanned.as_ref(), seen, rebuilt, rewrite };
    Ok(finish(device, sb, base, &prepared, found, log))
}

/// What was found on the way.
struct Found<'a> {
    slots: &'a Slots,
    scan: Option<&'a Scan>,
    /// Highest epoch and highest record of anything on the volume.
    seen: (Epoch, Lsn),
    rebuilt: Vec<BlockNr>,
    rewrite: Vec<Key>,
}

/// There are nodes or records of an epoch later than that of the newest root.
pub(super) fn has_newer(shadow: &Arc<Shadow>, sb: &Superblock, progress: &Progress<'_>) -> Result<bool> {
    let device: &Arc<dyn BlockDevice> = &(shadow.clone() as Arc<dyn BlockDevice>);
    let slots = read_slots(device.as_ref(), sb)?;
    let Some(newest) = slots.valid.first() else { return Ok(true) };
    let mut found = scan(device.as_ref(), sb, progress)?;
    drop_data(&mut found, &prepare(device, sb, newest, None)?);
    Ok(found.drop_rootless(newest.epoch) > newest.epoch)
}

/// The same but for what a lenient recovery leaves out.
fn same_root(a: Option<&RootSlot>, b: &RootSlot) -> bool {
    a.is_some_and(|a| (a.epoch, a.seq, a.tree) == (b.epoch, b.seq, b.tree))
}

fn prepare(
    device: &Arc<dyn BlockDevice>,
    sb: &Superblock,
    slot: &RootSlot,
    scan: Option<&Scan>,
) -> Result<Prepared> {
    let strict = recover_leniently(device.as_ref(), sb, slot, None)?;
    // A root that says no journal of its own was found on the volume: its records, too.
    let found = slot.journal.iter().all(|p| p.segments.is_empty());
    let candidate = match scan {
        Some(scan) if strict.cut.is_some() || found => {
            recover_leniently(device.as_ref(), sb, slot, Some(scan))?
        }
        _ => strict,
    };
    let mut source = Source::new(device.clone(), sb.uuid, tree_root(&candidate.recovered.slot));
    if slot.tree.height > 0 || slot.checkpoint_lsn > Lsn(0) {
        source.find_lost(&mut |_| {});
    }
    let score = score(&source, &candidate);
    Ok(Prepared { candidate, source, score })
}

fn score(source: &Source, candidate: &Candidate) -> u64 {
    let nodes = source.lost.iter().map(|l| 100u64.saturating_pow(l.expected.level.into()));
    let missing = candidate.cut.as_ref().map_or(0, |c| c.last.0 - c.first.0 + 1);
    nodes.fold(missing + u64::from(candidate.pending_lost), u64::saturating_add)
}

/// Adds to the scores what is known by now to be missing at the ends.
fn weigh(prepared: &mut [Prepared], slots: &Slots, scan: Option<&Scan>) {
    let records = scan.iter().flat_map(|s| s.all_records()).map(|r| r.header.durable_lsn);
    let durable = slots.valid.iter().map(|s| s.durable_lsn).chain(records).max().unwrap_or_default();
    for p in prepared {
        let end = p.candidate.recovered.end.lsn;
        p.score = score(&p.source, &p.candidate);
        if p.candidate.cut.is_none() && end < durable {
            p.score = p.score.saturating_add(durable.0 - end.0);
            p.candidate.cut =
                Some(super::replay::Cut { first: end.next(), last: durable, ..Default::default() });
        }
    }
}

/// Drops what lies in the blocks of files: anybody could have written it there.
fn drop_data(scan: &mut Scan, p: &Prepared) {
    let mut data = BlockSet::default();
    let r = &p.candidate.recovered;
    p.source.each(&r.delta, r.superblock.page_size.blocks(), &mut |_| {}, &mut |key, item, _| {
        let (ItemKind::Map, Some(Item::Pages(pages))) = (key.kind, item) else { return };
        for run in pages.iter().filter_map(PageEntry::blocks).map(|b| b.run()) {
            if run.end().0 <= r.slot.total_blocks {
                data.set(run, true);
            }
        }
    });
    scan.nodes.retain(|n| !data.touches(BlockRun::new(n.ptr.addr, NODE_BLOCKS)));
    for same in scan.records.values_mut() {
        same.retain(|f| !data.touches(BlockRun::new(f.addr, 1)));
    }
    scan.records.retain(|_, same| !same.is_empty());
}

/// Roots whose slots are lost, made up from what they have left on the volume, the newest first.
///
/// Nodes of the highest level are or were roots. The tree of the newest but one is still there, and
/// the journal behind it. The volume may have grown, so it gets the `total_blocks` of the device.
fn roots_from_scan(scan: &Scan, newest: Option<&RootSlot>, total_blocks: u64) -> Vec<RootSlot> {
    let height = scan.nodes.iter().map(|n| n.level + 1).max().unwrap_or(0);
    let mut tops: Vec<RootPtr> = scan
        .nodes
        .iter()
        .filter(|n| n.level + 1 == height)
        .map(|n| RootPtr { addr: n.ptr.addr, birth: n.ptr.birth, crc: n.ptr.crc, height })
        .collect();
    tops.sort_by_key(|t| std::cmp::Reverse((t.birth, t.addr)));
    tops.truncate(MAX_ROOTS);
    if tops.is_empty() {
        tops.push(RootPtr::default());
    }
    tops.into_iter().map(|tree| made_up_root(scan, newest, tree, total_blocks)).collect()
}

fn made_up_root(scan: &Scan, newest: Option<&RootSlot>, tree: RootPtr, total_blocks: u64) -> RootSlot {
    let epoch = scan.epoch().max(newest.map_or(Epoch(0), |s| s.epoch));
    let lsn = tree.birth;
    // The checksum of the record up to which the tree has the changes, if that is still there.
    let at = scan.records.get(&lsn).and_then(|same| same.iter().max_by_key(|f| f.header.epoch));
    let start = at.map(|f| JournalPoint { lsn, crc: f.header.crc, ..JournalPoint::default() });
    let journal = start.map(|start| JournalPart { epoch, start, end: None, segments: Vec::new() });
    RootSlot {
        epoch,
        checkpoint_lsn: lsn,
        tree,
        next_ino: newest.map_or(Ino::FIRST_FREE, |s| s.next_ino),
        total_blocks,
        inodes: newest.map_or(0, |s| s.inodes),
        journal: journal.into_iter().collect(),
        ..RootSlot::default()
    }
}

/// Rebuilds inner nodes from the top down, on the shadow.
fn rebuild_inner(
    device: &Arc<dyn BlockDevice>,
    sb: &Superblock,
    p: &mut Prepared,
    scan: &Scan,
    rebuilt: &mut Vec<BlockNr>,
    rewrite: &mut Vec<Key>,
) -> Result<()> {
    while p.source.lost.iter().any(|l| l.expected.level > 0) {
        let live = live_blocks(&p.source, &p.candidate.recovered);
        let nodes = rebuild(&p.source.lost, scan, sb.uuid, live.as_ref());
        if nodes.is_empty() {
            break;
        }
        for node in nodes {
            let buf = AlignedBuf::from_slice(node.bytes());
            device.write_at(node.ptr().addr.offset(), buf, false, IoClass::Background)?;
            rebuilt.push(node.ptr().addr);
            rewrite.push(node.key(0));
        }
        p.source = Source::new(device.clone(), sb.uuid, p.source.root);
        p.source.find_lost(&mut |_| {});
    }
    Ok(())
}

fn finish(
    device: &Arc<dyn BlockDevice>,
    sb: &Superblock,
    base: Prepared,
    others: &[Prepared],
    found: Found<'_>,
    log: &mut Log,
) -> State {
    let Found { slots, scan, seen, rebuilt, rewrite } = found;
    let Prepared { candidate, mut source, .. } = base;
    let Candidate { recovered, cut, .. } = candidate;
    let mut loss = Loss::default();
    if let Some(cut) = &cut {
        log.report.lost_records = Some((cut.first.0, cut.last.0));
        log.act(Class::Journal, None, || {
            format!(
                "records {} to {} of the journal are lost, which had been acknowledged: what they changed \
                 is as it was before",
                cut.first, cut.last
            )
        });
        cut.inodes.iter().for_each(|ino| log.note(ino.0, "acknowledged changes of it are lost"));
    }
    if !rebuilt.is_empty() {
        log.act(Class::Tree, None, || {
            format!("{} inner nodes are rebuilt from their children", rebuilt.len())
        });
    }
    salvage(&mut source, &recovered, others, scan, &mut loss, log);
    let epoch = [slots.epoch, seen.0, recovered.slot.epoch].into_iter().max().unwrap_or_default();
    let lsns = slots.valid.iter().map(|s| s.durable_lsn.max(s.checkpoint_lsn));
    let lsns = lsns.chain(cut.iter().map(|c| c.last));
    let lsn = lsns.chain([seen.1, recovered.end.lsn]).max().unwrap_or_default();
    let segments = |s: &RootSlot| {
        let runs = s.journal.iter().flat_map(|p| &p.segments).map(|b| BlockRun::new(*b, sb.segment_blocks));
        runs.chain(s.pending).collect::<Vec<_>>()
    };
    let mut wanted: Vec<BlockRun> = slots.valid.iter().take(MAX_ROOTS).flat_map(segments).collect();
    wanted.extend(scan.iter().flat_map(|s| s.runs()));
    wanted.extend(recovered.pending.iter().map(|e| e.run));
    wanted.extend(rebuilt.iter().map(|at| BlockRun::new(*at, NODE_BLOCKS)));
    // Records count only while the data that they map is there, even if later ones have freed it
    // (rule R1).
    wanted.extend(recovered.delta.blocks.iter().map(|(at, len, _)| BlockRun::new(BlockNr(at), len as u32)));
    wanted.extend(source.lost.iter().map(|l| BlockRun::new(l.ptr.addr, NODE_BLOCKS)));
    let size = device.capabilities().size_bytes / BLOCK_SIZE as u64;
    let mut recovered = recovered;
    if recovered.slot.total_blocks > size {
        log.act(Class::Counters, None, || {
            format!(
                "the volume's {} blocks become {size}: the device is smaller",
                recovered.slot.total_blocks
            )
        });
        recovered.slot.total_blocks = size;
    }
    wanted.retain(|r| r.start.0 > 0 && r.end().0 <= recovered.slot.total_blocks);
    State {
        kept: segments(&recovered.slot),
        is_lossy: cut.is_some() || !loss.ranges.is_empty(),
        next_epoch: epoch_after(epoch, sb, &slots.damaged),
        next_lsn: lsn.next(),
        recovered,
        source,
        loss,
        rebuilt,
        rewrite,
        wanted,
    }
}

/// Finds items for the lost subtrees.
fn salvage(
    source: &mut Source,
    recovered: &Recovered,
    others: &[Prepared],
    scan: Option<&Scan>,
    loss: &mut Loss,
    log: &mut Log,
) {
    if source.lost.is_empty() {
        return;
    }
    let nodes = source.lost.len();
    let live = live_blocks(source, recovered);
    let mut left = source.lost.clone();
    // Another root with the same end of the journal leads to the same items.
    let same_end = |p: &&Prepared| {
        p.candidate.cut.is_none()
            && p.candidate.recovered.end.lsn == recovered.end.lsn
            && p.candidate.recovered.slot.tree != recovered.slot.tree
    };
    if let Some(other) = others.iter().filter(same_end).min_by_key(|p| p.score) {
        left = from_other_root(source, &other.source, &other.candidate.recovered);
    }
    if let Some(scan) = scan {
        from_scan(source, &left, scan, live.as_ref(), loss);
    }
    log.act(Class::Tree, None, || {
        format!(
            "{nodes} nodes are lost; {} items of theirs are put in again, {} of them may be old; {} ranges are left",
            source.salvaged.len(),
            loss.stale_items,
            loss.ranges.len()
        )
    });
}
