//! The harness is tried on a stand-in: a correct one passes, and each flawed one is found out.

use dbfs_tests::crash::{Coverage, History, Plan};
use dbfs_tests::subjects::{Flaw, StandIn, set_flaw};

fn run(flaw: Flaw, seed: u64) -> Result<Coverage, dbfs_tests::run::Failure> {
    set_flaw(flaw);
    History::<StandIn>::run(&Plan::from_seed(seed, 120, 6))
}

#[test]
fn a_correct_file_system_passes() {
    let mut coverage = Coverage::default();
    for seed in 0..150 {
        match run(Flaw::None, seed) {
            Ok(c) => coverage.merge(&c),
            Err(e) => panic!("seed {seed}: {e}"),
        }
    }
    let wanted = ["power cuts after a power cut", "power cuts during recovery", "cut between operations"];
    assert_eq!(coverage.missing(&wanted), Vec::<&str>::new(), "{coverage}");
}

fn is_found(flaw: Flaw, words: &str) {
    let failure = (0..60).find_map(|seed| run(flaw, seed).err()).unwrap_or_else(|| panic!("{flaw:?} passed"));
    assert!(failure.to_string().contains(words), "{flaw:?}: {failure}");
}

#[test]
fn lost_synced_data_is_found() {
    is_found(Flaw::LostData, "data of model inode");
}

#[test]
fn lost_synced_names_are_found() {
    is_found(Flaw::LostNames, "names are those of");
}

#[test]
fn a_torn_file_is_found() {
    is_found(Flaw::TornFile, "data of model inode");
}

#[test]
fn a_name_lost_out_of_order_is_found() {
    is_found(Flaw::LostName, "names are those of");
}

#[test]
fn foreign_bytes_are_found() {
    is_found(Flaw::ForeignBytes, "is no version");
}

#[test]
fn a_wrong_size_is_found() {
    is_found(Flaw::WrongSize, "size is");
}

#[test]
fn a_kept_orphan_is_found() {
    is_found(Flaw::KeptOrphan, "still exists");
}

#[test]
fn wrong_permissions_are_found() {
    is_found(Flaw::WrongPerm, "should be");
}

#[test]
fn a_stale_tail_is_found() {
    is_found(Flaw::StaleTail, "model inode");
}

#[test]
fn a_wrong_link_count_is_found() {
    is_found(Flaw::WrongLinkCount, "nlink");
}

mod state_machine {
    use dbfs_tests::machine::Machine;
    use dbfs_tests::ops::Op;
    use dbfs_tests::subjects::{Flaw, StandIn, set_flaw};
    use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestError, TestRunner};
    use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

    type Machines = Machine<StandIn>;

    /// Runs histories of 200 operations; the operations of the shrunk failure, if one fails.
    fn run(flaw: Flaw, cases: u32) -> Option<Vec<Op>> {
        set_flaw(flaw);
        let config = Config {
            cases,
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
            max_shrink_iters: 300,
            ..Config::default()
        };
        let strategy = <Machines as StateMachineTest>::Reference::sequential_strategy(200..210);
        let outcome = TestRunner::new(config.clone()).run(&strategy, |(state, ops, seen)| {
            Machines::test_sequential(config.clone(), state, ops, seen);
            Ok(())
        });
        match outcome {
            Ok(()) => None,
            Err(TestError::Fail(_, (_, ops, _))) => Some(ops),
            Err(TestError::Abort(reason)) => panic!("{reason}"),
        }
    }

    #[test]
    fn passes_a_correct_file_system() {
        assert_eq!(run(Flaw::None, 20), None);
    }

    #[test]
    fn shrinks_a_failure() {
        let ops = run(Flaw::WrongLinkCount, 50).expect("a flaw is found");
        assert!(ops.len() < 60, "{} operations are left", ops.len());
    }
}
