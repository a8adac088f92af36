//! Listing directories.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use fs_core::Ino;
use fs_core::Result;
use fs_core::api::{Attr, DirEntry, FsOps};
use fuser::{FileAttr, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use crate::convert;

/// Entries fetched at once for a listing with attributes: about what fits into the 4 KiB that the
/// kernel mostly asks for.
const BATCH: usize = 24;

/// Fills `reply` with names from `cookie` on.
pub(crate) fn list(fs: &dyn FsOps, dir: Ino, cookie: u64, reply: &mut ReplyDirectory) -> Result<()> {
    fs.readdir(dir, cookie, &mut |e| {
        let name = OsStr::from_bytes(&e.name);
        !reply.add(INodeNo(e.ino.get()), e.next_cookie, convert::file_type(e.kind), name)
    })
}

/// Turns attributes into what the kernel wants.
type Show<'a> = &'a dyn Fn(&Attr) -> FileAttr;

/// Fills `reply` with names and attributes from `cookie` on. Attributes are fetched after the file
/// system's `readdir` has returned, because it may hold locks that `getattr` takes.
pub(crate) fn list_with_attributes(
    fs: &dyn FsOps,
    dir: Ino,
    mut cookie: u64,
    ttl: &Duration,
    show: Show<'_>,
    reply: &mut ReplyDirectoryPlus,
) -> Result<()> {
    let mut batch: Vec<DirEntry> = Vec::with_capacity(BATCH);
    loop {
        batch.clear();
        fs.readdir(dir, cookie, &mut |e| {
            let room = batch.len() < BATCH;
            if room {
                batch.push(e.clone());
            }
            room
        })?;
        for entry in &batch {
            if add_with_attributes(fs, entry, ttl, show, reply) {
                return Ok(());
            }
        }
        match batch.last() {
            Some(last) if batch.len() == BATCH => cookie = last.next_cookie,
            _ => return Ok(()),
        }
    }
}

/// Adds `entry`; true if there is no room for it. An inode that cannot be read is listed without
/// attributes: a look at it will give the error.
fn add_with_attributes(
    fs: &dyn FsOps,
    entry: &DirEntry,
    ttl: &Duration,
    show: Show<'_>,
    reply: &mut ReplyDirectoryPlus,
) -> bool {
    let (attr, ttl) = match fs.getattr(entry.ino) {
        Ok(attr) => (show(&attr), *ttl),
        Err(_) => {
            let kind = convert::file_type(entry.kind);
            (FileAttr { kind, ..convert::missing() }, Duration::ZERO)
        }
    };
    let name = OsStr::from_bytes(&entry.name);
    reply.add(INodeNo(entry.ino.get()), entry.next_cookie, name, &ttl, &attr, Generation(0))
}
