//! Rules as conditions on everything that was written. Each audit reads a whole trace and panics at
//! the first write that breaks its rule.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use blockdev::sim::SimDevice;
use dbfs_fs_core::format::{Change, RootSlot};

use crate::trace::{Trace, What, Write, reach};

/// What is known of a block of the data area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Written; nothing refers to it (yet).
    Written,
    /// A record maps it.
    Mapped,
    /// This record frees it.
    Freed(u64),
    /// Part of a checkpoint: see [`roots_stay_whole`].
    Meta,
}

/// R1: a block of a file is written once per allocation, and again only when the device durably says
/// that the record that freed it is durable. How many blocks were used again. For a trace of one
/// epoch.
pub fn reuse(trace: &Trace) -> u64 {
    let mut blocks: HashMap<u64, State> = HashMap::new();
    let mut reused = 0;
    for write in trace.in_data_area() {
        match &write.what {
            What::Slot(_) => {}
            What::Record(header, changes) => {
                for change in changes.iter() {
                    note_change(&mut blocks, change, header.lsn.0);
                }
            }
            What::Node => {
                for b in write.blocks.clone() {
                    if let Some(state) = blocks.insert(b, State::Meta).filter(|s| *s != State::Meta) {
                        check_reuse(trace, write, b, state);
                    }
                }
            }
            What::Other => {
                let list = is_pending_list(trace, write);
                for b in write.blocks.clone() {
                    let next = if list { State::Meta } else { State::Written };
                    if let Some(state) = blocks.insert(b, next).filter(|s| *s != State::Meta) {
                        check_reuse(trace, write, b, state);
                        reused += 1;
                    }
                }
            }
        }
    }
    reused
}

fn note_change(blocks: &mut HashMap<u64, State>, change: &Change, lsn: u64) {
    match change {
        Change::MapRun { run, .. } => {
            let all = run.blocks(4);
            blocks.extend((all.start.0..all.end().0).map(|b| (b, State::Mapped)));
        }
        Change::Free { run } => {
            blocks.extend((run.start.0..run.end().0).map(|b| (b, State::Freed(lsn))));
        }
        _ => {}
    }
}

fn check_reuse(trace: &Trace, write: &Write, block: u64, state: State) {
    match state {
        State::Freed(lsn) => {
            let known = trace
                .writes
                .iter()
                .take_while(|w| w.seq < write.seq)
                .any(|w| w.durable_by(write.submitted_at) && w.carries().is_some_and(|d| d >= lsn));
            assert!(
                known,
                "write {} uses block {block} again, freed by record {lsn}, before that record is durably known to be durable",
                write.seq
            );
        }
        state => panic!("write {} hits block {block}, which is {state:?}", write.seq),
    }
}

/// The write is the pending list of a root that follows.
fn is_pending_list(trace: &Trace, write: &Write) -> bool {
    let next = trace.slots().find(|(w, _)| w.seq > write.seq);
    next.is_some_and(|(_, s)| s.pending.is_some_and(|run| run.start.0 == write.blocks.start))
}

/// R2: every write is in a group whose reservation, by the epoch that writes, was durable before the
/// write was submitted.
pub fn reservations(trace: &Trace) {
    let group = u64::from(trace.superblock.group_blocks);
    let area = trace.superblock.first_data_block.0..trace.superblock.total_blocks - 1;
    let mut epochs: BTreeMap<u32, u64> = BTreeMap::new();
    for (i, write) in trace.writes.iter().enumerate() {
        if let Some(slot) = write.slot() {
            epochs.insert(write.handle, slot.epoch.0);
            continue;
        }
        let Some(epoch) = epochs.get(&write.handle).filter(|_| area.contains(&write.blocks.start)) else {
            continue;
        };
        let mut reserved = BTreeSet::new();
        for earlier in trace.writes[..i].iter().filter(|w| w.durable_by(write.submitted_at)) {
            reserved.extend(reserved_by(earlier, *epoch));
        }
        for b in write.blocks.clone() {
            let g = b / group;
            assert!(
                reserved.contains(&g),
                "write {} goes to group {g}, which epoch {epoch} has not durably reserved",
                write.seq
            );
        }
    }
}

/// Groups that a write reserves for `epoch`.
pub fn reserved_by(write: &Write, epoch: u64) -> Vec<u64> {
    if let Some(slot) = write.slot().filter(|s| s.epoch.0 == epoch) {
        return slot.reserved.iter().flat_map(|r| r.first.0..r.first.0 + u64::from(r.count)).collect();
    }
    let Some((_, changes)) = write.record().filter(|(h, _)| h.epoch.0 == epoch) else { return Vec::new() };
    let groups = changes.iter().filter_map(|c| match c {
        Change::Reserve { first, count } => Some(first.0..first.0 + u64::from(*count)),
        _ => None,
    });
    groups.flatten().collect()
}

/// R4: no record or root claims that something is durable that was not when it was submitted.
pub fn durable_lsns(trace: &Trace) {
    for write in &trace.writes {
        let Some(claimed) = write.carries() else { continue };
        let late = trace
            .records()
            .filter(|(_, h, _)| h.lsn.0 <= claimed)
            .find(|(w, ..)| !w.durable_by(write.submitted_at));
        if let Some((w, h, _)) = late {
            panic!(
                "write {} claims that {claimed} is durable, but record {} (write {}) was not",
                write.seq, h.lsn, w.seq
            );
        }
    }
}

/// R7: when a root is submitted, the record it is a checkpoint of and everything it leads to are
/// durable. How many roots there were.
pub fn roots_follow_their_trees(device: &SimDevice, trace: &Trace) -> usize {
    let mut roots = 0;
    for (write, slot) in trace.slots().filter(|(_, s)| s.seq > 0) {
        roots += 1;
        assert!(slot.checkpoint_lsn <= slot.durable_lsn, "root {} is ahead of what is durable", slot.seq);
        let needed = reach(device, write.seq + 1, slot, &trace.superblock);
        let before = trace.writes.iter().take_while(|w| w.seq < write.seq);
        let loose = before.filter(|w| w.slot().is_none() && !w.durable_by(write.submitted_at));
        for w in loose {
            let hit = w.blocks.clone().find(|b| needed.contains(b));
            assert!(
                hit.is_none(),
                "root {} leads to block {hit:?}, which was not flushed before it",
                slot.seq
            );
        }
    }
    roots
}

/// R7: as long as a root may be what recovery starts from, nothing it needs is overwritten: neither
/// its nodes nor the journal behind it. A root may be needed until the second one after it is
/// durable. How many blocks were overwritten when they might be. For a trace of one epoch.
pub fn roots_stay_whole(device: &SimDevice, trace: &Trace) -> u64 {
    let sb = &trace.superblock;
    let roots: Vec<(&Write, &RootSlot)> = trace.slots().collect();
    let reached: Vec<BTreeSet<u64>> = roots.iter().map(|(w, s)| reach(device, w.seq + 1, s, sb)).collect();
    let ever: BTreeSet<u64> = reached.iter().flatten().copied().collect();
    let mut records: HashMap<u64, u64> = HashMap::new();
    let mut reused = 0;
    for write in trace.in_data_area() {
        let newest = roots.iter().rposition(|(w, _)| w.durable_by(write.submitted_at));
        let written = roots.partition_point(|(w, _)| w.seq < write.seq);
        let needed = newest.map_or(0, |n| n.saturating_sub(1))..written;
        for b in write.blocks.clone() {
            let hit = needed.clone().find(|i| reached[*i].contains(&b));
            if let Some(i) = hit {
                let root = roots[i].1.seq;
                panic!("write {} overwrites block {b}, which root {root} still needs", write.seq);
            }
            reused += u64::from(ever.contains(&b));
            let lsn = records.remove(&b);
            let oldest = needed.clone().map(|i| roots[i].1.checkpoint_lsn.0).min().unwrap_or(0);
            if let Some(lsn) = lsn {
                assert!(
                    lsn <= oldest,
                    "write {} overwrites record {lsn}, which the root at {oldest} still needs",
                    write.seq
                );
                reused += 1;
            }
        }
        if let Some((header, _)) = write.record() {
            records.extend(write.blocks.clone().map(|b| (b, header.lsn.0)));
        }
    }
    reused
}
