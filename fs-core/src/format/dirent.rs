//! Directory entry items: all names of a directory that share one hash.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::bytes::{Reader, Writer};
use super::inode::{kind_of, mode_of};
use crate::api::FileType;
use crate::types::Ino;

/// Longest name in bytes.
pub const NAME_MAX: usize = 255;

/// Most names that can share one hash: what fits into an item.
pub const BUCKET_MAX: usize = 14;

/// One name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameEntry {
    /// Where it leads.
    pub ino: Ino,
    /// Type of the inode.
    pub kind: FileType,
    /// Tells the names of one hash apart in readdir cookies; stable while the name exists.
    pub slot: u8,
    /// The name: 1 to 255 bytes, no NUL, no slash.
    pub name: Vec<u8>,
}

/// Hash of a name: 55 bits, at least 4, so that `hash << 8 | slot` is a valid, positive readdir
/// cookie above those of "." and "..". SipHash-1-3 under the volume's key.
pub fn name_hash(key: &[u8; 16], name: &[u8]) -> u64 {
    let mut h = SipHasher13::new_with_key(key);
    h.write(name);
    (h.finish() >> 9).max(4)
}

/// Encodes the names of one hash.
pub fn encode_bucket(entries: &[NameEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.iter().map(|e| 12 + e.name.len()).sum());
    for e in entries {
        out.put_u64(e.ino.0);
        out.put_u16((mode_of(e.kind) >> 12) as u16);
        out.put_u8(e.slot);
        out.put_u8(e.name.len() as u8);
        out.extend_from_slice(&e.name);
    }
    out
}

/// Decodes the names of one hash; `None` if malformed.
pub fn decode_bucket(bytes: &[u8]) -> Option<Vec<NameEntry>> {
    let mut r = Reader::new(bytes);
    let mut entries = Vec::new();
    while !r.is_empty() {
        let ino = Ino(r.u64()?);
        let kind = kind_of(u32::from(r.u16()?) << 12)?;
        let slot = r.u8()?;
        let len = r.u8()?;
        let name = r.bytes(len.into())?;
        if !valid_name(name) || ino.0 == 0 {
            return None;
        }
        entries.push(NameEntry { ino, kind, slot, name: name.to_vec() });
    }
    (!entries.is_empty() && entries.len() <= BUCKET_MAX).then_some(entries)
}

/// Names a directory may hold.
pub fn valid_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != b"."
        && name != b".."
        && !name.iter().any(|&b| b == 0 || b == b'/')
}
