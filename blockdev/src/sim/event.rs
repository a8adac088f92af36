//! The simulator's single source of truth: a log of what happened to the medium.

use std::ops::Range;
use std::sync::Arc;

use crate::rng::Rng;
use crate::sparse::{PAGE, SparseMem};

use super::fault::Leaves;

/// One thing that happened to the medium. `seq` is its position in the log, from 0.
#[derive(Clone, Debug)]
pub struct Event {
    /// Position in the log.
    pub seq: u64,
    /// Length of the log when the request was submitted: everything from there on may have been in
    /// flight together with it.
    pub submitted_at: u64,
    /// Length of the log when the submitter learned of the success (by waiting). `None` as long as
    /// nobody waited, and for ever if the request failed: then nothing was promised.
    pub acked_at: Option<u64>,
    /// Number of the handle that submitted it (0 for the first).
    pub handle: u32,
    /// What happened.
    pub kind: EventKind,
}

/// What an [`Event`] did.
#[derive(Clone, Debug)]
pub enum EventKind {
    /// A write, successful or not.
    Write {
        /// Byte offset asked for.
        offset: u64,
        /// The bytes.
        data: Arc<[u8]>,
        /// Durable once acknowledged.
        fua: bool,
        /// What the medium made of it.
        outcome: Outcome,
        /// It landed after its submitter had been given up (see `SimDevice::release_late`).
        late: bool,
    },
    /// A flush. `honest` is false if it failed, or succeeded without doing anything.
    Flush {
        /// It covered what it had to.
        honest: bool,
    },
    /// A discard.
    Discard {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// What the range reads as from now on.
        leaves: Discarded,
    },
    /// Decay: the byte at `offset` was changed by exclusive or with `mask`.
    Rot {
        /// Byte offset.
        offset: u64,
        /// Bits that flipped.
        mask: u8,
    },
    /// A number noted by the test.
    Mark(u64),
    /// A name noted by the user of the device.
    Name(Arc<str>),
}

impl EventKind {
    /// Byte range the event asked to change; `None` for flushes and marks.
    pub fn range(&self) -> Option<Range<u64>> {
        match self {
            Self::Write { offset, data, .. } => Some(*offset..offset + data.len() as u64),
            Self::Discard { offset, len, .. } => Some(*offset..offset + len),
            Self::Rot { offset, .. } => Some(*offset..offset + 1),
            Self::Flush { .. } | Self::Mark(_) | Self::Name(_) => None,
        }
    }

    /// The event is a write or a discard, whose effect a power cut may undo.
    pub(super) fn is_change(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Discard { .. })
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done as asked.
    Done,
    /// Reported as failed.
    Failed(Leaves),
    /// Acknowledged, never done.
    Lost,
    /// Acknowledged, done at this byte offset instead.
    Misdirected(u64),
}

/// What discarded bytes read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Discarded {
    /// What they were.
    Old,
    /// Zeroes.
    Zero,
    /// A pattern that nobody wrote.
    Poison,
    /// Each 4 KiB page one of the three, by seed.
    #[default]
    Mixed,
}

/// The byte that a discarded and poisoned page is full of.
pub const POISON: u8 = 0xDB;

/// Applies a discard. Only pages that hold data can change: a hole stays a hole, so that a discard
/// of the whole device costs no memory.
pub(super) fn apply_discard(mem: &mut SparseMem, range: Range<u64>, leaves: Discarded, mut rng: Rng) {
    if leaves == Discarded::Zero {
        return mem.zero(range.start, range.end - range.start);
    }
    for page in mem.pages_in(range.clone()) {
        let start = (page * PAGE as u64).max(range.start);
        let end = ((page + 1) * PAGE as u64).min(range.end);
        let fate = match leaves {
            Discarded::Mixed => [Discarded::Old, Discarded::Zero, Discarded::Poison][rng.below(3) as usize],
            fixed => fixed,
        };
        match fate {
            Discarded::Zero => mem.zero(start, end - start),
            Discarded::Poison => mem.write(start, &[POISON; PAGE][..(end - start) as usize]),
            Discarded::Old | Discarded::Mixed => {}
        }
    }
}

/// Flips bits of one byte.
pub(super) fn apply_rot(mem: &mut SparseMem, offset: u64, mask: u8) {
    let mut byte = [0];
    mem.read(offset, &mut byte);
    mem.write(offset, &[byte[0] ^ mask]);
}
