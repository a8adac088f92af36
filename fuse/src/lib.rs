//! FUSE adapter of dbfs: puts anything that implements [`FsOps`](fs_core::api::FsOps) behind a
//! mount point of the kernel. It translates and decides nothing: every answer is the file system's.
//!
//! # Kernels
//!
//! The floor is Linux 5.4 (FUSE 7.31); older kernels are refused. From Linux 6.6 on, files opened
//! with `O_DIRECT` get a *direct handle*: their reads and writes pass by the kernel's page cache,
//! writes that do not extend the file run in parallel, and the file can still be mapped. On older
//! kernels a file with such a handle could not be mapped `MAP_SHARED`, so there every file is opened
//! *cached*: `O_DIRECT` still passes by the page cache, but the kernel lets only one write at a
//! time into a file. [`MountConfig::cached_opens`] forces that mode on any kernel.
//!
//! # Requests
//!
//! * One `write` of up to [`MAX_WRITE`] bytes arrives as one request if its buffer is one
//!   page-aligned segment; the kernel splits others.
//! * `O_DSYNC`, `O_SYNC` and `RWF_DSYNC` arrive as flags of a write and are handed on.
//! * File locks are the kernel's own: all users of the volume are behind one mount.
//! * Permission bits and access control lists are checked by the kernel; what a new file inherits, and
//!   what a chmod means for a list, is the file system's business.
//! * Set-user-id bits and capabilities are taken away by the file system, when the kernel says that
//!   somebody unprivileged writes.
//! * `copy_file_range` and `SEEK_HOLE` are not offered; the kernel answers for us (a copy by read and
//!   write; a file without holes).
//! * Attributes and names, also missing ones, stay cached in the kernel until it changes them
//!   itself, because nothing changes the volume but this mount.

mod adapter;
mod buffer;
mod config;
mod convert;
mod dirs;
mod errors;
mod fusermount;
mod gate;
mod handshake;
mod mount;
mod opens;
mod ranges;
mod raw;
mod removed;
mod wire;
mod xattrs;

pub use config::{Features, MAX_WRITE, MountConfig};
pub use mount::{Mounted, Unmounter, cut_off, detach, mount, remount, take_away};
