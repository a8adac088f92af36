//! [`FsOps`] for a mounted volume: finds the inodes, then calls the part that does it.

use super::Inode;
use super::names::{NewInode, symlink_keys};
use crate::alloc::Purpose;
use crate::api::{
    Attr, DirEntry, Fallocate, FileType, FsOps, IoFlags, Owner, RenameFlags, Seek, SetAttr, StatFs,
    XattrFlags,
};
use crate::error::{FsError, Result};
use crate::stats::{Call, CallTimer, FileClass};
use crate::types::{BLOCK_SIZE, Ino};
use crate::volume::Volume;

impl FsOps for Volume {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let _names = self.names_shared();
        let dir = self.directory(parent)?;
        let ino = match name {
            b"." => parent,
            b".." => dir.state.lock().item.parent,
            _ => self.find_name(parent, name)?.ino,
        };
        Ok(self.inodes.get(&self.meta, ino)?.attr())
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let inode = self.inodes.get(&self.meta, ino)?;
        let deleted = inode.state.lock().deleted;
        if deleted { Err(FsError::STALE) } else { Ok(inode.attr()) }
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let inode = self.inodes.get(&self.meta, ino)?;
        self.set_attributes(&inode, changes)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inodes.get(&self.meta, ino)?;
        if inode.kind() != FileType::Symlink {
            return Err(FsError::INVALID);
        }
        let size = inode.state.lock().item.size as usize;
        let mut target = Vec::new();
        for key in symlink_keys(ino, size) {
            target.extend_from_slice(&self.meta.item(&key)?.ok_or(FsError::STALE)?);
        }
        Ok(target)
    }

    fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        kind: FileType,
        perm: u32,
        rdev: u32,
        owner: Owner,
    ) -> Result<Attr> {
        if matches!(kind, FileType::Directory | FileType::Symlink) {
            return Err(FsError::INVALID);
        }
        let _call = self.name_call(Call::Create, parent);
        self.make(
            parent,
            name,
            &NewInode { kind, perm, rdev, owner, target: None, open: false, nameless: false },
        )
    }

    fn mkdir(&self, parent: Ino, name: &[u8], perm: u32, owner: Owner) -> Result<Attr> {
        let _call = self.name_call(Call::Create, parent);
        let kind = FileType::Directory;
        self.make(
            parent,
            name,
            &NewInode { kind, perm, rdev: 0, owner, target: None, open: false, nameless: false },
        )
    }

    fn symlink(&self, parent: Ino, name: &[u8], target: &[u8], owner: Owner) -> Result<Attr> {
        if target.is_empty() {
            return Err(FsError::NOT_FOUND);
        }
        let _call = self.name_call(Call::Create, parent);
        let new = NewInode {
            kind: FileType::Symlink,
            perm: 0o777,
            rdev: 0,
            owner,
            target: Some(target),
            open: false,
            nameless: false,
        };
        self.make(parent, name, &new)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let _call = self.name_call(Call::Create, parent);
        self.make_link(ino, parent, name)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let _call = self.name_call(Call::Unlink, parent);
        self.remove_file(parent, name)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let _call = self.name_call(Call::Unlink, parent);
        self.remove_dir(parent, name)
    }

    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        let _call = self.name_call(Call::Rename, parent);
        self.rename_name(parent, name, new_parent, new_name, flags)
    }

    fn open(&self, ino: Ino) -> Result<Attr> {
        let _call = self.name_call(Call::Open, ino);
        let inode = self.inodes.get(&self.meta, ino)?;
        let mut state = inode.state.lock();
        if state.deleted {
            return Err(FsError::STALE);
        }
        state.opens += 1;
        Ok(state.attr(ino))
    }

    fn create(&self, parent: Ino, name: &[u8], perm: u32, owner: Owner) -> Result<Attr> {
        let _call = self.name_call(Call::Create, parent);
        let kind = FileType::Regular;
        self.make(
            parent,
            name,
            &NewInode { kind, perm, rdev: 0, owner, target: None, open: true, nameless: false },
        )
    }

    fn tmpfile(&self, parent: Ino, perm: u32, owner: Owner) -> Result<Attr> {
        let _call = self.name_call(Call::Create, parent);
        self.make_tmpfile(parent, perm, owner)
    }

    fn close(&self, ino: Ino) {
        if let Err(e) = self.close_inode(ino) {
            tracing::warn!(error = %e, ino = ino.0, "an unlinked file could not be freed; the next mount will do it");
        }
    }

    fn read(&self, ino: Ino, offset: u64, buf: &mut [u8], flags: IoFlags) -> Result<usize> {
        let inode = self.inodes.get(&self.meta, ino)?;
        let class = inode.usage.class();
        let _call = self.stats.call(Call::Read, ino, class, false);
        let n = self.read_file(&inode, offset, buf, flags)?;
        self.stats.count_read(class, n);
        Ok(n)
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], flags: IoFlags) -> Result<usize> {
        let inode = self.inodes.get(&self.meta, ino)?;
        let _call = self.write_call(&inode, offset, data.len(), flags.dsync);
        self.drop_capability(&inode)?;
        let n = self.write_attended(&inode, offset, data, flags)?;
        self.stats.count_written(inode.usage.class(), n);
        Ok(n)
    }

    fn write_back(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        let inode = self.inodes.get(&self.meta, ino)?;
        let _call = self.write_call(&inode, offset, data.len(), false);
        let n = self.write_unattended(&inode, offset, data)?;
        self.stats.count_written(inode.usage.class(), n);
        Ok(n)
    }

    fn fsync(&self, ino: Ino, datasync: bool) -> Result<()> {
        let inode = self.inodes.get(&self.meta, ino)?;
        inode.usage.note_sync();
        let _call = self.stats.call(Call::Fsync, ino, inode.usage.class(), true);
        self.sync_file(&inode, datasync)
    }

    fn fallocate(&self, ino: Ino, mode: Fallocate, offset: u64, len: u64) -> Result<()> {
        let inode = self.inodes.get(&self.meta, ino)?;
        self.drop_capability(&inode)?;
        self.allocate_file(&inode, mode, offset, len)
    }

    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64> {
        let inode = self.inodes.get(&self.meta, ino)?;
        self.seek_file(&inode, offset, what)
    }

    fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        flags: IoFlags,
    ) -> Result<u64> {
        let from = self.inodes.get(&self.meta, from)?;
        let to = self.inodes.get(&self.meta, to)?;
        self.copy_file_range((&from, from_offset), (&to, to_offset), len, flags)
    }

    fn readdir(&self, ino: Ino, cookie: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        let inode = self.inodes.get(&self.meta, ino)?;
        self.list(&inode, cookie, emit)
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        let inode = self.inodes.get(&self.meta, ino)?;
        self.set_xattr(&inode, name, value, flags)
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let inode = self.inodes.get(&self.meta, ino)?;
        self.get_xattr(&inode, name)
    }

    fn listxattr(&self, ino: Ino, trusted: bool) -> Result<Vec<u8>> {
        let inode = self.inodes.get(&self.meta, ino)?;
        self.list_xattrs(&inode, trusted)
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let inode = self.inodes.get(&self.meta, ino)?;
        self.remove_xattr(&inode, name)
    }

    fn statfs(&self) -> Result<StatFs> {
        let (inodes, next_ino) = self.meta.inode_numbers();
        let sb = &self.superblock;
        let alloc = &self.space.alloc;
        let journals = u64::from(sb.journal_groups) * u64::from(sb.group_blocks);
        let total =
            (self.total_blocks() - sb.first_data_block.0).saturating_sub(journals + alloc.room_blocks());
        // What is set aside for nodes comes back with the next checkpoint, but for a few.
        let free = alloc.available_blocks(Purpose::Essential) + alloc.limbo_blocks() + self.admissions.held();
        let free = free.saturating_sub(sb.reserve_blocks);
        // Every inode takes some metadata: an estimate of how many more would fit, as XFS gives it.
        let ffree = (free * (BLOCK_SIZE as u64 / 512)).min(u64::MAX - next_ino.0);
        Ok(StatFs {
            block_size: BLOCK_SIZE as u32,
            blocks: total.saturating_sub(sb.reserve_blocks),
            bfree: free,
            bavail: free,
            files: inodes + ffree,
            ffree,
            namelen: crate::format::dirent::NAME_MAX as u32,
        })
    }

    fn sync_all(&self) -> Result<()> {
        if self.read_only() {
            return Ok(());
        }
        self.sync_everything()?;
        self.check_nothing_lost()
    }
}

impl Volume {
    /// A call begins that is about names.
    fn name_call(&self, call: Call, ino: Ino) -> CallTimer<'_> {
        self.stats.call(call, ino, FileClass::Other, false)
    }

    /// A write begins.
    fn write_call(&self, inode: &Inode, offset: u64, len: usize, durable: bool) -> CallTimer<'_> {
        inode.usage.note_write(offset, len as u64);
        if durable {
            inode.usage.note_sync();
        }
        self.stats.call(Call::Write, inode.ino, inode.usage.class(), durable)
    }

    /// Makes everything durable.
    pub(crate) fn sync_everything(&self) -> Result<()> {
        if let Some(reason) = self.failure() {
            return Err(FsError::CommitFailed(reason));
        }
        self.writeback_all()?;
        self.commit()
    }
}
