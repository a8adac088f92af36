//! Every single I/O of a fixed workload fails in turn.

use blockdev::sim::Effect;
use dbfs_tests::faults::{Outcome, Workload};

/// Fails every request in turn; returns how many operations or mounts failed because of it.
fn fail_each(effect: Effect) -> u64 {
    let workload = Workload::new().unwrap_or_else(|f| panic!("without a fault: {f}"));
    let mut noticed = 0;
    for nth in 0.. {
        match workload.run(nth, effect) {
            Ok(Outcome::NotHit) => {
                assert!(nth > 100, "the workload has only {nth} requests");
                break;
            }
            Ok(Outcome::Absorbed) => {}
            Ok(Outcome::MountFailed | Outcome::OperationFailed) => noticed += 1,
            Err(f) => panic!("request {nth} with {effect:?}: {f}"),
        }
    }
    noticed
}

#[test]
fn every_request_fails_with_an_io_error() {
    assert!(fail_each(Effect::eio()) > 50);
}

#[test]
fn every_request_finds_no_space() {
    assert!(fail_each(Effect::enospc()) > 50);
}

#[test]
fn every_request_is_cut_short() {
    assert!(fail_each(Effect::short()) > 50);
}
