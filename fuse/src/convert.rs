//! Between the kernel's and the file system's ways to say the same.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fs_core::Ino;
use fs_core::api::{Attr, Fallocate, FileType, IoFlags, Owner, RenameFlags, Seek, StatFs, Timestamp};
use fuser::{FileAttr, FopenFlags, INodeNo, OpenFlags, WriteFlags};

/// What `st_blksize` says. The kernel also takes its own block size for the inode from it, which
/// must not exceed a page.
pub(crate) const BLKSIZE: u32 = 4096;

/// Permission bits of a mode.
const PERM_BITS: u32 = 0o7777;

/// Set-user-id and set-group-id.
pub(crate) const SET_IDS: u32 = 0o6000;

/// A hole is never punched behind the end so that the size changes.
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE_KEEP_SIZE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

pub(crate) fn ino(nodeid: INodeNo) -> Ino {
    Ino(nodeid.0)
}

/// The permission bits of `mode`.
pub(crate) fn perm(mode: u32) -> u32 {
    mode & PERM_BITS
}

/// The type a `mknod` asks for; `None` for a directory, a symlink or nonsense. No type means a
/// regular file.
pub(crate) fn node_type(mode: u32) -> Option<FileType> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileType::Regular),
        libc::S_IFBLK => Some(FileType::BlockDevice),
        libc::S_IFCHR => Some(FileType::CharDevice),
        libc::S_IFIFO => Some(FileType::Fifo),
        libc::S_IFSOCK => Some(FileType::Socket),
        _ => None,
    }
}

/// Type and permission bits as in `stat`.
pub(crate) fn mode(attr: &Attr) -> u32 {
    let kind = match attr.kind {
        FileType::Regular => libc::S_IFREG,
        FileType::Directory => libc::S_IFDIR,
        FileType::Symlink => libc::S_IFLNK,
        FileType::BlockDevice => libc::S_IFBLK,
        FileType::CharDevice => libc::S_IFCHR,
        FileType::Fifo => libc::S_IFIFO,
        FileType::Socket => libc::S_IFSOCK,
    };
    kind | perm(attr.perm)
}

pub(crate) fn file_type(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Regular => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
    }
}

pub(crate) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.get()),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: perm(attr.perm) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLKSIZE,
        flags: 0,
    }
}

/// An answer to a lookup that says: there is no such name, and you may remember that.
pub(crate) fn missing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLKSIZE,
        flags: 0,
    }
}

/// A time to show. One that the standard library cannot express becomes 1970.
fn system_time(t: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(t.secs.unsigned_abs());
    let whole = if t.secs < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|s| s.checked_add(Duration::from_nanos(t.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

/// How an open file is to be read. The kernel names the lock owner with every read that a program
/// asks for; one without is a fill of its page cache, also on a direct handle.
pub(crate) fn read_flags(flags: OpenFlags, has_owner: bool) -> IoFlags {
    IoFlags { direct: has_owner && flags.0 & libc::O_DIRECT != 0, ..IoFlags::default() }
}

/// How an open file is to be written. Writes out of the kernel's page cache (of mapped pages) carry
/// the flags of any handle the kernel found and are plain buffered ones.
pub(crate) fn write_flags(flags: OpenFlags, write: WriteFlags) -> IoFlags {
    if write.contains(WriteFlags::FUSE_WRITE_CACHE) {
        return IoFlags::default();
    }
    let only_sync = libc::O_SYNC & !libc::O_DSYNC;
    IoFlags {
        direct: flags.0 & libc::O_DIRECT != 0,
        dsync: flags.0 & libc::O_SYNC != 0,
        sync: flags.0 & only_sync != 0,
        kill_priv: write.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
    }
}

/// What the kernel is told about a file opened with `flags`. No flush at close: a close promises
/// nothing, and the request would cost as much as the open did.
pub(crate) fn fopen_flags(flags: OpenFlags, direct_handles: bool) -> FopenFlags {
    if direct_handles && flags.0 & libc::O_DIRECT != 0 {
        FopenFlags::FOPEN_NOFLUSH
            | FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_KEEP_CACHE
    } else {
        FopenFlags::FOPEN_NOFLUSH | FopenFlags::FOPEN_KEEP_CACHE
    }
}

/// Flags of rename by `owner`; `None` if there is one that dbfs does not know.
pub(crate) fn rename_flags(flags: fuser::RenameFlags, owner: Owner) -> Option<RenameFlags> {
    let known = fuser::RenameFlags::RENAME_NOREPLACE
        | fuser::RenameFlags::RENAME_EXCHANGE
        | fuser::RenameFlags::RENAME_WHITEOUT;
    known.contains(flags).then(|| RenameFlags {
        no_replace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
        exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
        whiteout: flags.contains(fuser::RenameFlags::RENAME_WHITEOUT).then_some(owner),
    })
}

/// Mode of fallocate; `None` if dbfs does not know it.
pub(crate) fn fallocate(mode: i32) -> Option<Fallocate> {
    match mode {
        0 => Some(Fallocate::Allocate),
        libc::FALLOC_FL_KEEP_SIZE => Some(Fallocate::KeepSize),
        PUNCH_HOLE => Some(Fallocate::PunchHole),
        libc::FALLOC_FL_ZERO_RANGE => Some(Fallocate::ZeroRange),
        ZERO_RANGE_KEEP_SIZE => Some(Fallocate::ZeroRangeKeepSize),
        _ => None,
    }
}

/// What to look for with lseek; `None` if it is not for the file system to say.
pub(crate) fn seek(whence: i32) -> Option<Seek> {
    match whence {
        libc::SEEK_DATA => Some(Seek::Data),
        libc::SEEK_HOLE => Some(Seek::Hole),
        _ => None,
    }
}

pub(crate) fn statfs(reply: fuser::ReplyStatfs, s: &StatFs) {
    reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.block_size, s.namelen, s.block_size);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_out_of_range() {
        let t = |secs, nanos| system_time(Timestamp { secs, nanos });
        assert_eq!(t(-2, 800_000_000), UNIX_EPOCH - Duration::from_millis(1200));
        assert_eq!(t(1, 5), UNIX_EPOCH + Duration::new(1, 5));
        assert_eq!(t(i64::MIN, 0).duration_since(UNIX_EPOCH).unwrap_err().duration().as_secs(), 1 << 63);
    }

    #[test]
    fn flags_of_writes() {
        let none = WriteFlags::empty();
        let f = write_flags(OpenFlags(libc::O_DIRECT | libc::O_DSYNC), none);
        assert_eq!(f, IoFlags { direct: true, dsync: true, sync: false, kill_priv: false });
        let f = write_flags(OpenFlags(libc::O_SYNC), WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        assert_eq!(f, IoFlags { direct: false, dsync: true, sync: true, kill_priv: true });
        let all = OpenFlags(libc::O_DIRECT | libc::O_SYNC);
        assert_eq!(write_flags(all, WriteFlags::FUSE_WRITE_CACHE), IoFlags::default());
    }

    #[test]
    fn reads_without_owner_fill_the_page_cache() {
        assert!(read_flags(OpenFlags(libc::O_DIRECT), true).direct);
        assert!(!read_flags(OpenFlags(libc::O_DIRECT), false).direct);
        assert!(!read_flags(OpenFlags(0), true).direct);
    }

    #[test]
    fn unknown_rename_and_fallocate_flags() {
        let owner = Owner::new(1, 2);
        let whiteout = RenameFlags { whiteout: Some(owner), ..RenameFlags::default() };
        assert_eq!(rename_flags(fuser::RenameFlags::RENAME_WHITEOUT, owner), Some(whiteout));
        assert_eq!(rename_flags(fuser::RenameFlags::from_bits_retain(1 << 20), owner), None);
        assert_eq!(fallocate(libc::FALLOC_FL_PUNCH_HOLE), None);
        assert_eq!(fallocate(libc::FALLOC_FL_COLLAPSE_RANGE), None);
        assert_eq!(fallocate(libc::FALLOC_FL_INSERT_RANGE), None);
        assert_eq!(fallocate(PUNCH_HOLE), Some(Fallocate::PunchHole));
        assert_eq!(fallocate(libc::FALLOC_FL_KEEP_SIZE), Some(Fallocate::KeepSize));
    }
}
