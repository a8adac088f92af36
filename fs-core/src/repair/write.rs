//! The repaired volume, made on the shadow: new nodes, the pending list, and the root of a new epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use blockdev::{AlignedBuf, BlockDevice, IoClass};

use super::fix::{Changes, Fixed};
use super::gather::Facility;
use super::report::{Class, Log};
use super::space::FreeSpace;
use super::walk::Source;
use crate::error::Result;
use crate::format::bitmap::{BITMAP_BLOCKS, encode_piece};
use crate::format::node::NodePtr;
use crate::format::pending::{PendingEntry, encode_pending};
use crate::format::slot::MAX_RESERVED;
use crate::format::{
    DataArea, ItemKind, JournalPart, JournalPoint, Key, PageBlocks, PageEntry, RootPtr, RootSlot, Superblock,
};
use crate::fsck::BlockSet;
use crate::tree::{ApplyContext, ItemChange, NodeSink, TreeRoot, apply_without};
use crate::types::{BLOCK_SIZE, BlockNr, BlockRun, Epoch, Ino, Lsn, NODE_BLOCKS, PageNr};
use crate::volume::{Draining, Patches};

/// What the new root says beside its tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Totals {
    pub(super) epoch: Epoch,
    pub(super) lsn: Lsn,
    pub(super) next_ino: Ino,
    pub(super) inodes: u64,
    pub(super) total_blocks: u64,
}

/// Where the repaired volume is made, and what it is.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) device: &'a Arc<dyn BlockDevice>,
    pub(super) sb: &'a Superblock,
    pub(super) totals: Totals,
    pub(super) draining: Draining,
}

/// Writes pages whose newest bytes are in the journal to new blocks.
pub(super) fn write_home(
    device: &Arc<dyn BlockDevice>,
    sb: &Superblock,
    facility: &mut Facility,
    patches: &Patches,
    lsn: Lsn,
    space: &mut FreeSpace,
    log: &mut Log,
) -> Result<BTreeMap<(Ino, PageNr), PageEntry>> {
    let mut moved = BTreeMap::new();
    let page_bytes = sb.page_size.bytes();
    let mut pages: Vec<(Ino, PageNr)> = patches.iter().collect();
    pages.sort_unstable();
    for (ino, page) in pages {
        let facts = facility.inodes.get(&ino).and_then(|f| f.item);
        let Some((crate::api::FileType::Regular, _, _, size)) = facts else { continue };
        let start = sb.page_size.start_of(page);
        if start >= size {
            continue;
        }
        let mut buf = AlignedBuf::zeroed(page_bytes);
        if let Some(PageEntry::Mapped(blocks, crc)) = facility.patched.get(&(ino, page)) {
            let usable = !facility.bad_pages.contains_key(&(ino, page));
            let old = device.read_at(
                blocks.start.offset(),
                AlignedBuf::zeroed(blocks.run().bytes()),
                IoClass::Background,
            );
            match old {
                Ok(old) if usable && crc32c::crc32c(&old) == *crc => buf[..old.len()].copy_from_slice(&old),
                _ => log.hole(ino.0, start, page_bytes as u64),
            }
        }
        patches.get(ino, page).into_iter().flatten().for_each(|patch| patch.apply(&mut buf));
        let used = usize::try_from(size - start).unwrap_or(usize::MAX).min(page_bytes);
        buf[used..].fill(0);
        let run = space.take(sb.page_size.blocks(), 1)?;
        let blocks = PageBlocks { start: run.start, len: run.len as u8, birth: lsn };
        moved.insert((ino, page), PageEntry::Mapped(blocks, crc32c::crc32c(&buf)));
        facility.bad_pages.remove(&(ino, page));
        device.write_at(run.start.offset(), buf, false, IoClass::Background)?;
    }
    Ok(moved)
}

/// Writes the new tree and its root. Gives the blocks of the root's two slots.
pub(super) fn write_state(
    target: Target<'_>,
    source: &Source,
    rewrite: &[Key],
    fixed: Fixed,
    facility: &Facility,
    space: &mut FreeSpace,
    log: &mut Log,
) -> Result<[BlockNr; 2]> {
    let Target { device, sb, totals, draining } = target;
    let lost = source.lost_pointers();
    let root = match source.root.ptr {
        Some(ptr) if !lost.contains(&ptr) => source.root,
        _ => TreeRoot::default(),
    };
    let mut changes = fixed.changes;
    force(source, rewrite, &mut changes)?;
    // Nodes of the old tree are in the bitmaps; those that the new one drops are in the pending list.
    let mut marked = fixed.used;
    facility.nodes.for_each(&mut |run| marked.add(run));
    put_bitmaps(facility, &marked, &mut changes, log);
    let mut sink = Sink { device, space, taken: Vec::new(), freed: Vec::new() };
    let context = ApplyContext::new(totals.epoch, totals.lsn);
    let changes =
        changes.into_iter().map(|(key, value)| (key, value.map_or(ItemChange::Delete, ItemChange::Put)));
    let new = apply_without(&source.reader, &root, &context, &lost, changes, &mut sink)?;
    let Sink { taken, freed, .. } = sink;
    let mut entries: Vec<PendingEntry> = Vec::new();
    let mut free = DataArea::new(sb, totals.total_blocks).blocks().saturating_sub(marked.len());
    for ptr in freed {
        let run = BlockRun::new(ptr.addr, NODE_BLOCKS);
        if facility.nodes.contains(run) {
            entries.push(PendingEntry { run, used: false });
            free += u64::from(run.len);
        }
    }
    for addr in taken {
        entries.push(PendingEntry { run: BlockRun::new(addr, NODE_BLOCKS), used: true });
        free -= u64::from(NODE_BLOCKS);
    }
    let pending = write_pending(device, &entries, space)?;
    // The epoch never writes to its journal; but a root must have one.
    let segment = space.take(sb.segment_blocks, 1)?;
    let part = JournalPart {
        epoch: totals.epoch,
        start: JournalPoint { segment: 0, block: 0, lsn: totals.lsn, crc: 0 },
        end: None,
        segments: vec![segment.start],
    };
    let slot = RootSlot {
        epoch: totals.epoch,
        checkpoint_lsn: totals.lsn,
        durable_lsn: totals.lsn,
        tree: new.ptr.map_or(RootPtr::default(), |p| RootPtr {
            addr: p.addr,
            birth: p.birth,
            crc: p.crc,
            height: new.height,
        }),
        pending: pending.map(|(run, _)| run),
        pending_len: entries.len() as u32,
        pending_crc: pending.map_or(0, |(_, crc)| crc),
        next_ino: totals.next_ino,
        free_blocks: free,
        total_blocks: totals.total_blocks,
        inodes: totals.inodes,
        reserved: space.groups(MAX_RESERVED),
        journal: vec![part],
        unlocked: !device.capabilities().exclusive,
        ..RootSlot::default()
    };
    let slot = draining.note_in(slot);
    let own = [0, 1].map(|i| RootSlot::address(sb.slots_start, sb.slot_rows, totals.epoch, i));
    for at in own {
        device.write_at(at.offset(), slot.encode(&sb.uuid, at)?, false, IoClass::Log)?;
    }
    Ok(own)
}

/// Rewrites the leaves that hold `rewrite` and everything above them, and what leads to lost nodes.
fn force(source: &Source, rewrite: &[Key], changes: &mut Changes) -> Result<()> {
    for key in rewrite {
        if !changes.contains_key(key) {
            let value = source.reader.get(&source.root, key)?.map(|v| v.to_vec());
            changes.insert(*key, value);
        }
    }
    for first in source.lost.iter().filter_map(|l| l.expected.first) {
        changes.entry(first).or_insert(None);
    }
    Ok(())
}

fn put_bitmaps(facility: &Facility, marked: &BlockSet, changes: &mut Changes, log: &mut Log) {
    let wanted: BTreeSet<u64> = marked.pieces().collect();
    let mut wrong = 0;
    for piece in wanted.union(&facility.marked_now.pieces().collect()) {
        wrong += u64::from(facility.marked_now.words(*piece) != marked.words(*piece));
    }
    for piece in wanted.union(&facility.pieces) {
        let words = marked.words(*piece);
        if facility.pieces.contains(piece) && facility.marked.words(*piece) == words {
            continue;
        }
        changes.insert(Key::new(Ino::SYSTEM, ItemKind::Bitmap, *piece), encode_piece(&words));
    }
    if wrong > 0 {
        log.act(Class::Counters, None, || {
            format!("{wrong} pieces of {BITMAP_BLOCKS} blocks of the allocation bitmap are wrong")
        });
    }
}

fn write_pending(
    device: &Arc<dyn BlockDevice>,
    entries: &[PendingEntry],
    space: &mut FreeSpace,
) -> Result<Option<(BlockRun, u32)>> {
    if entries.is_empty() {
        return Ok(None);
    }
    let bytes = encode_pending(entries);
    let run = space.take(bytes.len().div_ceil(BLOCK_SIZE) as u32, 1)?;
    let mut buf = AlignedBuf::zeroed(run.bytes());
    buf[..bytes.len()].copy_from_slice(&bytes);
    device.write_at(run.start.offset(), buf, false, IoClass::Background)?;
    Ok(Some((run, crc32c::crc32c(&bytes))))
}

struct Sink<'a> {
    device: &'a Arc<dyn BlockDevice>,
    space: &'a mut FreeSpace,
    taken: Vec<BlockNr>,
    freed: Vec<NodePtr>,
}

impl NodeSink for Sink<'_> {
    fn alloc(&mut self) -> Result<BlockNr> {
        let run = self.space.take(NODE_BLOCKS, NODE_BLOCKS.into())?;
        self.taken.push(run.start);
        Ok(run.start)
    }

    fn write(&mut self, addr: BlockNr, node: AlignedBuf) -> Result<()> {
        Ok(self.device.write_at(addr.offset(), node, false, IoClass::Background)?)
    }

    fn freed(&mut self, node: NodePtr) {
        self.freed.push(node);
    }
}
