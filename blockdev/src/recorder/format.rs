//! Records of the log file: a header of 48 bytes, then the payload; all numbers little endian.

use crate::Capabilities;

/// Bytes of a header.
pub(super) const HEADER: usize = 48;

/// "dbRL"
const MAGIC: u32 = u32::from_le_bytes(*b"dbRL");

/// What a record says. Offsets and lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The properties of the device; they hold for what follows.
    Device {
        /// The properties.
        geometry: Geometry,
        /// A recorder was opened here, and everything before is settled; if not, the device grew.
        opened: bool,
    },
    /// A write was submitted; the payload is its data.
    Write {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
        /// Durable once done.
        fua: bool,
    },
    /// A flush was submitted.
    Flush,
    /// A discard was submitted.
    Discard {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// The submitter of an earlier request learned how it went.
    Done {
        /// Sequence number of the request.
        of: u64,
        /// How it went.
        outcome: DoneKind,
    },
    /// A named moment; the payload is the name.
    Mark,
}

/// How a recorded request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoneKind {
    /// It failed and may have done anything.
    Failed,
    /// It succeeded.
    Ok,
    /// It was refused and did nothing.
    Untouched,
}

/// What a rebuilt image has to know of the recorded device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes.
    pub size: u64,
    /// Logical sector in bytes.
    pub logical_sector: u32,
    /// Atomic write unit in bytes.
    pub atomic_write_unit: u32,
    /// Whether completed writes need a flush.
    pub volatile_write_cache: bool,
}

impl Geometry {
    pub(super) fn of(caps: &Capabilities) -> Self {
        Self {
            size: caps.size_bytes,
            logical_sector: caps.logical_sector,
            atomic_write_unit: caps.atomic_write_unit,
            volatile_write_cache: caps.volatile_write_cache,
        }
    }
}

/// A decoded header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) seq: u64,
    pub(super) kind: RecordKind,
    pub(super) payload_len: u32,
    pub(super) payload_crc: u32,
}

/// The kind as (number, flag, first and second argument).
fn pack(kind: &RecordKind) -> (u8, u8, u64, u64) {
    match kind {
        RecordKind::Device { geometry: g, opened } => {
            let units = u64::from(g.logical_sector) | u64::from(g.atomic_write_unit) << 32;
            (0, u8::from(g.volatile_write_cache) | u8::from(*opened) << 1, g.size, units)
        }
        RecordKind::Write { offset, len, fua } => (1, u8::from(*fua), *offset, *len),
        RecordKind::Flush => (2, 0, 0, 0),
        RecordKind::Discard { offset, len } => (3, 0, *offset, *len),
        RecordKind::Done { of, outcome } => {
            let flag = match outcome {
                DoneKind::Failed => 0,
                DoneKind::Ok => 1,
                DoneKind::Untouched => 2,
            };
            (4, flag, *of, 0)
        }
        RecordKind::Mark => (5, 0, 0, 0),
    }
}

fn unpack(number: u8, flag: u8, a: u64, b: u64) -> Option<RecordKind> {
    let outcome = || match flag {
        0 => Some(DoneKind::Failed),
        1 => Some(DoneKind::Ok),
        2 => Some(DoneKind::Untouched),
        _ => None,
    };
    Some(match number {
        0 => {
            let (logical_sector, atomic_write_unit) = (b as u32, (b >> 32) as u32);
            let (volatile_write_cache, opened) = (flag & 1 != 0, flag & 2 != 0);
            // Used as divisors later.
            let sane = |n: u32| n.is_power_of_two() && n >= 512;
            if !sane(logical_sector) || !sane(atomic_write_unit) {
                return None;
            }
            let geometry = Geometry { size: a, logical_sector, atomic_write_unit, volatile_write_cache };
            RecordKind::Device { geometry, opened }
        }
        1 => RecordKind::Write { offset: a, len: b, fua: flag != 0 },
        2 => RecordKind::Flush,
        3 => RecordKind::Discard { offset: a, len: b },
        4 => RecordKind::Done { of: a, outcome: outcome()? },
        5 => RecordKind::Mark,
        _ => return None,
    })
}

pub(super) fn encode(header: &Header) -> [u8; HEADER] {
    let (number, flag, a, b) = pack(&header.kind);
    let mut out = [0; HEADER];
    out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    out[8..16].copy_from_slice(&header.seq.to_le_bytes());
    out[16..24].copy_from_slice(&a.to_le_bytes());
    out[24..32].copy_from_slice(&b.to_le_bytes());
    out[32..36].copy_from_slice(&header.payload_len.to_le_bytes());
    out[36..40].copy_from_slice(&header.payload_crc.to_le_bytes());
    out[40] = number;
    out[41] = flag;
    let crc = crc32c::crc32c(&out[8..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out
}

/// `None` if these bytes are not a whole, undamaged header.
pub(super) fn decode(bytes: &[u8; HEADER]) -> Option<Header> {
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    if u32_at(0) != MAGIC || u32_at(4) != crc32c::crc32c(&bytes[8..]) {
        return None;
    }
    let kind = unpack(bytes[40], bytes[41], u64_at(16), u64_at(24))?;
    Some(Header { seq: u64_at(8), kind, payload_len: u32_at(32), payload_crc: u32_at(36) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_encoding_and_damage_is_seen() {
        let geometry = Geometry {
            size: 7 << 40,
            logical_sector: 512,
            atomic_write_unit: 4096,
            volatile_write_cache: true,
        };
        let kinds = [
            RecordKind::Device { geometry, opened: true },
            RecordKind::Device { geometry, opened: false },
            RecordKind::Write { offset: 1 << 50, len: 4096, fua: true },
            RecordKind::Flush,
            RecordKind::Discard { offset: 4096, len: 1 << 40 },
            RecordKind::Done { of: 9, outcome: DoneKind::Failed },
            RecordKind::Done { of: 9, outcome: DoneKind::Ok },
            RecordKind::Done { of: 9, outcome: DoneKind::Untouched },
            RecordKind::Mark,
        ];
        for (seq, kind) in kinds.into_iter().enumerate() {
            let header = Header { seq: seq as u64, kind, payload_len: 77, payload_crc: 0xDEAD_BEEF };
            let bytes = encode(&header);
            assert_eq!(decode(&bytes).as_ref(), Some(&header));
            for bit in 0..HEADER * 8 {
                let mut bad = bytes;
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(&bad), None, "bit {bit}");
            }
        }
    }
}
