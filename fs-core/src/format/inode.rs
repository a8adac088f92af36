//! Inode items.

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::api::{FileType, Timestamp};
use crate::types::Ino;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Raw {
    mode: U32,
    nlink: U32,
    uid: U32,
    gid: U32,
    rdev: U32,
    flags: U32,
    size: U64,
    blocks: U64,
    parent: U64,
    atime: RawTime,
    mtime: RawTime,
    ctime: RawTime,
    btime: RawTime,
    generation: U32,
    project_id: U32,
    key_id: U32,
    xattr_list: U32,
    change_count: U64,
    reserved: [u8; 8],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RawTime {
    secs: I64,
    nanos: U32,
}

const _: () = assert!(size_of::<Raw>() == InodeItem::SIZE);

/// An inode as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeItem {
    /// Type.
    pub kind: FileType,
    /// Permission bits (07777).
    pub perm: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Size in bytes; for a directory the number of its entries.
    pub size: u64,
    /// Blocks of data mapped (4 KiB each).
    pub blocks: u64,
    /// Of a directory: where ".." leads.
    pub parent: Ino,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Bytes that the names of its extended attributes take in a list, each with a zero byte behind
    /// it; 0: it has none.
    pub xattr_list: u32,
}

/// Number of `kind` in the top bits of a mode (as in `stat`).
pub fn mode_of(kind: FileType) -> u32 {
    match kind {
        FileType::Fifo => 0o010000,
        FileType::CharDevice => 0o020000,
        FileType::Directory => 0o040000,
        FileType::BlockDevice => 0o060000,
        FileType::Regular => 0o100000,
        FileType::Symlink => 0o120000,
        FileType::Socket => 0o140000,
    }
}

/// The type in the top bits of a mode.
pub fn kind_of(mode: u32) -> Option<FileType> {
    Some(match mode & 0o170000 {
        0o010000 => FileType::Fifo,
        0o020000 => FileType::CharDevice,
        0o040000 => FileType::Directory,
        0o060000 => FileType::BlockDevice,
        0o100000 => FileType::Regular,
        0o120000 => FileType::Symlink,
        0o140000 => FileType::Socket,
        _ => return None,
    })
}

impl From<Timestamp> for RawTime {
    fn from(t: Timestamp) -> Self {
        RawTime { secs: t.secs.into(), nanos: t.nanos.into() }
    }
}

impl RawTime {
    fn get(&self) -> Option<Timestamp> {
        let nanos = self.nanos.get();
        (nanos < 1_000_000_000).then(|| Timestamp { secs: self.secs.get(), nanos })
    }
}

impl InodeItem {
    /// Bytes of an encoded inode.
    pub const SIZE: usize = 128;

    /// The encoded inode.
    pub fn encode(&self) -> Vec<u8> {
        let raw = Raw {
            mode: (mode_of(self.kind) | self.perm & 0o7777).into(),
            nlink: self.nlink.into(),
            uid: self.uid.into(),
            gid: self.gid.into(),
            rdev: self.rdev.into(),
            flags: 0.into(),
            size: self.size.into(),
            blocks: self.blocks.into(),
            parent: self.parent.0.into(),
            atime: self.atime.into(),
            mtime: self.mtime.into(),
            ctime: self.ctime.into(),
            btime: self.btime.into(),
            generation: 0.into(),
            project_id: 0.into(),
            key_id: 0.into(),
            xattr_list: self.xattr_list.into(),
            change_count: 0.into(),
            reserved: [0; 8],
        };
        raw.as_bytes().to_vec()
    }

    /// Decodes an inode; `None` if malformed.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let raw = Raw::read_from_bytes(bytes).ok()?;
        let mode = raw.mode.get();
        Some(InodeItem {
            kind: kind_of(mode)?,
            perm: mode & 0o7777,
            nlink: raw.nlink.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            rdev: raw.rdev.get(),
            size: raw.size.get(),
            blocks: raw.blocks.get(),
            parent: Ino(raw.parent.get()),
            atime: raw.atime.get()?,
            mtime: raw.mtime.get()?,
            ctime: raw.ctime.get()?,
            btime: raw.btime.get()?,
            xattr_list: raw.xattr_list.get(),
        })
    }
}
