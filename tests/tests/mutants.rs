//! The histories notice broken rules by themselves. Each rule has a test of its own besides (see
//! `mutants.md`); this shows that the random search has teeth.
//!
//! One test, because a rule is broken for the whole process.

use dbfs_tests::crash::Plan;
use dbfs_tests::runner::run_plan;
use dbfs_tests::subjects::Engine;
use fs_core::mutants::{Mutant, set};

/// Rules that the histories must find broken, and within how many histories.
const FOUND: &[(Mutant, u64)] = &[
    (Mutant::ReuseBeforePublish, 90),
    (Mutant::AllocOutsideReservation, 20),
    (Mutant::NoFlushOnCommit, 20),
    (Mutant::FlushBeforeRecord, 20),
    (Mutant::DurableLsnTooHigh, 20),
    (Mutant::CheckpointBeforeDurable, 20),
    (Mutant::NoFlushBeforeRoot, 20),
    (Mutant::RootInPlace, 20),
    (Mutant::LeakOldBlocks, 20),
    (Mutant::SkipHoming, 20),
    (Mutant::FsyncSkipsData, 20),
    (Mutant::FsyncSkipsCommit, 20),
    (Mutant::SkipRecoveredData, 30),
    (Mutant::SkipRecordChecksum, 60),
    (Mutant::IgnoreRecordFailure, 120),
    (Mutant::KeepSupersededFrames, 20),
    (Mutant::KeepTruncatedTail, 20),
    (Mutant::UnlinkWithoutOrphan, 20),
    (Mutant::RenameInTwoSteps, 30),
    (Mutant::ReuseInodeNumbers, 20),
    (Mutant::SplitDirectWrite, 20),
    (Mutant::IgnoreDsync, 20),
    (Mutant::OldEpochWins, 30),
    (Mutant::XattrInTwoSteps, 30),
    (Mutant::KeepXattrs, 20),
    (Mutant::KeepCapability, 30),
    (Mutant::TmpfileWithoutOrphan, 20),
    (Mutant::FirstNameInTwoSteps, 400),
];

fn first_failure(histories: u64) -> Option<u64> {
    (0..histories).find(|seed| run_plan::<Engine>(&Plan::from_seed(*seed, 220, 6)).is_err())
}

#[test]
fn broken_rules_are_found() {
    // The failures that this test wants may be panics, whose messages would bury the result.
    std::panic::set_hook(Box::new(|_| {}));
    assert_eq!(first_failure(10), None, "fails without a broken rule");
    let missed: Vec<_> = FOUND
        .iter()
        .filter(|(mutant, histories)| {
            set(Some(*mutant));
            let found = first_failure(*histories);
            set(None);
            println!("{mutant:?}: found by history {found:?}");
            found.is_none()
        })
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
