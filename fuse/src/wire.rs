//! Requests and answers of the FUSE protocol that fuser does not know, byte by byte as in Linux's
//! `include/uapi/linux/fuse.h`. The protocol is in the byte order of the machine.

use std::time::Duration;

use fs_core::api::{Attr, SetAttr, SetTime, Timestamp};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::convert::{self, BLKSIZE};

/// Numbers of requests.
pub(crate) const SETATTR: u32 = 4;
pub(crate) const SETXATTR: u32 = 21;
pub(crate) const TMPFILE: u32 = 51;
pub(crate) const STATX: u32 = 52;

/// Bits of `SetattrIn::valid`.
mod valid {
    pub(super) const MODE: u32 = 1 << 0;
    pub(super) const UID: u32 = 1 << 1;
    pub(super) const GID: u32 = 1 << 2;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ATIME: u32 = 1 << 4;
    pub(super) const MTIME: u32 = 1 << 5;
    pub(super) const ATIME_NOW: u32 = 1 << 7;
    pub(super) const MTIME_NOW: u32 = 1 << 8;
    pub(super) const KILL_SUIDGID: u32 = 1 << 11;
}

/// Of `SetxattrIn::setxattr_flags`: setgid has to go with the access control list.
const ACL_KILL_SGID: u32 = 1;

/// `struct fuse_setattr_in`.
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct SetattrIn {
    valid: u32,
    _padding: u32,
    _fh: u64,
    size: u64,
    _lock_owner: u64,
    atime: i64,
    mtime: i64,
    _ctime: i64,
    atimensec: u32,
    mtimensec: u32,
    _ctimensec: u32,
    mode: u32,
    _unused: u32,
    uid: u32,
    gid: u32,
    _unused2: u32,
}

impl SetattrIn {
    /// The changes that are asked for. One that changes nothing is a chown to the same owner, which
    /// takes set-user-id bits away as any chown does.
    pub(crate) fn changes(&self) -> SetAttr {
        let has = |bit: u32| self.valid & bit != 0;
        let time = |set: u32, now: u32, secs: i64, nanos: u32| match (has(now), has(set)) {
            (true, _) => Some(SetTime::Now),
            (false, true) => Some(SetTime::At(Timestamp { secs, nanos: nanos.min(999_999_999) })),
            (false, false) => None,
        };
        let changes = SetAttr {
            perm: has(valid::MODE).then(|| convert::perm(self.mode)),
            uid: has(valid::UID).then_some(self.uid),
            gid: has(valid::GID).then_some(self.gid),
            size: has(valid::SIZE).then_some(self.size),
            atime: time(valid::ATIME, valid::ATIME_NOW, self.atime, self.atimensec),
            mtime: time(valid::MTIME, valid::MTIME_NOW, self.mtime, self.mtimensec),
            kill_priv: false,
        };
        let kill_priv = has(valid::KILL_SUIDGID) || changes == SetAttr::default();
        SetAttr { kill_priv, ..changes }
    }
}

/// `struct fuse_setxattr_in` as agreed with `FUSE_SETXATTR_EXT`.
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct SetxattrIn {
    size: u32,
    flags: i32,
    setxattr_flags: u32,
    _padding: u32,
}

/// What a setxattr asks for.
pub(crate) struct Setxattr<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
    /// As of setxattr(2).
    pub(crate) flags: i32,
    pub(crate) clear_setgid: bool,
}

impl<'a> Setxattr<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Option<Self> {
        let (head, rest) = SetxattrIn::read_from_prefix(body).ok()?;
        let end = rest.iter().position(|b| *b == 0)?;
        let value = rest[end + 1..].get(..head.size as usize)?;
        let clear_setgid = head.setxattr_flags & ACL_KILL_SGID != 0;
        Some(Self { name: &rest[..end], value, flags: head.flags, clear_setgid })
    }
}

/// `struct fuse_create_in`.
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct CreateIn {
    pub(crate) flags: i32,
    pub(crate) mode: u32,
    pub(crate) umask: u32,
    _open_flags: u32,
}

/// `struct fuse_attr`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct FuseAttr {
    ino: u64,
    size: u64,
    blocks: u64,
    atime: i64,
    mtime: i64,
    ctime: i64,
    atimensec: u32,
    mtimensec: u32,
    ctimensec: u32,
    mode: u32,
    nlink: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    blksize: u32,
    flags: u32,
}

impl FuseAttr {
    fn new(attr: &Attr) -> Self {
        Self {
            ino: attr.ino.get(),
            size: attr.size,
            blocks: attr.blocks,
            atime: attr.atime.secs,
            mtime: attr.mtime.secs,
            ctime: attr.ctime.secs,
            atimensec: attr.atime.nanos,
            mtimensec: attr.mtime.nanos,
            ctimensec: attr.ctime.nanos,
            mode: convert::mode(attr),
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            blksize: BLKSIZE,
            flags: 0,
        }
    }
}

/// `struct fuse_attr_out`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct AttrOut {
    valid: u64,
    valid_nsec: u32,
    dummy: u32,
    attr: FuseAttr,
}

/// The answer to a setattr.
pub(crate) fn attr_out(attr: &Attr, ttl: Duration) -> Vec<u8> {
    let out =
        AttrOut { valid: ttl.as_secs(), valid_nsec: ttl.subsec_nanos(), dummy: 0, attr: FuseAttr::new(attr) };
    out.as_bytes().to_vec()
}

/// `struct fuse_entry_out` and `struct fuse_open_out`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct CreateOut {
    nodeid: u64,
    generation: u64,
    entry_valid: u64,
    attr_valid: u64,
    entry_valid_nsec: u32,
    attr_valid_nsec: u32,
    attr: FuseAttr,
    fh: u64,
    open_flags: u32,
    backing_id: u32,
}

/// The answer to a tmpfile: the inode, opened with `open_flags`.
pub(crate) fn create_out(attr: &Attr, ttl: Duration, open_flags: u32) -> Vec<u8> {
    let out = CreateOut {
        nodeid: attr.ino.get(),
        generation: attr.generation,
        entry_valid: ttl.as_secs(),
        attr_valid: ttl.as_secs(),
        entry_valid_nsec: ttl.subsec_nanos(),
        attr_valid_nsec: ttl.subsec_nanos(),
        attr: FuseAttr::new(attr),
        fh: 0,
        open_flags,
        backing_id: 0,
    };
    out.as_bytes().to_vec()
}

/// `struct fuse_sx_time`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct SxTime {
    secs: i64,
    nanos: u32,
    reserved: i32,
}

impl From<Timestamp> for SxTime {
    fn from(t: Timestamp) -> Self {
        Self { secs: t.secs, nanos: t.nanos, reserved: 0 }
    }
}

/// `struct fuse_statx_out`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StatxOut {
    valid: u64,
    valid_nsec: u32,
    flags: u32,
    spare: [u64; 2],
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    spare0: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: SxTime,
    btime: SxTime,
    ctime: SxTime,
    mtime: SxTime,
    rdev_major: u32,
    rdev_minor: u32,
    dev_major: u32,
    dev_minor: u32,
    spare2: [u64; 14],
}

/// The answer to a statx: all that stat(2) tells, and the birth time.
pub(crate) fn statx_out(attr: &Attr, ttl: Duration) -> Vec<u8> {
    let out = StatxOut {
        valid: ttl.as_secs(),
        valid_nsec: ttl.subsec_nanos(),
        flags: 0,
        spare: [0; 2],
        mask: libc::STATX_BASIC_STATS | libc::STATX_BTIME,
        blksize: BLKSIZE,
        attributes: 0,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        mode: convert::mode(attr) as u16,
        spare0: 0,
        ino: attr.ino.get(),
        size: attr.size,
        blocks: attr.blocks,
        attributes_mask: 0,
        atime: attr.atime.into(),
        btime: attr.btime.into(),
        ctime: attr.ctime.into(),
        mtime: attr.mtime.into(),
        // As the kernel packs a device number for user space.
        rdev_major: (attr.rdev & 0xfff00) >> 8,
        rdev_minor: (attr.rdev & 0xff) | ((attr.rdev >> 12) & 0xfff00),
        dev_major: 0,
        dev_minor: 0,
        spare2: [0; 14],
    };
    out.as_bytes().to_vec()
}

const _: () = assert!(size_of::<SetattrIn>() == 88);
const _: () = assert!(size_of::<AttrOut>() == 104);
const _: () = assert!(size_of::<CreateOut>() == 144);
const _: () = assert!(size_of::<StatxOut>() == 288);

#[cfg(test)]
mod tests {
    use super::*;

    fn setattr(valid: u32, change: impl FnOnce(&mut SetattrIn)) -> SetAttr {
        let mut request = SetattrIn::read_from_bytes(&[0; 88]).unwrap();
        request.valid = valid;
        change(&mut request);
        request.changes()
    }

    #[test]
    fn changes_of_attributes() {
        let nothing = SetAttr::default();
        assert_eq!(setattr(0, |_| {}), SetAttr { kill_priv: true, ..nothing.clone() });
        let truncate = setattr(valid::SIZE, |r| r.size = 5);
        assert_eq!(truncate, SetAttr { size: Some(5), ..nothing.clone() });
        let truncate = setattr(valid::SIZE | valid::KILL_SUIDGID, |r| r.size = 5);
        assert_eq!(truncate, SetAttr { size: Some(5), kill_priv: true, ..nothing.clone() });
        let times = setattr(valid::ATIME | valid::ATIME_NOW | valid::MTIME, |r| {
            (r.mtime, r.mtimensec) = (i64::MIN, 999_999_999);
        });
        let at = SetTime::At(Timestamp { secs: i64::MIN, nanos: 999_999_999 });
        assert_eq!(times, SetAttr { atime: Some(SetTime::Now), mtime: Some(at), ..nothing.clone() });
        let owner =
            setattr(valid::MODE | valid::UID | valid::GID, |r| (r.mode, r.uid, r.gid) = (0o104755, 1, 2));
        assert_eq!(owner, SetAttr { perm: Some(0o4755), uid: Some(1), gid: Some(2), ..nothing });
    }

    #[test]
    fn what_is_cut_short_is_no_setxattr() {
        let mut body = [3u32, 2, ACL_KILL_SGID, 0].as_bytes().to_vec();
        body.extend(b"user.a\0xyz");
        let parsed = Setxattr::parse(&body).unwrap();
        assert_eq!((parsed.name, parsed.value), (&b"user.a"[..], &b"xyz"[..]));
        assert_eq!((parsed.flags, parsed.clear_setgid), (2, true));
        for len in 0..body.len() {
            assert!(Setxattr::parse(&body[..len]).is_none(), "{len}");
        }
    }
}
