//! The simulated medium: executes requests one at a time, and logs what it did.

use crate::check::{Shape, admit, concat, failed, into_bufs};
use crate::powercut::some_pieces;
use crate::rng::Rng;
use crate::sparse::SparseMem;
use crate::{AlignedBuf, Capabilities, Completion, ErrorKind, Op};

use super::event::{Discarded, Event, EventKind, Outcome, apply_discard, apply_rot};
use super::fault::{Effect, Faults, Leaves, OpKind};
use super::{Counters, SimOptions};

/// A snapshot is taken at a flush when this many events have come since the last one: bounds both
/// the snapshots kept and the events an image has to replay.
const SNAPSHOT_EVERY: u64 = 32;

pub(super) struct Medium {
    pub(super) options: SimOptions,
    pub(super) mem: SparseMem,
    pub(super) events: Vec<Event>,
    /// (length of the log, visible content then), ascending; the first is the initial content.
    pub(super) snapshots: Vec<(u64, SparseMem)>,
    /// Writes whose promise a failed flush dropped (by seq, ascending).
    pub(super) poisoned: Vec<u64>,
    pub(super) faults: Faults,
    pub(super) counters: Counters,
    pub(super) handles: Vec<HandleState>,
    /// Counts every decision made by chance, so that each has its own generator.
    decisions: u64,
}

/// What the medium knows of one handle.
#[derive(Default)]
pub(super) struct HandleState {
    pub(super) exclusive: bool,
    pub(super) access: Access,
    /// Changes submitted while held, oldest first.
    pub(super) held: Vec<Op>,
}

/// How requests of a handle are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Access {
    #[default]
    Open,
    /// The next so many changes go through, later ones are held.
    HoldAfter(u64),
    /// Everything is refused.
    Fenced,
}

/// What a request did: its completion, and the event to acknowledge when the submitter waits.
pub(super) struct Ran {
    pub(super) completion: Completion,
    pub(super) event: Option<u64>,
}

impl Medium {
    pub(super) fn new(options: SimOptions, mem: SparseMem) -> Self {
        let snapshots = vec![(0, mem.clone())];
        Self {
            options,
            mem,
            events: Vec::new(),
            snapshots,
            poisoned: Vec::new(),
            faults: Faults::default(),
            counters: Counters::default(),
            handles: Vec::new(),
            decisions: 0,
        }
    }

    pub(super) fn seq(&self) -> u64 {
        self.events.len() as u64
    }

    pub(super) fn rng(&mut self) -> Rng {
        self.decisions += 1;
        Rng::derived(self.options.seed, self.decisions)
    }

    pub(super) fn capabilities(&self, handle: u32) -> Capabilities {
        Capabilities {
            size_bytes: self.options.size,
            logical_sector: self.options.logical_sector,
            physical_sector: self.options.physical_sector,
            atomic_write_unit: self.options.atomic_write_unit,
            volatile_write_cache: self.options.volatile_write_cache,
            native_fua: self.options.native_fua,
            discard: true,
            reservations: false,
            direct: true,
            exclusive: self.handles[handle as usize].exclusive,
            max_transfer: 1 << 24,
        }
    }

    pub(super) fn log(&mut self, submitted_at: u64, handle: u32, kind: EventKind) -> u64 {
        let seq = self.seq();
        self.events.push(Event { seq, submitted_at, acked_at: None, handle, kind });
        seq
    }

    /// The submitter has learned that event `seq` succeeded.
    pub(super) fn ack(&mut self, seq: u64) {
        let now = self.seq();
        self.events[seq as usize].acked_at.get_or_insert(now);
    }

    /// Runs one request of a batch that was submitted when the log was `submitted_at` long.
    pub(super) fn run(&mut self, submitted_at: u64, handle: u32, op: Op) -> Ran {
        let shape = match admit(&op, &self.capabilities(handle)) {
            Ok(shape) => shape,
            Err((shape, kind)) => return self.refuse(op, shape, kind),
        };
        match self.handles[handle as usize].access {
            Access::Fenced => return self.refuse(op, shape, ErrorKind::Refused),
            Access::HoldAfter(0) => return self.hold(handle, op, shape),
            Access::HoldAfter(n) if !matches!(op, Op::Read { .. }) => {
                self.handles[handle as usize].access = Access::HoldAfter(n - 1);
            }
            _ => {}
        }
        let range = shape.offset..shape.offset + shape.len;
        match op {
            Op::Read { offset, bufs } => self.read(offset, bufs, shape),
            Op::Write { offset, bufs, fua } => {
                let effect = self.faults.hit(OpKind::Write, &range);
                self.write(submitted_at, handle, (offset, bufs, fua), shape, effect)
            }
            Op::Flush => {
                let effect = self.faults.hit(OpKind::Flush, &range);
                self.flush(submitted_at, handle, shape, effect)
            }
            Op::Discard { offset, len } => self.discard(submitted_at, handle, (offset, len), shape),
        }
    }

    fn refuse(&self, op: Op, shape: Shape, kind: ErrorKind) -> Ran {
        let error = shape.error(&self.options.name, kind, 0);
        Ran { completion: failed(op, error), event: None }
    }

    /// The submitter is gone as far as it can tell; what it submitted is not.
    fn hold(&mut self, handle: u32, op: Op, shape: Shape) -> Ran {
        let (bufs, held) = match op {
            Op::Write { offset, bufs, fua } => (bufs.clone(), Some(Op::Write { offset, bufs, fua })),
            Op::Discard { offset, len } => (Vec::new(), Some(Op::Discard { offset, len })),
            Op::Read { bufs, .. } => (bufs, None),
            Op::Flush => (Vec::new(), None),
        };
        self.handles[handle as usize].held.extend(held);
        let error = shape.error(&self.options.name, ErrorKind::Io, libc::EIO);
        Ran { completion: Completion { bufs, result: Err(error) }, event: None }
    }

    fn complete(&self, bufs: Vec<AlignedBuf>, failure: Option<ErrorKind>, shape: Shape) -> Completion {
        let result = match failure {
            None => Ok(()),
            Some(kind) => Err(shape.error(&self.options.name, kind, errno_of(kind))),
        };
        Completion { bufs, result }
    }

    fn read(&mut self, offset: u64, mut bufs: Vec<AlignedBuf>, shape: Shape) -> Ran {
        self.counters.reads += 1;
        self.counters.bytes_read += shape.len;
        let effect = self.faults.hit(OpKind::Read, &(offset..offset + shape.len));
        if let Some(Effect::Fail { kind, .. }) = effect {
            return Ran { completion: self.complete(bufs, Some(kind), shape), event: None };
        }
        let mut at = offset;
        for buf in &mut bufs {
            self.mem.read(at, buf);
            at += buf.len() as u64;
        }
        if effect == Some(Effect::FlipBit) {
            let mut rng = self.rng();
            flip_one_bit(&mut bufs, rng.below(shape.len), rng.below(8) as u32);
        }
        Ran { completion: self.complete(bufs, None, shape), event: None }
    }

    fn write(
        &mut self,
        submitted_at: u64,
        handle: u32,
        (offset, bufs, fua): (u64, Vec<AlignedBuf>, bool),
        shape: Shape,
        effect: Option<Effect>,
    ) -> Ran {
        self.counters.writes += 1;
        self.counters.fua_writes += u64::from(fua);
        self.counters.bytes_written += shape.len;
        let (outcome, failure) = match effect {
            Some(Effect::Fail { kind, leaves }) => (Outcome::Failed(leaves), Some(kind)),
            Some(Effect::Lose) => (Outcome::Lost, None),
            Some(Effect::Misdirect(to)) => (Outcome::Misdirected(to), None),
            _ => (Outcome::Done, None),
        };
        let data = concat(&bufs);
        self.put(offset, &data, outcome);
        let kind = EventKind::Write { offset, data, fua, outcome, late: false };
        let seq = self.log(submitted_at, handle, kind);
        let event = failure.is_none().then_some(seq);
        Ran { completion: self.complete(bufs, failure, shape), event }
    }

    /// What a write does to the visible content.
    fn put(&mut self, offset: u64, data: &[u8], outcome: Outcome) {
        match outcome {
            Outcome::Done | Outcome::Failed(Leaves::New) => self.mem.write(offset, data),
            Outcome::Failed(Leaves::Mix) => {
                let unit = u64::from(self.options.logical_sector);
                let mut rng = self.rng();
                let put = |at, bytes: &[u8]| self.mem.write(at, bytes);
                some_pieces((offset, data), unit, || rng.chance(0.5), put);
            }
            Outcome::Misdirected(to) => {
                let data = within(to, data, self.options.size);
                self.mem.write(to, data);
            }
            Outcome::Lost | Outcome::Failed(Leaves::Old) => {}
        }
    }

    fn flush(&mut self, submitted_at: u64, handle: u32, shape: Shape, effect: Option<Effect>) -> Ran {
        self.counters.flushes += 1;
        let failure = match effect {
            Some(Effect::Fail { kind, .. }) => Some(kind),
            _ => None,
        };
        if failure.is_some() {
            self.poison(submitted_at);
        }
        let honest = effect.is_none();
        if honest {
            self.take_snapshot();
        }
        let seq = self.log(submitted_at, handle, EventKind::Flush { honest });
        let event = failure.is_none().then_some(seq);
        Ran { completion: self.complete(Vec::new(), failure, shape), event }
    }

    /// Everything acknowledged and not yet covered loses its claim to be covered.
    fn poison(&mut self, submitted_at: u64) {
        let covered = self.covered_up_to(self.seq());
        let uncovered = self.events.iter().filter(|e| {
            e.kind.is_change() && e.acked_at.is_some_and(|at| at <= submitted_at && at > covered)
        });
        self.poisoned.extend(uncovered.map(|e| e.seq));
        self.poisoned.sort_unstable();
        self.poisoned.dedup();
    }

    /// Submission position of the last honest flush known to be complete when the log was `cut`
    /// long: writes acknowledged by then are durable.
    pub(super) fn covered_up_to(&self, cut: u64) -> u64 {
        let done = |e: &&Event| {
            matches!(e.kind, EventKind::Flush { honest: true }) && e.acked_at.is_some_and(|at| at <= cut)
        };
        self.events.iter().filter(done).map(|e| e.submitted_at).max().unwrap_or(0)
    }

    pub(super) fn take_snapshot(&mut self) {
        let last = self.snapshots.last().map_or(0, |(at, _)| *at);
        if self.seq() >= last + SNAPSHOT_EVERY {
            self.snapshots.push((self.seq(), self.mem.clone()));
        }
    }

    fn discard(&mut self, submitted_at: u64, handle: u32, (offset, len): (u64, u64), shape: Shape) -> Ran {
        self.counters.discards += 1;
        let effect = self.faults.hit(OpKind::Discard, &(offset..offset + len));
        if let Some(Effect::Fail { kind, .. }) = effect {
            return Ran { completion: self.complete(Vec::new(), Some(kind), shape), event: None };
        }
        let leaves = self.options.discarded;
        let rng = self.discard_rng(self.seq());
        apply_discard(&mut self.mem, offset..offset + len, leaves, rng);
        let event = Some(self.log(submitted_at, handle, EventKind::Discard { offset, len, leaves }));
        Ran { completion: self.complete(Vec::new(), None, shape), event }
    }

    /// The generator of the discard at `seq`: the same when it is replayed into an image.
    pub(super) fn discard_rng(&self, seq: u64) -> Rng {
        Rng::derived(!self.options.seed, seq)
    }

    /// Lands one held request.
    pub(super) fn land(&mut self, handle: u32, op: Op) {
        let submitted_at = self.seq();
        match op {
            Op::Write { offset, bufs, fua } => {
                let data = concat(&bufs);
                self.mem.write(offset, &data);
                let outcome = Outcome::Done;
                let kind = EventKind::Write { offset, data, fua, outcome, late: true };
                let seq = self.log(submitted_at, handle, kind);
                // It has completed, although its submitter will never know: a later flush covers it.
                self.ack(seq);
            }
            Op::Discard { offset, len } => {
                let leaves: Discarded = self.options.discarded;
                let rng = self.discard_rng(submitted_at);
                apply_discard(&mut self.mem, offset..offset + len, leaves, rng);
                let seq = self.log(submitted_at, handle, EventKind::Discard { offset, len, leaves });
                self.ack(seq);
            }
            Op::Read { .. } | Op::Flush => drop(into_bufs(op)),
        }
    }

    pub(super) fn rot(&mut self, offset: u64, mask: u8) {
        apply_rot(&mut self.mem, offset, mask);
        self.log(self.seq(), 0, EventKind::Rot { offset, mask });
    }
}

/// The part of `data` that fits between `offset` and the device's end.
pub(super) fn within(offset: u64, data: &[u8], size: u64) -> &[u8] {
    let room = size.saturating_sub(offset).min(data.len() as u64);
    &data[..room as usize]
}

fn flip_one_bit(bufs: &mut [AlignedBuf], mut at: u64, bit: u32) {
    for buf in bufs {
        if let Some(byte) = buf.get_mut(at as usize) {
            *byte ^= 1 << bit;
            return;
        }
        at -= buf.len() as u64;
    }
}

fn errno_of(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::Io => libc::EIO,
        ErrorKind::NoSpace => libc::ENOSPC,
        ErrorKind::Short | ErrorKind::Misaligned | ErrorKind::Refused => 0,
    }
}
