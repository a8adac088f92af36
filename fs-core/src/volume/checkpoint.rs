//! Checkpoints: recent changes become a new tree, in the background, without stopping the world.
//!
//! 1. Inline data goes home, the active delta is frozen at the end of record L, and L is made
//!    durable. Operations go on in a new active delta.
//! 2. The frozen delta is merged into new nodes; they and the list of their allocations are
//!    written and flushed.
//! 3. This epoch's other root slot is written and flushed. From here on the new root counts.
//! 4. What the root before last needed is released: nodes that the *previous* checkpoint freed, and
//!    the journal behind the *previous* checkpoint's LSN (rule R7). So the older of the two slots
//!    stays usable if the newer one rots.
//!
//! Lock order: the checkpoint's own mutex comes before every other lock of the volume.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use blockdev::{AlignedBuf, IoClass, Pending, Request};

use super::Volume;
use super::commit::wait_all;
use super::group_ranges::compact;
use super::meta::TreeState;
use crate::alloc::{Class, Request as SpaceRequest};
use crate::delta::{Delta, RunState};
use crate::error::{FsError, Result};
use crate::format::bitmap::{BITMAP_BLOCKS, decode_piece, encode_piece, mark};
use crate::format::node::NodePtr;
use crate::format::pending::{PendingEntry, encode_pending};
use crate::format::slot::MAX_RESERVED;
use crate::format::{Chunk, DataArea, ItemKind, Key, PageEntry, RootPtr, RootSlot};
use crate::mutants::{self, Mutant};
use crate::stats::Stage;
use crate::tree::{ApplyContext, ItemChange, NodeSink, TreeReader};
use crate::types::{BLOCK_SIZE, BlockNr, BlockRun, CHUNK_PAGES, Ino, Lsn, NODE_BLOCKS, PageNr};

/// Node writes in flight at once.
const WRITES_IN_FLIGHT: usize = 32;

/// What the running epoch knows of its own roots.
#[derive(Debug)]
pub(super) struct Checkpointer {
    /// The last root written.
    pub(super) slot: RootSlot,
    /// Size of the volume, in blocks, that the next root has.
    pub(super) total_blocks: u64,
    /// Released when the next root is durable and no follower reads an older one: what the checkpoint of
    /// this LSN has replaced, in its order.
    pub(super) held: Vec<(Lsn, BlockRun)>,
    /// Trees that `held` belonged to, as long as somebody reads them.
    pub(super) old_trees: Vec<Weak<TreeState>>,
    /// Freeze point of a checkpoint that failed and will be tried again.
    frozen: Option<FreezePoint>,
}

/// Where a delta was frozen.
#[derive(Clone, Copy, Debug)]
struct FreezePoint {
    lsn: Lsn,
    inodes: u64,
    next_ino: Ino,
}

impl Checkpointer {
    /// After the claim, with the slot it wrote.
    pub(super) fn new(slot: RootSlot) -> Self {
        let total_blocks = slot.total_blocks;
        Self { slot, total_blocks, held: Vec::new(), old_trees: Vec::new(), frozen: None }
    }
}

impl Volume {
    /// Writes a checkpoint and waits for it. Does nothing if nothing has changed since the last
    /// one. Operations go on meanwhile.
    pub fn checkpoint(&self) -> Result<()> {
        self.checkpoint_if(|volume, last| volume.meta.applied_lsn() > last)
    }

    /// Writes a checkpoint even if nothing has changed: it lets go of the journal behind the one
    /// before it.
    pub(crate) fn checkpoint_again(&self) -> Result<()> {
        self.checkpoint_if(|_, _| true)
    }

    fn checkpoint_if(&self, due: impl FnOnce(&Volume, Lsn) -> bool) -> Result<()> {
        self.check_writable()?;
        let mut state = self.checkpointer.lock();
        if state.frozen.is_none() && !due(self, state.slot.checkpoint_lsn) {
            return Ok(());
        }
        self.checkpoint_now(&mut state)
    }

    pub(super) fn checkpoint_now(&self, state: &mut Checkpointer) -> Result<()> {
        if self.meta.applied_lsn() <= state.slot.checkpoint_lsn {
            // Every checkpoint has an LSN of its own: node births must tell them apart.
            self.write_empty_record()?;
        }
        let _measured = self.stats.checkpoint();
        self.device.mark("checkpoint begin");
        let outcome = self.checkpoint_locked(state);
        self.device.mark("checkpoint end");
        outcome
    }

    fn checkpoint_locked(&self, state: &mut Checkpointer) -> Result<()> {
        self.check_not_superseded()?;
        let point = match state.frozen {
            Some(point) => point,
            None => {
                let _homing = self.homing.write();
                self.home_inline()?;
                self.freeze()
            }
        };
        state.frozen = Some(point);
        if !mutants::active(Mutant::CheckpointBeforeDurable) {
            self.commit_to(point.lsn)?;
        }
        let (frozen, tree) = self.meta.frozen();
        let frozen = frozen.unwrap_or_default();
        let mut sink = Sink::new(self);
        let written = self.write_tree(&frozen, &tree, point, &mut sink);
        let drained = sink.wait();
        let (root, list) = match written.and_then(|w| drained.map(|()| w)) {
            Ok(w) => w,
            Err(e) => {
                sink.give_back();
                return Err(e);
            }
        };
        if !mutants::active(Mutant::NoFlushBeforeRoot) {
            self.flush_or_stop()?;
        }
        let pending = sink.pending_entries();
        let slot = match self.next_slot(state, point, &frozen, &sink, root, list) {
            Ok(slot) => slot,
            Err(e) => {
                sink.give_back();
                return Err(e);
            }
        };
        self.write_slot(&slot)?;
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        // The new bitmaps show the old nodes as free; they are not, yet.
        sink.freed.iter().for_each(|run| self.space.held.add(*run));
        let old = self.meta.install(TreeState {
            root: crate::tree::TreeRoot { ptr: root_node(&slot.tree), height: slot.tree.height },
            pending,
        });
        self.release(state, slot, Arc::downgrade(&old), sink.freed);
        state.frozen = None;
        Ok(())
    }

    fn freeze(&self) -> FreezePoint {
        let (lsn, inodes, next_ino) = self.meta.freeze();
        FreezePoint { lsn, inodes, next_ino }
    }

    /// Writes the new nodes and the pending list. Returns the root and the list's place.
    fn write_tree(
        &self,
        frozen: &Arc<Delta>,
        tree: &Arc<TreeState>,
        point: FreezePoint,
        sink: &mut Sink<'_>,
    ) -> Result<(RootPtr, Option<PendingList>)> {
        let reader = self.meta.reader().with_class(IoClass::Background);
        let sources = collect_sources(frozen, &tree.pending, &reader, tree)?;
        let page_blocks = self.page_blocks();
        let changes = sources.into_iter().map(|(key, source)| {
            let change: ItemChange<'_> = match source {
                Source::Put(value) => ItemChange::Put(value.to_vec()),
                Source::Delete => ItemChange::Delete,
                Source::Map => update_map(frozen, key, page_blocks),
                Source::Bitmap => update_bitmap(frozen, &tree.pending, key),
            };
            (key, change)
        });
        let mut context = ApplyContext::new(self.epoch, point.lsn);
        context.fill_percent = 90;
        let root = crate::tree::apply(&reader, &tree.root, &context, changes, sink)?;
        let ptr = root.ptr.map_or(RootPtr::default(), |p| RootPtr {
            addr: p.addr,
            birth: p.birth,
            crc: p.crc,
            height: root.height,
        });
        let entries = sink.pending_entries();
        let list = self.write_pending(&entries, sink)?;
        Ok((ptr, list))
    }

    fn write_pending(&self, entries: &[PendingEntry], sink: &mut Sink<'_>) -> Result<Option<PendingList>> {
        if entries.is_empty() {
            return Ok(None);
        }
        let bytes = encode_pending(entries);
        let blocks = bytes.len().div_ceil(BLOCK_SIZE) as u32;
        let request =
            SpaceRequest { goal: sink.goal, ..SpaceRequest::new(blocks, blocks, 1, Class::Metadata) };
        let run = self.allocate(&request)?;
        self.space.kept.add(run);
        sink.list = Some(run);
        let mut buf = AlignedBuf::zeroed(run.bytes());
        buf[..bytes.len()].copy_from_slice(&bytes);
        sink.submit(run.start, buf)?;
        Ok(Some(PendingList { run, len: entries.len() as u32, crc: crc32c::crc32c(&bytes) }))
    }

    fn next_slot(
        &self,
        state: &Checkpointer,
        point: FreezePoint,
        frozen: &Delta,
        sink: &Sink<'_>,
        tree: RootPtr,
        list: Option<PendingList>,
    ) -> Result<RootSlot> {
        let part = self
            .commit
            .journal
            .lock()
            .part_from(point.lsn)
            .ok_or_else(|| FsError::Volume(format!("no journal record ends at {}", point.lsn)))?;
        let nodes = (sink.taken.len() as i64 - sink.freed.len() as i64) * i64::from(NODE_BLOCKS);
        let area = |total_blocks| DataArea::new(&self.superblock, total_blocks).blocks() as i64;
        let grown = area(state.total_blocks) - area(state.slot.total_blocks);
        Ok(RootSlot {
            epoch: self.epoch,
            seq: state.slot.seq + 1,
            node_id: 0,
            lease_ballot: 0,
            checkpoint_lsn: point.lsn,
            durable_lsn: self.commit.durable(),
            tree,
            pending: list.map(|l| l.run),
            pending_len: list.map_or(0, |l| l.len),
            pending_crc: list.map_or(0, |l| l.crc),
            next_ino: point.next_ino,
            free_blocks: state.slot.free_blocks.saturating_add_signed(grown - (frozen.used_blocks + nodes)),
            total_blocks: state.total_blocks,
            inodes: point.inodes,
            claim: state.slot.claim,
            unlocked: state.slot.unlocked,
            ended: false,
            reserved: compact(
                self.space.reserved.lock().clone(),
                MAX_RESERVED,
                &self.space.alloc.room_groups(),
            ),
            draining: state.slot.draining.clone(),
            draining_unlocked: state.slot.draining_unlocked.clone(),
            journal: vec![part],
        })
    }

    /// Writes a root slot durably; failing ends the epoch, for nobody knows which root counts.
    pub(super) fn write_slot(&self, slot: &RootSlot) -> Result<()> {
        let sb = &self.superblock;
        let index = if mutants::active(Mutant::RootInPlace) { 0 } else { slot.seq };
        let own = RootSlot::address(sb.slots_start, sb.slot_rows, slot.epoch, index);
        let buf = slot.encode(&sb.uuid, own)?;
        self.counters.slot_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        let written = self.device.write_at(own.offset(), buf, false, IoClass::Log);
        if let Err(e) = written {
            self.commit.fail(&e.to_string());
            return Err(e.into());
        }
        if mutants::active(Mutant::NoFlushAfterRoot) {
            return Ok(());
        }
        self.flush_or_stop()
    }

    pub(super) fn flush_or_stop(&self) -> Result<()> {
        let flushing = self.stats.time(Stage::Flush);
        let flushed = self.device.flush();
        drop(flushing);
        flushed.map_err(|e| {
            self.commit.fail(&e.to_string());
            FsError::from(e)
        })?;
        // If another flush has failed, its writes may be lost although this one went well.
        self.check_writable()
    }

    /// The new root is durable: lets go of what only the root before last needed.
    fn release(&self, state: &mut Checkpointer, slot: RootSlot, old: Weak<TreeState>, freed: Vec<BlockRun>) {
        self.commit.slot_published(slot.durable_lsn);
        self.stats.checkpointed(slot.checkpoint_lsn);
        let dropped_lsn = if mutants::active(Mutant::DropJournalEarly) {
            slot.checkpoint_lsn
        } else {
            state.slot.checkpoint_lsn
        };
        self.commit.journal.lock().drop_behind(dropped_lsn, slot.checkpoint_lsn);
        state.old_trees.retain(|t| t.strong_count() > 0);
        let oldest = self.oldest_root(state, &slot);
        let mut ready = Vec::new();
        if state.old_trees.is_empty() {
            let n = state.held.partition_point(|(replaced_by, _)| *replaced_by <= oldest);
            ready.extend(state.held.drain(..n).map(|(_, run)| run));
        }
        let mut next = freed;
        next.extend(state.slot.pending);
        if mutants::active(Mutant::ReuseNodesEarly) {
            ready.append(&mut next);
        }
        state.held.extend(next.into_iter().map(|run| (slot.checkpoint_lsn, run)));
        state.old_trees.push(old);
        for run in ready {
            if let Err(e) = self.space.alloc.free_deferred(run, Lsn(0)) {
                tracing::error!(error = %e, "a block of an old checkpoint is not in use");
            }
            self.space.kept.remove(run);
            self.space.held.remove(run);
        }
        self.use_grown_space(&state.slot, &slot);
        self.publish_frees(slot.durable_lsn);
        state.slot = slot;
        self.set_nodes_aside(None);
    }

    /// The checkpoint of the oldest root that somebody reads, now that there is this one.
    fn oldest_root(&self, state: &Checkpointer, slot: &RootSlot) -> Lsn {
        let waiting = state.held.iter().map(|(_, run)| u64::from(run.len)).sum();
        let (oldest, revoked) =
            self.space.followers.new_root(slot.checkpoint_lsn, waiting, slot.total_blocks);
        self.counters.claims_revoked.fetch_add(revoked, Ordering::Relaxed);
        oldest
    }
}

fn root_node(ptr: &RootPtr) -> Option<NodePtr> {
    (ptr.height > 0).then_some(NodePtr { addr: ptr.addr, birth: ptr.birth, crc: ptr.crc })
}

/// Where a pending list was written.
#[derive(Clone, Copy, Debug)]
struct PendingList {
    run: BlockRun,
    len: u32,
    crc: u32,
}

/// Takes the new nodes: allocates, writes asynchronously, remembers.
struct Sink<'a> {
    volume: &'a Volume,
    taken: Vec<BlockNr>,
    freed: Vec<BlockRun>,
    goal: Option<BlockNr>,
    list: Option<BlockRun>,
    in_flight: Vec<Pending>,
    failed: Option<FsError>,
}

impl<'a> Sink<'a> {
    fn new(volume: &'a Volume) -> Self {
        Self {
            volume,
            taken: Vec::new(),
            freed: Vec::new(),
            goal: None,
            list: None,
            in_flight: Vec::new(),
            failed: None,
        }
    }

    fn submit(&mut self, addr: BlockNr, buf: AlignedBuf) -> Result<()> {
        if self.in_flight.len() >= WRITES_IN_FLIGHT {
            self.wait()?;
        }
        self.volume.counters.node_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        let request = Request::write(addr.offset(), vec![buf], false, IoClass::Background);
        self.in_flight.extend(self.volume.device.submit(vec![request]));
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        if let Err(e) = wait_all(std::mem::take(&mut self.in_flight)) {
            self.failed.get_or_insert(e);
        }
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn pending_entries(&self) -> Vec<PendingEntry> {
        let taken =
            self.taken.iter().map(|b| PendingEntry { run: BlockRun::new(*b, NODE_BLOCKS), used: true });
        taken.chain(self.freed.iter().map(|run| PendingEntry { run: *run, used: false })).collect()
    }

    /// The checkpoint failed and nothing leads to its blocks. They are free again, unless a write to
    /// one of them failed: then they stay out of use (rule R1). So a checkpoint that finds no space
    /// does not take away more of it each time.
    fn give_back(&mut self) {
        let list = self.list.take();
        list.iter().for_each(|run| self.volume.space.kept.remove(*run));
        let nodes = self.taken.drain(..).map(|addr| BlockRun::new(addr, NODE_BLOCKS));
        for run in nodes.chain(list) {
            if self.failed.is_some() {
                self.volume.quarantine(run);
            } else if let Err(e) = self.volume.space.alloc.free_unwritten(run) {
                tracing::error!(error = %e, "blocks of a failed checkpoint were not in use");
            }
        }
    }
}

impl NodeSink for Sink<'_> {
    fn alloc(&mut self) -> Result<BlockNr> {
        let n = NODE_BLOCKS;
        let request = SpaceRequest { goal: self.goal, ..SpaceRequest::new(n, n, n, Class::Metadata) };
        let run = self.volume.allocate(&request)?;
        self.goal = Some(run.end());
        self.taken.push(run.start);
        Ok(run.start)
    }

    fn write(&mut self, addr: BlockNr, node: AlignedBuf) -> Result<()> {
        self.volume.counters.node_writes.fetch_add(1, Ordering::Relaxed);
        self.submit(addr, node)
    }

    fn freed(&mut self, node: NodePtr) {
        self.freed.push(BlockRun::new(node.addr, NODE_BLOCKS));
    }
}

/// Where the new value of an item comes from.
enum Source {
    Put(Arc<[u8]>),
    Delete,
    Map,
    Bitmap,
}

/// All items that change, in key order.
fn collect_sources(
    frozen: &Delta,
    pending: &[PendingEntry],
    reader: &TreeReader,
    tree: &TreeState,
) -> Result<BTreeMap<Key, Source>> {
    let mut sources = BTreeMap::new();
    for (key, value) in &frozen.items {
        let source = value.clone().map_or(Source::Delete, Source::Put);
        sources.insert(*key, source);
    }
    for (ino, chunk) in touched_chunks(frozen, reader, tree)? {
        sources.insert(Key::new(ino, ItemKind::Map, chunk), Source::Map);
    }
    let mut pieces = BTreeSet::new();
    let mut touch = |start: u64, len: u64| {
        pieces.extend(start / BITMAP_BLOCKS..=(start + len - 1) / BITMAP_BLOCKS);
    };
    for (start, len, _) in frozen.blocks.iter() {
        touch(start, len);
    }
    for entry in pending {
        touch(entry.run.start.0, entry.run.len.into());
    }
    for piece in pieces {
        sources.insert(Key::new(Ino::SYSTEM, ItemKind::Bitmap, piece), Source::Bitmap);
    }
    Ok(sources)
}

fn touched_chunks(frozen: &Delta, reader: &TreeReader, tree: &TreeState) -> Result<BTreeSet<(Ino, u64)>> {
    let mut chunks = BTreeSet::new();
    for (ino, map) in &frozen.maps {
        for (start, len, state) in map.iter() {
            let (first, last) = (PageNr(start).chunk(), PageNr(start.saturating_add(len - 1)).chunk());
            if matches!(state, RunState::Blocks(_)) || last - first <= 1 {
                chunks.extend((first..=last).map(|c| (*ino, c)));
                continue;
            }
            // A hole over many chunks: only those that exist matter.
            let from = Key::new(*ino, ItemKind::Map, first);
            let to = Key::new(*ino, ItemKind::Map, last);
            reader.scan(&tree.root, from, to, &mut |key, _| {
                chunks.insert((*ino, key.offset));
                ControlFlow::Continue(())
            })?;
        }
    }
    Ok(chunks)
}

fn update_map<'a>(frozen: &'a Delta, key: Key, page_blocks: u32) -> ItemChange<'a> {
    ItemChange::Update(Box::new(move |old: Option<&[u8]>| {
        let mut pages = [PageEntry::Hole; CHUNK_PAGES as usize];
        let mut known = [false; CHUNK_PAGES as usize];
        frozen.overlay_pages(key.ino, PageNr(key.offset * CHUNK_PAGES), &mut pages, &mut known);
        if let Some(old) = old {
            let old = Chunk::decode(old, page_blocks).ok_or_else(|| {
                let detail = format!("file {}, chunk {}", key.ino, key.offset);
                FsError::corrupt("map item", BlockNr(0), detail)
            })?;
            for i in (0..pages.len()).filter(|i| !known[*i]) {
                pages[i] = old.pages[i];
            }
        }
        Ok(Chunk { pages }.encode(page_blocks))
    }))
}

fn update_bitmap<'a>(frozen: &'a Delta, pending: &'a [PendingEntry], key: Key) -> ItemChange<'a> {
    ItemChange::Update(Box::new(move |old: Option<&[u8]>| {
        let start = key.offset * BITMAP_BLOCKS;
        let mut piece = match old {
            None => [0; 128],
            Some(bytes) => decode_piece(bytes)
                .ok_or_else(|| FsError::corrupt("bitmap item", BlockNr(start), "impossible length"))?,
        };
        let end = start + BITMAP_BLOCKS;
        let pending_here = |piece: &mut _, used: bool| {
            let here = |e: &&PendingEntry| e.used == used && e.run.start.0 < end && e.run.end().0 > start;
            for e in pending.iter().filter(here) {
                let from = e.run.start.0.max(start);
                mark(piece, from - start, e.run.end().0.min(end) - from, used);
            }
        };
        // What the checkpoint's nodes took comes last: while it ran, blocks that were freed as data
        // behind its LSN may have become its nodes.
        pending_here(&mut piece, false);
        for (from, len, _, used) in frozen.blocks.overlapping(start, BITMAP_BLOCKS) {
            mark(&mut piece, from - start, len, *used);
        }
        pending_here(&mut piece, true);
        Ok(encode_piece(&piece))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Change;

    /// Data freed blocks while a checkpoint ran, and the checkpoint put a node there: the next one's
    /// bitmap shows them in use.
    #[test]
    fn a_node_in_freed_blocks_is_in_use() {
        let freed = BlockRun::new(BlockNr(100), 8);
        let mut delta = Delta::default();
        delta.apply(&Change::Free { run: freed }, Lsn(9), 4);
        let pending = [PendingEntry { run: BlockRun::new(BlockNr(104), NODE_BLOCKS), used: true }];
        let mut old = [0; 128];
        mark(&mut old, 100, 8, true);
        let old = encode_piece(&old).unwrap();
        let key = Key::new(Ino::SYSTEM, ItemKind::Bitmap, 0);
        let ItemChange::Update(update) = update_bitmap(&delta, &pending, key) else { unreachable!() };
        let new = decode_piece(&update(Some(&old)).unwrap().unwrap()).unwrap();
        let mut want = [0; 128];
        mark(&mut want, 104, 4, true);
        assert_eq!(new, want);
    }
}
