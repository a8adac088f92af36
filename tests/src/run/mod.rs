//! Running a history on a file system and on the model, in lock step.

mod compare;
mod exec;
mod failure;
mod inos;
mod lockstep;
mod record;
mod subject;
mod tree;

pub use failure::Failure;
pub use inos::InoMap;
pub use lockstep::{Lockstep, read_file};
pub use record::{Promise, Record, Written};
pub use subject::{Config, Subject};
pub use tree::{Reached, Tree};
