//! The state machine in CI: histories on the engine, over the simulator, with power cuts.

use dbfs_tests::crash::{Coverage, Plan};
use dbfs_tests::machine::{COVERAGE, Machine};
use dbfs_tests::runner::run_plan;
use dbfs_tests::subjects::Engine;
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

/// Histories in all.
const HISTORIES: u32 = 2000;
/// Threads that share them; each has its own seed.
const THREADS: u32 = 2;
/// Operations of a history.
const OPERATIONS: std::ops::Range<usize> = 200..220;

type Engines = Machine<Engine>;

fn run(thread: u32) -> Result<(), String> {
    let config = Config {
        cases: HISTORIES / THREADS,
        rng_seed: RngSeed::Fixed(u64::from(thread)),
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        max_shrink_iters: 500,
        ..Config::default()
    };
    let strategy = <Engines as StateMachineTest>::Reference::sequential_strategy(OPERATIONS);
    let mut runner = TestRunner::new(config.clone());
    let outcome = runner.run(&strategy, |(state, ops, seen)| {
        Engines::test_sequential(config.clone(), state, ops, seen);
        Ok(())
    });
    outcome.map_err(|e| e.to_string())
}

#[test]
fn histories_with_power_cuts() {
    let outcomes: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|t| scope.spawn(move || run(t))).collect();
        threads.into_iter().map(|t| t.join().expect("proptest catches panics")).collect()
    });
    for outcome in outcomes {
        outcome.unwrap_or_else(|e| panic!("{e}"));
    }
    let coverage = COVERAGE.lock().take().unwrap_or_default();
    println!("{coverage}");
    assert_met(&coverage);
}

/// Seeds of random histories that have failed once, and why.
const FAILED_ONCE: &[(u64, &str)] =
    &[(20_272_330, "a write that was refused for lack of space had taken the file's capability")];

#[test]
fn histories_that_have_failed() {
    for (seed, why) in FAILED_ONCE {
        let outcome = run_plan::<Engine>(&Plan::from_seed(*seed, 220, 6));
        outcome.unwrap_or_else(|e| panic!("seed {seed} ({why}): {e}"));
    }
}

/// A run that never met a case says nothing about it.
fn assert_met(coverage: &Coverage) {
    let wanted = [
        "checkpoint cut in half",
        "journal_wraps",
        "blocks_reused",
        "inline_homed",
        "group_commits",
        "flights",
        "epoch_changes",
        "cut within a clean remount",
        "cut within a grow",
        "grows",
        "power cuts during recovery",
        "power cuts after a power cut",
        "recovered to before the last operation",
        "operations refused for lack of space",
    ];
    assert_eq!(coverage.missing(&wanted), Vec::<&str>::new());
    assert_eq!(coverage.get("histories"), u64::from(HISTORIES));
    assert!(coverage.get("power cuts") >= 5 * u64::from(HISTORIES));
    assert!(coverage.get("operations") >= 200 * u64::from(HISTORIES));
}
