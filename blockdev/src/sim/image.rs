//! Images that a power cut could have left.

use crate::powercut::{CutOptions, Fate, Grain, choose, some_pieces, survive};
use crate::rng::Rng;
use crate::sparse::SparseMem;

use super::event::{Event, EventKind, Outcome, apply_discard, apply_rot};
use super::fault::Leaves;
use super::medium::{Medium, within};

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
                let (sector, atomic) = (self.options.logical_sector, self.options.atomic_write_unit);
                let grain = Grain { sector, atomic };
                let put = |at, bytes: &[u8]| mem.write(at, bytes);
                match outcome {
                    Outcome::Done => survive((*offset, data), fate, (options, grain), &mut rng, put),
                    Outcome::Misdirected(to) => {
                        let data = within(*to, data, self.options.size);
                        survive((*to, data), fate, (options, grain), &mut rng, put);
                    }
                    // Nothing holds a failed write together, whatever its size.
                    Outcome::Failed(Leaves::Mix) => {
                        let unit = u64::from(self.options.logical_sector);
                        some_pieces((*offset, data), unit, || rng.chance(0.5), put);
                    }
                    Outcome::Failed(Leaves::New) => mem.write(*offset, data),
                    Outcome::Failed(Leaves::Old) | Outcome::Lost => {}
                }
            }
            _ => {}
        }
    }
}

fn is_note(event: &Event) -> bool {
    matches!(event.kind, EventKind::Mark(_) | EventKind::Name(_) | EventKind::Rot { .. })
}
