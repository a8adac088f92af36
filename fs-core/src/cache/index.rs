//! From the hash of a page to the frame that may have it: read without a lock.
//!
//! An open-addressed table of words, each a tag (32 bits of the hash) and a number of a frame; no pointers, so
//! that it means the same in another process. Whoever changes it holds the shard's lock. Who reads it beside
//! that may miss an entry that is just being moved, or see one that is gone: it has to make sure of the
//! frame's page ([`super::identity`]), and to look again under the lock before it believes that a page is
//! not there.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::index_file::Region;
use super::layout::{EMPTY, TABLES, entry, frame_of, tag_of};
use super::policy::FrameNr;
use crate::atomic::AtomicWord;

/// Where the tables of an index are put.
pub(super) trait Tables<W>: fmt::Debug + Send + Sync {
    /// Table number `nr`, empty ([`super::layout::table_len`]). Asked for once for each.
    fn make(&self, nr: usize) -> Region<W>;
    /// From now on this table is looked into; it has all that is in the index.
    fn switched(&self, nr: usize);
}

/// See the module. A model checker puts its own words in place of `W`.
#[derive(Debug)]
pub(super) struct Index<W = AtomicU64> {
    /// Those before the current one are not used any more, but somebody may still be reading them. All of
    /// them together are smaller than the current one.
    tables: [OnceLock<Region<W>>; TABLES],
    place: Box<dyn Tables<W>>,
    current: AtomicUsize,
    /// Entries in the current table.
    len: AtomicUsize,
}

impl<W: AtomicWord> Index<W> {
    /// An empty one.
    pub(super) fn new(place: Box<dyn Tables<W>>) -> Self {
        let new = Self {
            tables: std::array::from_fn(|_| OnceLock::new()),
            place,
            current: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
        };
        new.table(0);
        new.place.switched(0);
        new
    }

    fn table(&self, nr: usize) -> &[W] {
        self.tables[nr].get_or_init(|| self.place.make(nr))
    }

    fn current(&self) -> &[W] {
        self.table(self.current.load(Ordering::Acquire))
    }

    /// What `found` makes of the first frame with this tag that it accepts.
    pub(super) fn find<R>(&self, tag: u32, mut found: impl FnMut(FrameNr) -> Option<R>) -> Option<R> {
        let table = self.current();
        let mask = table.len() - 1;
        // Never more than all, whatever is moved meanwhile.
        for i in 0..table.len() {
            let word = table[(tag as usize + i) & mask].load();
            if word == EMPTY {
                return None;
            }
            if tag_of(word) == tag
                && let Some(result) = frame_of(word).and_then(|nr| found(FrameNr(nr)))
            {
                return Some(result);
            }
        }
        None
    }

    /// Adds a frame. The caller holds the shard's lock.
    pub(super) fn insert(&self, tag: u32, frame: FrameNr) {
        let len = self.len.fetch_add(1, Ordering::Relaxed) + 1;
        if len * 2 > self.current().len() {
            self.grow();
        }
        put(self.current(), entry(tag, frame.0));
    }

    /// Takes a frame out. The caller holds the shard's lock.
    pub(super) fn remove(&self, tag: u32, frame: FrameNr) {
        let table = self.current();
        let mask = table.len() - 1;
        let wanted = entry(tag, frame.0);
        let places = (0..table.len()).map(|i| (tag as usize + i) & mask);
        let mut probed = places.map(|at| (at, table[at].load())).take_while(|(_, word)| *word != EMPTY);
        let Some((mut hole, _)) = probed.find(|(_, word)| *word == wanted) else { return };
        self.len.fetch_sub(1, Ordering::Relaxed);
        // What comes behind moves into the hole, unless it would be in front of where it is looked for first.
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let word = table[at].load();
            if word == EMPTY {
                break;
            }
            let first = tag_of(word) as usize & mask;
            if at.wrapping_sub(first) & mask >= at.wrapping_sub(hole) & mask {
                table[hole].store(word);
                hole = at;
            }
        }
        table[hole].store(EMPTY);
    }

    /// Goes on with a table of twice the size.
    fn grow(&self) {
        let current = self.current.load(Ordering::Relaxed);
        // A shard has at most 2^31 frames: more than fit into any memory.
        let larger = self.table(current + 1);
        self.table(current).iter().map(W::load).filter(|word| *word != EMPTY).for_each(|w| put(larger, w));
        self.current.store(current + 1, Ordering::Release);
        self.place.switched(current + 1);
    }
}

/// Puts an entry into the first free place. At least half of them are.
fn put<W: AtomicWord>(table: &[W], entry: u64) {
    let mask = table.len() - 1;
    let mut at = tag_of(entry) as usize & mask;
    while table[at].load() != EMPTY {
        at = (at + 1) & mask;
    }
    table[at].store(entry);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::index_file::ShardPlace;
    use super::*;

    fn all(index: &Index, tag: u32) -> Vec<u32> {
        let mut frames = Vec::new();
        index.find(tag, |nr| -> Option<()> {
            frames.push(nr.0);
            None
        });
        frames.sort_unstable();
        frames
    }

    proptest! {
        /// What is in it is found, and nothing else, however many entries share a place.
        #[test]
        fn it_finds_what_is_in_it(ops in proptest::collection::vec((any::<bool>(), 0u32..12, 0u32..200), 1..600)) {
            // Few tags, at the end of the smallest table, so that runs wrap around.
            let tag = |n: u32| 58 + n % 12;
            let index = Index::<AtomicU64>::new(Box::new(ShardPlace::new(None, 0)));
            let mut model: HashMap<u32, Vec<u32>> = HashMap::new();
            for (add, n, frame) in ops {
                let frames = model.entry(tag(n)).or_default();
                match (add, frames.iter().position(|f| *f == frame)) {
                    (true, None) => {
                        frames.push(frame);
                        index.insert(tag(n), FrameNr(frame));
                    }
                    (false, Some(at)) => {
                        frames.remove(at);
                        index.remove(tag(n), FrameNr(frame));
                    }
                    // Not there: nothing happens.
                    (false, None) => index.remove(tag(n), FrameNr(frame)),
                    (true, Some(_)) => {}
                }
                for tag in 58..70 {
                    let mut wanted = model.get(&tag).cloned().unwrap_or_default();
                    wanted.sort_unstable();
                    prop_assert_eq!(all(&index, tag), wanted);
                }
            }
        }
    }
}
