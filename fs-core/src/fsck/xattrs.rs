//! Extended attributes: are the items of each complete, and does the inode know how many names it has?

use crate::format::xattr::{decode_xattr, xattr_hash, xattr_key, xattr_parts, xattr_place};
use crate::format::{Key, Superblock};
use crate::types::Ino;

/// The attributes of the inode whose items are passing.
#[derive(Debug, Default)]
pub(super) struct Xattrs {
    /// Bytes of the names' list so far.
    pub(super) list: u64,
    /// The attribute that has items to come: hash, next part, number of parts, bytes of the value that
    /// are still missing.
    open: Option<(u64, u64, u64, usize)>,
}

impl Xattrs {
    /// The next item; `Some`: what is wrong with it.
    pub(super) fn item(&mut self, sb: &Superblock, key: Key, value: &[u8]) -> Option<&'static str> {
        let (hash, part) = xattr_place(key.offset);
        if part > 0 {
            return self.continuation(hash, part, value);
        }
        let cut_short = self.open.take().is_some();
        let Some(head) = decode_xattr(value) else {
            return Some("an extended attribute with impossible values");
        };
        self.list += head.name.len() as u64 + 1;
        let parts = xattr_parts(head.name.len(), head.size);
        if parts > 1 {
            self.open = Some((hash, 1, parts, head.size - head.start.len()));
        }
        if xattr_hash(&sb.hash_key, head.name) != hash || key != xattr_key(key.ino, hash, part) {
            return Some("an extended attribute under a wrong hash");
        }
        cut_short.then_some("the extended attribute before it ends too early")
    }

    fn continuation(&mut self, hash: u64, part: u64, value: &[u8]) -> Option<&'static str> {
        let follows = self.open.take().filter(|(h, next, ..)| (*h, *next) == (hash, part));
        let Some((_, _, parts, missing)) = follows else {
            return Some("a part of an extended attribute without what comes before it");
        };
        if value.len() > missing || (part + 1 == parts) != (value.len() == missing) {
            return Some("a part of an extended attribute with a wrong length");
        }
        if part + 1 < parts {
            self.open = Some((hash, part + 1, parts, missing - value.len()));
        }
        None
    }

    /// All items have passed; `Some`: how they contradict the inode, which says that the list of names
    /// has `list` bytes.
    pub(super) fn contradiction(&self, ino: Ino, list: u32, deleted: bool) -> Option<String> {
        if self.open.is_some() && !deleted {
            return Some(format!("the last extended attribute of inode {ino} ends too early"));
        }
        // An inode that is being deleted does not keep count.
        let agrees = if deleted { self.list <= list.into() } else { self.list == u64::from(list) };
        (!agrees).then(|| {
            format!("the names of its extended attributes take {} bytes, its inode says {list}", self.list)
        })
    }
}
