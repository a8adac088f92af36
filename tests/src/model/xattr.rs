//! Extended attributes and access control lists of the model, written from acl(5) and the manual pages.

use std::sync::Arc;

use fs_core::api::{FileType, Timestamp, XattrFlags};
use fs_core::{FsError, Ino, Result};

use super::state::{Node, State};

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
/// The attribute that a change of the content or the owner takes away.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// Longest value.
const VALUE_MAX: usize = 1 << 16;
/// Longest list of names.
const LIST_MAX: usize = 1 << 16;

/// An access control list: one word of eight bytes an entry.
struct Acl(Vec<[u8; 8]>);

impl Acl {
    fn parse(value: &[u8]) -> Option<Self> {
        let entries = value.strip_prefix(&[2, 0, 0, 0])?;
        let (words, rest) = entries.as_chunks::<8>();
        (rest.is_empty() && !words.is_empty()).then(|| Self(words.to_vec()))
    }

    fn value(&self) -> Vec<u8> {
        [&[2, 0, 0, 0], self.0.as_flattened()].concat()
    }

    /// Runs `f` on the permissions of owner, group (or mask) and others with their place in a mode.
    fn each(&mut self, mut f: impl FnMut(&mut u8, u32)) {
        let masked = self.0.iter().any(|e| e[0] == 0x10);
        for e in &mut self.0 {
            match e[0] {
                0x01 => f(&mut e[2], 6),
                0x04 if !masked => f(&mut e[2], 3),
                0x10 => f(&mut e[2], 3),
                0x20 => f(&mut e[2], 0),
                _ => {}
            }
        }
    }

    fn mode(&mut self) -> u32 {
        let mut mode = 0;
        self.each(|perm, shift| mode |= u32::from(*perm) << shift);
        mode
    }

    fn chmod(&mut self, mode: u32) {
        self.each(|perm, shift| *perm = (mode >> shift & 7) as u8);
    }

    fn is_plain(&self) -> bool {
        self.0.len() == 3
    }
}

impl Node {
    fn put_attribute(&mut self, name: &[u8], value: Vec<u8>) {
        self.xattrs.insert(name.to_vec(), Arc::from(value));
    }

    /// What a change of the content or the owner takes away.
    pub fn drop_capability(&mut self) {
        self.xattrs.remove(CAPABILITY);
    }

    /// A chmod also changes the list.
    pub fn chmod(&mut self, perm: u32) {
        self.perm = perm & 0o7777;
        if let Some(mut acl) = self.xattrs.get(ACCESS).and_then(|v| Acl::parse(v)) {
            acl.chmod(perm);
            self.put_attribute(ACCESS, acl.value());
        }
    }

    /// What a new inode gets from its directory.
    pub fn inherit(&mut self, dir: &Node, umask: u32) {
        if self.kind == FileType::Symlink {
            return;
        }
        let Some(default) = dir.xattrs.get(DEFAULT) else {
            self.perm &= !umask;
            return;
        };
        let Some(mut acl) = Acl::parse(default) else { return };
        let mode = acl.mode() & self.perm;
        acl.chmod(mode);
        self.perm = self.perm & !0o777 | mode;
        if !acl.is_plain() {
            self.put_attribute(ACCESS, acl.value());
        }
        if self.is_dir() {
            self.xattrs.insert(DEFAULT.to_vec(), default.clone());
        }
    }

    /// All names as listxattr(2) gives them, in some order.
    pub fn attribute_names(&self, trusted: bool) -> Vec<u8> {
        let shown = self.xattrs.keys().filter(|name| trusted || !name.starts_with(b"trusted."));
        shown.flat_map(|name| [name.as_slice(), &[0]].concat()).collect()
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    let known = [ACCESS, DEFAULT].contains(&name);
    let spaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match name {
        _ if known => Ok(()),
        _ if name.is_empty() || name.len() > 255 => Err(FsError::RANGE),
        _ if spaces.contains(&name) => Err(FsError::INVALID),
        _ if spaces.iter().any(|s| name.starts_with(s)) => Ok(()),
        _ => Err(FsError::NOT_SUPPORTED),
    }
}

fn check_change(name: &[u8], kind: FileType) -> Result<()> {
    check_name(name)?;
    match kind {
        FileType::Regular if name == DEFAULT => Err(FsError::NO_ACCESS),
        FileType::Regular | FileType::Directory => Ok(()),
        FileType::Symlink if name.starts_with(b"system.") => Err(FsError::NOT_SUPPORTED),
        _ if name.starts_with(b"user.") => Err(FsError::NOT_PERMITTED),
        _ if name == DEFAULT => Err(FsError::NO_ACCESS),
        _ => Ok(()),
    }
}

impl State {
    pub(super) fn set_attribute(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        now: Timestamp,
    ) -> Result<()> {
        let node = self.node_mut(ino)?;
        check_change(name, node.kind)?;
        if value.len() > VALUE_MAX {
            return Err(FsError::VALUE_TOO_BIG);
        }
        match node.xattrs.contains_key(name) {
            true if flags.create => return Err(FsError::EXISTS),
            false if flags.replace => return Err(FsError::NO_ATTRIBUTE),
            false if node.attribute_names(true).len() + name.len() + 1 > LIST_MAX => {
                return Err(FsError::NO_SPACE);
            }
            _ => {}
        }
        if name.starts_with(b"system.") {
            let mut acl = Acl::parse(value).ok_or(FsError::INVALID)?;
            if name == ACCESS {
                let setgid = if flags.clear_setgid { 0o2000 } else { 0 };
                node.perm = node.perm & !0o777 & !setgid | acl.mode();
            }
            match name == ACCESS && acl.is_plain() {
                true => drop(node.xattrs.remove(name)),
                false => node.put_attribute(name, value.to_vec()),
            }
        } else {
            node.put_attribute(name, value.to_vec());
        }
        node.ctime = now;
        Ok(())
    }

    pub(super) fn attribute(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let node = self.node(ino)?;
        check_name(name)?;
        Ok(node.xattrs.get(name).ok_or(FsError::NO_ATTRIBUTE)?.to_vec())
    }

    pub(super) fn remove_attribute(&mut self, ino: Ino, name: &[u8], now: Timestamp) -> Result<()> {
        let node = self.node_mut(ino)?;
        check_change(name, node.kind)?;
        match node.xattrs.remove(name) {
            Some(_) => node.ctime = now,
            None if name.starts_with(b"system.") => {}
            None => return Err(FsError::NO_ATTRIBUTE),
        }
        Ok(())
    }
}
