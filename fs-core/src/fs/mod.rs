//! The name space: inodes, directories, names, attributes.

mod attr;
mod delete;
mod dir;
mod inode;
mod names;
mod ops;
mod rename;

pub(crate) use inode::{Inode, InodeState, InodeTable};
