//! What is put through histories.

mod engine;
mod stand_in;

pub use engine::{Engine, device, mount_options};
pub use stand_in::{Flaw, StandIn, set_flaw};
