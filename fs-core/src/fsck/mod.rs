//! Checking a volume: reads everything, changes nothing.
//!
//! What is checked is the state that a mount would recover: the tree of the last root with the
//! journal's changes over it, without writing anything. The check is the oracle of the crash tests,
//! so a good volume must come out clean in every state that a power cut can leave.

mod blocks;
mod data;
mod fixed;
mod items;
mod merge;
mod owners;
mod paths;
mod report;
mod reserved;
mod space;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod xattrs;

use std::ops::ControlFlow;
use std::sync::Arc;

use blockdev::BlockDevice;

pub use report::{MAX_PROBLEMS, Problem, ProblemKind, Report, Stats, VolumeSummary};

pub(crate) use blocks::BlockSet;
pub(crate) use data::DataChecker;
pub(crate) use fixed::{FoundSlot, for_each_slot, misplaced_slots, read_copy};
pub(crate) use items::continues_target;
pub(crate) use merge::{Item, Merge, Pages};
pub(crate) use paths::Names;
pub(crate) use report::{Findings, escape};

use crate::error::{FsError, Result};
use crate::format::bitmap::decode_piece;
use crate::format::node::{Expected, Node, NodePtr};
use crate::format::{ItemKind, Key, Superblock};
use crate::tree::{NodeCache, TreeReader, TreeVisitor};
use crate::types::{BLOCK_SIZE, BlockRun, Ino, NODE_BLOCKS, NODE_SIZE};
use crate::volume::meta::TreeState;
use crate::volume::{Recovered, read_superblock, recover, tree_state};
use items::ItemCheck;
use reserved::Reserved;
use space::Space;

/// Items between two calls of the progress function.
const PROGRESS_STEP: u64 = 4096;

/// Memory for cached nodes; only paths of problem files are looked up through the cache.
const CACHE_BYTES: usize = 4 << 20;

/// What to check.
#[derive(Clone, Copy, Default)]
pub struct CheckOptions<'a> {
    /// Read all data and verify its checksums.
    pub data: bool,
    /// Told now and then what has been counted so far.
    pub progress: Option<&'a dyn Fn(&Stats)>,
}

impl std::fmt::Debug for CheckOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckOptions").field("data", &self.data).finish_non_exhaustive()
    }
}

/// Checks the volume on `device`. Reads only; blocks for as long as reading all metadata takes.
/// The volume must not be mounted for writing meanwhile.
///
/// Whatever is wrong with the volume is in the report; an error means that there is no volume
/// that could be checked (no usable copy of the superblock, unknown features, a truncated device).
/// Ends on any input. Memory: some 100 bytes for each inode, and a bit for each block in use.
pub fn check(device: &Arc<dyn BlockDevice>, options: &CheckOptions<'_>) -> Result<Report> {
    let (sb, _) = read_superblock(device.as_ref())?;
    let mut findings = Findings::default();
    let recovered = recover(device.as_ref());
    let total_blocks = recovered.as_ref().map_or(sb.total_blocks, |r| r.slot.total_blocks);
    fixed::check_superblocks(device.as_ref(), &sb, total_blocks, &mut findings);
    match recovered {
        Ok(recovered) => Ok(check_recovered(device, options, recovered, findings, &[]).0),
        Err(e) => {
            findings.volume(ProblemKind::of(&e, ProblemKind::Recovery), || text(&e));
            let read_errors = findings.read_errors;
            let (problems, more_problems) = findings.finish(|_| None);
            Ok(Report { problems, more_problems, read_errors, ..Report::default() })
        }
    }
}

/// As [`check`], for a volume that can be recovered; gives the paths of `inodes`, too.
pub(crate) fn check_and_name(
    device: &Arc<dyn BlockDevice>,
    options: &CheckOptions<'_>,
    inodes: &[Ino],
) -> Result<(Report, Names)> {
    let recovered = recover(device.as_ref())?;
    Ok(check_recovered(device, options, recovered, Findings::default(), inodes))
}

fn check_recovered(
    device: &Arc<dyn BlockDevice>,
    options: &CheckOptions<'_>,
    mut recovered: Recovered,
    mut findings: Findings,
    inodes: &[Ino],
) -> (Report, Names) {
    let tree = tree_state(&mut recovered);
    let sb = recovered.superblock.clone();
    let mut notes = fixed::check_slots(device.as_ref(), &sb, &recovered.slot, &mut findings);
    let kept = kept_runs(&recovered);
    let mut space = Space::new(&sb, &recovered.slot);
    for run in &kept {
        space.claim(*run, None, &mut findings, || "the journal or the pending list".into());
    }
    let data = options.data.then(|| DataChecker::new(device.as_ref(), sb.page_size.bytes()));
    let reserved = Reserved::new(&recovered);
    let mut items = ItemCheck::new(&sb, recovered.next_ino, space, reserved, findings, data);
    let cache = NodeCache::new(device.clone(), sb.uuid, CACHE_BYTES);
    let reader = TreeReader::new(Arc::new(cache)).with_class(blockdev::IoClass::Background);
    scan(&reader, &tree, &recovered, options, &mut items);
    let stats = finish_stats(&mut items, &recovered, &tree, &kept);
    check_counts(&mut items, &recovered, &kept);
    let ItemCheck { findings, table, space, .. } = items;
    if !space.is_exhausted() {
        notes.extend(owners::name(space.used_twice(), &kept, &reader, &tree, &recovered));
    }
    let volume = summary(&sb, &recovered);
    let wanted = findings.inodes().chain(inodes.iter().copied());
    let names = paths::resolve(wanted, &table, &reader, &tree, &recovered.delta, &sb);
    let read_errors = findings.read_errors;
    let (problems, more_problems) = findings.finish(|ino| names.path(ino));
    (Report { problems, more_problems, read_errors, notes, volume: Some(volume), stats }, names)
}

/// Blocks in use beside the tree: journals and the pending list. No bitmap marks them.
fn kept_runs(recovered: &Recovered) -> Vec<BlockRun> {
    let len = recovered.superblock.segment_blocks;
    let segments = recovered.slot.journal.iter().flat_map(|p| &p.segments);
    segments.map(|s| BlockRun::new(*s, len)).chain(recovered.slot.pending).collect()
}

/// Reads the tree and sees all items, those of the journal merged in.
fn scan(
    reader: &TreeReader,
    tree: &TreeState,
    recovered: &Recovered,
    options: &CheckOptions<'_>,
    items: &mut ItemCheck<'_>,
) {
    let merge = Merge::new(&recovered.delta, recovered.superblock.page_size.blocks());
    let mut visitor = Visitor { merge, items, recovered, options, seen: 0 };
    if let Err(e) = crate::tree::verify(reader, &tree.root, &mut visitor) {
        visitor.items.findings.incomplete = true;
        visitor.items.findings.volume(ProblemKind::RootSlot, || text(&e));
    }
    let Visitor { mut merge, items, .. } = visitor;
    merge.finish(&mut |key, item| see(items, key, item));
    items.end();
}

fn see(items: &mut ItemCheck<'_>, key: Key, item: Item<'_>) {
    // Blocks that are used many times over would take for ever, and say nothing new.
    if !items.space.is_exhausted() {
        items.item(key, item);
    }
}

/// Sees the nodes of the tree.
struct Visitor<'v, 'a> {
    merge: Merge<'v>,
    items: &'v mut ItemCheck<'a>,
    recovered: &'v Recovered,
    options: &'v CheckOptions<'v>,
    seen: u64,
}

impl TreeVisitor for Visitor<'_, '_> {
    fn node(&mut self, node: &Node, _expected: &Expected) {
        let items = &mut *self.items;
        items.stats.nodes += 1;
        let ptr = node.ptr();
        let run = BlockRun::new(ptr.addr, NODE_BLOCKS);
        items.space.claim(run, None, &mut items.findings, || "a tree node".into());
        let slot = &self.recovered.slot;
        let (findings, reserved) = (&mut items.findings, &items.reserved);
        let mut wrong = |kind, what: &str| {
            findings.add(kind, None, Some(ptr.addr), || {
                format!("tree node at block {} of epoch {}, {what}", ptr.addr, node.epoch())
            });
        };
        if ptr.birth > slot.checkpoint_lsn || node.epoch() > slot.epoch {
            wrong(ProblemKind::Node, "is younger than the root");
        }
        if node.epoch() == slot.epoch && !reserved.covers(run) {
            wrong(ProblemKind::Reservation, "is in a block group which that epoch has not reserved");
        }
    }

    fn item(&mut self, key: Key, value: &[u8]) {
        let items = &mut *self.items;
        self.merge.tree_item(key, value, &mut |key, item| see(items, key, item));
        self.seen += 1;
        if self.seen.is_multiple_of(PROGRESS_STEP)
            && let Some(progress) = self.options.progress
        {
            progress(&items.stats);
        }
    }

    fn bad(&mut self, ptr: NodePtr, _expected: &Expected, error: FsError) {
        self.items.bad_node(&error, ptr.addr);
    }
}

fn finish_stats(
    items: &mut ItemCheck<'_>,
    recovered: &Recovered,
    tree: &TreeState,
    kept: &[BlockRun],
) -> Stats {
    items.space.apply(&tree.pending, &recovered.delta, &mut items.findings);
    let kept_blocks: u64 = kept.iter().map(|r| u64::from(r.len)).sum();
    let pending = recovered.slot.pending.map_or(0, |r| r.bytes() as u64);
    let s = &mut items.stats;
    s.inodes = items.table.inode_count();
    s.orphans = items.table.orphan_count();
    s.height = tree.root.height;
    s.metadata_bytes = s.nodes * NODE_SIZE as u64 + pending;
    s.journal_blocks = kept_blocks - pending / BLOCK_SIZE as u64;
    s.free_blocks = items.space.free().saturating_sub(kept_blocks);
    s.records = recovered.records;
    s.inline_pages = recovered.patches.iter().count() as u64;
    *s
}

/// What can only be judged when all metadata has been seen.
fn check_counts(items: &mut ItemCheck<'_>, recovered: &Recovered, kept: &[BlockRun]) {
    let ItemCheck { findings, table, space, .. } = items;
    if space.is_exhausted() {
        findings.volume(ProblemKind::DoubleUse, || {
            "blocks are used many times over; the rest of the check is left out".into()
        });
        return;
    }
    if findings.incomplete {
        return;
    }
    table.check(findings);
    if table.inode_count() != recovered.inodes {
        findings.volume(ProblemKind::Count, || {
            format!("there are {} inodes, the volume says {}", table.inode_count(), recovered.inodes)
        });
    }
    let said = recovered.slot.free_blocks.checked_add_signed(-recovered.delta.used_blocks);
    if said != Some(space.free()) {
        findings.volume(ProblemKind::Count, || {
            let said = said.map_or("less than none".into(), |n| n.to_string());
            format!("{} blocks are free by the bitmaps, by the root and the journal {said}", space.free())
        });
    }
    for (ino, page) in recovered.patches.iter() {
        if !table.is_regular(ino) {
            findings.inode(ProblemKind::NoInode, ino, || {
                format!("the journal has data for page {page} of inode {ino}, which is no regular file")
            });
        }
    }
    space.compare(kept, findings);
}

/// The blocks in use by the bitmaps, the pending list, the journal's changes and the journals
/// themselves, as runs in order. For looking at: nothing is checked.
pub(crate) fn marked_blocks(device: &Arc<dyn BlockDevice>) -> Result<(Superblock, Vec<BlockRun>)> {
    let mut recovered = recover(device.as_ref())?;
    let tree = tree_state(&mut recovered);
    let sb = recovered.superblock.clone();
    let reader = TreeReader::new(Arc::new(NodeCache::new(device.clone(), sb.uuid, CACHE_BYTES)));
    let mut space = Space::new(&sb, &recovered.slot);
    let mut ignored = Findings::default();
    let from = Key::new(Ino::SYSTEM, ItemKind::Bitmap, 0);
    let to = Key::new(Ino::SYSTEM, ItemKind::Bitmap, u64::MAX);
    reader.scan(&tree.root, from, to, &mut |key, value| {
        if let Some(words) = decode_piece(value) {
            space.bitmap(key.offset, &words, &mut ignored);
        }
        ControlFlow::Continue(())
    })?;
    space.apply(&tree.pending, &recovered.delta, &mut ignored);
    Ok((sb, space.marked_runs(&kept_runs(&recovered))))
}

fn summary(sb: &Superblock, recovered: &Recovered) -> VolumeSummary {
    VolumeSummary {
        uuid: sb.uuid.to_string(),
        label: sb.label.clone(),
        total_blocks: recovered.slot.total_blocks,
        page_size: sb.page_size.bytes() as u32,
        group_blocks: sb.group_blocks,
        epoch: recovered.slot.epoch.0,
        checkpoint_lsn: recovered.slot.checkpoint_lsn.0,
        last_lsn: recovered.end.lsn.0,
    }
}

/// An error without the advice to run this very check.
pub(crate) fn text(error: &FsError) -> String {
    match error {
        FsError::Corrupt { what, block, detail } => format!("{what} at block {block}: {detail}"),
        e => e.to_string(),
    }
}
