//! What is put through histories.

#[cfg(any())]
mod engine;
mod stand_in;

#[cfg(any())]
pub use engine::{Engine, device, mount_options};
pub use stand_in::{Flaw, StandIn, set_flaw};
