//! The executable reference model: what the file system is, without a disk.

mod content;
mod rename;
mod state;
#[cfg(test)]
mod tests;
mod xattr;

use std::collections::BTreeMap;
use std::sync::Arc;

use fs_core::api::{
    Attr, DirEntry, Fallocate, FileType, FsOps, IoFlags, Owner, RenameFlags, Seek, SetAttr, StatFs,
    Timestamp, XattrFlags,
};
use fs_core::env::Env;
use fs_core::{FsError, Ino, Result};
use parking_lot::Mutex;

pub use content::Content;
pub use rename::Place;
pub use state::{Body, MAX_FILE_SIZE, NAME_MAX, Node, State, TARGET_MAX};
pub(crate) use xattr::CAPABILITY;

use crate::clock::Clock;

/// The model as a file system.
pub struct ModelFs {
    state: Mutex<State>,
    clock: Arc<Clock>,
}

impl ModelFs {
    /// A model that continues from `state`.
    pub fn new(state: State, clock: Arc<Clock>) -> Self {
        Self { state: Mutex::new(state), clock }
    }

    /// The state now; inodes are shared, not copied.
    pub fn snapshot(&self) -> State {
        self.state.lock().clone()
    }

    /// The file system has taken the capability of a file for a change that it then refused.
    pub fn lose_capability(&self, ino: Ino) {
        let now = self.now();
        if let Ok(node) = self.state.lock().node_mut(ino) {
            node.drop_capability();
            node.ctime = now;
        }
    }

    /// Ends every open, as unmounting does.
    pub fn close_all(&self) {
        self.state.lock().close_all();
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn make(&self, parent: Ino, name: &[u8], node: Node) -> Result<Attr> {
        let mut state = self.state.lock();
        let ino = state.make(parent, name, node)?;
        Ok(state.node(ino)?.attr(ino))
    }
}

fn end_of(offset: u64, len: u64) -> Result<u64> {
    offset.checked_add(len).filter(|end| *end <= MAX_FILE_SIZE).ok_or(FsError::TOO_BIG)
}

impl FsOps for ModelFs {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let state = self.state.lock();
        let ino = state.lookup(parent, name)?;
        Ok(state.node(ino)?.attr(ino))
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        Ok(self.state.lock().node(ino)?.attr(ino))
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let mut state = self.state.lock();
        state.setattr(ino, changes, self.now())?;
        Ok(state.node(ino)?.attr(ino))
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        match &self.state.lock().node(ino)?.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(FsError::INVALID),
        }
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
        let (body, rdev) = match kind {
            FileType::Regular => (Body::File(Content::default()), 0),
            FileType::BlockDevice | FileType::CharDevice => (Body::Special, rdev),
            FileType::Fifo | FileType::Socket => (Body::Special, 0),
            FileType::Directory | FileType::Symlink => return Err(FsError::INVALID),
        };
        let mut node = Node::new(kind, perm, owner, body, self.now());
        node.rdev = rdev;
        self.make(parent, name, node)
    }

    fn mkdir(&self, parent: Ino, name: &[u8], perm: u32, owner: Owner) -> Result<Attr> {
        let body = Body::Dir { entries: BTreeMap::new(), parent };
        self.make(parent, name, Node::new(FileType::Directory, perm, owner, body, self.now()))
    }

    fn symlink(&self, parent: Ino, name: &[u8], target: &[u8], owner: Owner) -> Result<Attr> {
        if target.is_empty() {
            return Err(FsError::NOT_FOUND);
        }
        if target.len() > TARGET_MAX {
            return Err(FsError::NAME_TOO_LONG);
        }
        let body = Body::Symlink(target.to_vec());
        self.make(parent, name, Node::new(FileType::Symlink, 0o777, owner, body, self.now()))
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let mut state = self.state.lock();
        let node = state.node(ino)?;
        let (is_dir, may_link) = (node.is_dir(), node.nlink > 0 || node.linkable);
        state.check_new(parent, name)?;
        if is_dir {
            return Err(FsError::NOT_PERMITTED);
        }
        if !may_link {
            return Err(FsError::NOT_FOUND);
        }
        let now = self.now();
        state.add_entry(parent, name, ino, now)?;
        let node = state.node_mut(ino)?;
        node.nlink += 1;
        node.linkable = false;
        node.ctime = now;
        Ok(node.attr(ino))
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        let ino = state.lookup(parent, name)?;
        if state.node(ino)?.is_dir() {
            return Err(FsError::IS_DIR);
        }
        state.remove_entry(parent, name, self.now())?;
        state.drop_link(ino, self.now())
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        let ino = state.lookup(parent, name)?;
        if !state.dir(ino)?.is_empty() {
            return Err(FsError::NOT_EMPTY);
        }
        state.remove_entry(parent, name, self.now())?;
        state.node_mut(parent)?.nlink -= 1;
        state.drop_link(ino, self.now())
    }

    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        let from = Place { dir: parent, name };
        let to = Place { dir: new_parent, name: new_name };
        self.state.lock().rename(from, to, flags, self.now())
    }

    fn open(&self, ino: Ino) -> Result<Attr> {
        let mut state = self.state.lock();
        state.open(ino)?;
        Ok(state.node(ino)?.attr(ino))
    }

    fn create(&self, parent: Ino, name: &[u8], perm: u32, owner: Owner) -> Result<Attr> {
        let body = Body::File(Content::default());
        let attr = self.make(parent, name, Node::new(FileType::Regular, perm, owner, body, self.now()))?;
        self.state.lock().open(attr.ino)?;
        Ok(attr)
    }

    fn tmpfile(&self, parent: Ino, perm: u32, owner: Owner) -> Result<Attr> {
        let node = Node::new(FileType::Regular, perm, owner, Body::File(Content::default()), self.now());
        let mut state = self.state.lock();
        let ino = state.make_nameless(parent, node)?;
        state.open(ino)?;
        Ok(state.node(ino)?.attr(ino))
    }

    fn close(&self, ino: Ino) {
        self.state.lock().close(ino);
    }

    fn read(&self, ino: Ino, offset: u64, buf: &mut [u8], _flags: IoFlags) -> Result<usize> {
        Ok(self.state.lock().file(ino)?.read(offset, buf))
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], flags: IoFlags) -> Result<usize> {
        let mut state = self.state.lock();
        state.file(ino)?;
        if data.is_empty() {
            return Ok(0);
        }
        end_of(offset, data.len() as u64)?;
        state.content_mut(ino)?.write(offset, &Arc::from(data));
        let now = self.now();
        let node = state.node_mut(ino)?;
        (node.mtime, node.ctime) = (now, now);
        node.drop_capability();
        if flags.kill_priv {
            node.drop_privileges();
        }
        Ok(data.len())
    }

    fn fsync(&self, ino: Ino, _datasync: bool) -> Result<()> {
        self.state.lock().node(ino).map(|_| ())
    }

    fn fallocate(&self, ino: Ino, mode: Fallocate, offset: u64, len: u64) -> Result<()> {
        let mut state = self.state.lock();
        let size = state.file(ino)?.size();
        if len == 0 {
            return Err(FsError::INVALID);
        }
        let end = end_of(offset, len)?;
        let now = self.now();
        let content = state.content_mut(ino)?;
        if !matches!(mode, Fallocate::Allocate | Fallocate::KeepSize) {
            content.zero(offset..end);
        }
        if matches!(mode, Fallocate::Allocate | Fallocate::ZeroRange) && end > size {
            content.set_size(end);
        }
        // As file_modified() of Linux, which every fallocate calls.
        let node = state.node_mut(ino)?;
        (node.mtime, node.ctime) = (now, now);
        node.drop_capability();
        Ok(())
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        self.state.lock().set_attribute(ino, name, value, flags, self.now())
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.state.lock().attribute(ino, name)
    }

    fn listxattr(&self, ino: Ino, trusted: bool) -> Result<Vec<u8>> {
        Ok(self.state.lock().node(ino)?.attribute_names(trusted))
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.state.lock().remove_attribute(ino, name, self.now())
    }

    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64> {
        let state = self.state.lock();
        let content = state.file(ino)?;
        if offset >= content.size() {
            return Err(FsError::NO_OFFSET);
        }
        match what {
            Seek::Data => content.next_data(offset).ok_or(FsError::NO_OFFSET),
            Seek::Hole => Ok(content.next_hole(offset)),
        }
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
        let data = {
            let state = self.state.lock();
            state.file(to)?;
            let fits = |offset: u64| offset.checked_add(len).is_some_and(|end| end <= MAX_FILE_SIZE);
            let size = state.file(from)?.size();
            if !fits(from_offset) || !fits(to_offset) {
                return Err(FsError::OVERFLOW);
            }
            let len = len.min(size.saturating_sub(from_offset));
            if from == to && from_offset < to_offset + len && to_offset < from_offset + len {
                return Err(FsError::INVALID);
            }
            let mut data = vec![0; len as usize];
            state.file(from)?.copy_to(from_offset, &mut data);
            data
        };
        self.write(to, to_offset, &data, flags).map(|n| n as u64)
    }

    fn readdir(&self, ino: Ino, cookie: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        let entries = {
            let state = self.state.lock();
            list(&state, ino)?
        };
        for entry in entries.iter().skip(cookie as usize) {
            if !emit(entry) {
                break;
            }
        }
        Ok(())
    }

    fn statfs(&self) -> Result<StatFs> {
        let used = self.state.lock().nodes.len() as u64;
        let (blocks, files) = (1 << 30, 1 << 30);
        Ok(StatFs {
            block_size: 4096,
            blocks,
            bfree: blocks,
            bavail: blocks,
            files,
            ffree: files - used,
            namelen: NAME_MAX as u32,
        })
    }

    fn sync_all(&self) -> Result<()> {
        Ok(())
    }
}

fn list(state: &State, ino: Ino) -> Result<Vec<DirEntry>> {
    let Body::Dir { entries, parent } = &state.node(ino)?.body else { return Err(FsError::NOT_DIR) };
    let dots = [(b".".to_vec(), ino), (b"..".to_vec(), *parent)];
    let names = entries.iter().map(|(name, ino)| (name.clone(), *ino));
    let entry = |(i, (name, ino)): (usize, (Vec<u8>, Ino))| {
        let kind = state.get(ino).map_or(FileType::Directory, |n| n.kind);
        DirEntry { ino, kind, next_cookie: i as u64 + 1, name }
    };
    Ok(dots.into_iter().chain(names).enumerate().map(entry).collect())
}
