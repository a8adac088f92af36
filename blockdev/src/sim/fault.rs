//! Faults: which request goes wrong, and how.

use std::ops::Range;

use crate::ErrorKind;

/// Kinds of request a fault can be limited to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// Reads.
    Read,
    /// Writes, FUA or not.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
}

/// What a failed write leaves in its range. It stays undefined: an image of a power cut may hold
/// another mixture, as with a real device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// The old bytes.
    Old,
    /// The new bytes.
    New,
    /// Each sector old or new, by seed.
    Mix,
}

/// How a request goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails. A failed flush also drops its promise for good: the writes that it should have
    /// covered are not covered by a later flush either (what Linux does after a writeback error).
    Fail {
        /// Class of the error.
        kind: ErrorKind,
        /// What a failed write leaves behind; no meaning for other requests.
        leaves: Leaves,
    },
    /// A flush succeeds and does nothing. A later honest flush covers the writes.
    Lie,
    /// A write is acknowledged and never done.
    Lose,
    /// A write is acknowledged and done at this byte offset instead (cut at the device's end).
    Misdirect(u64),
    /// A read succeeds with one bit flipped; the medium stays good.
    FlipBit,
}

impl Effect {
    /// Fails with `EIO`; a write leaves a mixture.
    pub fn eio() -> Self {
        Self::Fail { kind: ErrorKind::Io, leaves: Leaves::Mix }
    }

    /// Fails with `ENOSPC`; a write leaves the old bytes.
    pub fn enospc() -> Self {
        Self::Fail { kind: ErrorKind::NoSpace, leaves: Leaves::Old }
    }

    /// Transfers fewer bytes than asked for; a write leaves a mixture.
    pub fn short() -> Self {
        Self::Fail { kind: ErrorKind::Short, leaves: Leaves::Mix }
    }

    /// Whether the effect means anything for requests of `kind`.
    fn applies_to(self, kind: OpKind) -> bool {
        match self {
            Self::Fail { .. } => true,
            Self::Lie => kind == OpKind::Flush,
            Self::Lose | Self::Misdirect(_) => kind == OpKind::Write,
            Self::FlipBit => kind == OpKind::Read,
        }
    }
}

/// A fault to inject. By default it hits the next request that its effect can apply to, once.
#[derive(Clone, Debug)]
pub struct Fault {
    op: Option<OpKind>,
    range: Option<Range<u64>>,
    skip: u64,
    times: u64,
    effect: Effect,
}

impl Fault {
    /// A fault that hits the next matching request, of any kind, once.
    pub fn new(effect: Effect) -> Self {
        Self { op: None, range: None, skip: 0, times: 1, effect }
    }

    /// Only requests of this kind.
    pub fn on(mut self, op: OpKind) -> Self {
        self.op = Some(op);
        self
    }

    /// Only requests that overlap these bytes (never a flush).
    pub fn within(mut self, range: Range<u64>) -> Self {
        self.range = Some(range);
        self
    }

    /// Lets `n` matching requests through first: `after(0)` hits the next one.
    pub fn after(mut self, n: u64) -> Self {
        self.skip = n;
        self
    }

    /// Hits `n` matching requests instead of one.
    pub fn times(mut self, n: u64) -> Self {
        self.times = n;
        self
    }

    /// Hits every matching request from then on.
    pub fn forever(self) -> Self {
        self.times(u64::MAX)
    }

    fn matches(&self, op: OpKind, range: &Range<u64>) -> bool {
        let in_range =
            |wanted: &Range<u64>| op != OpKind::Flush && range.start < wanted.end && wanted.start < range.end;
        self.effect.applies_to(op)
            && self.op.is_none_or(|wanted| wanted == op)
            && self.range.as_ref().is_none_or(in_range)
    }
}

/// The faults that are still to come.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn inject(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn pending(&self) -> usize {
        self.0.len()
    }

    /// The effect that hits this request. Every matching fault counts it, the first ripe one hits.
    pub(super) fn hit(&mut self, op: OpKind, range: &Range<u64>) -> Option<Effect> {
        let mut hit = None;
        for fault in self.0.iter_mut().filter(|f| f.matches(op, range)) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if hit.is_none() {
                fault.times = if fault.times == u64::MAX { u64::MAX } else { fault.times - 1 };
                hit = Some(fault.effect);
            }
        }
        self.0.retain(|f| f.times > 0);
        hit
    }
}
