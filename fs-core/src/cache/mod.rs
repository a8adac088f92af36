//! The page cache, and what decides which pages stay in it.

mod arena;
mod extents;
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
mod shared_reader;
#[cfg(test)]
mod tests;

pub use pages::SharedCache;
pub use probe::HitProbe;
pub use shared_reader::{Lookup, SharedReader};

pub(crate) use flights::{Claim, Flight, Flights};
pub(crate) use frame::{FrameData, FrameRef};
pub(crate) use pages::PageCache;
