//! Images that a power cut could have left.

use crate::rng::Rng;
use crate::sparse::SparseMem;

use super::event::{Event, EventKind, Outcome, apply_discard, apply_rot, apply_some};
use super::fault::Leaves;
use super::medium::{Medium, within};

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
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Dropped,
    Whole,
    Torn,
}

impl Medium {
    /// The content after a power cut when the log was `cut` long.
    pub(super) fn image_at(&self, cut: u64, options: &CutOptions) -> SparseMem {
        let cut = cut.min(self.seq());
        let end = if options.in_flight { self.end_of_flight(cut) } else { cut };
        let covered = self.covered_up_to(cut);
        let open: Vec<u64> = self.events[..end as usize]
            .iter()
            .filter(|e| e.kind.is_change() && !self.is_durable(e, cut, covered))
            .map(|e| e.seq)
            .collect();
        let floor = open.first().copied().unwrap_or(cut).min(cut);
        let (from, mut mem) = self.snapshot_before(floor);
        let fates = choose(&open, options);
        let mut next = fates.iter().peekable();
        for event in &self.events[from as usize..end as usize] {
            let fate = next.next_if(|(seq, _)| *seq == event.seq).map_or(Fate::Whole, |(_, fate)| *fate);
            self.replay(&mut mem, event, fate, options);
        }
        mem
    }

    /// End of the events that may have been in flight at the cut.
    fn end_of_flight(&self, cut: u64) -> u64 {
        let later = &self.events[cut as usize..];
        cut + later.iter().take_while(|e| e.submitted_at <= cut && !is_note(e)).count() as u64
    }

    fn is_durable(&self, event: &Event, cut: u64, covered: u64) -> bool {
        let Some(acked) = event.acked_at else { return false };
        let at_once =
            !self.options.volatile_write_cache || matches!(event.kind, EventKind::Write { fua: true, .. });
        if at_once && acked <= cut {
            return true;
        }
        acked <= covered && self.poisoned.binary_search(&event.seq).is_err()
    }

    fn snapshot_before(&self, floor: u64) -> (u64, SparseMem) {
        let after = self.snapshots.partition_point(|(at, _)| *at <= floor);
        // The first snapshot is at 0, so there always is one.
        let (at, mem) = &self.snapshots[after.saturating_sub(1)];
        (*at, mem.clone())
    }

    fn replay(&self, mem: &mut SparseMem, event: &Event, fate: Fate, options: &CutOptions) {
        match &event.kind {
            EventKind::Rot { offset, mask } => apply_rot(mem, *offset, *mask),
            EventKind::Discard { offset, len, leaves } if fate != Fate::Dropped => {
                apply_discard(mem, *offset..offset + len, *leaves, self.discard_rng(event.seq));
            }
            EventKind::Write { offset, data, outcome, .. } if fate != Fate::Dropped => {
                let mut rng = Rng::derived(options.seed, event.seq);
                match outcome {
                    Outcome::Done => self.replay_write(mem, (*offset, data), fate, options, &mut rng),
                    Outcome::Misdirected(to) => {
                        let data = within(*to, data, self.options.size);
                        self.replay_write(mem, (*to, data), fate, options, &mut rng);
                    }
                    // Nothing holds a failed write together, whatever its size.
                    Outcome::Failed(Leaves::Mix) => {
                        let unit = u64::from(self.options.logical_sector);
                        apply_some(mem, *offset, data, unit, || rng.chance(0.5));
                    }
                    Outcome::Failed(Leaves::New) => mem.write(*offset, data),
                    Outcome::Failed(Leaves::Old) | Outcome::Lost => {}
                }
            }
            _ => {}
        }
    }

    fn replay_write(
        &self,
        mem: &mut SparseMem,
        (offset, data): (u64, &[u8]),
        fate: Fate,
        options: &CutOptions,
        rng: &mut Rng,
    ) {
        let atomic = u64::from(self.options.atomic_write_unit.max(1));
        let whole = data.is_empty() || offset / atomic == (offset + data.len() as u64 - 1) / atomic;
        match options.torn {
            Some(torn) if fate == Fate::Torn && !whole => {
                let unit = u64::from(torn.max(self.options.logical_sector));
                apply_some(mem, offset, data, unit, || rng.chance(0.5));
            }
            _ => mem.write(offset, data),
        }
    }
}

fn is_note(event: &Event) -> bool {
    matches!(event.kind, EventKind::Mark(_) | EventKind::Name(_) | EventKind::Rot { .. })
}

/// Chooses the fate of every request that was not durable; `open` is ascending, so is the result.
fn choose(open: &[u64], options: &CutOptions) -> Vec<(u64, Fate)> {
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
