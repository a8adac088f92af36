//! The page cache, and what decides which pages stay in it.

mod pages;
pub mod policy;

pub(crate) use pages::{Frame, FrameData, PageCache};
