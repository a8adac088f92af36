//! Deleting inodes that have neither a name nor a handle, now or after a crash.

use std::sync::Arc;

use super::Inode;
use super::names::{claim_deletion, symlink_keys};
use crate::error::{FsError, Result};
use crate::file::{ORPHAN_DELETE, orphan_key};
use crate::format::{Change, ItemKind, Key};
use crate::types::{Ino, PageNr};
use crate::volume::Volume;

impl Volume {
    /// Frees everything an inode has, and the inode. Its `deleted` flag has been set by the caller:
    /// nobody can write to it any more. If a crash or an error comes in between, its orphan item is
    /// there, and the next mount goes on.
    pub(crate) fn delete_inode(&self, inode: &Inode) -> Result<()> {
        {
            let _range = inode.ranges.lock_all();
            self.drop_frames(inode, PageNr(0), PageNr(u64::MAX));
        }
        self.delete_xattrs(inode)?;
        let first = PageNr(0);
        let mut from = first;
        loop {
            let _admitted = self.admit_cost(self.cost_of_frees())?;
            let (mut changes, next) = self.free_step(inode, first, from)?;
            if let Some(page) = next {
                self.apply_changes(changes, 0)?;
                from = page;
                continue;
            }
            changes.push(Change::DelItem { key: Key::new(inode.ino, ItemKind::Inode, 0) });
            if inode.kind() == crate::api::FileType::Symlink {
                let size = inode.state.lock().item.size as usize;
                changes.extend(symlink_keys(inode.ino, size).map(|key| Change::DelItem { key }));
            }
            changes.push(Change::DelItem { key: orphan_key(inode) });
            self.apply_changes(changes, -1)?;
            self.inodes.forget(inode.ino);
            return Ok(());
        }
    }

    /// Deletes an inode whose last name has just gone. That has been done, whatever becomes of this.
    pub(crate) fn finish_unlink(&self, gone: Option<Arc<Inode>>) {
        let Some(inode) = gone else { return };
        if let Err(e) = self.delete_inode(&inode) {
            tracing::warn!(error = %e, ino = inode.ino.0, "an unlinked file could not be freed; the next mount will do it");
        }
    }

    /// Ends an open; the last one of an inode without a name deletes it.
    pub(crate) fn close_inode(&self, ino: Ino) -> Result<()> {
        let inode = self.inodes.get(&self.meta, ino)?;
        let gone = {
            let mut state = inode.state.lock();
            state.opens = state.opens.saturating_sub(1);
            !self.read_only() && claim_deletion(&mut state)
        };
        if gone { self.delete_inode(&inode) } else { Ok(()) }
    }

    /// After a crash: deletes inodes that were open without a name, finishes truncations.
    pub(crate) fn reclaim_orphans(&self) -> Result<()> {
        let from = Key::new(Ino::SYSTEM, ItemKind::Orphan, 0);
        let to = Key::new(Ino::SYSTEM, ItemKind::Orphan, u64::MAX);
        let mut next = Some(from);
        while let Some(from) = next {
            let (items, more) = self.meta.scan(from, to, 256)?;
            for (key, value) in items {
                self.reclaim(Ino(key.offset), &value)?;
            }
            next = more;
        }
        Ok(())
    }

    fn reclaim(&self, ino: Ino, reason: &[u8]) -> Result<()> {
        let admitted = self.admit()?;
        let inode = match self.inodes.get(&self.meta, ino) {
            Ok(inode) => inode,
            Err(FsError::Posix(libc::ESTALE)) => {
                // Nothing is left but the item.
                let key = Key::new(Ino::SYSTEM, ItemKind::Orphan, ino.0);
                self.meta.apply(vec![Change::DelItem { key }], 0)?;
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        if reason == [ORPHAN_DELETE] && claim_deletion(&mut inode.state.lock()) {
            drop(admitted);
            return self.delete_inode(&inode);
        }
        let _range = inode.ranges.lock_all();
        let size = inode.state.lock().item.size;
        let first = PageNr(self.page_size().pages_for(size));
        self.free_behind(&inode, first)
    }
}
