//! Every interleaving of the lock-free parts, as far as small models show it.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

use super::super::hints::RunHints;
use super::super::words::{Claim, Words};
use crate::mutants::{Mutant, with};

type LoomWords = Words<AtomicU64>;

/// Words with all bits clear.
fn clear_words(words: usize) -> Arc<LoomWords> {
    let all = LoomWords::full(words);
    all.fill(std::iter::repeat(0));
    Arc::new(all)
}

fn claim(words: &LoomWords, start: u32, len: u32) -> bool {
    words.claim(start, len, &mut 0) == Claim::Done
}

/// Two threads claim; whoever wins owns its bits alone, and no other bit stays set.
fn two_claims(words: usize, a: (u32, u32), b: (u32, u32)) {
    let bits = clear_words(words);
    let other = bits.clone();
    let thread = thread::spawn(move || claim(&other, b.0, b.1));
    let won_a = claim(&bits, a.0, a.1);
    let won_b = thread.join().unwrap();
    assert!(!(won_a && won_b), "both own the same block");
    let owned = won_a as u32 * a.1 + won_b as u32 * b.1;
    assert_eq!(bits.count_free(), words as u32 * 64 - owned);
}

#[test]
fn claims_in_one_word() {
    loom::model(|| {
        let bits = clear_words(1);
        let other = bits.clone();
        let thread = thread::spawn(move || claim(&other, 0, 4) as u32 * 4);
        let owned = claim(&bits, 4, 4) as u32 * 4 + thread.join().unwrap();
        assert_eq!(owned, 8, "disjoint runs never fail");
        assert_eq!(bits.count_free(), 56);
    });
    loom::model(|| two_claims(1, (0, 4), (2, 4)));
}

#[test]
fn claims_across_words() {
    loom::model(|| two_claims(2, (60, 8), (62, 8)));
    loom::model(|| two_claims(3, (0, 100), (64, 128)));
    loom::model(|| two_claims(2, (0, 128), (64, 1)));
}

#[test]
fn a_claim_beside_a_clear() {
    loom::model(|| {
        let bits = clear_words(2);
        assert!(claim(&bits, 60, 8));
        let other = bits.clone();
        let thread = thread::spawn(move || assert!(other.clear(60, 8)));
        let won = claim(&bits, 56, 16);
        thread.join().unwrap();
        assert_eq!(bits.count_free(), if won { 112 } else { 128 });
        assert!(won || claim(&bits, 56, 16), "what was cleared can be claimed");
    });
}

#[test]
fn a_hint_never_hides_a_free_block() {
    loom::model(|| {
        let bits = Arc::new(LoomWords::full(1));
        let hints = Arc::new(RunHints::<AtomicU64>::new());
        let other = (bits.clone(), hints.clone());
        let thread = thread::spawn(move || {
            assert!(other.0.clear(5, 1));
            other.1.reset();
        });
        let seen = hints.read();
        if bits.word(0) == !0 {
            hints.record(seen, 1, 1);
        }
        thread.join().unwrap();
        assert!(!hints.read().hopeless(1, 1));
    });
}

#[test]
fn non_atomic_claims_are_noticed() {
    let broken = || with(Mutant::NonAtomicClaim, || loom::model(|| two_claims(1, (0, 4), (2, 4))));
    assert!(std::panic::catch_unwind(broken).is_err());
}
