//! dbfs: the file system as a library.
//!
//! No sockets, no FUSE, no global state. The device, the clock and the threads that drive
//! background work come from outside.

pub mod alloc;
pub mod api;
pub mod env;
mod error;
pub mod format;
pub mod mutants;
pub mod tree;
mod types;

pub use error::{FsError, Result};
pub use types::{
    BLOCK_SIZE, BlockNr, BlockRun, CHUNK_PAGES, Epoch, GroupNr, Ino, Lsn, NODE_BLOCKS, NODE_SIZE, PageNr,
    PageSize,
};
