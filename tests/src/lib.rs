//! Whole-system tests of dbfs: the reference model, random histories, crashes, faults, mutants.

pub mod clock;
pub mod crash;
pub mod faults;
pub mod hostile;
pub mod machine;
pub mod model;
pub mod ops;
pub mod repair;
pub mod rng;
pub mod run;
pub mod runner;
pub mod subjects;
