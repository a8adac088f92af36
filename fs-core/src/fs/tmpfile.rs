//! Files that are made without a name (O_TMPFILE). Until one is linked it is an orphan like any other
//! unlinked file that is open: a crash, or its last close, frees it.

use super::names::{NewInode, orphan};
use super::{Inode, InodeState};
use crate::api::{Attr, FileType, Owner};
use crate::error::Result;
use crate::file::{ORPHAN_TRUNCATE, Tail, orphan_key};
use crate::format::Change;
use crate::mutants::{self, Mutant};
use crate::types::Ino;
use crate::volume::Volume;

impl Volume {
    /// See [`FsOps::tmpfile`](crate::api::FsOps::tmpfile).
    pub(crate) fn make_tmpfile(&self, parent: Ino, perm: u32, owner: Owner) -> Result<Attr> {
        let _admitted = self.admit_growth()?;
        let _names = self.names_shared();
        let dir = self.directory(parent)?;
        let default = self.default_acl(&dir)?;
        let new = NewInode {
            kind: FileType::Regular,
            perm,
            rdev: 0,
            owner,
            target: None,
            open: true,
            nameless: true,
        };
        let ino = self.meta.new_ino();
        let now = self.env.now();
        let parent_item = dir.state.lock().item.clone();
        let (item, mut changes) = self.new_inode(ino, &new, (parent, &parent_item), default, now);
        if !mutants::active(Mutant::TmpfileWithoutOrphan) {
            changes.push(orphan(ino));
        }
        self.meta.apply(changes, 1)?;
        let inode = self.inodes.add(ino, item);
        let mut state = inode.state.lock();
        state.opens += 1;
        state.linkable = true;
        Ok(state.attr(ino))
    }
}

/// The change that takes an inode off the list of orphans, for it gets its first name. There it also
/// stands for a truncation that may be under way: that one it stays on the list for.
pub(super) fn first_name(inode: &Inode, state: &mut InodeState) -> Change {
    state.linkable = false;
    let key = orphan_key(inode);
    match state.tail {
        Tail::Clean => Change::DelItem { key },
        Tail::Freeing | Tail::Owed => Change::PutItem { key, value: vec![ORPHAN_TRUNCATE] },
    }
}
