//! Recent changes: what has happened since the tree was written, in memory.
//!
//! A [`Delta`] is the net effect of a sequence of records. Reads look into the active delta first,
//! then into the one a checkpoint is merging, then into the tree. Recovery fills a delta with the
//! same [`Delta::apply`] that running operations use.

mod range_map;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

pub(crate) use range_map::{RangeMap, Slice};

use crate::format::bitmap::BITMAP_BLOCKS;
use crate::format::{Change, Key, PageBlocks, PageEntry};
use crate::types::{BlockNr, BlockRun, GroupNr, Ino, Lsn, PageNr};

/// New state of a run of pages.
#[derive(Clone, Debug)]
pub(crate) enum RunState {
    /// Unmapped.
    Hole,
    /// In blocks.
    Blocks(RunBlocks),
}

/// Pages in consecutive blocks.
#[derive(Clone, Debug)]
pub(crate) struct RunBlocks {
    start: BlockNr,
    pages: u64,
    last_blocks: u8,
    page_blocks: u32,
    birth: Lsn,
    /// Checksums of the pages from `crc_skip` on; `None`: unwritten.
    crcs: Option<Arc<[u32]>>,
    crc_skip: usize,
}

impl Slice for RunState {
    fn slice(&self, skip: u64, len: u64) -> Self {
        match self {
            RunState::Hole => RunState::Hole,
            RunState::Blocks(b) => RunState::Blocks(RunBlocks {
                start: b.start.plus(skip * u64::from(b.page_blocks)),
                pages: len,
                last_blocks: if skip + len == b.pages { b.last_blocks } else { b.page_blocks as u8 },
                crc_skip: b.crc_skip + skip as usize,
                ..b.clone()
            }),
        }
    }
}

impl RunState {
    /// The entry of the page `index` pages into the run.
    pub(crate) fn page(&self, index: u64) -> PageEntry {
        let RunState::Blocks(b) = self else { return PageEntry::Hole };
        let len = if index + 1 == b.pages { b.last_blocks } else { b.page_blocks as u8 };
        let blocks =
            PageBlocks { start: b.start.plus(index * u64::from(b.page_blocks)), len, birth: b.birth };
        match &b.crcs {
            None => PageEntry::Unwritten(blocks),
            Some(crcs) => match crcs.get(b.crc_skip + index as usize) {
                Some(crc) => PageEntry::Mapped(blocks, *crc),
                None => PageEntry::Unwritten(blocks),
            },
        }
    }
}

/// Net effect of a sequence of changes.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// Items put (`Some`) or deleted.
    pub(crate) items: BTreeMap<Key, Option<Arc<[u8]>>>,
    /// Pages mapped or unmapped.
    pub(crate) maps: BTreeMap<Ino, RangeMap<RunState>>,
    /// Blocks taken (true) or freed by data.
    pub(crate) blocks: RangeMap<bool>,
    /// Blocks taken minus blocks freed by data.
    pub(crate) used_blocks: i64,
    /// Groups reserved.
    pub(crate) reserved: Vec<(GroupNr, u32)>,
    /// Highest inode number named.
    pub(crate) highest_ino: Ino,
    /// Rough size in memory, in bytes.
    pub(crate) memory: usize,
    /// Chunks of files with pages that are mapped, and ends of what is unmapped.
    chunks: HashSet<(Ino, u64)>,
    /// Pieces of the bitmap with blocks taken or freed.
    pieces: HashSet<u64>,
}

impl Delta {
    /// Applies a change of record `lsn`. Inline data is not metadata: it is ignored here.
    pub(crate) fn apply(&mut self, change: &Change, lsn: Lsn, page_blocks: u32) {
        if let Some(ino) = change.names_inode() {
            self.highest_ino = self.highest_ino.max(ino);
        }
        match change {
            Change::PutItem { key, value } => {
                self.memory += 120 + value.len();
                self.items.insert(*key, Some(Arc::from(value.as_slice())));
            }
            Change::DelItem { key } => {
                self.memory += 100;
                self.items.insert(*key, None);
            }
            Change::MapRun { ino, page, run } => {
                let blocks = run.blocks(page_blocks);
                self.memory += 160 + run.crcs.as_ref().map_or(0, |c| 4 * c.len());
                self.used_blocks += i64::from(blocks.len);
                self.blocks.insert(blocks.start.0, blocks.len.into(), true);
                self.touch(*ino, *page, run.pages.into());
                self.touch_blocks(blocks);
                let state = RunState::Blocks(RunBlocks {
                    start: run.start,
                    pages: run.pages.into(),
                    last_blocks: run.last_blocks,
                    page_blocks,
                    birth: lsn,
                    crcs: run.crcs.as_deref().map(Arc::from),
                    crc_skip: 0,
                });
                self.maps.entry(*ino).or_default().insert(page.0, run.pages.into(), state);
            }
            Change::Unmap { ino, page, pages } => {
                self.memory += 100;
                if *pages > 0 {
                    self.touch(*ino, *page, 1);
                    self.touch(*ino, PageNr(page.0.saturating_add(*pages - 1)), 1);
                    self.maps.entry(*ino).or_default().insert(page.0, *pages, RunState::Hole);
                }
            }
            Change::Free { run } => {
                self.memory += 60;
                self.used_blocks -= i64::from(run.len);
                self.blocks.insert(run.start.0, run.len.into(), false);
                self.touch_blocks(*run);
            }
            Change::Reserve { first, count } => self.reserved.push((*first, *count)),
            Change::Inline { .. } | Change::InlineZero { .. } | Change::EpochStart { .. } => {}
        }
    }

    fn touch(&mut self, ino: Ino, first: PageNr, pages: u64) {
        let last = PageNr(first.0.saturating_add(pages.saturating_sub(1)));
        self.chunks.extend((first.chunk()..=last.chunk()).map(|chunk| (ino, chunk)));
    }

    fn touch_blocks(&mut self, run: BlockRun) {
        let last = run.start.0 + u64::from(run.len.saturating_sub(1));
        self.pieces.extend(run.start.0 / BITMAP_BLOCKS..=last / BITMAP_BLOCKS);
    }

    /// About how many items of the tree change with it. Map items that only go away are left out but
    /// for the first and the last: their nodes go with them.
    pub(crate) fn changed_items(&self) -> usize {
        self.items.len() + self.chunks.len() + self.pieces.len()
    }

    /// The item, if this delta knows it: `Some(None)` is a deleted one.
    pub(crate) fn item(&self, key: &Key) -> Option<Option<Arc<[u8]>>> {
        self.items.get(key).cloned()
    }

    /// Overrides the entries of pages `first..` with what this delta knows, and marks them known.
    pub(crate) fn overlay_pages(&self, ino: Ino, first: PageNr, out: &mut [PageEntry], known: &mut [bool]) {
        let Some(map) = self.maps.get(&ino) else { return };
        for (start, len, origin, state) in map.overlapping(first.0, out.len() as u64) {
            for page in start..start + len {
                let i = (page - first.0) as usize;
                if !known[i] {
                    out[i] = state.page(page - origin);
                    known[i] = true;
                }
            }
        }
    }

    /// First page at or behind `from` that this delta gives blocks to.
    pub(crate) fn next_mapped(&self, ino: Ino, from: PageNr) -> Option<PageNr> {
        let map = self.maps.get(&ino)?;
        map.overlapping(from.0, u64::MAX - from.0)
            .find(|(.., state)| matches!(state, RunState::Blocks(_)))
            .map(|(start, ..)| PageNr(start))
    }
}
