//! A file system in memory that remembers what it was asked, and can be made to wait or panic.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use fs_core::api::{
    Attr, DirEntry, Fallocate, FileType, FsOps, IoFlags, Owner, RenameFlags, Seek, SetAttr, SetTime, StatFs,
    Timestamp, XattrFlags,
};
use fs_core::{FsError, Ino, Result};
use parking_lot::{Mutex, RwLock};

/// A request that tests look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Open(Ino),
    Close(Ino),
    Read { ino: Ino, offset: u64, len: usize, flags: IoFlags },
    Write { ino: Ino, offset: u64, len: usize, flags: IoFlags },
    CopyRange { from: Ino, from_offset: u64, to: Ino, to_offset: u64, len: u64 },
    Fsync { ino: Ino, datasync: bool },
    Rename(RenameFlags),
    Setxattr(XattrFlags),
    Lookup(Vec<u8>),
    Getattr(Ino),
}

struct Node {
    attr: Attr,
    data: Vec<u8>,
    /// Names in the order of their making, and where each name stands.
    entries: BTreeMap<u64, (Vec<u8>, Ino)>,
    places: HashMap<Vec<u8>, u64>,
    parent: Ino,
    opens: u32,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<Ino, Node>,
    last_ino: u64,
    last_place: u64,
    clock: i64,
}

type Hook = Box<dyn Fn(&Event) + Send + Sync>;

pub struct MemFs {
    state: Mutex<State>,
    events: Mutex<Vec<Event>>,
    hook: RwLock<Option<Hook>>,
    pub lookups: AtomicU64,
}

/// First cookie of a real entry; "." and ".." come before.
const FIRST_PLACE: u64 = 16;

impl MemFs {
    pub fn new() -> Self {
        let mut state = State { last_ino: Ino::FIRST_FREE.0, last_place: FIRST_PLACE, ..State::default() };
        state.clock = 1_000_000_000;
        let mut root = state.node(FileType::Directory, 0o777, Owner::new(0, 0));
        root.attr.ino = Ino::ROOT;
        root.attr.nlink = 2;
        root.parent = Ino::ROOT;
        state.nodes.insert(Ino::ROOT, root);
        Self {
            state: Mutex::new(state),
            events: Mutex::default(),
            hook: RwLock::default(),
            lookups: AtomicU64::new(0),
        }
    }

    /// Calls `hook` at the start of each request that is an [`Event`].
    pub fn set_hook(&self, hook: impl Fn(&Event) + Send + Sync + 'static) {
        *self.hook.write() = Some(Box::new(hook));
    }

    /// What was asked since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock())
    }

    /// Number of inodes, and of opens.
    pub fn counts(&self) -> (usize, u32) {
        let state = self.state.lock();
        (state.nodes.len(), state.nodes.values().map(|n| n.opens).sum())
    }

    fn note(&self, event: Event) {
        if let Some(hook) = &*self.hook.read() {
            hook(&event);
        }
        self.events.lock().push(event);
    }
}

impl State {
    fn now(&mut self) -> Timestamp {
        self.clock += 1;
        Timestamp { secs: self.clock, nanos: 123_456_789 }
    }

    fn node(&mut self, kind: FileType, perm: u32, owner: Owner) -> Node {
        self.last_ino += 1;
        let now = self.now();
        let attr = Attr {
            ino: Ino(self.last_ino),
            generation: 0,
            kind,
            perm: perm & !owner.umask,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: owner.uid,
            gid: owner.gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
        };
        Node {
            attr,
            data: Vec::new(),
            entries: BTreeMap::new(),
            places: HashMap::new(),
            parent: Ino::ROOT,
            opens: 0,
            xattrs: BTreeMap::new(),
        }
    }

    fn get(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(FsError::STALE)
    }

    fn find(&mut self, dir: Ino, name: &[u8]) -> Result<Ino> {
        let dir = self.get(dir)?;
        let place = dir.places.get(name).ok_or(FsError::NOT_FOUND)?;
        Ok(dir.entries[place].1)
    }

    fn add_name(&mut self, dir: Ino, name: &[u8], ino: Ino) -> Result<()> {
        if name.len() > 255 {
            return Err(FsError::NAME_TOO_LONG);
        }
        self.last_place += 1;
        let (place, now) = (self.last_place, self.now());
        let dir = self.get(dir)?;
        if dir.places.contains_key(name) {
            return Err(FsError::EXISTS);
        }
        dir.places.insert(name.to_vec(), place);
        dir.entries.insert(place, (name.to_vec(), ino));
        (dir.attr.mtime, dir.attr.ctime) = (now, now);
        Ok(())
    }

    fn drop_name(&mut self, dir: Ino, name: &[u8]) -> Result<Ino> {
        let now = self.now();
        let dir = self.get(dir)?;
        let place = dir.places.remove(name).ok_or(FsError::NOT_FOUND)?;
        (dir.attr.mtime, dir.attr.ctime) = (now, now);
        Ok(dir.entries.remove(&place).expect("a place has an entry").1)
    }

    fn add_node(&mut self, dir: Ino, name: &[u8], mut node: Node) -> Result<Attr> {
        node.parent = dir;
        self.add_name(dir, name, node.attr.ino)?;
        if node.attr.kind == FileType::Directory {
            self.get(dir)?.attr.nlink += 1;
        }
        let attr = node.attr.clone();
        self.nodes.insert(attr.ino, node);
        Ok(attr)
    }

    fn unlink(&mut self, dir: Ino, name: &[u8]) -> Result<()> {
        let ino = self.drop_name(dir, name)?;
        let now = self.now();
        let node = self.get(ino)?;
        node.attr.nlink -= 1;
        node.attr.ctime = now;
        self.reap(ino);
        Ok(())
    }

    fn rmdir(&mut self, dir: Ino, name: &[u8]) -> Result<()> {
        let ino = self.find(dir, name)?;
        if !self.get(ino)?.entries.is_empty() {
            return Err(FsError::NOT_EMPTY);
        }
        self.drop_name(dir, name)?;
        self.get(dir)?.attr.nlink -= 1;
        self.get(ino)?.attr.nlink = 0;
        self.reap(ino);
        Ok(())
    }

    /// Frees an inode that nothing leads to any more.
    fn reap(&mut self, ino: Ino) {
        if self.nodes.get(&ino).is_some_and(|n| n.attr.nlink == 0 && n.opens == 0) {
            self.nodes.remove(&ino);
        }
    }

    fn resize(&mut self, ino: Ino, size: u64) -> Result<()> {
        let node = self.get(ino)?;
        node.data.resize(size as usize, 0);
        node.attr.size = size;
        node.attr.blocks = size.div_ceil(4096) * 8;
        Ok(())
    }
}

impl FsOps for MemFs {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        self.note(Event::Lookup(name.to_vec()));
        let mut s = self.state.lock();
        let ino = s.find(parent, name)?;
        Ok(s.get(ino)?.attr.clone())
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.note(Event::Getattr(ino));
        Ok(self.state.lock().get(ino)?.attr.clone())
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let mut s = self.state.lock();
        let now = s.now();
        if let Some(size) = changes.size {
            s.resize(ino, size)?;
            s.get(ino)?.attr.mtime = now;
        }
        let attr = &mut s.get(ino)?.attr;
        attr.perm = changes.perm.unwrap_or(attr.perm);
        attr.uid = changes.uid.unwrap_or(attr.uid);
        attr.gid = changes.gid.unwrap_or(attr.gid);
        if changes.uid.is_some() || changes.gid.is_some() || changes.kill_priv {
            attr.perm &= !0o6000;
        }
        attr.ctime = now;
        for (field, change) in [(&mut attr.atime, changes.atime), (&mut attr.mtime, changes.mtime)] {
            match change {
                Some(SetTime::Now) => *field = now,
                Some(SetTime::At(t)) => *field = t,
                None => {}
            }
        }
        Ok(attr.clone())
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        Ok(self.state.lock().get(ino)?.data.clone())
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
        let mut s = self.state.lock();
        let mut node = s.node(kind, perm, owner);
        node.attr.rdev = rdev;
        s.add_node(parent, name, node)
    }

    fn mkdir(&self, parent: Ino, name: &[u8], perm: u32, owner: Owner) -> Result<Attr> {
        let mut s = self.state.lock();
        let node = s.node(FileType::Directory, perm, owner);
        s.add_node(parent, name, node)
    }

    fn symlink(&self, parent: Ino, name: &[u8], target: &[u8], owner: Owner) -> Result<Attr> {
        let mut s = self.state.lock();
        let mut node = s.node(FileType::Symlink, 0o777, owner);
        node.data = target.to_vec();
        node.attr.size = target.len() as u64;
        s.add_node(parent, name, node)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let mut s = self.state.lock();
        s.get(ino)?;
        s.add_name(parent, name, ino)?;
        let node = s.get(ino)?;
        node.attr.nlink += 1;
        Ok(node.attr.clone())
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.state.lock().unlink(parent, name)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.state.lock().rmdir(parent, name)
    }

    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        self.note(Event::Rename(flags));
        let mut s = self.state.lock();
        let ino = s.find(parent, name)?;
        let old = s.find(new_parent, new_name).ok();
        if flags.exchange {
            let old = old.ok_or(FsError::NOT_FOUND)?;
            s.drop_name(parent, name)?;
            s.drop_name(new_parent, new_name)?;
            s.add_name(parent, name, old)?;
            return s.add_name(new_parent, new_name, ino);
        }
        match old {
            Some(_) if flags.no_replace => return Err(FsError::EXISTS),
            Some(old) if s.get(old)?.attr.kind == FileType::Directory => s.rmdir(new_parent, new_name)?,
            Some(_) => s.unlink(new_parent, new_name)?,
            None => {}
        }
        s.drop_name(parent, name)?;
        s.add_name(new_parent, new_name, ino)
    }

    fn open(&self, ino: Ino) -> Result<Attr> {
        self.note(Event::Open(ino));
        let mut s = self.state.lock();
        let node = s.get(ino)?;
        node.opens += 1;
        Ok(node.attr.clone())
    }

    fn create(&self, parent: Ino, name: &[u8], perm: u32, owner: Owner) -> Result<Attr> {
        let mut s = self.state.lock();
        let mut node = s.node(FileType::Regular, perm, owner);
        node.opens = 1;
        s.add_node(parent, name, node)
    }

    fn tmpfile(&self, _parent: Ino, perm: u32, owner: Owner) -> Result<Attr> {
        let mut state = self.state.lock();
        let mut node = state.node(FileType::Regular, perm, owner);
        node.attr.nlink = 0;
        node.opens = 1;
        let attr = node.attr.clone();
        state.nodes.insert(attr.ino, node);
        Ok(attr)
    }

    fn close(&self, ino: Ino) {
        self.note(Event::Close(ino));
        let mut s = self.state.lock();
        if let Ok(node) = s.get(ino) {
            node.opens -= 1;
        }
        s.reap(ino);
    }

    fn read(&self, ino: Ino, offset: u64, buf: &mut [u8], flags: IoFlags) -> Result<usize> {
        self.note(Event::Read { ino, offset, len: buf.len(), flags });
        let mut s = self.state.lock();
        let data = &s.get(ino)?.data;
        let rest = data.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], flags: IoFlags) -> Result<usize> {
        self.note(Event::Write { ino, offset, len: data.len(), flags });
        let mut s = self.state.lock();
        let now = s.now();
        let end = offset as usize + data.len();
        if s.get(ino)?.data.len() < end {
            s.resize(ino, end as u64)?;
        }
        let node = s.get(ino)?;
        node.data[offset as usize..end].copy_from_slice(data);
        (node.attr.mtime, node.attr.ctime) = (now, now);
        if flags.kill_priv {
            node.attr.perm &= !0o6000;
        }
        Ok(data.len())
    }

    fn fsync(&self, ino: Ino, datasync: bool) -> Result<()> {
        self.note(Event::Fsync { ino, datasync });
        Ok(())
    }

    fn fallocate(&self, ino: Ino, mode: Fallocate, offset: u64, len: u64) -> Result<()> {
        let mut s = self.state.lock();
        let end = offset + len;
        if matches!(mode, Fallocate::Allocate | Fallocate::ZeroRange) && s.get(ino)?.attr.size < end {
            s.resize(ino, end)?;
        }
        if !matches!(mode, Fallocate::Allocate | Fallocate::KeepSize) {
            let data = &mut s.get(ino)?.data;
            let size = data.len();
            data[size.min(offset as usize)..size.min(end as usize)].fill(0);
        }
        Ok(())
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        self.note(Event::Setxattr(flags));
        let mut state = self.state.lock();
        state.get(ino)?.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let mut state = self.state.lock();
        state.get(ino)?.xattrs.get(name).cloned().ok_or(FsError::NO_ATTRIBUTE)
    }

    fn listxattr(&self, ino: Ino, trusted: bool) -> Result<Vec<u8>> {
        let mut state = self.state.lock();
        let names = state.get(ino)?.xattrs.keys().filter(|n| trusted || !n.starts_with(b"trusted."));
        Ok(names.flat_map(|n| [n.as_slice(), &[0]].concat()).collect())
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        state.get(ino)?.xattrs.remove(name).map(drop).ok_or(FsError::NO_ATTRIBUTE)
    }

    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64> {
        let mut s = self.state.lock();
        let data = &s.get(ino)?.data;
        let rest = data.get(offset as usize..).filter(|rest| !rest.is_empty()).ok_or(FsError::NO_OFFSET)?;
        let found = rest.iter().position(|b| (*b != 0) == (what == Seek::Data));
        match (found, what) {
            (Some(at), _) => Ok(offset + at as u64),
            (None, Seek::Hole) => Ok(data.len() as u64),
            (None, Seek::Data) => Err(FsError::NO_OFFSET),
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
        self.note(Event::CopyRange { from, from_offset, to, to_offset, len });
        let mut buf = vec![0; len as usize];
        let n = self.read(from, from_offset, &mut buf, IoFlags::default())?;
        self.write(to, to_offset, &buf[..n], flags).map(|n| n as u64)
    }

    fn readdir(&self, ino: Ino, cookie: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        let mut s = self.state.lock();
        let node = s.get(ino)?;
        let parent = node.parent;
        let dots = [(1, b".".to_vec(), ino), (2, b"..".to_vec(), parent)];
        let names = node.entries.iter().map(|(place, (name, ino))| (*place, name.clone(), *ino));
        let all: Vec<_> = dots.into_iter().chain(names).filter(|(place, ..)| *place > cookie).collect();
        for (place, name, ino) in all {
            let kind = s.get(ino)?.attr.kind;
            if !emit(&DirEntry { ino, kind, next_cookie: place, name }) {
                break;
            }
        }
        Ok(())
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs {
            block_size: 4096,
            blocks: 1000,
            bfree: 900,
            bavail: 800,
            files: 70,
            ffree: 60,
            namelen: 255,
        })
    }

    fn sync_all(&self) -> Result<()> {
        Ok(())
    }
}
