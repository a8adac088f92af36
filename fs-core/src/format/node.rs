//! A node of the metadata tree on the disk: see `docs/FORMAT.md`.

mod build;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use blockdev::AlignedBuf;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Key;
use crate::error::{FsError, Result};
use crate::mutants::{self, Mutant};
use crate::types::{BLOCK_SIZE, BlockNr, Epoch, Lsn, NODE_SIZE};

pub use build::{NodeBuilder, Stamp};

/// What a node is called in error messages.
const WHAT: &str = "tree node";

/// First bytes of every node.
pub const MAGIC: [u8; 8] = *b"dbfsnode";

/// Version of the node format.
pub const VERSION: u16 = 1;

/// Longest value of an item in bytes. Four of them fit into one node.
pub const MAX_VALUE: usize = 4000;

/// Levels a tree may have. Far beyond need (4 levels hold billions of items); bounds every descent.
pub const MAX_HEIGHT: u8 = 16;

/// Highest block address a pointer may carry: byte offsets stay below 2^62.
const MAX_ADDRESS: u64 = 1 << 50;

/// Bytes for items in a node.
pub const CAPACITY: usize = NODE_SIZE - HEADER_SIZE;

/// Bytes an item of a leaf takes in addition to its value.
pub const LEAF_OVERHEAD: usize = size_of::<LeafSlot>();

/// Bytes of an entry of an inner node in addition to the encoded pointer.
pub const INNER_OVERHEAD: usize = Key::SIZE;

/// A value, or what is wrong with the bytes.
type Checked<T> = std::result::Result<T, String>;

const HEADER_SIZE: usize = size_of::<Header>();
const CRC_RANGE: std::ops::Range<usize> = 8..12;

/// Header of a node.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    crc: U32,
    version: U16,
    level: u8,
    reserved1: u8,
    volume: [u8; 16],
    address: U64,
    epoch: U64,
    birth: U64,
    count: U16,
    reserved2: [u8; 22],
}

/// Where an item of a leaf is.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct LeafSlot {
    key: [u8; Key::SIZE],
    offset: U16,
    len: U16,
}

/// Entry of an inner node: a child and its first key.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct InnerEntry {
    key: [u8; Key::SIZE],
    child: DiskNodePtr,
}

/// A [`NodePtr`] as it is stored, in inner nodes and in root slots.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct DiskNodePtr {
    /// First block; 0 means "no node".
    pub address: U64,
    /// LSN of the checkpoint that wrote the node.
    pub birth: U64,
    /// The node's own checksum.
    pub crc: U32,
}

const _: () = assert!(HEADER_SIZE == 80);
const _: () = assert!(LEAF_OVERHEAD == 21);
const _: () = assert!(size_of::<InnerEntry>() == 37);
const _: () = assert!(size_of::<DiskNodePtr>() == NodePtr::SIZE);
const _: () = assert!(4 * (LEAF_OVERHEAD + MAX_VALUE) <= CAPACITY);
const _: () = assert!(NODE_SIZE <= u16::MAX as usize);

/// Pointer to a node: where it is and what must be there. The checksum makes a node that is valid
/// by itself, but is not the one that was meant (stale, or written to a wrong place), detectable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodePtr {
    /// First of its [`NODE_BLOCKS`](crate::NODE_BLOCKS) blocks.
    pub addr: BlockNr,
    /// LSN of the checkpoint that wrote it.
    pub birth: Lsn,
    /// The checksum in its header.
    pub crc: u32,
}

impl NodePtr {
    /// Bytes of an encoded pointer.
    pub const SIZE: usize = 20;

    /// The pointer as bytes, see [`DiskNodePtr`].
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out.copy_from_slice(DiskNodePtr::from(*self).as_bytes());
        out
    }

    /// The pointer in `bytes`; `None` if they are too short or the address is impossible.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        DiskNodePtr::read_from_bytes(bytes).ok()?.get()
    }

    /// The address can be that of a node: not the superblock's, and no arithmetic overflows on it.
    pub fn plausible(&self) -> bool {
        (1..=MAX_ADDRESS).contains(&self.addr.0)
    }
}

impl DiskNodePtr {
    /// The pointer; `None` if the address is 0 or impossible.
    pub fn get(&self) -> Option<NodePtr> {
        let ptr =
            NodePtr { addr: BlockNr(self.address.get()), birth: Lsn(self.birth.get()), crc: self.crc.get() };
        ptr.plausible().then_some(ptr)
    }
}

impl From<NodePtr> for DiskNodePtr {
    fn from(ptr: NodePtr) -> Self {
        Self { address: ptr.addr.0.into(), birth: ptr.birth.0.into(), crc: ptr.crc.into() }
    }
}

/// What a parent promises about a child, besides the pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its level; leaves are level 0.
    pub level: u8,
    /// Its first key; `None` for the root, of which nothing is known.
    pub first: Option<Key>,
    /// All its keys are lower than this; `None`: no bound.
    pub below: Option<Key>,
}

/// A node whose bytes have been validated: all methods are safe to use on what a hostile device
/// returned, and work in the raw bytes without a copy.
#[derive(Debug)]
pub struct Node {
    buf: AlignedBuf,
    ptr: NodePtr,
    level: u8,
    count: u16,
    /// First and last key, decoded: every visit compares them with what the parent says.
    ends: (Key, Key),
}

impl Node {
    /// Validates what was read through `ptr` on the volume `volume`.
    ///
    /// Checked: checksum (against the header and the pointer), magic, version, volume, address,
    /// birth, level within bounds, at least one item, all items in bounds and disjoint, keys known
    /// and strictly ascending, child pointers plausible and not younger than the node.
    pub fn open(buf: AlignedBuf, ptr: NodePtr, volume: Uuid) -> Result<Self> {
        match Self::validate(&buf, &ptr, volume) {
            Ok((level, count, ends)) => Ok(Self { buf, ptr, level, count, ends }),
            Err(detail) => Err(FsError::corrupt(WHAT, ptr.addr, detail)),
        }
    }

    /// Checks that this is the node the parent meant.
    pub fn check(&self, expected: &Expected) -> Result<()> {
        let fail = |detail: String| Err(FsError::corrupt(WHAT, self.ptr.addr, detail));
        if self.level != expected.level {
            return fail(format!("level {} where {} was expected", self.level, expected.level));
        }
        if let Some(first) = expected.first
            && self.ends.0 != first
        {
            return fail(format!("first key {:?}, its parent says {first:?}", self.ends.0));
        }
        if let Some(below) = expected.below
            && self.ends.1 >= below
        {
            return fail(format!("last key {:?} is not below {below:?}", self.ends.1));
        }
        Ok(())
    }

    /// The pointer that leads to this node.
    pub fn ptr(&self) -> NodePtr {
        self.ptr
    }

    /// Its level; 0 is a leaf.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Number of items or children; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// The epoch that wrote it.
    pub fn epoch(&self) -> Epoch {
        Epoch(header(&self.buf).map_or(0, |h| h.epoch.get()))
    }

    /// The raw bytes, [`NODE_SIZE`] of them.
    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }

    /// Bytes of [`CAPACITY`] in use.
    pub fn used(&self) -> usize {
        if self.level > 0 {
            return self.len() * size_of::<InnerEntry>();
        }
        self.slots().iter().map(|s| LEAF_OVERHEAD + usize::from(s.len.get())).sum()
    }

    /// The `i`-th key. Panics unless `i < len()`.
    pub fn key(&self, i: usize) -> Key {
        Key::decode(self.raw_key(i)).expect("kinds were checked when the node was opened")
    }

    /// The `i`-th value of a leaf, or the encoded pointer to the `i`-th child of an inner node.
    /// Panics unless `i < len()`.
    pub fn value(&self, i: usize) -> &[u8] {
        &self.buf[self.value_range(i)]
    }

    /// Where in [`bytes`](Self::bytes) the `i`-th value is. Panics unless `i < len()`.
    pub fn value_range(&self, i: usize) -> std::ops::Range<usize> {
        if self.level > 0 {
            assert!(i < self.len());
            let end = HEADER_SIZE + (i + 1) * size_of::<InnerEntry>();
            return end - NodePtr::SIZE..end;
        }
        self.slots()[i].range()
    }

    /// The `i`-th child of an inner node. Panics unless `i < len()` and the level is above 0.
    pub fn child(&self, i: usize) -> NodePtr {
        self.entries()[i].child.get().expect("pointers were checked when the node was opened")
    }

    /// What this node, of whose keys all are lower than `below`, promises about its `i`-th child.
    pub fn child_expected(&self, i: usize, below: Option<Key>) -> Expected {
        let next = (i + 1 < self.len()).then(|| self.key(i + 1));
        Expected { level: self.level - 1, first: Some(self.key(i)), below: next.or(below) }
    }

    /// Position of `key`, or where it would be.
    pub fn search(&self, key: &Key) -> std::result::Result<usize, usize> {
        if self.level > 0 {
            self.entries().binary_search_by(|e| compare(&e.key, key))
        } else {
            self.slots().binary_search_by(|s| compare(&s.key, key))
        }
    }

    /// Position of the last key that is not above `key`; `None` if all are.
    pub fn search_last(&self, key: &Key) -> Option<usize> {
        match self.search(key) {
            Ok(i) => Some(i),
            Err(i) => i.checked_sub(1),
        }
    }

    fn raw_key(&self, i: usize) -> &[u8; Key::SIZE] {
        if self.level > 0 { &self.entries()[i].key } else { &self.slots()[i].key }
    }

    fn slots(&self) -> &[LeafSlot] {
        table(&self.buf, self.len()).unwrap_or_default()
    }

    fn entries(&self) -> &[InnerEntry] {
        if self.level == 0 { &[] } else { table(&self.buf, self.len()).unwrap_or_default() }
    }

    /// Level, count and first and last key, or what is wrong.
    fn validate(buf: &[u8], ptr: &NodePtr, volume: Uuid) -> Checked<(u8, u16, (Key, Key))> {
        let header = match header(buf) {
            Some(header) if buf.len() == NODE_SIZE => header,
            _ => return Err(format!("{} bytes instead of {NODE_SIZE}", buf.len())),
        };
        let crc = match mutants::active(Mutant::SkipNodeChecksum) {
            true => ptr.crc,
            false => checksum(buf),
        };
        header.check(ptr, volume, crc)?;
        let count = usize::from(header.count.get());
        let ends = if header.level > 0 {
            check_entries(table(buf, count).ok_or("too many children")?, ptr.birth)?
        } else {
            check_slots(table(buf, count).ok_or("too many items")?)?
        };
        Ok((header.level, header.count.get(), ends))
    }
}

impl Header {
    fn check(&self, ptr: &NodePtr, volume: Uuid, crc: u32) -> Checked<()> {
        if self.magic != MAGIC {
            return Err("no tree node there (bad magic)".into());
        }
        if self.crc.get() != crc {
            return Err(format!("checksum {crc:08x}, its header says {:08x}", self.crc.get()));
        }
        if self.version.get() != VERSION {
            return Err(format!("unknown version {}", self.version.get()));
        }
        if self.volume != *volume.as_bytes() {
            return Err(format!("belongs to volume {}", Uuid::from_bytes(self.volume)));
        }
        if self.address.get() != ptr.addr.0 {
            return Err(format!("was written for block {}", self.address.get()));
        }
        if self.birth.get() != ptr.birth.0 {
            return Err(format!("birth {}, its parent says {}", self.birth.get(), ptr.birth));
        }
        if crc != ptr.crc {
            return Err(format!("checksum {crc:08x}, its parent says {:08x}", ptr.crc));
        }
        if self.level >= MAX_HEIGHT {
            return Err(format!("level {} is impossible", self.level));
        }
        Ok(())
    }
}

impl LeafSlot {
    fn range(&self) -> std::ops::Range<usize> {
        let start = usize::from(self.offset.get());
        start..start + usize::from(self.len.get())
    }
}

fn header(buf: &[u8]) -> Option<&Header> {
    Header::ref_from_prefix(buf).ok().map(|(header, _)| header)
}

/// The table behind the header; `None` if `count` entries do not fit.
fn table<T: FromBytes + KnownLayout + Immutable + Unaligned>(buf: &[u8], count: usize) -> Option<&[T]> {
    let items = buf.get(HEADER_SIZE..)?.get(..count.checked_mul(size_of::<T>())?)?;
    <[T]>::ref_from_bytes(items).ok()
}

/// Checksum of a node, with the checksum field taken as zero.
fn checksum(buf: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&buf[..CRC_RANGE.start]);
    let crc = crc32c::crc32c_append(crc, &[0; CRC_RANGE.end - CRC_RANGE.start]);
    crc32c::crc32c_append(crc, &buf[CRC_RANGE.end..])
}

/// Order of an encoded key and a key. Encoded keys are little endian: bytes do not sort.
fn compare(raw: &[u8; Key::SIZE], key: &Key) -> Ordering {
    order(raw).cmp(&(key.ino.0, key.kind as u8, key.offset))
}

/// The parts of an encoded key, in sorting order.
fn order(raw: &[u8; Key::SIZE]) -> (u64, u8, u64) {
    let [a, b, c, d, e, f, g, h, kind, offset @ ..] = *raw;
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]), kind, u64::from_le_bytes(offset))
}

/// Keys are known and strictly ascending; gives the first and the last.
fn check_keys<'a>(keys: impl Iterator<Item = &'a [u8; Key::SIZE]>) -> Checked<(Key, Key)> {
    let mut ends: Option<(Key, Key)> = None;
    for (i, raw) in keys.enumerate() {
        let key = Key::decode(raw).ok_or_else(|| format!("key {i} is of unknown kind {}", raw[8]))?;
        if ends.is_some_and(|(_, last)| last >= key) {
            return Err(format!("key {i} is not above the one before it"));
        }
        ends = Some((ends.map_or(key, |(first, _)| first), key));
    }
    ends.ok_or_else(|| "it is empty".into())
}

/// Each value must end where the one before it starts (the first: at the end of the node). This
/// canonical form makes overlaps and forgotten bytes impossible.
fn check_slots(slots: &[LeafSlot]) -> Checked<(Key, Key)> {
    let ends = check_keys(slots.iter().map(|s| &s.key))?;
    let mut end = NODE_SIZE;
    for (i, slot) in slots.iter().enumerate() {
        let value = slot.range();
        if value.end != end || value.len() > MAX_VALUE {
            return Err(format!("value {i} at {value:?} instead of ending at {end}"));
        }
        end = value.start;
    }
    if end < HEADER_SIZE + size_of_val(slots) {
        return Err(format!("values start at {end}, within the table of {} items", slots.len()));
    }
    Ok(ends)
}

fn check_entries(entries: &[InnerEntry], birth: Lsn) -> Checked<(Key, Key)> {
    let ends = check_keys(entries.iter().map(|e| &e.key))?;
    for (i, entry) in entries.iter().enumerate() {
        match entry.child.get() {
            None => return Err(format!("child {i} at impossible block {}", entry.child.address)),
            Some(child) if child.birth > birth => {
                return Err(format!("child {i} (birth {}) is younger than the node", child.birth));
            }
            Some(_) => {}
        }
    }
    Ok(ends)
}

const _: () = assert!(MAX_ADDRESS < (1 << 62) / BLOCK_SIZE as u64 + 1);
