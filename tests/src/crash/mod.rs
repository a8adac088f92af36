//! Power cuts: what may be on the disk afterwards, and whether it is.

mod check;
mod coverage;
mod data;
mod expect;
mod history;
mod shrink;

pub use check::{Recovered, check, read_state};
pub use coverage::Coverage;
pub use expect::Expectation;
pub use history::{History, Plan};
pub use shrink::shrink;
