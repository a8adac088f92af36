//! The pending list of a checkpoint: blocks its own tree nodes took and freed.
//!
//! A checkpoint cannot show its own node allocations in the bitmaps it is just writing, so it lists
//! them beside the root; the next checkpoint moves them into the bitmaps.

use super::bytes::{Reader, Writer};
use crate::types::{BlockNr, BlockRun};

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingEntry {
    /// The blocks.
    pub run: BlockRun,
    /// Taken (true) or freed.
    pub used: bool,
}

/// Bytes of an encoded entry.
const ENTRY: usize = 13;

/// Encodes the list.
pub fn encode_pending(entries: &[PendingEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * ENTRY);
    for e in entries {
        out.put_u64(e.run.start.0);
        out.put_u32(e.run.len);
        out.put_u8(u8::from(e.used));
    }
    out
}

/// Decodes a list of `count` entries; `None` if malformed.
pub fn decode_pending(bytes: &[u8], count: u32) -> Option<Vec<PendingEntry>> {
    let mut r = Reader::new(bytes.get(..count as usize * ENTRY)?);
    (0..count)
        .map(|_| {
            let run = BlockRun::new(BlockNr(r.u64()?), r.u32()?);
            let used = match r.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            };
            (run.len > 0 && run.start.0 < 1 << 44).then_some(PendingEntry { run, used })
        })
        .collect()
}
