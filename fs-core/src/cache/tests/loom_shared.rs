//! Every interleaving of a reader that cannot pin with pages that change, come and go, as far as small models show it.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use super::super::identity::{Identity, Look};
use crate::atomic::AtomicWord;
use crate::types::{Ino, PageNr};

const A: (Ino, PageNr) = (Ino(17), PageNr(1));
const B: (Ino, PageNr) = (Ino(17), PageNr(2));

/// What the owner of the cache leaves out.
#[derive(Clone, Copy, PartialEq)]
enum Broken {
    No,
    /// To tell that bytes change.
    Telling,
    /// The fence of the arena when a slot is used again.
    Fence,
    /// To hide a page that is about to be written to.
    Veil,
}

/// Two frames that share one slot, and the slot's bytes: two words, which are the page's number and 100 for each
/// change. As in the file, nothing but the protocol orders accesses to them.
struct Cache {
    frames: [Identity<AtomicU64>; 2],
    bytes: [AtomicU64; 2],
}

impl Cache {
    /// Page A is in the first frame.
    fn new() -> Arc<Self> {
        let cache = Self {
            frames: [Identity::default(), Identity::default()],
            bytes: [A.1.0, A.1.0].map(AtomicU64::new),
        };
        cache.frames[0].open(A, Some(0), false);
        cache.frames[0].unpin();
        Arc::new(cache)
    }

    fn set(&self, value: u64) {
        self.bytes.iter().for_each(|word| word.store(value, Ordering::Relaxed));
    }

    /// As a write guard does it.
    fn change(&self, frame: usize, value: u64, broken: Broken) {
        if broken == Broken::Telling {
            return self.set(value);
        }
        self.frames[frame].begin_change();
        self.set(value);
        self.frames[frame].end_change();
    }

    /// Evicts page A, and uses its slot again for page B in another frame.
    fn replace(&self, broken: Broken) {
        assert!(self.frames[0].close_unpinned());
        if broken != Broken::Fence {
            AtomicU64::fence_release();
        }
        self.set(B.1.0);
        self.frames[1].open(B, Some(0), false);
    }

    /// The page as the frame has it, if it does.
    fn read(&self, frame: usize, key: (Ino, PageNr)) -> Option<u64> {
        let Look::Found(seen) = self.frames[frame].look(key) else { return None };
        assert_eq!(seen.slot(), Some(0));
        let [first, second] = [0, 1].map(|i| self.bytes[i].load(Ordering::Relaxed));
        if !self.frames[frame].is_still(&seen) {
            return None;
        }
        assert_eq!(first, second, "a torn page");
        assert_eq!(first % 100, key.1.0, "another page's bytes");
        Some(first)
    }
}

fn beside(reads: fn(&Cache) -> Vec<Option<u64>>, changes: impl FnOnce(&Cache)) {
    let cache = Cache::new();
    let other = cache.clone();
    let reader = thread::spawn(move || reads(&other));
    changes(&cache);
    reader.join().unwrap();
}

fn read_beside_a_change(broken: Broken) {
    let reads = |cache: &Cache| vec![cache.read(0, A)];
    beside(reads, |cache| {
        cache.change(0, 101, broken);
        assert_eq!(cache.read(0, A), Some(101));
    });
}

fn read_beside_another_page(broken: Broken) {
    let reads = |cache: &Cache| vec![cache.read(0, A), cache.read(1, B)];
    beside(reads, |cache| {
        cache.replace(broken);
        assert_eq!((cache.read(0, A), cache.read(1, B)), (None, Some(B.1.0)));
    });
}

/// Page B comes in blank, that is with the bytes of A here, and then it is written.
fn read_beside_a_blank_page(broken: Broken) {
    let reads = |cache: &Cache| vec![cache.read(1, B)];
    beside(reads, |cache| {
        assert!(cache.frames[0].close_unpinned());
        cache.frames[1].open(B, Some(0), broken != Broken::Veil);
        cache.change(1, B.1.0, Broken::No);
        assert_eq!(cache.read(1, B), Some(B.1.0));
    });
}

fn fails(model: fn(Broken), broken: Broken) -> bool {
    std::panic::catch_unwind(|| loom::model(move || model(broken))).is_err()
}

#[test]
fn a_page_that_changes_is_not_read_torn() {
    loom::model(|| read_beside_a_change(Broken::No));
    assert!(fails(read_beside_a_change, Broken::Telling));
}

#[test]
fn a_slot_that_is_used_again_is_not_taken_for_the_page_before() {
    loom::model(|| read_beside_another_page(Broken::No));
    assert!(fails(read_beside_another_page, Broken::Fence));
}

#[test]
fn a_page_that_is_about_to_be_written_is_not_found() {
    loom::model(|| read_beside_a_blank_page(Broken::No));
    assert!(fails(read_beside_a_blank_page, Broken::Veil));
}

/// A frame that is used again, changed or not, veiled or not, never looks as before.
#[test]
fn what_was_seen_is_never_seen_again() {
    let frame = Identity::<std::sync::atomic::AtomicU64>::default();
    let mut before = Vec::new();
    for round in 0..64u32 {
        let veiled = round % 2 == 1;
        frame.open(A, Some(round), veiled);
        frame.unpin();
        assert_eq!(matches!(frame.look(A), Look::Busy), veiled);
        if round % 4 > 1 {
            frame.begin_change();
            assert!(matches!(frame.look(A), Look::Busy));
            frame.end_change();
        }
        assert!(before.iter().all(|seen| !frame.is_still(seen)));
        if let Look::Found(seen) = frame.look(A) {
            assert!(seen.slot() == Some(round.into()) && frame.is_still(&seen));
            before.push(seen);
        }
        assert!(frame.close_unpinned() && matches!(frame.look(A), Look::Other));
    }
    assert_eq!(before.len(), 48);
}
