//! What is on the disk, byte by byte: see `docs/FORMAT.md`, which these modules repeat in code.
//!
//! Everything here is pure: bytes to structures and back, every value checked on the way in.

pub mod area;
pub mod bitmap;
pub mod bytes;
pub mod change;
pub mod dirent;
pub mod inode;
pub mod key;
pub mod map;
pub mod node;
pub mod pending;
pub mod record;
pub mod slot;
pub mod superblock;
pub mod ticket;
pub mod xattr;

pub use area::DataArea;
pub use change::{Change, MappedRun};
pub use inode::InodeItem;
pub use key::{ItemKind, Key};
pub use map::{Chunk, PageBlocks, PageEntry};
pub use slot::{GroupRange, JournalPart, JournalPoint, RootPtr, RootSlot};
pub use superblock::Superblock;
pub use ticket::Ticket;
