//! Images in a small file: blocks that are all zero are left out, and so are zeros within blocks.
//!
//! For each block that is not all zero: its number (8 bytes), then pairs of (zeros, literals), two
//! bytes each, with the literal bytes behind them, until the block is full. Little endian.

use blockdev::{AlignedBuf, BlockDevice, IoClass};
use dbfs_fs_core::BLOCK_SIZE;

/// Blocks read at once.
const STEP: u64 = 256;

/// Zeros that end a run of literals.
const GAP: usize = 5;

/// Packs the first `size` bytes of a device.
pub fn pack(device: &dyn BlockDevice, size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let blocks = size / BLOCK_SIZE as u64;
    for first in (0..blocks).step_by(STEP as usize) {
        let buf = AlignedBuf::zeroed(STEP as usize * BLOCK_SIZE);
        let buf = device.read_at(first * BLOCK_SIZE as u64, buf, IoClass::Data).unwrap();
        for (block, bytes) in (first..).zip(buf.chunks(BLOCK_SIZE)) {
            if bytes.iter().any(|b| *b != 0) {
                out.extend_from_slice(&block.to_le_bytes());
                pack_block(bytes, &mut out);
            }
        }
    }
    out
}

fn pack_block(bytes: &[u8], out: &mut Vec<u8>) {
    let mut at = 0;
    while at < BLOCK_SIZE {
        let start = at + zeros(&bytes[at..]);
        let mut end = start;
        while end < BLOCK_SIZE && zeros(&bytes[end..]) < GAP.min(BLOCK_SIZE - end) {
            end += 1;
        }
        out.extend_from_slice(&((start - at) as u16).to_le_bytes());
        out.extend_from_slice(&((end - start) as u16).to_le_bytes());
        out.extend_from_slice(&bytes[start..end]);
        at = end;
    }
}

fn zeros(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| **b == 0).count()
}

/// Writes a packed image to a zeroed device.
pub fn unpack(packed: &[u8], device: &dyn BlockDevice) {
    let mut rest = packed;
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at(n);
        rest = tail;
        head
    };
    let mut left = packed.len();
    while left > 0 {
        let block = u64::from_le_bytes(take(8).try_into().unwrap());
        left -= 8;
        let mut buf = AlignedBuf::zeroed(BLOCK_SIZE);
        let mut at = 0;
        while at < BLOCK_SIZE {
            let pair = take(4);
            let (gap, len) = (u16::from_le_bytes([pair[0], pair[1]]), u16::from_le_bytes([pair[2], pair[3]]));
            at += usize::from(gap);
            buf[at..at + usize::from(len)].copy_from_slice(take(len.into()));
            at += usize::from(len);
            left -= 4 + usize::from(len);
        }
        device.write_at(block * BLOCK_SIZE as u64, buf, false, IoClass::Data).unwrap();
    }
}
