//! Checksums of many overlapping ranges of a segment, each byte of it summed a bounded number of times.
//!
//! The CRC of a range of blocks follows from those of two prefixes of the segment, without looking at
//! the bytes between. Records that a hostile device lays over each other cost no more than their first
//! and last blocks each.

use crate::format::record::{RECORD_HEADER, RecordHeader, header_checksum};
use crate::mutants::{self, Mutant};
use crate::types::BLOCK_SIZE;

/// Sums of one segment's blocks; made when they are first needed.
#[derive(Debug, Default)]
pub(super) struct BlockSums {
    /// CRC of the bytes before block i.
    prefixes: Vec<u32>,
    summed: u64,
}

impl BlockSums {
    /// Bytes summed so far.
    pub(super) fn summed(&self) -> u64 {
        self.summed
    }

    /// Whether the record with header `header` at byte `at` of `segment` is what its checksum says. The
    /// whole record is within the segment; `at` is the start of a block.
    pub(super) fn verify(&mut self, segment: &[u8], at: usize, header: &RecordHeader) -> bool {
        let start = at + RECORD_HEADER;
        let end = start + header.payload_len as usize;
        let mut crc = header_checksum(&segment[at..]);
        self.summed += RECORD_HEADER as u64;
        let (first, last) = (at / BLOCK_SIZE + 1, end / BLOCK_SIZE);
        if last <= first {
            crc = self.append(crc, &segment[start..end]);
        } else {
            crc = self.append(crc, &segment[start..first * BLOCK_SIZE]);
            crc = crc32c::crc32c_combine(crc, self.blocks(segment, first, last), (last - first) * BLOCK_SIZE);
            crc = self.append(crc, &segment[last * BLOCK_SIZE..end]);
        }
        crc == header.crc || mutants::active(Mutant::SkipRecordChecksum)
    }

    fn append(&mut self, crc: u32, bytes: &[u8]) -> u32 {
        self.summed += bytes.len() as u64;
        crc32c::crc32c_append(crc, bytes)
    }

    /// CRC of blocks `first..last`, of which there is at least one.
    fn blocks(&mut self, segment: &[u8], first: usize, last: usize) -> u32 {
        if self.prefixes.is_empty() {
            self.prefixes.push(0);
            for block in segment.chunks_exact(BLOCK_SIZE) {
                let before = self.prefixes.last().copied().unwrap_or_default();
                let next = self.append(before, block);
                self.prefixes.push(next);
            }
        }
        let moved = crc32c::crc32c_combine(self.prefixes[first], 0, (last - first) * BLOCK_SIZE);
        self.prefixes[last] ^ moved
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::format::record::{RecordPlace, encode_record, peek_record};
    use crate::types::{BlockNr, Epoch, Lsn};

    #[test]
    fn agrees_with_the_plain_checksum() {
        let uuid = Uuid::from_bytes([3; 16]);
        for len in [0, 1, 3999, 4000, 4001, 8095, 8096, 8097, 30_000, 40 * BLOCK_SIZE - 96] {
            for block in [0usize, 1, 5] {
                let place = RecordPlace {
                    addr: BlockNr(100 + block as u64),
                    epoch: Epoch(1),
                    lsn: Lsn(2),
                    durable_lsn: Lsn(1),
                    prev_crc: 7,
                    inodes: 1,
                    node_id: 0,
                };
                let payload: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
                let (record, _) = encode_record(&uuid, &place, &payload, 0);
                let mut segment = vec![0xa5; 64 * BLOCK_SIZE];
                let at = block * BLOCK_SIZE;
                segment[at..at + record.len()].copy_from_slice(&record);
                let header = peek_record(&uuid, place.addr, &segment[at..]).unwrap();
                assert!(BlockSums::default().verify(&segment, at, &header), "{len} bytes at {block}");
                segment[at + RECORD_HEADER.max(RECORD_HEADER + len - 1)] ^= 1;
                let good = BlockSums::default().verify(&segment, at, &header);
                assert_eq!(good, len == 0, "{len} bytes at {block}, the last one changed");
            }
        }
    }
}
