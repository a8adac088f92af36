//! Running many histories by seed, and reporting a failure so that it can be replayed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::crash::{Coverage, History, Plan, shrink};
use crate::ops::Op;
use crate::run::{Failure, Subject};

/// Runs `plan`; a panic is a failure too.
pub fn run_plan<S: Subject>(plan: &Plan) -> Result<Coverage, Failure> {
    match catch_unwind(AssertUnwindSafe(|| History::<S>::run(plan))) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
                .unwrap_or_default();
            Err(Failure::new(format!("panicked: {text}")))
        }
    }
}

/// A failing history, made as short as `tries` attempts could.
pub struct Shrunk {
    /// What is left of it.
    pub ops: Vec<Op>,
    /// How it fails.
    pub failure: Failure,
}

/// Shrinks a failing plan; what is left fails in the same way.
pub fn shrink_plan<S: Subject>(plan: &Plan, failure: Failure, tries: usize) -> Shrunk {
    let fails = |ops: &[Op]| run_plan::<S>(&Plan { ops: ops.to_vec(), ..plan.clone() }).err();
    let kind = failure.kind();
    let ops = shrink(&plan.ops, tries, |ops| fails(ops).is_some_and(|f| f.kind() == kind));
    let failure = fails(&ops).unwrap_or(failure);
    Shrunk { ops, failure }
}

/// Runs the histories of `seeds`; the first failure is returned with its seed.
pub fn run_seeds<S: Subject>(
    seeds: impl Iterator<Item = u64>,
    len: usize,
    cuts: usize,
) -> Result<Coverage, (u64, Failure)> {
    let mut coverage = Coverage::default();
    for seed in seeds {
        let one = run_plan::<S>(&Plan::from_seed(seed, len, cuts)).map_err(|f| (seed, f))?;
        coverage.merge(&one);
    }
    Ok(coverage)
}
