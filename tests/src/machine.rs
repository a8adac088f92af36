//! The histories as a `proptest` state machine.
//!
//! The reference state is only the seed: the operations find their objects in the reference model
//! when they run, which [`crate::run::Lockstep`] keeps beside the system under test.

use std::marker::PhantomData;

use parking_lot::Mutex;
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

use crate::crash::{Coverage, History};
use crate::ops::{Generator, Op};
use crate::run::{Config, Subject};

/// Power cuts of each history.
pub const CUTS: usize = 5;

/// Coverage of all the histories that this process ran as state machine.
pub static COVERAGE: Mutex<Option<Coverage>> = Mutex::new(None);

/// The reference: parameters of the history.
pub struct Reference;

impl ReferenceStateMachine for Reference {
    type State = Config;
    type Transition = Op;

    fn init_state() -> BoxedStrategy<Config> {
        any::<u64>().no_shrink().prop_map(Config::from_seed).boxed()
    }

    fn transitions(config: &Config) -> BoxedStrategy<Op> {
        let (page, profile) = (config.page, config.profile);
        any::<u64>().no_shrink().prop_map(move |seed| Generator::new(seed, page, profile).op()).boxed()
    }

    fn apply(config: Config, _op: &Op) -> Config {
        config
    }
}

/// The system under test: a file system in lock step with the model; power cuts at the end.
pub struct Machine<S>(PhantomData<S>);

impl<S: Subject> StateMachineTest for Machine<S> {
    type SystemUnderTest = History<S>;
    type Reference = Reference;

    fn init_test(config: &Config) -> History<S> {
        History::start(config).unwrap_or_else(|f| panic!("{f}"))
    }

    fn apply(mut history: History<S>, _config: &Config, op: Op) -> History<S> {
        history.step(&op).unwrap_or_else(|f| panic!("{f}"));
        history
    }

    fn teardown(history: History<S>) {
        let coverage = history.finish(CUTS).unwrap_or_else(|f| panic!("{f}"));
        COVERAGE.lock().get_or_insert_default().merge(&coverage);
    }
}
