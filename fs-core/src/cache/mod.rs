//! The page cache, and what decides which pages stay in it.

mod arena;
mod flights;
mod frame;
mod identity;
mod index;
mod index_file;
mod layout;
mod memfd;
mod pages;
pub mod policy;
mod probe;
mod shard;
#[cfg(test)]
mod tests;

pub use pages::SharedCache;
pub use probe::HitProbe;

pub(crate) use flights::{Claim, Flight, Flights};
pub(crate) use frame::{FrameData, FrameRef};
pub(crate) use pages::PageCache;
