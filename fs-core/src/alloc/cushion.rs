//! A cushion of whole runs, so that what must not fail on a full volume (contract C9) finds space
//! however broken the free space is: nodes, and overwrites of pages.
//!
//! The blocks count as free and can be claimed, but their bits are set: searches pass them over. A
//! request that may use the cushion gets a run of it when its search has failed. An overwrite frees a
//! run of the same length, which refills the cushion as soon as it leaves limbo, before anybody else
//! can get a part of it; and so does an overwrite that has found too few runs and gives them back.

use std::collections::BTreeSet;

use super::geometry::Part;
use super::place::Sought;
use super::slack::Slack;
use super::{Admin, Allocator, Class, Request};
use crate::types::{BlockNr, BlockRun, GroupNr};

/// The runs, by their first block.
#[derive(Debug, Default)]
pub(super) struct Cushion(BTreeSet<u64>);

impl Allocator {
    /// Fills the cushion from free space in reserved groups, as far as it is there. Returns groups
    /// that should be reserved to fill the rest. May block on the loader.
    pub fn fill_cushion(&self) -> crate::Result<Vec<GroupNr>> {
        let unit = self.config.cushion_unit;
        if self.refill_cushion() { Ok(Vec::new()) } else { self.suggest((unit, unit), 0) }
    }

    /// Takes what the cushion lacks from free space in reserved groups; false: it is not there. Pieces that
    /// nodes had left of its runs may have become whole again. Never blocks on I/O.
    pub fn refill_cushion(&self) -> bool {
        let unit = self.config.cushion_unit;
        let aligned = Request::new(unit, unit, unit, Class::Metadata);
        let anywhere = Request { align: 1, ..aligned };
        while self.admin.lock().cushion.0.len() < self.config.cushion_units {
            let sought = Sought { want: unit, min: unit, spare: Slack::NONE };
            let found = [aligned, anywhere].iter().find_map(|request| self.find(request, sought));
            let Some(run) = found else { return false };
            self.admin.lock().cushion.0.insert(run.start.0);
            // Counted as used when it was found.
            self.space.freed(run.len.into());
        }
        true
    }

    /// Blocks in the cushion.
    pub fn cushion_blocks(&self) -> u64 {
        self.admin.lock().cushion.0.len() as u64 * u64::from(self.config.cushion_unit)
    }

    /// A run from the cushion for a request that has found nothing, of up to `want` blocks.
    pub(super) fn take_from_cushion(&self, request: &Request, want: u32) -> Option<BlockRun> {
        let unit = self.config.cushion_unit;
        if !request.last_resort || request.min > unit {
            return None;
        }
        let mut admin = self.admin.lock();
        let start = BlockNr(admin.cushion.0.pop_first()?);
        self.space.used(unit.into());
        let len = want.min(unit);
        if len < unit {
            // Claimable all along.
            let rest = BlockRun::new(start.plus(len.into()), unit - len);
            let cleared = self.base.parts(rest).try_for_each(|part| self.clear_bits(&mut admin, part));
            if let Err(error) = cleared {
                tracing::error!(%error, "the cushion's blocks were not its own");
            }
        }
        self.counters.cushioned(len.into());
        Some(BlockRun::new(start, len))
    }

    /// Takes what the cushion lacks from blocks that can be used again, and makes the rest free.
    pub(super) fn absorb(&self, admin: &mut Admin, part: Part) -> crate::Result<()> {
        let rest = self.keep_units(admin, part);
        self.space.give((part.len - rest.len).into());
        if rest.len > 0 { self.clear_part(admin, rest) } else { Ok(()) }
    }

    /// Takes what the cushion lacks from blocks in use that are given up; who has the claim to them is the caller's
    /// business. Returns what is left, still in use. Runs that were taken from the cushion stay whole that
    /// way: otherwise whoever finds too few of them would leave them to be cut up.
    pub(super) fn keep_units(&self, admin: &mut Admin, part: Part) -> Part {
        let unit = self.config.cushion_unit;
        let reserved = self.slots.entry(part.group.0).state().reserved().is_some();
        let mut rest = part;
        while reserved && rest.len >= unit && admin.cushion.0.len() < self.config.cushion_units {
            let start = self.base.group_start(rest.group).plus(rest.start.into());
            admin.cushion.0.insert(start.0);
            self.space.freed(unit.into());
            rest = Part { start: rest.start + unit, len: rest.len - unit, ..rest };
        }
        rest
    }
}
