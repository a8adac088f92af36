//! Making and removing names. Each operation is one atomic set of changes (contract C3).
//!
//! All of them hold the volume's `names` lock exclusively, so what they read stays true until they
//! have applied their changes.

use std::sync::Arc;

use super::acl::Acl;
use super::dir::{Bucket, check_new_name};
use super::tmpfile::first_name;
use super::{Inode, InodeState};
use crate::api::{Attr, FileType, Owner, Timestamp};
use crate::error::{FsError, Result};
use crate::format::node::MAX_VALUE;
use crate::format::{Change, InodeItem, ItemKind, Key};
use crate::mutants::{self, Mutant};
use crate::types::{BlockNr, Ino};
use crate::volume::Volume;

/// Most names of a file.
pub(crate) const LINK_MAX: u32 = 65_000;

/// Longest target of a symbolic link, as Linux limits paths.
const SYMLINK_MAX: usize = 4095;

/// What a new inode is.
pub(crate) struct NewInode<'a> {
    pub(crate) kind: FileType,
    pub(crate) perm: u32,
    pub(crate) rdev: u32,
    pub(crate) owner: Owner,
    pub(crate) target: Option<&'a [u8]>,
    pub(crate) open: bool,
    /// It has no name yet.
    pub(crate) nameless: bool,
}

impl Volume {
    /// Loads a directory that is still there: ENOTDIR, ESTALE, ENOENT if it was removed.
    pub(crate) fn directory(&self, ino: Ino) -> Result<Arc<Inode>> {
        let dir = self.inodes.get(&self.meta, ino)?;
        let state = dir.state.lock();
        if state.item.kind != FileType::Directory {
            return Err(FsError::NOT_DIR);
        }
        if state.deleted || state.item.nlink == 0 {
            return Err(FsError::NOT_FOUND);
        }
        drop(state);
        Ok(dir)
    }

    /// Makes an inode with its first name.
    pub(crate) fn make(&self, parent: Ino, name: &[u8], new: &NewInode<'_>) -> Result<Attr> {
        if new.target.is_some_and(|t| t.len() > SYMLINK_MAX) {
            return Err(FsError::NAME_TOO_LONG);
        }
        let _admitted = self.admit_growth()?;
        let _names = self.names_exclusive();
        let dir = self.directory(parent)?;
        check_new_name(name)?;
        let mut bucket = self.bucket(parent, name)?;
        if bucket.find(name).is_some() {
            return Err(FsError::EXISTS);
        }
        let default = self.default_acl(&dir)?;
        let mut parent_state = dir.state.lock();
        let is_dir = new.kind == FileType::Directory;
        if is_dir && parent_state.item.nlink >= LINK_MAX {
            return Err(FsError::TOO_MANY_LINKS);
        }
        let now = self.env.now();
        let ino = self.meta.new_ino();
        let (item, mut changes) = self.new_inode(ino, new, (parent, &parent_state.item), default, now);
        changes.insert(0, bucket.add(name, ino, new.kind)?);
        if let Some(target) = new.target {
            let parts = symlink_keys(ino, target.len()).zip(target.chunks(MAX_VALUE));
            changes.extend(parts.map(|(key, part)| Change::PutItem { key, value: part.to_vec() }));
        }
        changes.push(change_dir(&dir, &mut parent_state, 1, i64::from(is_dir), now));
        self.meta.apply(changes, 1)?;
        drop(parent_state);
        let inode = self.inodes.add(ino, item);
        if new.open {
            inode.state.lock().opens += 1;
        }
        Ok(inode.attr())
    }

    /// The item of a new inode, and the changes that store it and what it inherits.
    pub(super) fn new_inode(
        &self,
        ino: Ino,
        new: &NewInode<'_>,
        (parent, parent_item): (Ino, &InodeItem),
        default: Option<Acl>,
        now: Timestamp,
    ) -> (InodeItem, Vec<Change>) {
        let mut item = new_item(new, parent_item, parent, now);
        let (perm, xattrs) = self.inherit(ino, new.kind, (item.perm, new.owner.umask), default);
        item.perm = perm;
        let inherited = xattrs.finish(&mut item.xattr_list);
        let mut changes =
            vec![Change::PutItem { key: Key::new(ino, ItemKind::Inode, 0), value: item.encode() }];
        changes.extend(inherited);
        (item, changes)
    }

    /// See [`FsOps::link`](crate::api::FsOps::link).
    pub(crate) fn make_link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let _admitted = self.admit_growth()?;
        let _names = self.names_exclusive();
        let dir = self.directory(parent)?;
        check_new_name(name)?;
        let inode = self.inodes.get(&self.meta, ino)?;
        let mut bucket = self.bucket(parent, name)?;
        if bucket.find(name).is_some() {
            return Err(FsError::EXISTS);
        }
        if inode.kind() == FileType::Directory {
            return Err(FsError::NOT_PERMITTED);
        }
        let now = self.env.now();
        let (mut state, mut parent_state) = lock_two(&inode, &dir);
        if state.deleted || (state.item.nlink == 0 && !state.linkable) {
            return Err(FsError::NOT_FOUND);
        }
        if state.item.nlink >= LINK_MAX {
            return Err(FsError::TOO_MANY_LINKS);
        }
        let add = bucket.add(name, ino, state.item.kind)?;
        state.item.nlink += 1;
        state.item.ctime = now;
        let mut changes = vec![add, state.put(ino), change_dir(&dir, &mut parent_state, 1, 0, now)];
        if state.linkable {
            changes.push(first_name(&inode, &mut state));
            if mutants::active(Mutant::FirstNameInTwoSteps) {
                self.meta.apply(changes.split_off(3), 0)?;
                self.commit()?;
            }
        }
        self.meta.apply(changes, 0)?;
        Ok(state.attr(ino))
    }

    /// See [`FsOps::unlink`](crate::api::FsOps::unlink).
    pub(crate) fn remove_file(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let gone = {
            let _admitted = self.admit()?;
            let _names = self.names_exclusive();
            let dir = self.directory(parent)?;
            let mut bucket = self.bucket_of_old(parent, name)?;
            let entry = bucket.find(name).cloned().ok_or(FsError::NOT_FOUND)?;
            if entry.kind == FileType::Directory {
                return Err(FsError::IS_DIR);
            }
            let inode = self.named(&dir, entry.ino)?;
            if self.remove_at_once(&inode, &dir, &mut bucket, name)? {
                return Ok(());
            }
            let now = self.env.now();
            let (mut state, mut parent_state) = lock_two(&inode, &dir);
            let mut changes = vec![bucket.remove(name)];
            changes.extend(drop_link(&inode, &mut state, now));
            changes.push(change_dir(&dir, &mut parent_state, -1, 0, now));
            self.meta.apply(changes, 0)?;
            let gone = claim_deletion(&mut state);
            drop((state, parent_state));
            gone.then_some(inode)
        };
        self.finish_unlink(gone);
        Ok(())
    }

    /// See [`FsOps::rmdir`](crate::api::FsOps::rmdir).
    pub(crate) fn remove_dir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        match name {
            b"." => return Err(FsError::INVALID),
            b".." => return Err(FsError::NOT_EMPTY),
            _ => {}
        }
        let gone = {
            let _admitted = self.admit()?;
            let _names = self.names_exclusive();
            let dir = self.directory(parent)?;
            let mut bucket = self.bucket_of_old(parent, name)?;
            let entry = bucket.find(name).cloned().ok_or(FsError::NOT_FOUND)?;
            if entry.kind != FileType::Directory {
                return Err(FsError::NOT_DIR);
            }
            let child = self.named(&dir, entry.ino)?;
            let now = self.env.now();
            let (mut state, mut parent_state) = lock_two(&child, &dir);
            if state.item.size > 0 {
                return Err(FsError::NOT_EMPTY);
            }
            let mut changes = vec![bucket.remove(name)];
            changes.extend(drop_dir(&child, &mut state, now));
            changes.push(change_dir(&dir, &mut parent_state, -1, -1, now));
            self.meta.apply(changes, 0)?;
            let gone = claim_deletion(&mut state);
            drop((state, parent_state));
            gone.then_some(child)
        };
        self.finish_unlink(gone);
        Ok(())
    }

    /// The inode that an entry of `dir` names: never `dir` itself, whatever the device says.
    fn named(&self, dir: &Inode, ino: Ino) -> Result<Arc<Inode>> {
        if ino == dir.ino {
            let detail = format!("directory {ino} contains itself");
            return Err(FsError::corrupt("directory item", BlockNr(0), detail));
        }
        self.inodes.get(&self.meta, ino)
    }
}

/// Keys of the items that hold a symbolic link's target of `len` bytes: all but the last one hold
/// [`MAX_VALUE`] bytes.
pub(crate) fn symlink_keys(ino: Ino, len: usize) -> impl Iterator<Item = Key> {
    (0..len.min(SYMLINK_MAX).div_ceil(MAX_VALUE) as u64)
        .map(move |part| Key::new(ino, ItemKind::Symlink, part))
}

fn new_item(new: &NewInode<'_>, parent: &InodeItem, parent_ino: Ino, now: Timestamp) -> InodeItem {
    let is_dir = new.kind == FileType::Directory;
    let setgid = parent.perm & 0o2000 != 0;
    let mut perm = new.perm & 0o7777;
    if setgid && is_dir {
        perm |= 0o2000;
    }
    InodeItem {
        kind: new.kind,
        perm,
        nlink: match (is_dir, new.nameless) {
            (true, _) => 2,
            (false, nameless) => u32::from(!nameless),
        },
        uid: new.owner.uid,
        gid: if setgid { parent.gid } else { new.owner.gid },
        rdev: new.rdev,
        size: new.target.map_or(0, |t| t.len() as u64),
        blocks: 0,
        parent: if is_dir { parent_ino } else { Ino(0) },
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        xattr_list: 0,
    }
}

/// A directory has `entries` more names and `subdirs` more subdirectories.
pub(crate) fn change_dir(
    dir: &Inode,
    state: &mut InodeState,
    entries: i64,
    subdirs: i64,
    now: Timestamp,
) -> Change {
    state.item.size = state.item.size.saturating_add_signed(entries);
    state.item.nlink = state.item.nlink.saturating_add_signed(subdirs as i32);
    state.item.mtime = now;
    state.item.ctime = now;
    state.put(dir.ino)
}

/// A file loses a name; the last one makes it an orphan.
pub(crate) fn drop_link(inode: &Inode, state: &mut InodeState, now: Timestamp) -> Vec<Change> {
    state.item.nlink = state.item.nlink.saturating_sub(1);
    state.item.ctime = now;
    let mut changes = vec![state.put(inode.ino)];
    if state.item.nlink == 0 && !mutants::active(Mutant::UnlinkWithoutOrphan) {
        changes.push(orphan(inode.ino));
    }
    changes
}

/// An empty directory loses its name.
pub(crate) fn drop_dir(inode: &Inode, state: &mut InodeState, now: Timestamp) -> Vec<Change> {
    state.item.nlink = 0;
    state.item.ctime = now;
    vec![state.put(inode.ino), orphan(inode.ino)]
}

pub(super) fn orphan(ino: Ino) -> Change {
    Change::PutItem {
        key: Key::new(Ino::SYSTEM, ItemKind::Orphan, ino.0),
        value: vec![crate::file::ORPHAN_DELETE],
    }
}

/// Whoever gets true here, once, has to delete the inode.
pub(crate) fn claim_deletion(state: &mut InodeState) -> bool {
    let gone = state.item.nlink == 0 && state.opens == 0 && !state.deleted;
    state.deleted |= gone;
    gone
}

/// Locks the states of two different inodes in the volume's order.
pub(crate) fn lock_two<'a>(
    a: &'a Inode,
    b: &'a Inode,
) -> (parking_lot::MutexGuard<'a, InodeState>, parking_lot::MutexGuard<'a, InodeState>) {
    if a.ino < b.ino {
        let first = a.state.lock();
        let second = b.state.lock();
        (first, second)
    } else {
        let second = b.state.lock();
        let first = a.state.lock();
        (first, second)
    }
}

/// Two buckets are the same item: their changes must be made on one of them.
pub(crate) fn same_bucket(a: &Bucket, b: &Bucket) -> bool {
    a.key() == b.key()
}
