//! Extended attributes.
//!
//! Each is one or more items that change in one step with the inode's item, which knows how long the
//! list of names is: most inodes have none, and that is known without a look at the tree.
//!
//! [`Inode::xattrs`] is held shared to read an attribute, exclusively to change one.

use super::acl::{self, Acl};
use super::{Inode, InodeState};
use crate::api::{FileType, XattrFlags};
use crate::error::{FsError, Result};
use crate::format::xattr::{
    XATTR_LIST_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX, decode_xattr, encode_xattr, xattr_hash, xattr_key,
    xattr_parts, xattr_place,
};
use crate::format::{Change, Key};
use crate::mutants::{self, Mutant};
use crate::types::{BlockNr, Ino};
use crate::volume::{Cost, Volume};

/// Attribute that gives a program privileges, which a change of the file takes away.
const CAPABILITY: &[u8] = b"security.capability";

/// Most items of an attribute.
const MOST_PARTS: u64 = 17;

/// Longest access control list in bytes, as FUSE limits it too: what a new file inherits stays small.
const ACL_MAX: usize = 4096;

/// Items looked at or deleted in one step.
const STEP: usize = 64;

/// An attribute as it is stored.
struct Stored {
    parts: u64,
    value: Vec<u8>,
}

/// Changes of one inode's attributes that belong to one step.
#[derive(Default)]
pub(crate) struct XattrChanges {
    changes: Vec<Change>,
    /// Bytes that the list of names grows by.
    list: i32,
}

impl XattrChanges {
    /// Notes the new length of the list; returns what belongs into the step.
    pub(crate) fn finish(self, list: &mut u32) -> Vec<Change> {
        *list = list.saturating_add_signed(self.list);
        self.changes
    }
}

/// Bytes of a name in the list.
fn listed(name: &[u8]) -> i32 {
    name.len() as i32 + 1
}

impl Volume {
    /// See [`FsOps::setxattr`](crate::api::FsOps::setxattr).
    pub(crate) fn set_xattr(
        &self,
        inode: &Inode,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        check_name(name)?;
        check_kind(name, inode.kind())?;
        if value.len() > XATTR_VALUE_MAX {
            return Err(FsError::VALUE_TOO_BIG);
        }
        let _admitted = self.admit_growth_of(Cost::items(2 * MOST_PARTS, value.len()))?;
        let _xattrs = inode.xattrs.write();
        let old = self.stored(inode, name)?;
        match &old {
            Some(_) if flags.create => return Err(FsError::EXISTS),
            None if flags.replace => return Err(FsError::NO_ATTRIBUTE),
            None => self.check_list_room(inode, name)?,
            Some(_) => {}
        }
        let (value, perm) = kept(name, value)?;
        let mut changes = XattrChanges::default();
        self.store_xattr(inode.ino, name, old.as_ref(), value.as_deref(), &mut changes);
        let mut state = inode.state.lock();
        if state.deleted {
            return Err(FsError::STALE);
        }
        if let Some(perm) = perm {
            let setgid = if flags.clear_setgid { 0o2000 } else { 0 };
            state.item.perm = state.item.perm & !0o777 & !setgid | perm;
        }
        state.may_have_capability |= name == CAPABILITY;
        self.apply_xattrs(inode, &mut state, changes)
    }

    /// See [`FsOps::getxattr`](crate::api::FsOps::getxattr).
    pub(crate) fn get_xattr(&self, inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        check_name(name)?;
        let _xattrs = inode.xattrs.read();
        Ok(self.stored(inode, name)?.ok_or(FsError::NO_ATTRIBUTE)?.value)
    }

    /// See [`FsOps::removexattr`](crate::api::FsOps::removexattr).
    pub(crate) fn remove_xattr(&self, inode: &Inode, name: &[u8]) -> Result<()> {
        check_name(name)?;
        check_kind(name, inode.kind())?;
        let _admitted = self.admit_cost(Cost::items(MOST_PARTS, 0))?;
        let _xattrs = inode.xattrs.write();
        let old = self.stored(inode, name)?;
        if old.is_none() {
            // No list is what the absence of one means already.
            return if name.starts_with(b"system.") { Ok(()) } else { Err(FsError::NO_ATTRIBUTE) };
        }
        let mut changes = XattrChanges::default();
        self.store_xattr(inode.ino, name, old.as_ref(), None, &mut changes);
        let mut state = inode.state.lock();
        if state.deleted {
            return Err(FsError::STALE);
        }
        self.apply_xattrs(inode, &mut state, changes)
    }

    /// See [`FsOps::listxattr`](crate::api::FsOps::listxattr).
    pub(crate) fn list_xattrs(&self, inode: &Inode, trusted: bool) -> Result<Vec<u8>> {
        let _xattrs = inode.xattrs.read();
        let mut list = Vec::new();
        if inode.state.lock().item.xattr_list == 0 {
            return Ok(list);
        }
        let to = xattr_key(inode.ino, u64::MAX >> 8, 0xff);
        let mut next = Some(xattr_key(inode.ino, 0, 0));
        while let Some(from) = next {
            let (items, more) = self.meta.scan(from, to, STEP)?;
            let mut behind = from;
            for (key, value) in items {
                let (hash, part) = xattr_place(key.offset);
                if part > 0 {
                    continue;
                }
                let head = decode_xattr(&value).ok_or_else(|| malformed(inode.ino, hash))?;
                behind = Key { offset: key.offset + xattr_parts(head.name.len(), head.size), ..key };
                if trusted || !head.name.starts_with(b"trusted.") {
                    list.extend_from_slice(head.name);
                    list.push(0);
                }
            }
            next = more.map(|key| key.max(behind)).filter(|key| *key <= to);
        }
        Ok(list)
    }

    /// The attribute as it is stored. The caller holds the inode's attributes.
    fn stored(&self, inode: &Inode, name: &[u8]) -> Result<Option<Stored>> {
        if inode.state.lock().item.xattr_list == 0 {
            return Ok(None);
        }
        let hash = xattr_hash(&self.superblock.hash_key, name);
        let bad = || malformed(inode.ino, hash);
        let Some(item) = self.meta.item(&xattr_key(inode.ino, hash, 0))? else { return Ok(None) };
        let head = decode_xattr(&item).ok_or_else(bad)?;
        if head.name != name {
            // 55 bits under a secret key: another name will not have the same by chance.
            return Err(FsError::NO_SPACE);
        }
        let parts = xattr_parts(name.len(), head.size);
        let mut value = Vec::with_capacity(head.size);
        value.extend_from_slice(head.start);
        for part in 1..parts {
            value.extend_from_slice(&self.meta.item(&xattr_key(inode.ino, hash, part))?.ok_or_else(bad)?);
        }
        if value.len() == head.size { Ok(Some(Stored { parts, value })) } else { Err(bad()) }
    }

    /// ENOSPC if there is no room for one more name in the list.
    fn check_list_room(&self, inode: &Inode, name: &[u8]) -> Result<()> {
        let list = inode.state.lock().item.xattr_list.saturating_add_signed(listed(name));
        if list as usize > XATTR_LIST_MAX { Err(FsError::NO_SPACE) } else { Ok(()) }
    }

    /// Notes what gives an attribute a new value, or takes it away.
    fn store_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        old: Option<&Stored>,
        value: Option<&[u8]>,
        changes: &mut XattrChanges,
    ) {
        let hash = xattr_hash(&self.superblock.hash_key, name);
        let items = value.map_or_else(Vec::new, |value| encode_xattr(name, value));
        let kept = items.len() as u64;
        let puts = items.into_iter().zip(0..);
        let puts = puts.map(|(value, part)| Change::PutItem { key: xattr_key(ino, hash, part), value });
        changes.changes.extend(puts);
        let gone = kept..old.map_or(0, |old| old.parts);
        changes.changes.extend(gone.map(|part| Change::DelItem { key: xattr_key(ino, hash, part) }));
        changes.list += match (old.is_some(), value.is_some()) {
            (false, true) => listed(name),
            (true, false) => -listed(name),
            _ => 0,
        };
    }

    fn apply_xattrs(&self, inode: &Inode, state: &mut InodeState, changes: XattrChanges) -> Result<()> {
        state.item.ctime = self.env.now();
        let mut changes = changes.finish(&mut state.item.xattr_list);
        if mutants::active(Mutant::XattrInTwoSteps) && changes.len() > 1 {
            let rest = changes.split_off(1);
            self.meta.apply(std::mem::replace(&mut changes, rest), 0)?;
            self.commit()?;
        }
        changes.push(state.put(inode.ino));
        self.meta.apply(changes, 0)?;
        Ok(())
    }

    /// Before the content or the owner of a file changes: takes a program's privileges away.
    pub(crate) fn drop_capability(&self, inode: &Inode) -> Result<()> {
        let may_have = |state: &InodeState| state.may_have_capability && state.item.xattr_list > 0;
        if !may_have(&inode.state.lock()) || mutants::active(Mutant::KeepCapability) {
            return Ok(());
        }
        let _admitted = self.admit_cost(Cost::items(MOST_PARTS, 0))?;
        let _xattrs = inode.xattrs.write();
        let old = self.stored(inode, CAPABILITY)?;
        let mut changes = XattrChanges::default();
        self.store_xattr(inode.ino, CAPABILITY, old.as_ref(), None, &mut changes);
        let mut state = inode.state.lock();
        state.may_have_capability = false;
        if old.is_none() {
            return Ok(());
        }
        self.apply_xattrs(inode, &mut state, changes)
    }

    /// What a chmod to `perm` changes in an access list. The caller holds the inode's attributes
    /// exclusively.
    pub(crate) fn chmod_acl(&self, inode: &Inode, perm: u32) -> Result<XattrChanges> {
        let mut changes = XattrChanges::default();
        let old = self.stored(inode, acl::ACCESS)?;
        if let Some(mut list) = old.as_ref().and_then(|old| Acl::decode(&old.value)) {
            list.set_bits(perm);
            self.store_xattr(inode.ino, acl::ACCESS, old.as_ref(), Some(&list.encode()), &mut changes);
        }
        Ok(changes)
    }

    /// The list that what is made in `dir` inherits.
    pub(crate) fn default_acl(&self, dir: &Inode) -> Result<Option<Acl>> {
        let _xattrs = dir.xattrs.read();
        Ok(self.stored(dir, acl::DEFAULT)?.and_then(|old| Acl::decode(&old.value)))
    }

    /// Gives the new inode `ino` what it inherits: returns its permission bits and attributes.
    pub(crate) fn inherit(
        &self,
        ino: Ino,
        kind: FileType,
        (perm, umask): (u32, u32),
        default: Option<Acl>,
    ) -> (u32, XattrChanges) {
        let mut changes = XattrChanges::default();
        if kind == FileType::Symlink {
            return (perm, changes);
        }
        let Some(default) = default else { return (perm & !umask, changes) };
        let mut access = default.clone();
        let perm = access.inherit(perm);
        if !access.is_trivial() {
            self.store_xattr(ino, acl::ACCESS, None, Some(&access.encode()), &mut changes);
        }
        if kind == FileType::Directory {
            self.store_xattr(ino, acl::DEFAULT, None, Some(&default.encode()), &mut changes);
        }
        (perm, changes)
    }

    /// Deletes all attributes of an inode that nobody can reach any more, in steps that each fit a record.
    pub(crate) fn delete_xattrs(&self, inode: &Inode) -> Result<()> {
        if inode.state.lock().item.xattr_list == 0 || mutants::active(Mutant::KeepXattrs) {
            return Ok(());
        }
        let (from, to) = (xattr_key(inode.ino, 0, 0), xattr_key(inode.ino, u64::MAX >> 8, 0xff));
        let mut next = Some(from);
        while let Some(from) = next {
            let _admitted = self.admit_cost(Cost::items(STEP as u64, 0))?;
            let (items, more) = self.meta.scan(from, to, STEP)?;
            let changes = items.into_iter().map(|(key, _)| Change::DelItem { key }).collect();
            self.meta.apply(changes, 0)?;
            next = more;
        }
        Ok(())
    }
}

fn malformed(ino: Ino, hash: u64) -> FsError {
    let detail = format!("inode {ino}: impossible values under hash {hash:x}");
    FsError::corrupt("extended attribute", BlockNr(0), detail)
}

/// ERANGE, EINVAL or EOPNOTSUPP for what is no name.
fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(FsError::RANGE);
    }
    if name == acl::ACCESS || name == acl::DEFAULT {
        return Ok(());
    }
    let spaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match spaces.iter().find_map(|space| name.strip_prefix(*space)) {
        None => Err(FsError::NOT_SUPPORTED),
        Some(rest) if rest.is_empty() || rest.contains(&0) => Err(FsError::INVALID),
        Some(_) => Ok(()),
    }
}

/// Not every attribute goes with every kind of file.
fn check_kind(name: &[u8], kind: FileType) -> Result<()> {
    let plain = matches!(kind, FileType::Regular | FileType::Directory);
    if name.starts_with(b"user.") && !plain {
        return Err(FsError::NOT_PERMITTED);
    }
    if name.starts_with(b"system.") && kind == FileType::Symlink {
        return Err(FsError::NOT_SUPPORTED);
    }
    if name == acl::DEFAULT && kind != FileType::Directory {
        return Err(FsError::NO_ACCESS);
    }
    Ok(())
}

/// What is kept of an attribute's value (`None`: nothing), and the permission bits that come with it.
fn kept(name: &[u8], value: &[u8]) -> Result<(Option<Vec<u8>>, Option<u32>)> {
    if !name.starts_with(b"system.") {
        return Ok((Some(value.to_vec()), None));
    }
    if Acl::is_none(value) {
        return Ok((None, None));
    }
    if value.len() > ACL_MAX {
        return Err(FsError::VALUE_TOO_BIG);
    }
    let list = Acl::decode(value).ok_or(FsError::INVALID)?;
    if name == acl::DEFAULT {
        return Ok((Some(list.encode()), None));
    }
    Ok(((!list.is_trivial()).then(|| list.encode()), Some(list.bits())))
}
