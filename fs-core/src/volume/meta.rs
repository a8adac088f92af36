//! The metadata as running operations see it: active delta, frozen delta, tree; and the batch of
//! changes that the next journal record will carry.
//!
//! [`MetaStore::apply`] is the only way to change metadata. It puts the changes of one operation
//! into the active delta and into the open batch in one step, so they are atomic both for readers
//! and after a crash. The lock inside is a leaf: nothing is called under it that waits or locks.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::RwLock;

use super::flight::Flight;
use crate::delta::Delta;
use crate::error::{FsError, Result};
use crate::format::pending::PendingEntry;
use crate::format::{Change, Chunk, ItemKind, Key, PageEntry};
use crate::journal::JournalWriter;
use crate::tree::{TreeReader, TreeRoot};
use crate::types::{BlockNr, BlockRun, CHUNK_PAGES, Ino, Lsn, PageNr};

/// Far behind the last chunk of the largest file.
const MAX_CHUNK: u64 = (1 << 62) / CHUNK_PAGES;

/// A checkpoint's tree, as long as somebody may read it.
#[derive(Debug, Default)]
pub(crate) struct TreeState {
    /// The tree.
    pub(crate) root: TreeRoot,
    /// Node allocations its bitmaps do not show.
    pub(crate) pending: Vec<PendingEntry>,
}

/// Changes that will be one journal record.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The record's number.
    pub(crate) lsn: Lsn,
    /// The changes, in order.
    pub(crate) changes: Vec<Change>,
    /// Inodes of the volume after it.
    pub(crate) inodes: u64,
    /// Data that it maps and that may still be in flight.
    pub(crate) flights: Vec<Arc<Flight>>,
    bytes: usize,
    latest: HashMap<Key, usize>,
}

impl Batch {
    fn push(&mut self, change: Change) {
        if let Change::PutItem { key, .. } | Change::DelItem { key } = &change {
            if let Some(&i) = self.latest.get(key) {
                self.bytes = self.bytes - self.changes[i].encoded_len() + change.encoded_len();
                self.changes[i] = change;
                return;
            }
            self.latest.insert(*key, self.changes.len());
        }
        self.bytes += change.encoded_len();
        self.changes.push(change);
    }
}

struct Meta {
    active: Delta,
    frozen: Option<Arc<Delta>>,
    tree: Arc<TreeState>,
    batch: Batch,
    closed: VecDeque<Batch>,
    next_ino: Ino,
    inodes: u64,
    /// Changes stay out of the journal; see [`MetaStore::pause_logging`].
    logging_paused: bool,
}

/// The state behind the active delta, at one moment.
struct View {
    frozen: Option<Arc<Delta>>,
    tree: Arc<TreeState>,
}

/// What a [`MetaStore`] starts from.
pub(crate) struct MetaStart {
    pub(crate) delta: Delta,
    pub(crate) tree: TreeState,
    pub(crate) next_lsn: Lsn,
    pub(crate) next_ino: Ino,
    pub(crate) inodes: u64,
}

/// See the module.
pub(crate) struct MetaStore {
    inner: RwLock<Meta>,
    reader: TreeReader,
    page_blocks: u32,
    max_payload: usize,
}

/// An item of a merged scan.
pub(crate) type ScannedItem = (Key, Arc<[u8]>);

impl MetaStore {
    /// A store over a recovered state.
    pub(crate) fn new(reader: TreeReader, page_blocks: u32, segment_blocks: u32, start: MetaStart) -> Self {
        let meta = Meta {
            active: start.delta,
            frozen: None,
            tree: Arc::new(start.tree),
            batch: Batch { lsn: start.next_lsn, ..Batch::default() },
            closed: VecDeque::new(),
            next_ino: start.next_ino,
            inodes: start.inodes,
            logging_paused: false,
        };
        let max_payload = JournalWriter::max_payload(segment_blocks);
        Self { inner: RwLock::new(meta), reader, page_blocks, max_payload }
    }

    /// Largest total of encoded changes in one operation.
    pub(crate) fn max_operation(&self) -> usize {
        self.max_payload
    }

    /// Applies the changes of one operation, all or nothing; returns the LSN of the record that
    /// will carry them.
    pub(crate) fn apply(&self, changes: Vec<Change>, inode_delta: i64) -> Result<Lsn> {
        self.apply_with(changes, inode_delta, None, |_| Ok(()))
    }

    /// As [`apply`](Self::apply); `first` is told the LSN before anybody can see the changes. It
    /// must not block, and if it fails nothing is applied. Whoever writes the record waits for the
    /// data in `flight`, which the changes map.
    pub(crate) fn apply_with(
        &self,
        changes: Vec<Change>,
        inode_delta: i64,
        flight: Option<Arc<Flight>>,
        first: impl FnOnce(Lsn) -> Result<()>,
    ) -> Result<Lsn> {
        let bytes: usize = changes.iter().map(Change::encoded_len).sum();
        if bytes > self.max_payload {
            return Err(FsError::Volume(format!(
                "an operation of {bytes} bytes of changes does not fit a journal record of {}",
                self.max_payload
            )));
        }
        let mut meta = self.inner.write();
        if meta.batch.bytes + bytes > self.max_payload {
            meta.close_batch();
        }
        let lsn = meta.batch.lsn;
        first(lsn)?;
        for change in changes {
            meta.active.apply(&change, lsn, self.page_blocks);
            if !meta.logging_paused || matches!(change, Change::Reserve { .. }) {
                meta.batch.push(change);
            }
        }
        meta.batch.flights.extend(flight);
        meta.inodes = meta.inodes.saturating_add_signed(inode_delta);
        Ok(lsn)
    }

    /// For a mount that is not served yet: from now on changes take effect in memory only, and on the
    /// device with the next root. Reservations must be known before they are used, and go on into the
    /// journal.
    pub(super) fn pause_logging(&self, pause: bool) {
        self.inner.write().logging_paused = pause;
    }

    /// A new inode number.
    pub(crate) fn new_ino(&self) -> Ino {
        let mut meta = self.inner.write();
        let ino = meta.next_ino;
        meta.next_ino = Ino(ino.0 + 1);
        ino
    }

    /// Number of inodes, and next inode number.
    pub(crate) fn inode_numbers(&self) -> (u64, Ino) {
        let meta = self.inner.read();
        (meta.inodes, meta.next_ino)
    }

    /// LSN that covers everything applied so far.
    pub(crate) fn applied_lsn(&self) -> Lsn {
        let meta = self.inner.read();
        if meta.batch.changes.is_empty() { Lsn(meta.batch.lsn.0 - 1) } else { meta.batch.lsn }
    }

    /// Takes all batches that are ready to be written, closing the open one. With `force_empty` an
    /// empty batch is taken too (to carry a durable LSN).
    pub(crate) fn take_batches(&self, force_empty: bool) -> Vec<Batch> {
        let mut meta = self.inner.write();
        if !meta.batch.changes.is_empty() || (force_empty && meta.closed.is_empty()) {
            meta.close_batch();
        }
        meta.closed.drain(..).collect()
    }

    /// Bytes of changes not yet in the journal, and rough memory of the deltas.
    pub(crate) fn pressure(&self) -> (usize, usize) {
        let meta = self.inner.read();
        let waiting = meta.batch.bytes + meta.closed.iter().map(|b| b.bytes).sum::<usize>();
        (waiting, meta.active.memory + meta.frozen.as_ref().map_or(0, |f| f.memory))
    }

    /// About how many items of the tree the next checkpoint, or the one that runs, will change.
    pub(crate) fn changed_items(&self) -> usize {
        let meta = self.inner.read();
        meta.active.changed_items() + meta.frozen.as_ref().map_or(0, |f| f.changed_items())
    }

    /// Height of the tree, and entries of its pending list.
    pub(crate) fn tree_size(&self) -> (u8, usize) {
        let meta = self.inner.read();
        (meta.tree.root.height, meta.tree.pending.len())
    }

    /// Freezes the active delta at a record's end. Returns that record's LSN, the number of inodes
    /// and the next inode number at that moment. The frozen delta of a checkpoint that failed must
    /// have been installed first.
    pub(crate) fn freeze(&self) -> (Lsn, u64, Ino) {
        let mut meta = self.inner.write();
        assert!(meta.frozen.is_none(), "one checkpoint at a time");
        if !meta.batch.changes.is_empty() {
            meta.close_batch();
        }
        let active = std::mem::take(&mut meta.active);
        meta.frozen = Some(Arc::new(active));
        (Lsn(meta.batch.lsn.0 - 1), meta.inodes, meta.next_ino)
    }

    /// The frozen delta and the tree it goes into.
    pub(crate) fn frozen(&self) -> (Option<Arc<Delta>>, Arc<TreeState>) {
        let meta = self.inner.read();
        (meta.frozen.clone(), meta.tree.clone())
    }

    /// The frozen delta is in the tree now.
    pub(crate) fn install(&self, tree: TreeState) -> Arc<TreeState> {
        let mut meta = self.inner.write();
        meta.frozen = None;
        std::mem::replace(&mut meta.tree, Arc::new(tree))
    }

    /// Tree reader.
    pub(crate) fn reader(&self) -> &TreeReader {
        &self.reader
    }

    /// The item's value.
    pub(crate) fn item(&self, key: &Key) -> Result<Option<Arc<[u8]>>> {
        let view = {
            let meta = self.inner.read();
            if let Some(known) = meta.active.item(key) {
                return Ok(known);
            }
            meta.view()
        };
        if let Some(known) = view.frozen.as_ref().and_then(|f| f.item(key)) {
            return Ok(known);
        }
        Ok(self.reader.get(&view.tree.root, key)?.map(|v| Arc::from(&v[..])))
    }

    /// Fills `out` with the entries of the pages from `first` on.
    pub(crate) fn pages(&self, ino: Ino, first: PageNr, out: &mut [PageEntry]) -> Result<()> {
        out.fill(PageEntry::Hole);
        let mut known = vec![false; out.len()];
        let view = {
            let meta = self.inner.read();
            meta.active.overlay_pages(ino, first, out, &mut known);
            meta.view()
        };
        if let Some(frozen) = &view.frozen {
            frozen.overlay_pages(ino, first, out, &mut known);
        }
        let mut i = 0;
        while i < out.len() {
            let page = PageNr(first.0 + i as u64);
            let in_chunk = (CHUNK_PAGES as usize - page.slot()).min(out.len() - i);
            if known[i..i + in_chunk].iter().any(|k| !k) {
                let key = Key::new(ino, ItemKind::Map, page.chunk());
                if let Some(value) = self.reader.get(&view.tree.root, &key)? {
                    let chunk = self.decode_chunk(&key, &value)?;
                    for k in (i..i + in_chunk).filter(|k| !known[*k]) {
                        out[k] = chunk.pages[page.slot() + (k - i)];
                    }
                }
            }
            i += in_chunk;
        }
        Ok(())
    }

    fn decode_chunk(&self, key: &Key, value: &[u8]) -> Result<Chunk> {
        Chunk::decode(value, self.page_blocks).ok_or_else(|| {
            FsError::corrupt(
                "map item",
                BlockNr(0),
                format!("file {}, chunk {}: impossible values", key.ino, key.offset),
            )
        })
    }

    /// First page at or behind `from` that may have blocks (exact to the chunk); `None`: none has.
    pub(crate) fn next_mapped(&self, ino: Ino, from: PageNr) -> Result<Option<PageNr>> {
        let (mut best, view) = {
            let meta = self.inner.read();
            (meta.active.next_mapped(ino, from), meta.view())
        };
        let mut consider = |page: Option<PageNr>| {
            best = match (best, page) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        };
        consider(view.frozen.as_ref().and_then(|f| f.next_mapped(ino, from)));
        let key = Key::new(ino, ItemKind::Map, from.chunk());
        if let Some((found, _)) = self.reader.first_from(&view.tree.root, &key)?
            && found.ino == ino
            && found.kind == ItemKind::Map
        {
            if found.offset > MAX_CHUNK {
                let detail = format!("file {ino}: behind the largest file");
                return Err(FsError::corrupt("map item", BlockNr(0), detail));
            }
            consider(Some(from.max(PageNr(found.offset * CHUNK_PAGES))));
        }
        Ok(best)
    }

    /// Up to about `limit` items with keys from `from` to `to` (inclusive), merged over all layers,
    /// and the key to go on from if there may be more.
    pub(crate) fn scan(&self, from: Key, to: Key, limit: usize) -> Result<(Vec<ScannedItem>, Option<Key>)> {
        loop {
            let view = self.inner.read().view();
            let mut merged = std::collections::BTreeMap::new();
            let mut bound = to;
            let mut count = 0;
            self.reader.scan(&view.tree.root, from, to, &mut |key, value| {
                merged.insert(key, Some(Arc::from(value)));
                count += 1;
                if count < limit {
                    return std::ops::ControlFlow::Continue(());
                }
                bound = bound.min(key);
                std::ops::ControlFlow::Break(())
            })?;
            if let Some(frozen) = &view.frozen {
                overlay_items(frozen, from, to, limit, &mut merged, &mut bound);
            }
            let meta = self.inner.read();
            if !Arc::ptr_eq(&meta.tree, &view.tree) || meta.frozen.is_some() != view.frozen.is_some() {
                continue; // a checkpoint came in between
            }
            overlay_items(&meta.active, from, to, limit, &mut merged, &mut bound);
            drop(meta);
            let items =
                merged.into_iter().take_while(|(k, _)| *k <= bound).filter_map(|(k, v)| Some((k, v?)));
            let next = (bound < to).then(|| Key { offset: bound.offset.wrapping_add(1), ..bound });
            return Ok((items.collect(), next));
        }
    }

    /// What the frozen and the active delta know of the blocks of a range, in order: `f(run, used)`.
    /// Also gives the tree they build on.
    pub(crate) fn block_changes(
        &self,
        start: BlockNr,
        len: u64,
        f: &mut dyn FnMut(BlockRun, bool),
    ) -> Arc<TreeState> {
        let meta = self.inner.read();
        let deltas = meta.frozen.as_deref().into_iter().chain(std::iter::once(&meta.active));
        for delta in deltas {
            for (from, n, _, used) in delta.blocks.overlapping(start.0, len) {
                f(BlockRun::new(BlockNr(from), n as u32), *used);
            }
        }
        meta.tree.clone()
    }
}

/// Merges a delta's items over `merged`, keeping to `limit` of them by lowering `bound`.
fn overlay_items(
    delta: &Delta,
    from: Key,
    to: Key,
    limit: usize,
    merged: &mut std::collections::BTreeMap<Key, Option<Arc<[u8]>>>,
    bound: &mut Key,
) {
    for (n, (key, value)) in delta.items.range(from..=to).enumerate() {
        if *key > *bound {
            break;
        }
        merged.insert(*key, value.clone());
        if n + 1 >= limit {
            *bound = (*bound).min(*key);
            break;
        }
    }
}

impl Meta {
    fn view(&self) -> View {
        View { frozen: self.frozen.clone(), tree: self.tree.clone() }
    }

    fn close_batch(&mut self) {
        let lsn = self.batch.lsn;
        let mut batch = std::mem::replace(&mut self.batch, Batch { lsn: lsn.next(), ..Batch::default() });
        batch.inodes = self.inodes;
        self.closed.push_back(batch);
    }
}
