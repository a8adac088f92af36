//! A mount of the real file system, on a device in memory, as programs see it through the kernel.

mod acl;
mod fixture;
mod handles;
mod names;
mod privileges;
mod removed;
mod times;
mod tmpfile;
mod xattrs;
