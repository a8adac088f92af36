//! Changing attributes.

use super::xattr::XattrChanges;
use super::{Inode, InodeState};
use crate::api::{Attr, FileType, SetAttr, SetTime, Timestamp};
use crate::error::{FsError, Result};
use crate::volume::Volume;

impl Volume {
    /// See [`FsOps::setattr`](crate::api::FsOps::setattr).
    pub(crate) fn set_attributes(&self, inode: &Inode, set: &SetAttr) -> Result<Attr> {
        if set.size.is_some() || set.uid.is_some() || set.gid.is_some() || set.kill_priv {
            self.drop_capability(inode)?;
        }
        if set.size.is_some() && set.perm.is_some() {
            // An access list follows the permission bits, in a step of its own.
            self.set_attributes(inode, &SetAttr { perm: set.perm, ..SetAttr::default() })?;
        }
        let now = self.env.now();
        if let Some(size) = set.size {
            match inode.kind() {
                FileType::Regular => {}
                FileType::Directory => return Err(FsError::IS_DIR),
                _ => return Err(FsError::INVALID),
            }
            self.resize(inode, size, |state| change_item(state, set, now))?;
            return Ok(inode.attr());
        }
        let _admitted = self.admit()?;
        let _xattrs = inode.xattrs.write();
        let acl = match set.perm {
            Some(perm) => self.chmod_acl(inode, perm)?,
            None => XattrChanges::default(),
        };
        let mut state = inode.state.lock();
        if state.deleted {
            return Err(FsError::STALE);
        }
        change_item(&mut state, set, now);
        let mut changes = acl.finish(&mut state.item.xattr_list);
        changes.push(state.put(inode.ino));
        self.meta.apply(changes, 0)?;
        Ok(state.attr(inode.ino))
    }
}

fn change_item(state: &mut InodeState, set: &SetAttr, now: Timestamp) {
    let time = |t: SetTime| match t {
        SetTime::Now => now,
        SetTime::At(t) => t,
    };
    let item = &mut state.item;
    if let Some(perm) = set.perm {
        item.perm = perm & 0o7777;
    }
    if set.uid.is_some() || set.gid.is_some() {
        item.uid = set.uid.unwrap_or(item.uid);
        item.gid = set.gid.unwrap_or(item.gid);
        // chown(2): the privilege does not pass to another owner, unless the caller says so.
        if set.perm.is_none() && item.kind != FileType::Directory {
            item.perm = crate::file::without_priv(item.perm);
        }
    }
    if set.kill_priv && item.kind != FileType::Directory {
        item.perm = crate::file::without_priv(item.perm);
    }
    if let Some(t) = set.atime {
        item.atime = time(t);
    }
    if let Some(t) = set.mtime {
        item.mtime = time(t);
    }
    item.ctime = now;
}
