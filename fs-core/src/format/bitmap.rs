//! Bitmap items: one bit a block, set: used. A piece covers 8192 blocks; a piece that is all free
//! has no item.

/// Blocks that one bitmap item covers.
pub const BITMAP_BLOCKS: u64 = 8192;

const BYTES: usize = BITMAP_BLOCKS as usize / 8;
const ALL_USED: [u8; 1] = [0xff];

/// The bits of a piece.
pub type Piece = [u64; BYTES / 8];

/// Encodes a piece; `None` if all its blocks are free.
pub fn encode_piece(words: &Piece) -> Option<Vec<u8>> {
    if words.iter().all(|w| *w == 0) {
        None
    } else if words.iter().all(|w| *w == u64::MAX) {
        Some(ALL_USED.to_vec())
    } else {
        Some(words.iter().flat_map(|w| w.to_le_bytes()).collect())
    }
}

/// Decodes a piece; `None` if malformed.
pub fn decode_piece(bytes: &[u8]) -> Option<Piece> {
    if bytes == ALL_USED {
        return Some([u64::MAX; BYTES / 8]);
    }
    if bytes.len() != BYTES {
        return None;
    }
    let mut words = [0; BYTES / 8];
    for (word, b) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(b.try_into().ok()?);
    }
    Some(words)
}

/// Sets or clears bits `[from, from + len)` of a piece; returns how many really changed.
pub fn mark(words: &mut Piece, from: u64, len: u64, used: bool) -> u64 {
    let mut changed = 0;
    for bit in from..(from + len).min(BITMAP_BLOCKS) {
        let (word, mask) = (&mut words[(bit / 64) as usize], 1u64 << (bit % 64));
        if (*word & mask != 0) != used {
            *word ^= mask;
            changed += 1;
        }
    }
    changed
}
