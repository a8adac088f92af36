//! Keys of the metadata tree.

use crate::types::Ino;

/// Kind of an item. The order is the order within one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ItemKind {
    /// Attributes; offset 0.
    Inode = 1,
    /// Target of a symbolic link, in parts of 4000 bytes; the offset is the number of the part.
    Symlink = 2,
    /// Directory entries whose names have the hash that is the offset.
    DirEntry = 3,
    /// Mappings of 64 pages; the offset is the chunk number.
    Map = 4,
    /// Extended attributes whose names have the hash that is the offset.
    Xattr = 5,
    /// System: an inode without a name, or one whose truncation is unfinished; the offset is its
    /// number.
    Orphan = 32,
    /// System: allocation bits; the offset counts pieces of 8192 blocks.
    Bitmap = 33,
    /// System, reserved: reference counts of shared blocks.
    RefCount = 34,
    /// System, reserved: snapshots.
    Snapshot = 35,
}

impl ItemKind {
    /// The kind with this number, if there is one.
    pub const fn from_u8(n: u8) -> Option<Self> {
        Some(match n {
            1 => Self::Inode,
            2 => Self::Symlink,
            3 => Self::DirEntry,
            4 => Self::Map,
            5 => Self::Xattr,
            32 => Self::Orphan,
            33 => Self::Bitmap,
            34 => Self::RefCount,
            35 => Self::Snapshot,
            _ => return None,
        })
    }
}

/// Key of an item: ordered by inode, kind, offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The inode the item belongs to; 0 for system items.
    pub ino: Ino,
    /// What it is.
    pub kind: ItemKind,
    /// Position: chunk number, name hash, or as the kind says.
    pub offset: u64,
}

impl Key {
    /// Bytes of an encoded key: ino (8, little endian), kind (1), offset (8, little endian).
    pub const SIZE: usize = 17;

    /// A key.
    pub const fn new(ino: Ino, kind: ItemKind, offset: u64) -> Self {
        Self { ino, kind, offset }
    }

    /// The encoded key.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[..8].copy_from_slice(&self.ino.0.to_le_bytes());
        out[8] = self.kind as u8;
        out[9..].copy_from_slice(&self.offset.to_le_bytes());
        out
    }

    /// The key in `bytes`; `None` if the kind is unknown.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let (ino, rest) = bytes.split_first_chunk::<8>()?;
        let (kind, offset) = rest.split_first()?;
        Some(Self {
            ino: Ino(u64::from_le_bytes(*ino)),
            kind: ItemKind::from_u8(*kind)?,
            offset: u64::from_le_bytes(offset.try_into().ok()?),
        })
    }
}
