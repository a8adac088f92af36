//! Each rule's check fails when the rule is broken on purpose.

use super::*;
use crate::mutants::{Mutant, with};

/// The check must hold, and must not with the rule broken.
fn notices(mutant: Mutant, holds: impl Fn() -> bool) {
    assert!(holds(), "holds without the mutant");
    assert!(with(mutant, || !holds()), "{mutant:?} goes unnoticed");
}

#[test]
fn reuse_before_publish() {
    notices(Mutant::ReuseBeforePublish, || {
        let (a, _disk) = empty(1);
        let run = a.alloc(&data(504, 504, 1), None).unwrap();
        a.free_deferred(run, Lsn(1)).unwrap();
        a.alloc(&data(1, 1, 1), None).is_err()
    });
}

#[test]
fn alloc_outside_the_reservation() {
    notices(Mutant::AllocOutsideReservation, || {
        let a = open(2048, config(), &Disk::new(2048));
        matches!(a.alloc(&data(1, 1, 1), None), Err(AllocError::NeedReservation { .. }))
    });
}

#[test]
fn quarantine_skipped() {
    notices(Mutant::SkipQuarantine, || {
        let (a, _disk) = empty(1);
        let run = a.alloc(&data(504, 504, 1), None).unwrap();
        a.quarantine(run).unwrap();
        a.alloc(&data(1, 1, 1), None).is_err()
    });
}
