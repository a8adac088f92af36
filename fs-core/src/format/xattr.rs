//! Extended attribute items: one attribute in as many items as it needs.

use super::bytes::{Reader, Writer};
use super::dirent::name_hash;
use super::key::{ItemKind, Key};
use super::node::MAX_VALUE;
use crate::types::Ino;

/// Longest name in bytes.
pub const XATTR_NAME_MAX: usize = 255;

/// Longest value in bytes.
pub const XATTR_VALUE_MAX: usize = 65536;

/// Most bytes that the names of an inode take together, each with a zero byte behind it.
pub const XATTR_LIST_MAX: usize = 65536;

/// Bytes of the first item before the name.
const HEADER: usize = 8;

/// Low bits of a key's offset that number the items of an attribute.
const PART_BITS: u32 = 8;

/// The first item of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XattrHead<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Length of the whole value.
    pub size: usize,
    /// The first bytes of the value: as many as fit.
    pub start: &'a [u8],
}

/// What the offsets of an attribute's keys begin with.
pub fn xattr_hash(hash_key: &[u8; 16], name: &[u8]) -> u64 {
    name_hash(hash_key, name)
}

/// Key of item `part` of the attribute whose name has `hash`.
pub const fn xattr_key(ino: Ino, hash: u64, part: u64) -> Key {
    Key::new(ino, ItemKind::Xattr, hash << PART_BITS | part)
}

/// Hash and part in a key's offset.
pub const fn xattr_place(offset: u64) -> (u64, u64) {
    (offset >> PART_BITS, offset & ((1 << PART_BITS) - 1))
}

/// Bytes of a value that are in the first item.
fn start_len(name: usize, size: usize) -> usize {
    size.min(MAX_VALUE - HEADER - name)
}

/// Number of items of an attribute.
pub fn xattr_parts(name: usize, size: usize) -> u64 {
    1 + (size - start_len(name, size)).div_ceil(MAX_VALUE) as u64
}

/// The items of an attribute, in the order of their parts.
pub fn encode_xattr(name: &[u8], value: &[u8]) -> Vec<Vec<u8>> {
    let (start, rest) = value.split_at(start_len(name.len(), value.len()));
    let mut head = Vec::with_capacity(HEADER + name.len() + start.len());
    head.put_u32(value.len() as u32);
    head.put_u8(name.len() as u8);
    head.extend_from_slice(&[0; 3]);
    head.extend_from_slice(name);
    head.extend_from_slice(start);
    std::iter::once(head).chain(rest.chunks(MAX_VALUE).map(<[u8]>::to_vec)).collect()
}

/// Decodes a first item; `None` if malformed.
pub fn decode_xattr(bytes: &[u8]) -> Option<XattrHead<'_>> {
    let mut r = Reader::new(bytes);
    let size = r.u32()? as usize;
    let len = usize::from(r.u8()?);
    r.bytes(3)?;
    let name = r.bytes(len)?;
    let start = r.rest();
    let valid = size <= XATTR_VALUE_MAX
        && !name.is_empty()
        && !name.contains(&0)
        && start.len() == start_len(name.len(), size);
    valid.then_some(XattrHead { name, size, start })
}
