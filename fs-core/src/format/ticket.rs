//! Claim tickets: the first and the last write of an epoch's claim.
//!
//! A claimant announces its epoch with a ticket before it writes its root slots, and completes the
//! ticket behind them, before it serves anything. So a claim that was interrupted can be told from one
//! whose root slots were lost, and a claimant can notice another one.

use blockdev::AlignedBuf;
use uuid::Uuid;

use super::bytes::{Reader, Writer};
use crate::error::{FsError, Result};
use crate::types::{BLOCK_SIZE, BlockNr, Epoch};

const MAGIC: [u8; 8] = *b"dbfsCLAM";
const VERSION: u32 = 1;
const CRC_AT: usize = 12;
const BEGUN: u32 = 1;
const COMPLETE: u32 = 2;

/// Bytes of a ticket, at the start of its block: a sector, which is written as a whole.
const SIZE: usize = 512;

/// An epoch's ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The epoch that is claimed.
    pub epoch: Epoch,
    /// Random number of this claim, not 0; its root slots carry it too.
    pub claim: u64,
    /// Node that claims.
    pub node_id: u32,
    /// Both root slots are durable: the epoch may serve.
    pub complete: bool,
}

impl Ticket {
    /// Address of `epoch`'s ticket: they lie behind the root slots, one a row.
    pub fn address(slots_start: BlockNr, rows: u32, epoch: Epoch) -> BlockNr {
        slots_start.plus(u64::from(rows) * 2 + epoch.0 % u64::from(rows))
    }

    /// Encodes the ticket for block `own`.
    pub fn encode(&self, uuid: &Uuid, own: BlockNr) -> AlignedBuf {
        let mut b = Vec::with_capacity(BLOCK_SIZE);
        b.extend_from_slice(&MAGIC);
        b.put_u32(VERSION);
        b.put_u32(0); // CRC_AT
        b.extend_from_slice(uuid.as_bytes());
        for v in [own.0, self.epoch.0, self.claim] {
            b.put_u64(v);
        }
        b.put_u32(self.node_id);
        b.put_u32(if self.complete { COMPLETE } else { BEGUN });
        b.resize(SIZE, 0);
        let crc = crc32c::crc32c(&b);
        b[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        b.resize(BLOCK_SIZE, 0);
        AlignedBuf::from_slice(&b)
    }

    /// Decodes what was read from block `own`. `Ok(None)`: never written (zero).
    pub fn decode(bytes: &[u8], uuid: &Uuid, own: BlockNr) -> Result<Option<Self>> {
        let bad = |detail: &str| FsError::corrupt("claim ticket", own, detail);
        let bytes = bytes.get(..SIZE).ok_or_else(|| bad("short read"))?;
        if bytes.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        let mut copy = bytes.to_vec();
        copy[CRC_AT..CRC_AT + 4].fill(0);
        let mut r = Reader::new(bytes);
        if r.array() != Some(MAGIC) || r.u32() != Some(VERSION) {
            return Err(bad("wrong magic number or version"));
        }
        if r.u32() != Some(crc32c::crc32c(&copy)) {
            return Err(bad("checksum mismatch"));
        }
        if r.array() != Some(*uuid.as_bytes()) || r.u64() != Some(own.0) {
            return Err(bad("it belongs to another volume or address"));
        }
        decode_body(&mut r).ok_or_else(|| bad("impossible values")).map(Some)
    }
}

fn decode_body(r: &mut Reader<'_>) -> Option<Ticket> {
    let (epoch, claim, node_id) = (Epoch(r.u64()?), r.u64()?, r.u32()?);
    let complete = match r.u32()? {
        BEGUN => false,
        COMPLETE => true,
        _ => return None,
    };
    Some(Ticket { epoch, claim, node_id, complete })
}
