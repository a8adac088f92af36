//! The items of a volume as recovery sees them: those of the tree with the changes in the journal
//! merged in, in key order, one at a time.

use std::iter::Peekable;
use std::sync::Arc;

use crate::delta::{Delta, RunState};
use crate::format::{Chunk, ItemKind, Key, PageEntry};
use crate::types::{CHUNK_PAGES, Ino, PageNr};

/// Chunks from here on lie beyond the largest file.
const MAX_CHUNK: u64 = 1 << 52;

/// The entries of a map item.
pub(crate) type Pages = [PageEntry; CHUNK_PAGES as usize];

/// A merged item.
pub(crate) enum Item<'a> {
    /// Any item but a map item.
    Bytes(&'a [u8]),
    /// A map item; not all holes.
    Pages(&'a Pages),
    /// What is not an item of its kind.
    Bad(&'static str),
}

/// Takes the items of the tree in order and gives those of the volume.
pub(crate) struct Merge<'a> {
    delta: &'a Delta,
    page_blocks: u32,
    items: Peekable<ItemIter<'a>>,
    chunks: Peekable<ChunkIter<'a>>,
}

type ItemIter<'a> = std::collections::btree_map::Range<'a, Key, Option<Arc<[u8]>>>;
type ChunkIter<'a> = Box<dyn Iterator<Item = Key> + 'a>;

/// Receives the merged items.
pub(crate) type Emit<'e> = dyn FnMut(Key, Item<'_>) + 'e;

impl<'a> Merge<'a> {
    /// Over all items.
    pub(crate) fn new(delta: &'a Delta, page_blocks: u32) -> Self {
        let items = delta.items.range(..).peekable();
        Self { delta, page_blocks, items, chunks: mapped_chunks(delta, Ino(0), Ino(u64::MAX)).peekable() }
    }

    /// Over the items from `from` to `to`, both included.
    pub(crate) fn within(delta: &'a Delta, page_blocks: u32, from: Key, to: Key) -> Self {
        let items = delta.items.range(from..=to).peekable();
        let chunks = mapped_chunks(delta, from.ino, to.ino).filter(move |k| (from..=to).contains(k));
        let chunks: ChunkIter<'a> = Box::new(chunks);
        Self { delta, page_blocks, items, chunks: chunks.peekable() }
    }

    /// The next item of the tree.
    pub(crate) fn tree_item(&mut self, key: Key, value: &[u8], emit: &mut Emit<'_>) {
        self.emit_below(Some(key), emit);
        if self.items.peek().is_some_and(|(k, _)| **k == key) {
            self.emit_item(emit);
        } else if key.kind == ItemKind::Map {
            self.chunks.next_if_eq(&key);
            self.emit_chunk(key, Some(value), emit);
        } else {
            emit(key, Item::Bytes(value));
        }
    }

    /// The tree has no more items.
    pub(crate) fn finish(&mut self, emit: &mut Emit<'_>) {
        self.emit_below(None, emit);
    }

    /// Emits what only the journal has, up to `end`.
    fn emit_below(&mut self, end: Option<Key>, emit: &mut Emit<'_>) {
        let below = |key: &Key| end.is_none_or(|end| *key < end);
        loop {
            let item = self.items.peek().map(|(k, _)| **k).filter(below);
            let chunk = self.chunks.peek().copied().filter(below);
            match (item, chunk) {
                (None, None) => return,
                (Some(i), c) if c.is_none_or(|c| i <= c) => self.emit_item(emit),
                (_, Some(c)) => {
                    self.chunks.next();
                    self.emit_chunk(c, None, emit);
                }
                (Some(_), None) => return,
            }
        }
    }

    fn emit_item(&mut self, emit: &mut Emit<'_>) {
        let Some((key, Some(value))) = self.items.next() else { return };
        if matches!(key.kind, ItemKind::Map | ItemKind::Bitmap) {
            // They follow from the mappings and are never put as a whole.
            emit(*key, Item::Bad("the journal puts an item that only a checkpoint may write"));
        } else {
            emit(*key, Item::Bytes(value));
        }
    }

    fn emit_chunk(&self, key: Key, old: Option<&[u8]>, emit: &mut Emit<'_>) {
        if key.offset >= MAX_CHUNK {
            return emit(key, Item::Bad("mapped beyond the end of the largest file"));
        }
        let mut pages = [PageEntry::Hole; CHUNK_PAGES as usize];
        let mut known = [false; CHUNK_PAGES as usize];
        let first = PageNr(key.offset * CHUNK_PAGES);
        self.delta.overlay_pages(key.ino, first, &mut pages, &mut known);
        if let Some(old) = old {
            let Some(old) = Chunk::decode(old, self.page_blocks) else {
                return emit(key, Item::Bad("a map item with impossible values"));
            };
            for i in (0..pages.len()).filter(|i| !known[*i]) {
                pages[i] = old.pages[i];
            }
        }
        if pages.iter().any(|p| *p != PageEntry::Hole) {
            emit(key, Item::Pages(&pages));
        }
    }
}

/// Keys of the chunks that the journal gives blocks to, in order, each once.
fn mapped_chunks(delta: &Delta, first: Ino, last: Ino) -> ChunkIter<'_> {
    let ranges = delta.maps.range(first..=last).flat_map(|(ino, map)| map.iter().map(move |r| (*ino, r)));
    let blocks = ranges.filter(|(_, (.., state))| matches!(state, RunState::Blocks(_)));
    let mut last: Option<(Ino, u64)> = None;
    Box::new(
        blocks
            .flat_map(|(ino, (start, len, _))| {
                let end = start.saturating_add(len - 1);
                (PageNr(start).chunk()..=PageNr(end).chunk()).map(move |chunk| (ino, chunk))
            })
            .filter(move |at| last.replace(*at) != Some(*at))
            .map(|(ino, chunk)| Key::new(ino, ItemKind::Map, chunk)),
    )
}
