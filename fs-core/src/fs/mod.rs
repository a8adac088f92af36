//! The name space: inodes, directories, names, attributes.

mod acl;
mod attr;
mod delete;
mod dir;
mod inode;
mod names;
mod ops;
mod rename;
mod tmpfile;
mod xattr;

pub(crate) use inode::{Inode, InodeState, InodeTable};
