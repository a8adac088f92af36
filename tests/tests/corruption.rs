//! Damaged and hostile images (contracts C7 and C8): right data or an error, and never a panic, a hang or
//! a runaway of memory. A sample of what `cargo xtask soak` goes on with.

use dbfs_tests::hostile::drive::{Counts, Mode, case, deep, failure_line, small};
use dbfs_tests::hostile::memory::Counting;
use dbfs_tests::hostile::probe::{Outcome, probe};

#[global_allocator]
static MEMORY: Counting = Counting;

/// Cases of one kind; fails with a line for each that failed.
fn run(mode: Mode, numbers: impl Iterator<Item = u64>) -> Counts {
    let mut counts = Counts::default();
    let mut failures = Vec::new();
    for number in numbers {
        match case(mode, number) {
            Ok(outcome) => counts.add(outcome.unwrap_or_default()),
            Err(e) => failures.push(failure_line(mode, number, &e)),
        }
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), counts.cases, failures.join("\n"));
    counts
}

/// Memory is counted for the whole program: one test at a time.
static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(|e| e.into_inner())
}

#[test]
fn the_volumes_are_what_they_should_be() {
    let _alone = alone();
    for aged in [small(), deep()] {
        let outcome = probe(&aged.image, Some(&aged.want)).unwrap();
        assert_eq!(outcome, Outcome::default(), "undamaged");
        assert!(aged.layout.records.len() > 5 && aged.layout.slot.pending.is_some());
        assert!(aged.want.entries.values().all(Result::is_ok));
        assert!(aged.layout.nodes.iter().any(|n| n.level == 2), "three levels");
    }
}

#[test]
fn damaged_images_give_errors_or_the_right_data() {
    let _alone = alone();
    let counts = run(Mode::Damage, 0..700);
    assert!(counts.errors > 50 && counts.refused > 20 && counts.reported > 300, "{counts:?}");
}

#[test]
fn damage_in_a_deep_tree_gives_errors_or_the_right_data() {
    let _alone = alone();
    run(Mode::DeepDamage, 0..25);
}

#[test]
fn flipped_bytes_of_metadata_give_errors_or_the_right_data() {
    let _alone = alone();
    // Steps that meet every kind of structure, and other bytes of them.
    let counts = run(Mode::EveryByte, (0..400u64).map(|i| i * 379));
    assert!(counts.reported > 100, "{counts:?}");
}

#[test]
fn forged_images_do_no_harm() {
    let _alone = alone();
    let counts = run(Mode::Forge, 0..1200);
    assert!(counts.refused > 100 && counts.reported > 300, "{counts:?}");
}

#[test]
fn mutated_structures_do_no_harm() {
    let _alone = alone();
    run(Mode::Bytes, 0..60_000);
}

#[test]
fn repaired_images_are_well_and_lose_only_what_is_named() {
    let _alone = alone();
    let counts = run(Mode::Repair, 0..300);
    assert!(counts.repaired > 100, "{counts:?}");
}

#[test]
fn items_that_do_not_agree_are_made_to_agree() {
    let _alone = alone();
    let counts = run(Mode::Items, 0..400);
    assert!(counts.repaired > 350 && counts.reported > 200, "{counts:?}");
}
