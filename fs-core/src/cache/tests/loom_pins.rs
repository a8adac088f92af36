//! Every interleaving of hits with pages that come and go, as far as small models show it.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

use super::super::identity::Identity;
use super::super::index::{Index, Tables};
use super::super::index_file::Region;
use super::super::layout::{EMPTY, table_len};
use super::super::policy::FrameNr;
use crate::types::{Ino, PageNr};

const A: (Ino, PageNr) = (Ino(17), PageNr(1));
const B: (Ino, PageNr) = (Ino(17), PageNr(2));
/// Both pages have it: so the index alone cannot tell them apart.
const TAG: u32 = 5;

/// A frame whose content says which page it is. Loom finds accesses to it that nothing orders.
struct Frame {
    identity: Identity<AtomicU64>,
    content: UnsafeCell<u64>,
}

/// The model checker's words are in no shared memory.
#[derive(Debug)]
struct HeapTables;

impl Tables<AtomicU64> for HeapTables {
    fn make(&self, nr: usize) -> Region<AtomicU64> {
        Region::on_heap((0..table_len(nr)).map(|_| AtomicU64::new(EMPTY)))
    }

    fn switched(&self, _nr: usize) {}
}

struct Cache {
    index: Index<AtomicU64>,
    frames: Vec<Frame>,
}

impl Cache {
    /// `frames` frames; page A is in the first, and nobody uses it.
    fn new(frames: usize) -> Arc<Self> {
        let frame = || Frame { identity: Identity::default(), content: UnsafeCell::new(0) };
        let cache =
            Self { index: Index::new(Box::new(HeapTables)), frames: (0..frames).map(|_| frame()).collect() };
        cache.enter(FrameNr(0), A);
        cache.frames[0].identity.unpin();
        Arc::new(cache)
    }

    fn frame(&self, nr: FrameNr) -> &Frame {
        &self.frames[nr.0 as usize]
    }

    fn read(&self, nr: FrameNr) -> u64 {
        // SAFETY: loom checks that nobody writes at the same time.
        self.frame(nr).content.with(|content| unsafe { *content })
    }

    /// As a shard does under its lock, which here one thread has all the time.
    fn enter(&self, nr: FrameNr, key: (Ino, PageNr)) {
        // SAFETY: loom checks that nobody reads or writes at the same time.
        self.frame(nr).content.with_mut(|content| unsafe { *content = key.1.0 });
        self.frame(nr).identity.open(key, None, false);
        self.index.insert(TAG, nr);
    }

    /// Evicts the page of a frame for another one, if nobody uses it.
    fn replace(&self, nr: FrameNr, key: (Ino, PageNr)) -> bool {
        let closed = self.frame(nr).identity.close_unpinned();
        if closed {
            self.index.remove(TAG, nr);
            self.enter(nr, key);
        }
        closed
    }

    /// A hit: what the page's frame has. With `check`, as the cache does it.
    fn hit(&self, key: (Ino, PageNr), check: bool) -> Option<u64> {
        let pin = |nr| {
            let identity = &self.frame(nr).identity;
            let pinned = if check { identity.pin(key) } else { identity.pin_any() };
            pinned.then_some(nr)
        };
        let nr = self.index.find(TAG, pin)?;
        let content = self.read(nr);
        self.frame(nr).identity.unpin();
        Some(content)
    }
}

fn hits_beside_an_eviction(check: bool) {
    let cache = Cache::new(1);
    let other = cache.clone();
    let reader = thread::spawn(move || {
        for key in [A, B] {
            if let Some(content) = other.hit(key, check) {
                assert_eq!(content, key.1.0, "another page's bytes");
            }
        }
    });
    if cache.replace(FrameNr(0), B) {
        // The one who brought it in still has it pinned.
        assert!(!cache.replace(FrameNr(0), A));
        assert_eq!(cache.read(FrameNr(0)), B.1.0);
        cache.frames[0].identity.unpin();
    }
    reader.join().unwrap();
    assert!(!cache.frames[0].identity.is_pinned(), "a pin was lost");
}

#[test]
fn a_hit_has_its_page_beside_an_eviction() {
    loom::model(|| hits_beside_an_eviction(true));
}

#[test]
fn pins_without_a_second_look_are_noticed() {
    let broken = || loom::model(|| hits_beside_an_eviction(false));
    assert!(std::panic::catch_unwind(broken).is_err());
}

/// A page that is dropped while it is used stays what it is for who uses it, and its frame is used again
/// afterwards only.
#[test]
fn a_dropped_page_stays_for_who_uses_it() {
    loom::model(|| {
        let cache = Cache::new(2);
        let other = cache.clone();
        let reader = thread::spawn(move || {
            for key in [A, B] {
                if let Some(content) = other.hit(key, true) {
                    assert_eq!(content, key.1.0, "another page's bytes");
                }
            }
        });
        cache.index.remove(TAG, FrameNr(0));
        let unused = cache.frames[0].identity.close() || !cache.frames[0].identity.is_pinned();
        cache.enter(if unused { FrameNr(0) } else { FrameNr(1) }, B);
        reader.join().unwrap();
        assert!(!cache.frames[0].identity.is_open() || unused);
    });
}

/// Readers beside each other and beside an entry that moves in the index.
#[test]
fn hits_of_two_threads_while_the_index_changes() {
    loom::model(|| {
        let cache = Cache::new(2);
        cache.enter(FrameNr(1), B);
        cache.frames[1].identity.unpin();
        let other = cache.clone();
        let reader = thread::spawn(move || {
            if let Some(content) = other.hit(B, true) {
                assert_eq!(content, B.1.0);
            }
        });
        // Page B's entry moves to where that of A was.
        cache.index.remove(TAG, FrameNr(0));
        assert_eq!(cache.hit(B, true), Some(B.1.0), "who changes the index finds what is in it");
        reader.join().unwrap();
        assert!(!cache.frames[1].identity.is_pinned());
    });
}

#[test]
fn versions_never_go_back() {
    let identity = Identity::<std::sync::atomic::AtomicU64>::default();
    let mut before = identity.version();
    for key in [A, B, A] {
        identity.open(key, None, false);
        assert!(identity.version() > before && identity.version() % 2 == 1);
        assert!(!identity.close_unpinned(), "it is pinned");
        identity.unpin();
        assert!(identity.close_unpinned() && !identity.close_unpinned());
        assert!(!identity.pin(key), "nothing can be found in it");
        before = identity.version();
    }
}
