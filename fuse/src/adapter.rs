//! The requests of the kernel, each handed to the file system and its answer handed back.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fs_core::api::{Attr, FsOps, Owner, SetAttr};
use fs_core::{Ino, Result};
use fuser::{
    CopyFileRangeFlags, Errno, FileAttr, FileHandle, FopenFlags, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, WriteFlags,
};

use crate::buffer::with_buffer;
use crate::config::Features;
use crate::convert::{self, ino};
use crate::dirs;
use crate::errors::ErrorLog;
use crate::gate::Gate;
use crate::handshake::{self, Wishes};
use crate::opens::OpenTable;
use crate::removed::Removed;
use crate::xattrs;

/// How long the kernel may keep names and attributes. Nothing but this mount changes the volume,
/// and the kernel knows what it did itself.
pub(crate) const TTL: Duration = Duration::from_secs(24 * 3600);

/// Inodes are never reused, so one generation does for all.
const GENERATION: Generation = Generation(0);

/// No file handle carries anything: all that matters is in the request.
const NO_HANDLE: FileHandle = FileHandle(0);

/// What the adapter and the session that runs it learn from each other.
#[derive(Default)]
pub(crate) struct Link {
    /// What was agreed with the kernel; set in the handshake.
    pub(crate) features: OnceLock<Features>,
    /// The way to tell the kernel something unasked; set after the handshake.
    pub(crate) notifier: OnceLock<Notifier>,
}

/// Connects one file system to one mount.
pub(crate) struct Adapter {
    fs: Arc<dyn FsOps>,
    pub(crate) opens: OpenTable,
    removed: Removed,
    wishes: Wishes,
    link: Arc<Link>,
    pub(crate) direct_handles: bool,
    errors: ErrorLog,
    pub(crate) gate: Arc<Gate>,
    /// The kernel may remember that some file has a set-user-id or set-group-id bit.
    set_ids_shown: AtomicBool,
}

impl Adapter {
    /// An adapter for `fs`.
    pub(crate) fn new(fs: Arc<dyn FsOps>, wishes: Wishes, link: Arc<Link>) -> Self {
        Self {
            fs,
            opens: OpenTable::default(),
            removed: Removed::default(),
            wishes,
            link,
            direct_handles: false,
            errors: ErrorLog::default(),
            gate: Arc::default(),
            set_ids_shown: AtomicBool::new(false),
        }
    }

    /// The attributes as the kernel wants them.
    fn show(&self, attr: &Attr) -> FileAttr {
        self.note_shown(attr);
        convert::file_attr(attr)
    }

    /// The kernel is about to learn these attributes.
    pub(crate) fn note_shown(&self, attr: &Attr) {
        if attr.perm & convert::SET_IDS != 0 && !self.set_ids_shown.load(Ordering::Relaxed) {
            self.set_ids_shown.store(true, Ordering::Relaxed);
        }
    }

    /// Setting an extended attribute has more fields than fuser knows.
    pub(crate) fn extended_setxattr(&self) -> bool {
        self.link.features.get().is_some_and(|f| f.extended_setxattr)
    }

    /// True if a change by somebody unprivileged takes away bits of `ino` that the kernel remembers: it
    /// leaves that to us and goes on believing in them.
    pub(crate) fn clears_set_ids(&self, ino: Ino) -> bool {
        self.set_ids_shown.load(Ordering::Relaxed)
            && self.fs.getattr(ino).is_ok_and(|attr| attr.perm & convert::SET_IDS != 0)
    }

    /// Makes the kernel ask for the attributes of `ino` again.
    pub(crate) fn forget_attributes(&self, ino: Ino) {
        // A negative offset leaves the content alone, so that this takes no lock in the kernel.
        let told = self.link.notifier.get().map(|n| n.inval_inode(INodeNo(ino.get()), -1, 0));
        if let Some(Err(e)) = told {
            tracing::warn!("cannot make the kernel forget the attributes of inode {ino}: {e}");
        }
    }

    /// Runs one operation of the file system: errors and panics become an errno, and what no
    /// program should ever see is logged.
    pub(crate) fn run<T>(
        &self,
        what: &'static str,
        ino: Ino,
        f: impl FnOnce(&dyn FsOps) -> Result<T>,
    ) -> std::result::Result<T, Errno> {
        match catch_unwind(AssertUnwindSafe(|| f(&*self.fs))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.errors.errno(what, ino, &error)),
            Err(panic) => Err(self.errors.panicked(what, ino, &*panic)),
        }
    }

    fn entry(
        &self,
        reply: ReplyEntry,
        what: &'static str,
        ino: Ino,
        f: impl FnOnce(&dyn FsOps) -> Result<Attr>,
    ) {
        match self.run(what, ino, f) {
            Ok(attr) => reply.entry(&TTL, &self.show(&attr), GENERATION),
            Err(e) => reply.error(e),
        }
    }

    fn empty(
        &self,
        reply: ReplyEmpty,
        what: &'static str,
        ino: Ino,
        f: impl FnOnce(&dyn FsOps) -> Result<()>,
    ) {
        match self.run(what, ino, f) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn release_one(&self, ino: Ino) {
        if self.opens.released(ino) {
            // A close reports nothing; a panic has been logged.
            let _ = self.run("close", ino, |fs| {
                fs.close(ino);
                Ok(())
            });
        }
    }

    /// Removes a directory, and keeps it open until the kernel forgets it.
    fn remove_dir(&self, fs: &dyn FsOps, parent: Ino, name: &[u8]) -> Result<()> {
        let Ok(dir) = fs.lookup(parent, name).and_then(|dir| fs.open(dir.ino)) else {
            return fs.rmdir(parent, name); // It knows best what is wrong.
        };
        let result = fs.rmdir(parent, name);
        if result.is_err() || !self.removed.keep(dir.ino) {
            fs.close(dir.ino);
        } else {
            self.opens.opened(dir.ino);
        }
        result
    }

    fn open_one(&self, ino: Ino) -> std::result::Result<(), Errno> {
        self.run("open", ino, |fs| fs.open(ino))?;
        self.opens.opened(ino);
        Ok(())
    }
}

pub(crate) fn owner(req: &Request, umask: u32) -> Owner {
    Owner { umask: convert::perm(umask), ..Owner::new(req.uid(), req.gid()) }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _req: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
        let features = handshake::agree(kernel, &self.wishes)?;
        self.direct_handles = features.direct_handles;
        // Set once: there is one handshake.
        let _ = self.link.features.set(features);
        Ok(())
    }

    fn raw(
        &self,
        req: &Request,
        opcode: u32,
        node: INodeNo,
        body: &[u8],
        reply: &dyn Fn() -> ReplyData,
    ) -> bool {
        self.serve_raw(req, opcode, ino(node), body, reply)
    }

    fn destroy(&mut self) {
        let fs = &self.fs;
        self.opens.drain(|ino| fs.close(ino));
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _busy = self.gate.enter();
        let found = self.run("lookup", ino(parent), |fs| match name.as_bytes() {
            // The kernel resolves a file handle: of anything, not only of a directory.
            b"." => fs.getattr(ino(parent)),
            name => fs.lookup(ino(parent), name),
        });
        match found {
            Ok(attr) => reply.entry(&TTL, &self.show(&attr), GENERATION),
            Err(Errno::ENOENT) => reply.entry(&TTL, &convert::missing(), GENERATION),
            Err(e) => reply.error(e),
        }
    }

    fn forget(&self, _req: &Request, node: INodeNo, _nlookup: u64) {
        // No reply, and almost never anything to do: the thread goes on waiting.
        if self.removed.forgotten(ino(node)) {
            let _busy = self.gate.enter();
            self.release_one(ino(node));
        }
    }

    fn getattr(&self, _req: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _busy = self.gate.enter();
        match self.run("getattr", ino(node), |fs| fs.getattr(ino(node))) {
            Ok(attr) => reply.attr(&TTL, &self.show(&attr)),
            Err(e) => reply.error(e),
        }
    }

    fn readlink(&self, _req: &Request, node: INodeNo, reply: ReplyData) {
        let _busy = self.gate.enter();
        match self.run("readlink", ino(node), |fs| fs.readlink(ino(node))) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(e),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _busy = self.gate.enter();
        let Some(kind) = convert::node_type(mode) else { return reply.error(Errno::EINVAL) };
        let (parent, name) = (ino(parent), name.as_bytes());
        let perm = convert::perm(mode);
        self.entry(reply, "mknod", parent, |fs| fs.mknod(parent, name, kind, perm, rdev, owner(req, umask)));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _busy = self.gate.enter();
        let (parent, name) = (ino(parent), name.as_bytes());
        let owner = owner(req, umask);
        self.entry(reply, "mkdir", parent, |fs| fs.mkdir(parent, name, convert::perm(mode), owner));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _busy = self.gate.enter();
        let parent = ino(parent);
        self.empty(reply, "unlink", parent, |fs| fs.unlink(parent, name.as_bytes()));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _busy = self.gate.enter();
        let parent = ino(parent);
        let removed = self.run("rmdir", parent, |fs| self.remove_dir(fs, parent, name.as_bytes()));
        match removed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _busy = self.gate.enter();
        let (parent, name) = (ino(parent), name.as_bytes());
        let target = target.as_os_str().as_bytes();
        self.entry(reply, "symlink", parent, |fs| fs.symlink(parent, name, target, owner(req, 0)));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _busy = self.gate.enter();
        let Some(flags) = convert::rename_flags(flags, owner(req, 0)) else {
            return reply.error(Errno::EINVAL);
        };
        let (parent, name) = (ino(parent), name.as_bytes());
        let (new_parent, new_name) = (ino(new_parent), new_name.as_bytes());
        self.empty(reply, "rename", parent, |fs| fs.rename(parent, name, new_parent, new_name, flags));
    }

    fn link(&self, _req: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _busy = self.gate.enter();
        self.entry(reply, "link", ino(node), |fs| fs.link(ino(node), ino(parent), name.as_bytes()));
    }

    fn open(&self, _req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _busy = self.gate.enter();
        match self.open_one(ino(node)) {
            Ok(()) => reply.opened(NO_HANDLE, convert::fopen_flags(flags, self.direct_handles)),
            Err(e) => reply.error(e),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _busy = self.gate.enter();
        let parent = ino(parent);
        let (perm, owner) = (convert::perm(mode), owner(req, umask));
        let created = self.run("create", parent, |fs| fs.create(parent, name.as_bytes(), perm, owner));
        match created {
            Ok(attr) => {
                self.opens.opened(attr.ino);
                let open_flags = convert::fopen_flags(OpenFlags(flags), self.direct_handles);
                reply.created(&TTL, &self.show(&attr), GENERATION, NO_HANDLE, open_flags);
            }
            Err(e) => reply.error(e),
        }
    }

    fn read(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _busy = self.gate.enter();
        let flags = convert::read_flags(flags, lock_owner.is_some());
        with_buffer(size as usize, |buf| {
            match self.run("read", ino(node), |fs| fs.read(ino(node), offset, buf, flags)) {
                Ok(n) => reply.data(&buf[..n.min(size as usize)]),
                Err(e) => reply.error(e),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _busy = self.gate.enter();
        let flags = convert::write_flags(flags, write_flags);
        let clears_set_ids = flags.kill_priv && self.clears_set_ids(ino(node));
        let out_of_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let written = self.run("write", ino(node), |fs| match out_of_cache {
            true => fs.write_back(ino(node), offset, data),
            false => fs.write(ino(node), offset, data, flags),
        });
        if clears_set_ids {
            self.forget_attributes(ino(node));
        }
        match written {
            Ok(n) => reply.written(n as u32),
            Err(e) => reply.error(e),
        }
    }

    /// Only asked by kernels before 5.16, once: ENOSYS makes them not ask again.
    fn flush(&self, _req: &Request, _node: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _busy = self.gate.enter();
        self.release_one(ino(node));
        reply.ok();
    }

    fn fsync(&self, _req: &Request, node: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let _busy = self.gate.enter();
        self.empty(reply, "fsync", ino(node), |fs| fs.fsync(ino(node), datasync));
    }

    fn opendir(&self, _req: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _busy = self.gate.enter();
        match self.open_one(ino(node)) {
            Ok(()) => reply.opened(NO_HANDLE, FopenFlags::empty()),
            Err(e) => reply.error(e),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _busy = self.gate.enter();
        match self.run("readdir", ino(node), |fs| dirs::list(fs, ino(node), offset, &mut reply)) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _busy = self.gate.enter();
        let dir = ino(node);
        let show = |attr: &Attr| self.show(attr);
        let listed = self
            .run("readdir", dir, |fs| dirs::list_with_attributes(fs, dir, offset, &TTL, &show, &mut reply));
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let _busy = self.gate.enter();
        self.release_one(ino(node));
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, node: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let _busy = self.gate.enter();
        self.empty(reply, "fsync", ino(node), |fs| fs.fsync(ino(node), datasync));
    }

    fn statfs(&self, _req: &Request, node: INodeNo, reply: ReplyStatfs) {
        let _busy = self.gate.enter();
        match self.run("statfs", ino(node), |fs| fs.statfs()) {
            Ok(numbers) => convert::statfs(reply, &numbers),
            Err(e) => reply.error(e),
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _busy = self.gate.enter();
        let Some(mode) = convert::fallocate(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let clears_set_ids = req.uid() != 0 && self.clears_set_ids(ino(node));
        self.empty(reply, "fallocate", ino(node), |fs| {
            if clears_set_ids {
                fs.setattr(ino(node), &SetAttr { kill_priv: true, ..SetAttr::default() })?;
            }
            fs.fallocate(ino(node), mode, offset, length)
        });
        if clears_set_ids {
            self.forget_attributes(ino(node));
        }
    }

    fn lseek(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.find_offset(ino(node), offset, whence, reply);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        from: INodeNo,
        _from_fh: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _to_fh: FileHandle,
        to_offset: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let unprivileged = req.uid() != 0;
        self.copy_within((ino(from), from_offset), (ino(to), to_offset), (len, flags), unprivileged, reply);
    }

    fn setxattr(
        &self,
        _req: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _busy = self.gate.enter();
        let Some(flags) = xattrs::flags(flags) else { return reply.error(Errno::EINVAL) };
        let (node, name) = (ino(node), name.as_bytes());
        self.empty(reply, "setxattr", node, |fs| fs.setxattr(node, name, value, flags));
    }

    fn getxattr(&self, _req: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _busy = self.gate.enter();
        let value = self.run("getxattr", ino(node), |fs| fs.getxattr(ino(node), name.as_bytes()));
        xattrs::answer(reply, size, value);
    }

    fn listxattr(&self, req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let _busy = self.gate.enter();
        let trusted = req.uid() == 0;
        let names = self.run("listxattr", ino(node), |fs| fs.listxattr(ino(node), trusted));
        xattrs::answer(reply, size, names);
    }

    fn removexattr(&self, _req: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _busy = self.gate.enter();
        let (node, name) = (ino(node), name.as_bytes());
        self.empty(reply, "removexattr", node, |fs| fs.removexattr(node, name));
    }

    fn ioctl(
        &self,
        _req: &Request,
        _node: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
