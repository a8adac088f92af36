//! The adapter in front of a file system in memory, used through the kernel.

mod direct;
mod fixture;
mod io;
mod lifecycle;
mod memfs;
mod names;
mod ranges;
