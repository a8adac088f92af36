//! Damaged volumes are repaired, and nothing is wrong that is not named.

use dbfs_tests::repair::{Outcome, run, run_unreadable, unreadable_places};

/// Seeds that a test run takes.
const SEEDS: u64 = 60;

/// Runs the seeds; all that fails is shown.
fn run_all(seeds: std::ops::Range<u64>) -> Vec<Outcome> {
    let (mut outcomes, mut failures) = (Vec::new(), Vec::new());
    for seed in seeds {
        match run(seed) {
            Ok(outcome) => outcomes.push(outcome),
            Err(e) => failures.push(e),
        }
    }
    assert!(failures.is_empty(), "{} failures: {}", failures.len(), failures.join("\n"));
    outcomes
}

#[test]
fn damaged_volumes_are_repaired() {
    let outcomes = run_all(0..SEEDS);
    let count = |f: &dyn Fn(&Outcome) -> bool| outcomes.iter().filter(|o| f(o)).count();
    assert!(count(&|o| o.repaired) > 40, "{outcomes:?}");
    assert!(count(&|o| o.cuts > 0) > 5);
    assert!(count(&|o| o.tickets_only) > 5, "{outcomes:?}");
    // Most damage to single nodes loses nothing.
    assert!(count(&|o| o.repaired && o.named == 0) > 10, "{outcomes:?}");
}

#[test]
fn what_the_device_fails_to_read_is_not_taken_for_lost() {
    let failures: Vec<String> = unreadable_places().into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_damaged_volume_is_not_repaired_while_the_device_fails_reads() {
    let failures: Vec<String> = (0..8).filter_map(|seed| run_unreadable(seed).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
