//! The operations of a file system, as its front ends (FUSE, later shmq and the library user) see
//! them. The engine implements [`FsOps`]; so does the reference model that the engine is tested
//! against.
//!
//! Permission checks are the caller's business (FUSE mounts with `default_permissions`); these
//! methods check what only the file system can know. All methods may block on device I/O, may be
//! called from any thread, and return [`FsError`](crate::FsError) whose `errno()` is the POSIX
//! answer.

use crate::error::Result;
use crate::types::Ino;

/// Seconds and nanoseconds since 1970, as `struct timespec`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds; negative before 1970.
    pub secs: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

/// Type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Block device node.
    BlockDevice,
    /// Character device node.
    CharDevice,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
}

/// Attributes of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Generation, for file handles; inode numbers are never reused, so it is always 0.
    pub generation: u64,
    /// Type.
    pub kind: FileType,
    /// Permission bits, including setuid, setgid and sticky (07777).
    pub perm: u32,
    /// Number of names. A directory counts itself, its "." and its subdirectories' "..".
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated space in 512-byte units.
    pub blocks: u64,
    /// Last access (relatime).
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

/// Who creates a file: becomes its owner (group of a setgid directory excepted).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits that new files do not get, unless the directory has a default ACL.
    pub umask: u32,
}

impl Owner {
    /// A creator without umask.
    pub const fn new(uid: u32, gid: u32) -> Self {
        Self { uid, gid, umask: 0 }
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The present time.
    Now,
    /// This time.
    At(Timestamp),
}

/// Attributes to change; `None` leaves one as it is. All changes are one atomic change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New permission bits (07777).
    pub perm: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// Truncate or extend to this size.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// Clear setuid and setgid as a write by somebody unprivileged does.
    pub kill_priv: bool,
}

/// How a read or write is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoFlags {
    /// Past the page cache (O_DIRECT). A direct write is atomic as a whole (contract C2).
    pub direct: bool,
    /// Durable before it returns (O_DSYNC, or O_SYNC with `sync`).
    pub dsync: bool,
    /// With `dsync`: the inode's times are made durable too (O_SYNC).
    pub sync: bool,
    /// Clear setuid and setgid (the writer is not privileged).
    pub kill_priv: bool,
}

/// Flags of rename, as renameat2(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// Fail with EEXIST if the target exists.
    pub no_replace: bool,
    /// Swap the two names.
    pub exchange: bool,
    /// Leave a whiteout (a character device 0:0 that belongs to this user) at the old name.
    pub whiteout: Option<Owner>,
}

/// How an extended attribute is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XattrFlags {
    /// Fail with EEXIST if it exists.
    pub create: bool,
    /// Fail with ENODATA if it does not exist.
    pub replace: bool,
    /// With an access ACL: clear setgid (who sets it is not of the file's group, nor privileged).
    pub clear_setgid: bool,
}

/// Modes of fallocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Reserve space; the size grows if needed.
    Allocate,
    /// Reserve space, the size stays.
    KeepSize,
    /// Make the range a hole; the size stays.
    PunchHole,
    /// Make the range zeros that have space reserved; the size grows if needed.
    ZeroRange,
    /// As `ZeroRange`, the size stays.
    ZeroRangeKeepSize,
}

/// What to look for with lseek(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is not in a hole.
    Data,
    /// The next byte in a hole; the end of the file counts as one.
    Hole,
}

/// One directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode the name leads to.
    pub ino: Ino,
    /// Its type.
    pub kind: FileType,
    /// Continue behind this entry with this cookie.
    pub next_cookie: u64,
    /// The name.
    pub name: Vec<u8>,
}

/// Numbers for statfs(2), in units of `block_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Unit in bytes.
    pub block_size: u32,
    /// Size of the volume without what only the file system may use.
    pub blocks: u64,
    /// Free.
    pub bfree: u64,
    /// Free for users.
    pub bavail: u64,
    /// Inodes that exist and could exist.
    pub files: u64,
    /// Inodes that could still be made.
    pub ffree: u64,
    /// Longest name in bytes.
    pub namelen: u32,
}

/// A file system.
pub trait FsOps: Send + Sync {
    /// Finds `name` in directory `parent`.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr>;
    /// Attributes of `ino`; ESTALE if it does not exist.
    fn getattr(&self, ino: Ino) -> Result<Attr>;
    /// Changes attributes.
    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr>;
    /// Target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>>;
    /// Makes a regular file, device node, fifo or socket. EEXIST if the name is taken.
    fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        kind: FileType,
        perm: u32,
        rdev: u32,
        owner: Owner,
    ) -> Result<Attr>;
    /// Makes a directory.
    fn mkdir(&self, parent: Ino, name: &[u8], perm: u32, owner: Owner) -> Result<Attr>;
    /// Makes a symbolic link.
    fn symlink(&self, parent: Ino, name: &[u8], target: &[u8], owner: Owner) -> Result<Attr>;
    /// Gives `ino` another name.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr>;
    /// Removes a name that is not a directory. The inode lives on while open.
    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()>;
    /// Moves a name, replacing the target atomically.
    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()>;
    /// Counts an open of `ino`; each is matched by one [`close`](Self::close).
    fn open(&self, ino: Ino) -> Result<Attr>;
    /// Makes a regular file and opens it, as one step. EEXIST if the name is taken.
    fn create(&self, parent: Ino, name: &[u8], perm: u32, owner: Owner) -> Result<Attr>;
    /// Makes a regular file without a name and opens it (O_TMPFILE). `parent` gives it what a file made
    /// there would inherit. [`link`](Self::link) can give it a name as long as it is open; without
    /// one its last close, or a crash, frees it.
    fn tmpfile(&self, parent: Ino, perm: u32, owner: Owner) -> Result<Attr>;
    /// Ends an open. The last close of an unlinked inode frees it.
    fn close(&self, ino: Ino);
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    fn read(&self, ino: Ino, offset: u64, buf: &mut [u8], flags: IoFlags) -> Result<usize>;
    /// Writes all of `data` at `offset`.
    fn write(&self, ino: Ino, offset: u64, data: &[u8], flags: IoFlags) -> Result<usize>;
    /// As a buffered [`write`](Self::write) that no program waits for: the kernel writes mapped pages.
    /// Nobody would learn of its failure, so what is lost then is reported by every fsync until it
    /// has been written again (contract C1).
    fn write_back(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        self.write(ino, offset, data, IoFlags::default())
    }
    /// Makes the file's data (and, unless `datasync`, its attributes) and every earlier change of
    /// the name space durable.
    fn fsync(&self, ino: Ino, datasync: bool) -> Result<()>;
    /// Reserves space, makes holes or zeros. Of what was mapped, nothing fails for lack of space.
    /// A large range is done in steps: after a crash a part of it may have been done.
    fn fallocate(&self, ino: Ino, mode: Fallocate, offset: u64, len: u64) -> Result<()>;
    /// The offset of the next data or hole at or behind `offset`; ENXIO if there is none. Space that
    /// is reserved and not written is a hole.
    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64>;
    /// Copies up to `len` bytes within the file system and returns how many: fewer at the end of the
    /// source, or because a call does not copy more than 64 MiB. EINVAL if the ranges overlap,
    /// EOVERFLOW if one does not fit a file.
    fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        flags: IoFlags,
    ) -> Result<u64>;
    /// Lists `ino` from `cookie` (0: from the start), including "." and "..", until `emit`
    /// returns false. An entry for which it returned false is listed again next time.
    fn readdir(&self, ino: Ino, cookie: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()>;
    /// Sets an extended attribute. The names are those of Linux: `user.` (regular files and
    /// directories; else EPERM), `trusted.`, `security.`, `system.posix_acl_access` and
    /// `system.posix_acl_default`; others give EOPNOTSUPP. A value has up to 64 KiB (E2BIG), all names
    /// of an inode together, each with a zero byte, too (ENOSPC). An access ACL also changes the
    /// permission bits, and is not kept if they say it all.
    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()>;
    /// Value of an extended attribute; ENODATA.
    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;
    /// Names of all extended attributes, each with a zero byte behind it; those of `trusted.` only
    /// if asked for (they are for the privileged).
    fn listxattr(&self, ino: Ino, trusted: bool) -> Result<Vec<u8>>;
    /// Removes an extended attribute; ENODATA.
    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()>;
    /// Space and inode numbers.
    fn statfs(&self) -> Result<StatFs>;
    /// Makes everything durable.
    fn sync_all(&self) -> Result<()>;
}
