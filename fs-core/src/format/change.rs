//! Logical changes: what journal records are made of.
//!
//! Applying the changes of all records in order to the state of the checkpoint gives the present
//! state, without reading the tree: frees are explicit, items are whole.

use super::bytes::{Reader, Writer};
use super::key::{ItemKind, Key};
use crate::types::{BlockNr, BlockRun, Epoch, GroupNr, Ino, Lsn, PageNr};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The item has this value now.
    PutItem {
        /// Its key.
        key: Key,
        /// Its value.
        value: Vec<u8>,
    },
    /// The item is gone.
    DelItem {
        /// Its key.
        key: Key,
    },
    /// Pages have moved to new blocks.
    MapRun {
        /// The file.
        ino: Ino,
        /// First page.
        page: PageNr,
        /// Where, and with which content.
        run: MappedRun,
    },
    /// Pages are holes now. The blocks they had are freed by separate changes.
    Unmap {
        /// The file.
        ino: Ino,
        /// First page.
        page: PageNr,
        /// Number of pages; may reach to the end of all files.
        pages: u64,
    },
    /// Blocks are free once this record is durable (rule R1).
    Free {
        /// Which.
        run: BlockRun,
    },
    /// Bytes of a file that live in the journal until they are written home.
    Inline {
        /// The file.
        ino: Ino,
        /// Byte offset in the file.
        offset: u64,
        /// The bytes; they stay within one page.
        data: Vec<u8>,
    },
    /// As `Inline`, with `len` zeros.
    InlineZero {
        /// The file.
        ino: Ino,
        /// Byte offset in the file.
        offset: u64,
        /// Number of zero bytes; they stay within one page.
        len: u32,
    },
    /// The epoch may write to these groups from now on (rule R2).
    Reserve {
        /// First group.
        first: GroupNr,
        /// Number of groups.
        count: u32,
    },
    /// First change of an epoch: names the cut of the one before.
    EpochStart {
        /// The epoch before.
        previous: Epoch,
        /// Its last record that counts.
        cut_lsn: Lsn,
        /// The checksum of that record.
        cut_crc: u32,
    },
}

/// Consecutive pages in consecutive blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedRun {
    /// First block.
    pub start: BlockNr,
    /// Number of pages.
    pub pages: u32,
    /// Blocks of the last page that exist; all others have all of theirs.
    pub last_blocks: u8,
    /// Checksums, one a page; `None`: allocated but unwritten, reads as zeros.
    pub crcs: Option<Vec<u32>>,
}

impl MappedRun {
    /// The blocks of the run, for a page of `page_blocks` blocks.
    pub fn blocks(&self, page_blocks: u32) -> BlockRun {
        BlockRun::new(self.start, (self.pages - 1) * page_blocks + u32::from(self.last_blocks))
    }
}

const PUT_ITEM: u8 = 1;
const DEL_ITEM: u8 = 2;
const MAP_RUN: u8 = 3;
const UNMAP: u8 = 4;
const FREE: u8 = 5;
const INLINE: u8 = 6;
const INLINE_ZERO: u8 = 7;
const RESERVE: u8 = 8;
const EPOCH_START: u8 = 9;

/// Flag of a change that readers who do not know its tag may skip.
const MAY_IGNORE: u8 = 1;

/// Bytes of the smallest change that is kept, header included (a free or a reservation).
const SMALLEST: usize = CHANGE_HEADER + 12;

/// Bytes before a change's body: tag, flags, length.
pub const CHANGE_HEADER: usize = 6;

impl Change {
    /// Upper bound of the encoded size in bytes.
    pub fn encoded_len(&self) -> usize {
        CHANGE_HEADER
            + match self {
                Change::PutItem { value, .. } => Key::SIZE + value.len(),
                Change::DelItem { .. } => Key::SIZE,
                Change::MapRun { run, .. } => 32 + run.crcs.as_ref().map_or(0, |c| 4 * c.len()),
                Change::Unmap { .. } | Change::EpochStart { .. } => 24,
                Change::Free { .. } | Change::Reserve { .. } => 12,
                Change::Inline { data, .. } => 16 + data.len(),
                Change::InlineZero { .. } => 20,
            }
    }

    /// Appends the encoded change.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let at = out.len();
        out.extend_from_slice(&[0; CHANGE_HEADER]);
        let tag = self.encode_body(out);
        let len = (out.len() - at - CHANGE_HEADER) as u32;
        out[at] = tag;
        out[at + 2..at + 6].copy_from_slice(&len.to_le_bytes());
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Change::PutItem { key, value } => {
                out.extend_from_slice(&key.encode());
                out.extend_from_slice(value);
                PUT_ITEM
            }
            Change::DelItem { key } => {
                out.extend_from_slice(&key.encode());
                DEL_ITEM
            }
            Change::MapRun { ino, page, run } => {
                out.put_u64(ino.0);
                out.put_u64(page.0);
                out.put_u64(run.start.0);
                out.put_u32(run.pages);
                out.put_u8(run.last_blocks);
                out.put_u8(0); // encoding of the data: plain
                out.put_u8(u8::from(run.crcs.is_some()));
                for crc in run.crcs.iter().flatten() {
                    out.put_u32(*crc);
                }
                MAP_RUN
            }
            Change::Unmap { ino, page, pages } => {
                out.put_u64(ino.0);
                out.put_u64(page.0);
                out.put_u64(*pages);
                UNMAP
            }
            Change::Free { run } => {
                out.put_u64(run.start.0);
                out.put_u32(run.len);
                FREE
            }
            Change::Inline { ino, offset, data } => {
                out.put_u64(ino.0);
                out.put_u64(*offset);
                out.extend_from_slice(data);
                INLINE
            }
            Change::InlineZero { ino, offset, len } => {
                out.put_u64(ino.0);
                out.put_u64(*offset);
                out.put_u32(*len);
                INLINE_ZERO
            }
            Change::Reserve { first, count } => {
                out.put_u64(first.0);
                out.put_u32(*count);
                RESERVE
            }
            Change::EpochStart { previous, cut_lsn, cut_crc } => {
                out.put_u64(previous.0);
                out.put_u64(cut_lsn.0);
                out.put_u32(*cut_crc);
                EPOCH_START
            }
        }
    }

    /// Decodes all changes of a record's payload. `None`: malformed, or a change that is not known
    /// and may not be ignored.
    pub fn decode_all(payload: &[u8], count: u32) -> Option<Vec<Change>> {
        let mut r = Reader::new(payload);
        let mut changes = Vec::with_capacity((count as usize).min(payload.len() / SMALLEST));
        for _ in 0..count {
            let (tag, flags, len) = (r.u8()?, r.u8()?, r.u32()?);
            let body = Reader::new(r.bytes(len as usize)?);
            match Self::decode(tag, body) {
                Some(change) => changes.push(change),
                None if tag > EPOCH_START && flags & MAY_IGNORE != 0 => {}
                None => return None,
            }
        }
        r.is_empty().then_some(changes)
    }

    fn decode(tag: u8, mut r: Reader<'_>) -> Option<Change> {
        let change = match tag {
            PUT_ITEM => {
                let key = Key::decode(&r.array()?)?;
                return Some(Change::PutItem { key, value: r.rest().to_vec() });
            }
            DEL_ITEM => Change::DelItem { key: Key::decode(&r.array()?)? },
            MAP_RUN => decode_map_run(&mut r)?,
            UNMAP => Change::Unmap { ino: Ino(r.u64()?), page: PageNr(r.u64()?), pages: r.u64()? },
            FREE => Change::Free { run: decode_run(&mut r)? },
            INLINE => {
                let (ino, offset) = (Ino(r.u64()?), r.u64()?);
                return Some(Change::Inline { ino, offset, data: r.rest().to_vec() });
            }
            INLINE_ZERO => Change::InlineZero { ino: Ino(r.u64()?), offset: r.u64()?, len: r.u32()? },
            RESERVE => Change::Reserve { first: GroupNr(r.u64()?), count: r.u32()? },
            EPOCH_START => {
                Change::EpochStart { previous: Epoch(r.u64()?), cut_lsn: Lsn(r.u64()?), cut_crc: r.u32()? }
            }
            _ => return None,
        };
        r.is_empty().then_some(change)
    }

    /// The inode this change shows to exist, if any: inode numbers up to it are used up.
    pub fn names_inode(&self) -> Option<Ino> {
        match self {
            Change::PutItem { key, .. } | Change::DelItem { key } if key.kind == ItemKind::Inode => {
                Some(key.ino)
            }
            _ => None,
        }
    }
}

fn decode_run(r: &mut Reader<'_>) -> Option<BlockRun> {
    let run = BlockRun::new(BlockNr(r.u64()?), r.u32()?);
    (run.len > 0 && run.start.0 < 1 << 44).then_some(run)
}

fn decode_map_run(r: &mut Reader<'_>) -> Option<Change> {
    let (ino, page) = (Ino(r.u64()?), PageNr(r.u64()?));
    let start = BlockNr(r.u64()?);
    let pages = r.u32()?;
    let (last_blocks, encoding, has_crcs) = (r.u8()?, r.u8()?, r.u8()?);
    let sane = encoding == 0
        && (1..=16).contains(&last_blocks)
        && (1..=1 << 24).contains(&pages)
        && start.0 < 1 << 44
        && page.0.checked_add(pages.into()).is_some();
    if !sane {
        return None;
    }
    let crcs = match has_crcs {
        0 => None,
        1 => {
            let bytes = r.bytes(pages as usize * 4)?;
            Some(bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
        }
        _ => return None,
    };
    Some(Change::MapRun { ino, page, run: MappedRun { start, pages, last_blocks, crcs } })
}
