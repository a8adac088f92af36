//! Newtypes for every kind of number, so that one cannot be passed for another.

use std::fmt;

/// Bytes in a block: the unit of allocation and of every on-disk address.
pub const BLOCK_SIZE: usize = 4096;

/// Bytes in a node of the metadata tree.
pub const NODE_SIZE: usize = 16384;

/// Blocks in a node of the metadata tree.
pub const NODE_BLOCKS: u32 = (NODE_SIZE / BLOCK_SIZE) as u32;

/// Pages whose mappings share one item of the tree (see `docs/FORMAT.md`, map items).
pub const CHUNK_PAGES: u64 = 64;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The number itself.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

newtype!(
    /// Address of a 4 KiB block on the device. Block 0 holds the superblock, so 0 also means "none".
    BlockNr
);
newtype!(
    /// Inode number. Never reused. 0 is the file system itself (system items), 1 the root directory.
    Ino
);
newtype!(
    /// Log sequence number: the number of a journal record. Grows by one a record, across epochs.
    Lsn
);
newtype!(
    /// Number of a mount (or take-over). The highest confirmed one owns the volume.
    Epoch
);
newtype!(
    /// Index of a page within a file, in units of the volume's page size.
    PageNr
);
newtype!(
    /// Index of a block group on the volume.
    GroupNr
);

impl BlockNr {
    /// Byte offset on the device.
    pub const fn offset(self) -> u64 {
        self.0 * BLOCK_SIZE as u64
    }
    /// The block `n` further on.
    pub const fn plus(self, n: u64) -> Self {
        Self(self.0 + n)
    }
}

impl Ino {
    /// Owner of the system items in the tree.
    pub const SYSTEM: Ino = Ino(0);
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
    /// First number given to a file or directory; lower ones are reserved.
    pub const FIRST_FREE: Ino = Ino(16);
}

impl Lsn {
    /// The record after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl PageNr {
    /// The map item (chunk) this page belongs to.
    pub const fn chunk(self) -> u64 {
        self.0 / CHUNK_PAGES
    }
    /// Position within its chunk.
    pub const fn slot(self) -> usize {
        (self.0 % CHUNK_PAGES) as usize
    }
}

/// A run of consecutive blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRun {
    /// First block.
    pub start: BlockNr,
    /// Number of blocks; never 0 in a valid run.
    pub len: u32,
}

impl BlockRun {
    /// A run of `len` blocks from `start`.
    pub const fn new(start: BlockNr, len: u32) -> Self {
        Self { start, len }
    }
    /// First block behind the run.
    pub const fn end(self) -> BlockNr {
        BlockNr(self.start.0 + self.len as u64)
    }
    /// Length in bytes.
    pub const fn bytes(self) -> usize {
        self.len as usize * BLOCK_SIZE
    }
}

/// The volume's page size: unit of caching, checksums and mappings. 4, 8, 16, 32 or 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize(u32);

impl PageSize {
    /// A page of `bytes`, if that is one of the allowed sizes.
    pub const fn new(bytes: u32) -> Option<Self> {
        match bytes {
            4096 | 8192 | 16384 | 32768 | 65536 => Some(Self(bytes)),
            _ => None,
        }
    }
    /// Size in bytes.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }
    /// Size in blocks.
    pub const fn blocks(self) -> u32 {
        self.0 / BLOCK_SIZE as u32
    }
    /// The page that holds byte `offset` of a file.
    pub const fn page_of(self, offset: u64) -> PageNr {
        PageNr(offset / self.0 as u64)
    }
    /// The first page at or behind byte `offset` (number of pages that `offset` bytes need).
    pub const fn pages_for(self, offset: u64) -> u64 {
        offset.div_ceil(self.0 as u64)
    }
    /// Byte offset in the file of the start of `page`.
    pub const fn start_of(self, page: PageNr) -> u64 {
        page.0 * self.0 as u64
    }
}
