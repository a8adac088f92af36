//! Random operations: printable, replayable, and meaningful in any order.
//!
//! An operation names its objects symbolically (the third directory, the fifth name); they are
//! looked up in the model when the operation runs. So any subsequence of a history is a history,
//! which is what shrinking needs.

mod generate;

use fs_core::api::{Fallocate, FileType, XattrFlags};

pub use generate::{Generator, Profile, history};

/// How a write is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Into the page cache.
    Buffered,
    /// Into the page cache, durable before it returns (O_DSYNC).
    Dsync,
    /// As `Dsync`, with the times (O_SYNC).
    Sync,
    /// Past the page cache (O_DIRECT).
    Direct,
    /// Past the page cache and durable (O_DIRECT | O_DSYNC).
    DirectDsync,
}

/// What a rename is to do with what is there, and with the old name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moving {
    /// Replace what is there.
    Replace,
    /// Fail if something is there.
    NoReplace,
    /// Swap the two.
    Exchange,
    /// Leave a whiteout at the old name.
    Whiteout,
    /// Two that exclude each other.
    Nonsense,
}

/// What follows a write to the same file at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// fdatasync.
    Datasync,
    /// fsync.
    Fsync,
}

/// Work that the engine's background threads do in a daemon, done here when the history says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maintenance {
    /// Write a checkpoint.
    Checkpoint,
    /// Write all dirty pages back.
    WritebackAll,
    /// Write this many dirty pages back.
    WritebackSome(usize),
    /// Publish `durable_lsn`.
    Publish,
    /// Close and write the open batch.
    Commit,
    /// Make device and volume this many blocks larger; without the lock on the device, nothing.
    Grow(u32),
}

/// Index of something in the model, taken modulo how many there are.
pub type Nth = u8;

/// One step of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Fields are what the name of the operation and of the field say.
pub enum Op {
    /// Make and open a file; it stays open.
    Create { dir: Nth, name: Nth, perm: u32 },
    /// Make a file, fifo, socket or device without opening it.
    Mknod { dir: Nth, name: Nth, kind: FileType, perm: u32 },
    /// Make a directory.
    Mkdir { dir: Nth, name: Nth, perm: u32 },
    /// Make a symbolic link with a target of `len` bytes.
    Symlink { dir: Nth, name: Nth, len: u16 },
    /// Another name for any inode.
    Link { node: Nth, dir: Nth, name: Nth },
    /// Remove a name.
    Unlink { dir: Nth, name: Nth },
    /// Remove a directory.
    Rmdir { dir: Nth, name: Nth },
    /// Move a name.
    Rename { dir: Nth, name: Nth, to_dir: Nth, to_name: Nth, how: Moving },
    /// Make a file without a name; it stays open.
    Tmpfile { dir: Nth, perm: u32 },
    /// Look a name up.
    Lookup { dir: Nth, name: Nth },
    /// List a directory, a few entries at a time.
    List { dir: Nth, batch: u8 },
    /// Read a symbolic link, or something else that is none.
    Readlink { node: Nth },
    /// Open any inode; it stays open.
    Open { node: Nth },
    /// Close one of the open inodes.
    Close { nth: Nth },
    /// Write `len` bytes.
    Write { file: Nth, offset: u64, len: u32, how: How, kill_priv: bool },
    /// Write `len` bytes at the end of the file.
    Append { file: Nth, len: u32, how: How, then: Then },
    /// Read.
    Read { file: Nth, offset: u64, len: u32, direct: bool },
    /// Set the size.
    Truncate { file: Nth, size: u64 },
    /// Set the permission bits.
    Chmod { node: Nth, perm: u32 },
    /// Set owner and group.
    Chown { node: Nth, uid: u32, gid: u32 },
    /// Set access and modification time.
    Utimes { node: Nth, secs: i64 },
    /// Set an extended attribute.
    SetXattr { node: Nth, attribute: Nth, len: u32, flags: XattrFlags },
    /// Remove one.
    RemoveXattr { node: Nth, attribute: Nth },
    /// Read one, and the list of all.
    GetXattr { node: Nth, attribute: Nth },
    /// Reserve space, make holes or zeros.
    Fallocate { file: Nth, mode: Fallocate, offset: u64, len: u64 },
    /// Look for data and for a hole.
    Seek { file: Nth, offset: u64 },
    /// Copy within the file system.
    Copy { from: Nth, from_offset: u64, to: Nth, to_offset: u64, len: u64 },
    /// fsync or fdatasync of any inode.
    Fsync { node: Nth, datasync: bool },
    /// Make everything durable.
    SyncAll,
    /// Sizes of the volume.
    Statfs,
    /// Background work.
    Maintain(Maintenance),
    /// Unmount and mount again.
    Remount,
    /// Time passes.
    Pass { ms: u32 },
}

impl Op {
    /// The name that `nth` stands for. A few are as long as allowed, and one is longer.
    pub fn name(nth: Nth) -> Vec<u8> {
        match nth {
            0..=240 => format!("n{nth}").into_bytes(),
            241..=254 => vec![b'a' + (nth - 241); 255],
            255 => vec![b'z'; 256],
        }
    }

    /// The extended attribute that `nth` stands for: name and value of `len` bytes, or an access control
    /// list that `len` chooses.
    pub fn attribute(nth: Nth, len: u32) -> (Vec<u8>, Vec<u8>) {
        let name: &[u8] = match nth % 12 {
            0 | 1 => b"system.posix_acl_access",
            2 => b"system.posix_acl_default",
            3 => b"security.capability",
            4 => b"trusted.t",
            5 => b"unknown.u",
            6 => return ([&b"user."[..], &[b'l'; 250]].concat(), pattern(len, 0, len as usize)),
            n => return (format!("user.{n}").into_bytes(), pattern(len, 0, len as usize)),
        };
        let value = if name.starts_with(b"system.") { acl(len) } else { pattern(len, 0, len as usize) };
        (name.to_vec(), value)
    }

    /// The target of a symbolic link of `len` bytes.
    pub fn target(len: u16) -> Vec<u8> {
        (0..len).map(|i| b'a' + (i % 26) as u8).collect()
    }
}

/// An access control list: of three entries, of more, or nonsense.
fn acl(choice: u32) -> Vec<u8> {
    let perm = |shift: u32| (choice >> shift & 7) as u16;
    let (named, mask) = ((2, 7, 77), (16, perm(9), u32::MAX));
    let all = [(1, perm(0), u32::MAX), named, (4, perm(3), u32::MAX), mask, (32, perm(6), u32::MAX)];
    let plain = choice.is_multiple_of(3);
    let mut value = if choice.is_multiple_of(17) { vec![9, 9] } else { 2u32.to_le_bytes().to_vec() };
    for (tag, perm, id) in all.into_iter().filter(|e: &(u16, u16, u32)| !plain || !matches!(e.0, 2 | 16)) {
        value.extend(tag.to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// The bytes that write number `id` puts at `offset` of a file: every word tells the write and the
/// place, so that lost, stale and foreign bytes are told apart.
pub fn pattern(id: u32, offset: u64, len: usize) -> Vec<u8> {
    let first = offset / 8;
    let words = (offset + len as u64).div_ceil(8) - first;
    let mut bytes = Vec::with_capacity(words as usize * 8);
    for word in first..first + words {
        bytes.extend_from_slice(&scramble(u64::from(id) << 32 | (word & 0xFFFF_FFFF)).to_le_bytes());
    }
    let skip = (offset % 8) as usize;
    bytes.truncate(skip + len);
    bytes.drain(..skip);
    bytes
}

/// Which write, and which offset, the eight bytes at an aligned offset come from.
pub fn origin(word: [u8; 8]) -> (u32, u64) {
    let plain = unscramble(u64::from_le_bytes(word));
    ((plain >> 32) as u32, (plain & 0xFFFF_FFFF) * 8)
}

const MIX: u64 = 0xD6E8_FEB8_6659_FD93;
const UNMIX: u64 = inverse(MIX);

/// A one-to-one mixing, so that all bytes of a word depend on all of its meaning.
fn scramble(x: u64) -> u64 {
    let x = (x ^ (x >> 32)).wrapping_mul(MIX);
    x ^ (x >> 32)
}

fn unscramble(x: u64) -> u64 {
    let x = (x ^ (x >> 32)).wrapping_mul(UNMIX);
    x ^ (x >> 32)
}

/// Inverse of an odd number modulo 2^64, by Newton's method.
const fn inverse(a: u64) -> u64 {
    let mut x = a;
    let mut i = 0;
    while i < 6 {
        x = x.wrapping_mul(2u64.wrapping_sub(a.wrapping_mul(x)));
        i += 1;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_tell_their_origin() {
        for (id, offset) in [(1, 0), (77, 4096), (0x00FF_FFFF, 1 << 30)] {
            let bytes = pattern(id, offset, 64);
            for i in 0..8 {
                let word = bytes[i * 8..i * 8 + 8].try_into().unwrap();
                assert_eq!(origin(word), (id, offset + i as u64 * 8));
            }
        }
    }

    #[test]
    fn patterns_do_not_depend_on_how_a_range_is_cut() {
        let whole = pattern(5, 1000, 500);
        for start in 0..20 {
            assert_eq!(pattern(5, 1000 + start, 100), whole[start as usize..start as usize + 100]);
        }
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<Vec<u8>> = (0..=255).map(Op::name).collect();
        assert_eq!(names.len(), 256);
    }
}
