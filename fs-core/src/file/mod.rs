//! The data of files: reading, buffered and direct writing, writeback, inline data, resizing.

mod fsync;
mod load;
mod map;
mod range_lock;
mod read;
mod resize;
mod room;
mod through;
mod write;
mod writeback;

pub(crate) use range_lock::RangeLock;
pub(crate) use resize::{FREE_RUNS, ORPHAN_DELETE, ORPHAN_TRUNCATE, orphan_key};
pub(crate) use write::without_priv;
