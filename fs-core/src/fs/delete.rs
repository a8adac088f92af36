//! Deleting inodes that have neither a name nor a handle, now or after a crash.

use std::sync::Arc;

use super::dir::Bucket;
use super::names::{change_dir, claim_deletion, lock_two, symlink_keys};
use super::{Inode, InodeState};
use crate::api::FileType;
use crate::error::{FsError, Result};
use crate::file::{ORPHAN_DELETE, Tail, free_changes, freed_blocks, orphan_key};
use crate::format::{Change, ItemKind, Key, PageEntry};
use crate::types::{CHUNK_PAGES, Ino, PageNr};
use crate::volume::Volume;

/// Larger files lose their name first and their pages afterwards: nobody should wait for their map to
/// be read, nor pay for them with every removal.
const SMALL_FILE_PAGES: u64 = 2 * CHUNK_PAGES;
/// The same for files in more pieces than this.
const SMALL_FILE_RUNS: usize = 3;

impl Volume {
    /// Frees everything an inode has, and the inode. Its `deleted` flag has been set by the caller:
    /// nobody can write to it any more. If a crash or an error comes in between, its orphan item is
    /// there, and the next mount goes on.
    pub(crate) fn delete_inode(&self, inode: &Inode) -> Result<()> {
        self.take_tail_for_good(inode);
        {
            let _range = self.lock_all_pages(inode);
            let size = inode.state.lock().item.size;
            self.drop_frames(inode, PageNr(0), PageNr(self.page_size().pages_for(size)));
        }
        self.delete_xattrs(inode)?;
        let mut from = PageNr(0);
        loop {
            let _admitted = self.admit_cost(self.cost_of_frees())?;
            let (mut changes, next) = self.free_step(inode, from)?;
            if let Some(page) = next {
                self.apply_changes(changes, 0)?;
                from = page;
                continue;
            }
            let (kind, size) = {
                let state = inode.state.lock();
                (state.item.kind, state.item.size)
            };
            changes.extend(item_deletions(inode.ino, kind, size));
            changes.push(Change::DelItem { key: orphan_key(inode) });
            self.apply_changes(changes, -1)?;
            self.inodes.forget(inode.ino);
            return Ok(());
        }
    }

    /// Removes the last name of a small file that nobody uses, and the file, in one set of changes. Does
    /// nothing and returns false if that is not what it is. The caller holds `names` exclusively.
    pub(super) fn remove_at_once(
        &self,
        inode: &Inode,
        dir: &Inode,
        bucket: &mut Bucket,
        name: &[u8],
    ) -> Result<bool> {
        let Some(_range) = inode.ranges.try_lock_all() else { return Ok(false) };
        let removable = |s: &InodeState| {
            let unused = s.item.nlink == 1 && s.opens == 0 && !s.deleted;
            unused && s.tail == Tail::Clean && s.item.xattr_list == 0
        };
        let (kind, size, blocks) = {
            let state = inode.state.lock();
            if !removable(&state) {
                return Ok(false);
            }
            (state.item.kind, state.item.size, state.item.blocks)
        };
        let mut changes = match kind {
            FileType::Regular if size > 0 || blocks > 0 => match self.free_small(inode, size, blocks) {
                Some(frees) => frees,
                None => return Ok(false),
            },
            _ => Vec::new(),
        };
        let (mut state, mut parent_state) = lock_two(inode, dir);
        if !removable(&state) {
            return Ok(false);
        }
        let now = self.env.now();
        changes.push(bucket.remove(name));
        changes.extend(item_deletions(inode.ino, kind, size));
        changes.push(change_dir(dir, &mut parent_state, -1, 0, now));
        self.apply_changes(changes, -1)?;
        (state.item.nlink, state.deleted) = (0, true);
        drop((state, parent_state));
        // No page behind the end is cached, and a small file is not looked for in the whole cache.
        self.drop_frames(inode, PageNr(0), PageNr(self.page_size().pages_for(size)));
        self.inodes.forget(inode.ino);
        Ok(true)
    }

    /// Changes that free all of a small file; `None` if it is not small, or its map cannot be read: that
    /// must not keep its name from being removed. The caller holds all of its pages.
    fn free_small(&self, inode: &Inode, size: u64, blocks: u64) -> Option<Vec<Change>> {
        let pages = self.page_size().pages_for(size);
        if pages > SMALL_FILE_PAGES {
            return None;
        }
        let mut entries = vec![PageEntry::Hole; pages as usize];
        self.meta.pages(inode.ino, PageNr(0), &mut entries).ok()?;
        let frees = free_changes(&entries);
        // More blocks than these are behind the end.
        if frees.len() > SMALL_FILE_RUNS || freed_blocks(&frees) as u64 != blocks {
            return None;
        }
        let unmap = Change::Unmap { ino: inode.ino, page: PageNr(0), pages: u64::MAX / 4 };
        Some(std::iter::once(unmap).chain(frees).collect())
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
        drop(admitted);
        self.finish_truncation(&inode)
    }
}

/// Deletes the items of an inode, except for its map.
fn item_deletions(ino: Ino, kind: FileType, size: u64) -> impl Iterator<Item = Change> {
    let target = if kind == FileType::Symlink { size as usize } else { 0 };
    let keys = std::iter::once(Key::new(ino, ItemKind::Inode, 0)).chain(symlink_keys(ino, target));
    keys.map(|key| Change::DelItem { key })
}
