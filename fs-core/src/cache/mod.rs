//! The page cache, and what decides which pages stay in it.

mod flights;
mod pages;
pub mod policy;
mod shard;

pub(crate) use flights::{Claim, Flight, Flights};
pub(crate) use pages::{Frame, FrameData, PageCache};
