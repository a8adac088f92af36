//! Which of the requests that were not durable a power cut leaves behind, and what is left of them.

use crate::rng::Rng;

/// Which of the writes that were not durable at the cut have reached the medium.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Survivors {
    /// None.
    DropAll,
    /// All, whole: what a device without a cache would hold.
    KeepAll,
    /// Each with this probability.
    Random(f64),
    /// Only the first one.
    OnlyFirst,
    /// Only the last one: what a missing barrier before it looks like.
    OnlyLast,
    /// All but one.
    AllButOne,
    /// The first few: a device that keeps order.
    Prefix,
    /// The last few: a device that reverses order.
    Suffix,
}

/// How to build the image of a power cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CutOptions {
    /// Every choice follows from it.
    pub seed: u64,
    /// Whether a surviving write may have reached the medium in part: pieces of this many bytes
    /// (512 or 4096, at least the logical sector). A write within one aligned atomic write unit of
    /// the device always stays whole.
    pub torn: Option<u32>,
    /// Which writes survive.
    pub survivors: Survivors,
    /// Requests submitted with, but logged after the cut may have landed too. Turn it off for a
    /// cut at a moment when the submitter had not begun the next batch.
    pub in_flight: bool,
}

impl CutOptions {
    /// A nasty mixture: survivors and tearing are chosen by `seed` as well.
    pub fn seeded(seed: u64) -> Self {
        let mut rng = Rng::derived(seed, 0x6375_7473);
        let survivors = match rng.below(10) {
            0 => Survivors::DropAll,
            1 => Survivors::KeepAll,
            2 => Survivors::OnlyFirst,
            3 => Survivors::OnlyLast,
            4 => Survivors::AllButOne,
            5 => Survivors::Prefix,
            6 => Survivors::Suffix,
            7 => Survivors::Random(0.1),
            8 => Survivors::Random(0.9),
            _ => Survivors::Random(0.5),
        };
        let torn = [None, Some(512), Some(4096)][rng.below(3) as usize];
        Self { seed, torn, survivors, in_flight: true }
    }

    /// The same survivors for every seed, no tearing.
    pub fn plain(survivors: Survivors) -> Self {
        Self { seed: 0, torn: None, survivors, in_flight: true }
    }
}

/// What the cut does to the event of one request that was not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Dropped,
    Whole,
    Torn,
}

/// Chooses the fate of every request that was not durable; `open` is ascending, so is the result.
pub(crate) fn choose(open: &[u64], options: &CutOptions) -> Vec<(u64, Fate)> {
    let mut rng = Rng::derived(options.seed, u64::MAX);
    let n = open.len() as u64;
    let pick = rng.below(n + 1);
    let fate = |i: u64, rng: &mut Rng| {
        let kept = match options.survivors {
            Survivors::DropAll => false,
            Survivors::KeepAll => return Fate::Whole,
            Survivors::Random(p) => rng.chance(p),
            Survivors::OnlyFirst => i == 0,
            Survivors::OnlyLast => i + 1 == n,
            Survivors::AllButOne => i != pick.min(n.saturating_sub(1)),
            Survivors::Prefix => i < pick,
            Survivors::Suffix => i >= pick,
        };
        match kept {
            false => Fate::Dropped,
            true if options.torn.is_some() && rng.chance(0.5) => Fate::Torn,
            true => Fate::Whole,
        }
    };
    open.iter().enumerate().map(|(i, seq)| (*seq, fate(i as u64, &mut rng))).collect()
}

/// How a device may tear the writes that a power cut catches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grain {
    /// In bytes; nothing smaller is ever torn.
    pub(crate) sector: u32,
    /// In bytes; a write within one aligned unit stays whole.
    pub(crate) atomic: u32,
}

/// Gives to `put` what a surviving write has left: (byte offset, bytes).
pub(crate) fn survive(
    (offset, data): (u64, &[u8]),
    fate: Fate,
    (options, grain): (&CutOptions, Grain),
    rng: &mut Rng,
    mut put: impl FnMut(u64, &[u8]),
) {
    let atomic = u64::from(grain.atomic.max(1));
    let whole = data.is_empty() || offset / atomic == (offset + data.len() as u64 - 1) / atomic;
    match (fate, options.torn) {
        (Fate::Dropped, _) => {}
        (Fate::Torn, Some(torn)) if !whole => {
            let unit = u64::from(torn.max(grain.sector));
            some_pieces((offset, data), unit, || rng.chance(0.5), put);
        }
        _ => put(offset, data),
    }
}

/// Gives to `put` those pieces of a write that `keep` chooses; it is cut at multiples of `unit`.
pub(crate) fn some_pieces(
    (offset, data): (u64, &[u8]),
    unit: u64,
    mut keep: impl FnMut() -> bool,
    mut put: impl FnMut(u64, &[u8]),
) {
    let mut rest = data;
    let mut at = offset;
    while !rest.is_empty() {
        let len = (unit - at % unit).min(rest.len() as u64);
        let (piece, tail) = rest.split_at(len as usize);
        if keep() {
            put(at, piece);
        }
        at += len;
        rest = tail;
    }
}
