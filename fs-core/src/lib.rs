//! dbfs: the file system as a library.
//!
//! No sockets, no FUSE, no global state. The device, the clock and the threads that drive
//! background work come from outside.

pub mod alloc;
pub mod api;
mod atomic;
pub mod cache;
mod delta;
pub mod dump;
pub mod env;
mod error;
mod file;
pub mod format;
mod fs;
pub mod fsck;
mod journal;
pub mod mutants;
pub mod repair;
pub mod stats;
pub mod tree;
mod types;
mod volume;

pub use error::{FsError, Result};
pub use types::{
    BLOCK_SIZE, BlockNr, BlockRun, CHUNK_PAGES, Epoch, GroupNr, Ino, Lsn, NODE_BLOCKS, NODE_SIZE, PageNr,
    PageSize,
};
pub use volume::{
    CacheStatus, ClaimLost, CounterValues, Explanation, Extent, FollowerClaim, FollowerPosition,
    FormatOptions, GrowTo, Grown, JournalStatus, MountOptions, Pace, ScrubFinding, ScrubStats, StopFlag,
    Volume, VolumeStatus,
};
