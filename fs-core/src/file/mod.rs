//! The data of files: reading, buffered and direct writing, writeback, inline data, resizing.

mod copy;
mod flight;
mod fsync;
mod load;
mod lost;
mod map;
mod prefetch;
mod punch;
mod range_lock;
mod read;
mod reserve;
mod resize;
mod room;
mod runs;
mod seek;
mod send;
mod streams;
mod tail;
mod through;
mod write;
mod writeback;

pub(crate) use lost::LostBytes;
pub(crate) use map::{free_changes, freed_blocks};
pub(crate) use prefetch::Prefetched;
pub(crate) use range_lock::RangeLock;
pub(crate) use streams::Streams;
pub(crate) use tail::{FREE_RUNS, ORPHAN_DELETE, ORPHAN_TRUNCATE, Tail, orphan_key};
pub(crate) use write::without_priv;
