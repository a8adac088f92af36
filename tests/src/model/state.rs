//! The state of the reference model: plain maps, one step per operation, no cleverness.

use std::collections::BTreeMap;
use std::sync::Arc;

use fs_core::api::{Attr, FileType, Owner, SetAttr, SetTime, Timestamp};
use fs_core::{FsError, Ino, Result};

use super::content::Content;

/// Longest name in bytes.
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link in bytes.
pub const TARGET_MAX: usize = 4095;
/// Largest file in bytes.
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o0010;

/// What an inode is made of, besides its attributes.
#[derive(Clone, Debug)]
pub enum Body {
    /// Regular file.
    File(Content),
    /// Directory.
    Dir {
        /// Names and where they lead.
        entries: BTreeMap<Vec<u8>, Ino>,
        /// Where ".." leads.
        parent: Ino,
    },
    /// Symbolic link.
    Symlink(Vec<u8>),
    /// Device, fifo or socket.
    Special,
}

/// One inode.
#[derive(Clone, Debug)]
pub struct Node {
    /// Type.
    pub kind: FileType,
    /// Permission bits (07777).
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Number of names.
    pub nlink: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Arc<[u8]>>,
    /// It was made without a name and may get one.
    pub linkable: bool,
    /// Permission bits that it does not get, if its directory has no default list.
    pub umask: u32,
    /// The rest.
    pub body: Body,
}

impl Node {
    /// A new inode as [`State::make`] makes it, before its parent has a say.
    pub fn new(kind: FileType, perm: u32, owner: Owner, body: Body, now: Timestamp) -> Self {
        let nlink = if kind == FileType::Directory { 2 } else { 1 };
        let (uid, gid) = (owner.uid, owner.gid);
        let (atime, mtime, ctime, btime) = (now, now, now, now);
        Self {
            kind,
            perm: perm & 0o7777,
            uid,
            gid,
            rdev: 0,
            nlink,
            atime,
            mtime,
            ctime,
            btime,
            xattrs: BTreeMap::new(),
            linkable: false,
            umask: owner.umask,
            body,
        }
    }

    /// Size as stat(2) tells it (of a directory: 0, nobody relies on it).
    pub fn size(&self) -> u64 {
        match &self.body {
            Body::File(content) => content.size(),
            Body::Symlink(target) => target.len() as u64,
            Body::Dir { .. } | Body::Special => 0,
        }
    }

    /// Content of a regular file.
    pub fn content(&self) -> Option<&Content> {
        match &self.body {
            Body::File(content) => Some(content),
            _ => None,
        }
    }

    /// Entries of a directory.
    pub fn entries(&self) -> Option<&BTreeMap<Vec<u8>, Ino>> {
        match &self.body {
            Body::Dir { entries, .. } => Some(entries),
            _ => None,
        }
    }

    /// The inode is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Attributes as the interface tells them.
    pub fn attr(&self, ino: Ino) -> Attr {
        Attr {
            ino,
            generation: 0,
            kind: self.kind,
            perm: self.perm,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: self.size(),
            blocks: self.size().div_ceil(512),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
        }
    }

    /// What a write by somebody unprivileged, or a change of the owner, takes away.
    pub fn drop_privileges(&mut self) {
        if self.is_dir() {
            return;
        }
        self.perm &= !SETUID;
        if self.perm & GROUP_EXEC != 0 {
            self.perm &= !SETGID;
        }
    }
}

/// Everything: inodes, how often each is open, and the next number.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) nodes: BTreeMap<Ino, Arc<Node>>,
    pub(super) opens: BTreeMap<Ino, u32>,
    pub(super) next: u64,
}

impl State {
    /// An empty file system as mkfs leaves it.
    pub fn empty(now: Timestamp) -> Self {
        let body = Body::Dir { entries: BTreeMap::new(), parent: Ino::ROOT };
        let root = Node::new(FileType::Directory, 0o755, Owner::new(0, 0), body, now);
        Self::from_nodes(BTreeMap::from([(Ino::ROOT, Arc::new(root))]), Ino::FIRST_FREE.0)
    }

    /// Takes over the attributes that the root was formatted with.
    pub fn adopt_root(&mut self, attr: &Attr) {
        if let Some(root) = self.nodes.get_mut(&Ino::ROOT) {
            let root = Arc::make_mut(root);
            (root.perm, root.uid, root.gid) = (attr.perm, attr.uid, attr.gid);
            (root.atime, root.mtime, root.ctime, root.btime) =
                (attr.atime, attr.mtime, attr.ctime, attr.btime);
        }
    }

    /// A state with these inodes, none of them open; new ones are numbered from `next`.
    pub fn from_nodes(nodes: BTreeMap<Ino, Arc<Node>>, next: u64) -> Self {
        Self { nodes, opens: BTreeMap::new(), next }
    }

    /// The inode, if it exists.
    pub fn get(&self, ino: Ino) -> Option<&Arc<Node>> {
        self.nodes.get(&ino)
    }

    /// All inodes by number, unlinked ones that are open included.
    pub fn nodes(&self) -> &BTreeMap<Ino, Arc<Node>> {
        &self.nodes
    }

    /// Inodes that are open, with the number of opens.
    pub fn opens(&self) -> &BTreeMap<Ino, u32> {
        &self.opens
    }

    /// Number that the next inode gets.
    pub fn next_ino(&self) -> u64 {
        self.next
    }

    pub(super) fn node(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino).map(|n| &**n).ok_or(FsError::STALE)
    }

    pub(super) fn node_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).map(Arc::make_mut).ok_or(FsError::STALE)
    }

    pub(super) fn dir(&self, ino: Ino) -> Result<&BTreeMap<Vec<u8>, Ino>> {
        self.node(ino)?.entries().ok_or(FsError::NOT_DIR)
    }

    pub(super) fn entries_mut(&mut self, ino: Ino) -> Result<&mut BTreeMap<Vec<u8>, Ino>> {
        match &mut self.node_mut(ino)?.body {
            Body::Dir { entries, .. } => Ok(entries),
            _ => Err(FsError::NOT_DIR),
        }
    }

    /// The regular file `ino`.
    pub(super) fn file(&self, ino: Ino) -> Result<&Content> {
        let node = self.node(ino)?;
        match (&node.body, node.kind) {
            (Body::File(content), _) => Ok(content),
            (_, FileType::Directory) => Err(FsError::IS_DIR),
            _ => Err(FsError::INVALID),
        }
    }

    pub(super) fn content_mut(&mut self, ino: Ino) -> Result<&mut Content> {
        self.file(ino)?;
        match &mut self.node_mut(ino)?.body {
            Body::File(content) => Ok(content),
            _ => Err(FsError::INVALID),
        }
    }

    /// Where `name` leads.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Ino> {
        let entries = self.dir(parent)?;
        check_name(name)?;
        entries.get(name).copied().ok_or(FsError::NOT_FOUND)
    }

    /// The name is free and something can be made there.
    pub(super) fn check_new(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let exists = self.dir(parent)?.contains_key(name);
        check_name(name)?;
        if self.node(parent)?.nlink == 0 {
            return Err(FsError::NOT_FOUND);
        }
        if exists { Err(FsError::EXISTS) } else { Ok(()) }
    }

    /// Adds a name, which must be free.
    pub(super) fn add_entry(&mut self, dir: Ino, name: &[u8], ino: Ino, now: Timestamp) -> Result<()> {
        self.entries_mut(dir)?.insert(name.to_vec(), ino);
        self.touch_dir(dir, now)
    }

    /// Removes a name, which must exist.
    pub(super) fn remove_entry(&mut self, dir: Ino, name: &[u8], now: Timestamp) -> Result<()> {
        self.entries_mut(dir)?.remove(name);
        self.touch_dir(dir, now)
    }

    fn touch_dir(&mut self, dir: Ino, now: Timestamp) -> Result<()> {
        let node = self.node_mut(dir)?;
        (node.mtime, node.ctime) = (now, now);
        Ok(())
    }

    /// Makes an inode and its name.
    pub(super) fn make(&mut self, parent: Ino, name: &[u8], mut node: Node) -> Result<Ino> {
        self.check_new(parent, name)?;
        let now = node.btime;
        self.settle(parent, &mut node)?;
        let ino = self.insert(node);
        if self.node(ino)?.is_dir() {
            self.node_mut(parent)?.nlink += 1;
        }
        self.add_entry(parent, name, ino, now)?;
        Ok(ino)
    }

    /// Makes an inode without a name, as it would be made in `parent`.
    pub(super) fn make_nameless(&mut self, parent: Ino, mut node: Node) -> Result<Ino> {
        self.dir(parent)?;
        if self.node(parent)?.nlink == 0 {
            return Err(FsError::NOT_FOUND);
        }
        self.settle(parent, &mut node)?;
        (node.nlink, node.linkable) = (0, true);
        Ok(self.insert(node))
    }

    fn insert(&mut self, node: Node) -> Ino {
        let ino = Ino(self.next);
        self.next += 1;
        self.nodes.insert(ino, Arc::new(node));
        ino
    }

    /// Gives a new inode what its directory has for it.
    fn settle(&self, parent: Ino, node: &mut Node) -> Result<()> {
        let above = self.node(parent)?;
        if above.perm & SETGID != 0 {
            node.gid = above.gid;
            if node.is_dir() {
                node.perm |= SETGID;
            }
        }
        let umask = node.umask;
        node.inherit(above, umask);
        Ok(())
    }

    /// One name fewer for `ino`, which is freed if that was the last and nobody has it open.
    pub(super) fn drop_link(&mut self, ino: Ino, now: Timestamp) -> Result<()> {
        let node = self.node_mut(ino)?;
        node.nlink = if node.is_dir() { 0 } else { node.nlink - 1 };
        node.ctime = now;
        self.reap(ino);
        Ok(())
    }

    fn reap(&mut self, ino: Ino) {
        let unlinked = self.nodes.get(&ino).is_some_and(|n| n.nlink == 0);
        if unlinked && !self.opens.contains_key(&ino) {
            self.nodes.remove(&ino);
        }
    }

    pub(super) fn open(&mut self, ino: Ino) -> Result<()> {
        self.node(ino)?;
        *self.opens.entry(ino).or_default() += 1;
        Ok(())
    }

    pub(super) fn close(&mut self, ino: Ino) {
        if let Some(count) = self.opens.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                self.opens.remove(&ino);
            }
        }
        self.reap(ino);
    }

    /// Closes everything, as the end of a mount does.
    pub(super) fn close_all(&mut self) {
        let open: Vec<Ino> = std::mem::take(&mut self.opens).into_keys().collect();
        open.into_iter().for_each(|ino| self.reap(ino));
    }

    pub(super) fn setattr(&mut self, ino: Ino, changes: &SetAttr, now: Timestamp) -> Result<()> {
        if let Some(size) = changes.size {
            self.file(ino)?;
            if size > MAX_FILE_SIZE {
                return Err(FsError::TOO_BIG);
            }
            let changes_size = self.file(ino)?.size() != size;
            self.content_mut(ino)?.set_size(size);
            let node = self.node_mut(ino)?;
            node.mtime = if changes_size { now } else { node.mtime };
            node.drop_capability();
        }
        let node = self.node_mut(ino)?;
        if changes.uid.is_some() || changes.gid.is_some() {
            node.drop_privileges();
            node.drop_capability();
        }
        node.uid = changes.uid.unwrap_or(node.uid);
        node.gid = changes.gid.unwrap_or(node.gid);
        if let Some(perm) = changes.perm {
            node.chmod(perm);
        }
        if changes.kill_priv {
            node.drop_privileges();
            node.drop_capability();
        }
        let time = |t: SetTime| match t {
            SetTime::Now => now,
            SetTime::At(at) => at,
        };
        node.atime = changes.atime.map_or(node.atime, time);
        node.mtime = changes.mtime.map_or(node.mtime, time);
        if *changes != SetAttr::default() {
            node.ctime = now;
        }
        Ok(())
    }

    /// `ino` is `dir` or lies above it.
    pub(super) fn is_ancestor(&self, ino: Ino, dir: Ino) -> bool {
        let mut at = dir;
        loop {
            if at == ino {
                return true;
            }
            match self.nodes.get(&at).map(|n| &n.body) {
                Some(Body::Dir { parent, .. }) if *parent != at => at = *parent,
                _ => return false,
            }
        }
    }
}

pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(FsError::NAME_TOO_LONG);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(FsError::INVALID);
    }
    Ok(())
}
