//! What is put through histories.

mod stand_in;

pub use stand_in::{Flaw, StandIn, set_flaw};
