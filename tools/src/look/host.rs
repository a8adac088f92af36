//! Making files on the host, each below a directory that is held open: no name from a volume can lead
//! out of it, not even through a symbolic link that was copied just before.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fs_core::api::{Attr, FileType, Timestamp};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RawMode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::{Xattr, describe};

/// Bits that let a program act as its owner or group.
const SET_IDS: u32 = 0o6000;

/// A directory that the user named.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    Ok(rustix::fs::openat(CWD, path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes a directory, or opens the one that is there.
pub fn make_dir(parent: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let name = OsStr::from_bytes(name);
    match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&parent, name, flags, Mode::empty())?)
}

/// Makes a file, or empties the one that is there.
pub fn make_file(parent: impl AsFd, name: &[u8]) -> io::Result<File> {
    let name = OsStr::from_bytes(name);
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let private = Mode::RUSR | Mode::WUSR;
    match rustix::fs::openat(&parent, name, flags | OFlags::CREATE | OFlags::EXCL, private) {
        Ok(fd) => return Ok(fd.into()),
        Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    // A fifo or device in its place must neither block nor take the data.
    let file: File = rustix::fs::openat(&parent, name, flags | OFlags::NONBLOCK, Mode::empty())?.into();
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("something that is not a file is in the way"));
    }
    file.set_len(0)?;
    Ok(file)
}

/// Makes a symbolic link, in place of one that is there.
pub fn make_symlink(parent: impl AsFd, name: &[u8], target: &[u8]) -> io::Result<()> {
    let (name, target) = (OsStr::from_bytes(name), OsStr::from_bytes(target));
    match rustix::fs::symlinkat(target, &parent, name) {
        Err(Errno::EXIST) => {}
        other => return Ok(other?),
    }
    let there = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if rustix::fs::FileType::from_raw_mode(there.st_mode) != rustix::fs::FileType::Symlink {
        return Err(Errno::EXIST.into());
    }
    rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
    Ok(rustix::fs::symlinkat(target, &parent, name)?)
}

/// Makes a fifo, socket or device node; the latter are for root.
pub fn make_special(parent: impl AsFd, name: &[u8], attr: &Attr) -> io::Result<()> {
    use rustix::fs::FileType as Kind;
    let kind = match attr.kind {
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::CharDevice => Kind::CharacterDevice,
        _ => return Err(Errno::INVAL.into()),
    };
    let (major, minor) = describe::device_numbers(attr.rdev);
    let device = rustix::fs::makedev(major, minor);
    Ok(rustix::fs::mknodat(&parent, OsStr::from_bytes(name), kind, Mode::RUSR | Mode::WUSR, device)?)
}

/// Gives an open file or directory the owner, mode and times of `attr`, and `xattrs`. Who is not root keeps the file
/// as his own, then without set-user-id.
pub fn keep_attributes(fd: impl AsFd, attr: &Attr, xattrs: &[Xattr]) -> io::Result<()> {
    let perm = match rustix::fs::fchown(&fd, owner(attr).0, owner(attr).1) {
        Ok(()) => attr.perm,
        Err(Errno::PERM) => attr.perm & !SET_IDS,
        Err(e) => return Err(e.into()),
    };
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(perm as RawMode))?;
    // Behind the owner, whose change takes capabilities away, and the mode, which changes the lists.
    set_xattrs(xattrs, |name, value| rustix::fs::fsetxattr(&fd, name, value, XattrFlags::empty()))?;
    Ok(rustix::fs::futimens(&fd, &times(attr))?)
}

fn set_xattrs(xattrs: &[Xattr], set: impl Fn(&OsStr, &[u8]) -> Result<(), Errno>) -> io::Result<()> {
    for (name, value) in xattrs {
        match set(OsStr::from_bytes(name), value) {
            // For root, or not on this kind of file or file system: as `cp -a` does.
            Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// The same for what cannot be opened: links and special files.
pub fn keep_attributes_of(parent: impl AsFd, name: &[u8], attr: &Attr, xattrs: &[Xattr]) -> io::Result<()> {
    // There is no such call for a name in an open directory on older kernels; this leads there, and
    // what is at its end is not followed.
    let parent_number = parent.as_fd().as_raw_fd().to_string();
    let path = Path::new("/proc/self/fd").join(parent_number).join(OsStr::from_bytes(name));
    let name = OsStr::from_bytes(name);
    let here = AtFlags::SYMLINK_NOFOLLOW;
    match rustix::fs::chownat(&parent, name, owner(attr).0, owner(attr).1, here) {
        Ok(()) | Err(Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    if attr.kind != FileType::Symlink {
        // It was made just now, and is no link.
        rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(attr.perm as RawMode), AtFlags::empty())?;
    }
    set_xattrs(xattrs, |name, value| rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty()))?;
    Ok(rustix::fs::utimensat(&parent, name, &times(attr), here)?)
}

/// Gives an open file or directory the permissions of `attr` as far as the umask allows, without
/// set-user-id.
pub fn use_permissions(fd: impl AsFd, attr: &Attr, umask: u32) -> io::Result<()> {
    let perm = attr.perm & 0o777 & !umask;
    Ok(rustix::fs::fchmod(fd, Mode::from_raw_mode(perm as RawMode))?)
}

/// This process's umask. It can only be read by setting it, which is done while there is one thread.
pub fn umask() -> u32 {
    let old = rustix::process::umask(Mode::empty());
    rustix::process::umask(old);
    old.bits()
}

fn owner(attr: &Attr) -> (Option<Uid>, Option<Gid>) {
    // All ones mean "leave it" to the system.
    let uid = (attr.uid != u32::MAX).then(|| Uid::from_raw(attr.uid));
    let gid = (attr.gid != u32::MAX).then(|| Gid::from_raw(attr.gid));
    (uid, gid)
}

fn times(attr: &Attr) -> Timestamps {
    let spec = |t: Timestamp| Timespec { tv_sec: t.secs, tv_nsec: t.nanos.into() };
    Timestamps { last_access: spec(attr.atime), last_modification: spec(attr.mtime) }
}
