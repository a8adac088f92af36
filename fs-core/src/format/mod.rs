//! What is on the disk, byte by byte: see `docs/FORMAT.md`, which these modules repeat in code.
//!
//! Everything here is pure: bytes to structures and back, every value checked on the way in.

pub mod key;
pub mod node;

pub use key::{ItemKind, Key};
