//! Appending records. One thread at a time (the leader of a group commit) holds the writer.

use std::collections::BTreeMap;

use blockdev::AlignedBuf;
use uuid::Uuid;

use crate::format::record::{RecordPlace, encode_record, record_blocks};
use crate::format::{JournalPart, JournalPoint};
use crate::types::{BlockNr, Epoch, Lsn};

/// The ring has no free segment: a checkpoint must advance its tail first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// Where the journal ends in memory terms: segment numbers count up without wrapping.
#[derive(Clone, Copy, Debug)]
struct Position {
    segment: u64,
    block: u32,
}

/// The running epoch's journal.
#[derive(Debug)]
pub(crate) struct JournalWriter {
    uuid: Uuid,
    epoch: Epoch,
    node_id: u32,
    segments: Vec<BlockNr>,
    segment_blocks: u32,
    head: Position,
    /// First segment that a root still needs.
    tail: u64,
    last_lsn: Lsn,
    last_crc: u32,
    /// Where each record since the last root ends, for the next root to start from.
    ends: BTreeMap<Lsn, (Position, u32)>,
    /// Where the last root starts.
    root: Position,
}

/// A record ready to be written.
pub(crate) struct PlacedRecord {
    /// Where.
    pub(crate) addr: BlockNr,
    /// The bytes.
    pub(crate) buf: AlignedBuf,
}

impl JournalWriter {
    /// A journal in fresh segments, continuing after record `last_lsn`.
    pub(crate) fn new(
        uuid: Uuid,
        epoch: Epoch,
        node_id: u32,
        segments: Vec<BlockNr>,
        segment_blocks: u32,
        last: (Lsn, u32),
    ) -> Self {
        let head = Position { segment: 0, block: 0 };
        Self {
            uuid,
            epoch,
            node_id,
            segments,
            segment_blocks,
            head,
            tail: 0,
            last_lsn: last.0,
            last_crc: last.1,
            ends: BTreeMap::from([(last.0, (head, last.1))]),
            root: head,
        }
    }

    /// Largest payload that fits a record.
    pub(crate) fn max_payload(segment_blocks: u32) -> usize {
        segment_blocks as usize * crate::types::BLOCK_SIZE - crate::format::record::RECORD_HEADER
    }

    /// LSN of the last record placed.
    pub(crate) fn last_lsn(&self) -> Lsn {
        self.last_lsn
    }

    /// Segments neither in use nor needed by a root.
    pub(crate) fn free_segments(&self) -> u64 {
        self.segments.len() as u64 - 1 - (self.head.segment - self.tail)
    }

    /// Segments written since the last root, and segments of the ring.
    pub(crate) fn segments_since_root(&self) -> (u64, u64) {
        (self.head.segment - self.root.segment, self.segments.len() as u64)
    }

    /// Number of segments of the ring.
    pub(crate) fn segment_count(&self) -> u64 {
        self.segments.len() as u64
    }

    /// How often the ring has been wrapped around.
    pub(crate) fn wraps(&self) -> u64 {
        self.head.segment.checked_div(self.segments.len() as u64).unwrap_or(0)
    }

    /// Gives the payload its number and place. The caller writes it before anything after it.
    pub(crate) fn place(
        &mut self,
        payload: &[u8],
        changes: u32,
        durable_lsn: Lsn,
        inodes: u64,
    ) -> Result<PlacedRecord, NoRoom> {
        let blocks = record_blocks(payload.len());
        assert!(blocks <= self.segment_blocks, "batches are closed before they outgrow a segment");
        if self.head.block + blocks > self.segment_blocks {
            if self.free_segments() == 0 {
                return Err(NoRoom);
            }
            self.head = Position { segment: self.head.segment + 1, block: 0 };
        }
        let addr = self.address(self.head);
        let lsn = self.last_lsn.next();
        let place = RecordPlace {
            addr,
            epoch: self.epoch,
            lsn,
            durable_lsn,
            prev_crc: self.last_crc,
            inodes,
            node_id: self.node_id,
        };
        let (buf, crc) = encode_record(&self.uuid, &place, payload, changes);
        self.head.block += blocks;
        self.last_lsn = lsn;
        self.last_crc = crc;
        self.ends.insert(lsn, (self.head, crc));
        Ok(PlacedRecord { addr, buf })
    }

    fn address(&self, at: Position) -> BlockNr {
        let index = (at.segment % self.segments.len() as u64) as usize;
        self.segments[index].plus(at.block.into())
    }

    /// The epoch's part of a root slot whose checkpoint is at `lsn`; `None` if `lsn` is not the end
    /// of a record this writer knows.
    pub(crate) fn part_from(&self, lsn: Lsn) -> Option<JournalPart> {
        let (at, crc) = self.ends.get(&lsn)?;
        let segment = (at.segment % self.segments.len() as u64) as u32;
        Some(JournalPart {
            epoch: self.epoch,
            start: JournalPoint { segment, block: at.block, lsn, crc: *crc },
            end: None,
            segments: self.segments.clone(),
        })
    }

    /// A root with a checkpoint at `root` is durable: drops the journal behind `lsn`, the
    /// checkpoint of the root before it (rule R7).
    pub(crate) fn drop_behind(&mut self, lsn: Lsn, root: Lsn) {
        if let Some((at, _)) = self.ends.get(&root) {
            self.root = *at;
        }
        if let Some((at, _)) = self.ends.get(&lsn) {
            self.tail = self.tail.max(at.segment);
            self.ends = self.ends.split_off(&lsn);
        }
    }
}
