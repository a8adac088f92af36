//! Recovery from everything that a crash can leave: full journals, checkpoints cut in half, root slots
//! in every state.

use std::sync::Arc;
use std::time::Instant;

use blockdev::sim::{CutOptions, Event, EventKind, SimDevice, Survivors};
use blockdev::{AlignedBuf, BlockDevice, IoClass, RamDevice};
use dbfs_fs_core::api::FsOps;
use dbfs_fs_core::format::{RootSlot, Ticket};
use dbfs_fs_core::{FormatOptions, Ino, MountOptions, Volume};

use crate::rig::*;
use crate::trace::{Trace, superblock};

fn between_marks(sim: &SimDevice, since: u64) -> std::ops::RangeInclusive<u64> {
    let name = |e: &Event, n: &str| matches!(&e.kind, EventKind::Name(name) if &**name == n);
    let events = sim.events_since(since);
    let begin = events.iter().find(|e| name(e, "checkpoint begin")).expect("a checkpoint began");
    let end = events.iter().rfind(|e| name(e, "checkpoint end")).expect("a checkpoint ended");
    begin.seq..=end.seq
}

#[test]
fn a_half_written_checkpoint_loses_nothing() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for round in 0..3u64 {
        for i in 0..60 {
            let n = (i * 7 + round * 11) % 90;
            all.write(&v, &format!("f{n:0>90}"), 0, &pattern(200, round + i), BUFFERED);
        }
        all.write(&v, "data", (round * 30_000) as usize, &pattern(200_000, round), DIRECT);
        all.write(&v, "inline", (round * 500) as usize, &pattern(3000, round), BUFFERED);
        all.sync(&v);
        v.publish_durable().unwrap();
        let before = sim.seq();
        v.checkpoint().unwrap();
        let mut cuts = 0;
        for cut in between_marks(&sim, before) {
            for seed in 0..2 {
                let options = CutOptions::seeded(cut * 3 + seed);
                let device = sim.image_at(cut, &options).into_sim(seed);
                let when = format!("cut {cut}, seed {seed}, round {round}");
                if seed == 0 {
                    all.check_device(&device, &when)
                } else {
                    all.check(&mount(&device), &when)
                }
                cuts += 1;
            }
        }
        assert!(cuts > 10, "{cuts} cuts");
    }
}

/// A crash during recovery, and during the recovery of that.
#[test]
fn a_mount_that_is_cut_can_be_repeated() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    all.write(&v, "f", 0, &pattern(100_000, 1), DIRECT);
    all.write(&v, "f", 50, &pattern(1000, 2), DSYNC);
    v.unlink(Ino::ROOT, b"f").unwrap();
    all.0.clear();
    all.write(&v, "g", 0, &pattern(30_000, 3), BUFFERED);
    all.sync(&v);
    v.publish_durable().unwrap();
    drop(v);
    let first = after_power_cut(&sim);
    drop(mount(&first));
    for cut in 0..=first.seq() {
        for seed in 0..3 {
            let options = CutOptions::seeded(cut * 5 + seed);
            let second = first.image_at(cut, &options).into_sim(seed);
            let when = format!("mount cut at {cut}, seed {seed}");
            drop(try_mount(&second).unwrap_or_else(|e| panic!("{when}: {e}")));
            let again = second.image_at(second.seq() / 2, &CutOptions::seeded(seed + cut)).into_sim(1);
            all.check_device(&again, &when);
        }
    }
}

/// What a slot can hold when a volume is opened.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Slot {
    Good,
    /// A part of it is what was there before.
    Torn,
    Rotted,
    /// An earlier root of its epoch, whole.
    Old,
    /// Never written.
    Empty,
}

const SLOTS: [Slot; 5] = [Slot::Good, Slot::Torn, Slot::Rotted, Slot::Old, Slot::Empty];

#[test]
fn root_slots_in_every_state() {
    let sim = device();
    let mut all = Expected::default();
    {
        let v = mount(&sim);
        all.write(&v, "before", 0, &pattern(20_000, 9), DIRECT_DSYNC);
    }
    let v = mount(&sim);
    let epoch = v.epoch();
    for round in 0..5 {
        all.write(&v, "f", round * 1000, &pattern(30_000, round as u64), BUFFERED);
        all.sync(&v);
        v.checkpoint().unwrap();
    }
    all.write(&v, "f", 77, &pattern(5000, 50), DSYNC);
    v.publish_durable().unwrap();
    drop(v);
    let base = after_power_cut(&sim);
    let sb = superblock(&sim);
    let trace = Trace::since(&sim, 0);
    // What each of the two slots has held, oldest first.
    let history = |index: u64| -> Vec<Vec<u8>> {
        let own = RootSlot::address(sb.slots_start, sb.slot_rows, epoch, index);
        let writes = trace.slots().filter(|(w, _)| w.blocks.start == own.0);
        writes.map(|(_, s)| s.encode(&sb.uuid, own).unwrap().to_vec()).collect()
    };
    let histories = [history(0), history(1)];
    let put = |device: &SimDevice, index: usize, state: Slot| {
        let own = RootSlot::address(sb.slots_start, sb.slot_rows, epoch, index as u64);
        let [.., old, now] = &histories[index][..] else { panic!("a slot was written once only") };
        let mut bytes = match state {
            Slot::Old => old.clone(),
            Slot::Empty => vec![0; BLOCK],
            _ => now.clone(),
        };
        match state {
            Slot::Torn => bytes[..128].copy_from_slice(&old[..128]),
            Slot::Rotted => bytes[300] ^= 4,
            _ => {}
        }
        device.write_at(own.offset(), AlignedBuf::from_slice(&bytes), true, IoClass::Log).unwrap();
    };
    let newest = usize::from(histories[1].len() >= histories[0].len());
    for first in SLOTS {
        for second in SLOTS {
            let device = base.current().into_sim(1);
            put(&device, 0, first);
            put(&device, 1, second);
            let states = [first, second];
            let when = format!("with slots {states:?}");
            if states.contains(&Slot::Good) {
                // Roots that are as old as `Old` are beyond the two that are kept whole; but there is
                // a better one beside them.
                all.check_device(&device, &when);
            } else if states.contains(&Slot::Old) {
                // Two faults, one of them a write that was lost: whatever recovery decides, it must not
                // hang, panic or lie about data.
                if let Ok(v) = try_mount(&device) {
                    let found = v.find("before").map(|ino| v.bytes(ino));
                    assert!(found.is_none_or(|b| b == all.0["before"]), "{when}");
                }
            } else {
                let error = try_mount(&device).expect_err("no root of the newest epoch is left");
                assert!(error.to_string().contains("may have acknowledged changes"), "{when}: {error}");
            }
        }
    }
    // The other slot than the newest alone is enough too.
    let device = base.current().into_sim(1);
    put(&device, newest, Slot::Rotted);
    all.check_device(&device, "with the newest root rotted");
}

/// Changes come faster than anybody makes checkpoints.
#[test]
fn a_full_journal_makes_its_own_room() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for round in 0..400u64 {
        let name = format!("f{}", round % 11);
        all.write(&v, &name, (round as usize * 771) % 90_000, &pattern(30_000, round), DSYNC);
        if round % 57 == 0 {
            all.check(&mount(&after_power_cut(&sim)), &format!("after write {round}"));
        }
    }
    let counters = v.counters();
    assert!(counters.journal_wraps > 3 && counters.checkpoints > 5, "{counters:?}");
    all.check_device(&after_power_cut(&sim), "after a full journal");
}

/// Many epochs without a checkpoint: each leaves a journal behind.
#[test]
fn a_row_of_crashes_is_recovered() {
    let mut sim = device();
    let mut all = Expected::default();
    for round in 0..25 {
        let v = mount(&sim);
        all.check(&v, &format!("in round {round}"));
        all.write(&v, &format!("f{}", round % 4), round * 300, &pattern(2000, round as u64), DSYNC);
        all.write(&v, "d", (round % 9) * PAGE, &pattern(PAGE, round as u64), DIRECT_DSYNC);
        drop(v);
        sim = after_power_cut(&sim);
    }
    all.check_device(&sim, "after a row of crashes");
}

/// Records of a dead epoch that it wrote but never flushed are cut by whoever comes next, for good.
#[test]
fn a_cut_is_final() {
    let sim = device();
    // Else the mount after the crash would write home at once, to let go of mkfs' journal.
    mount(&sim).shutdown().unwrap();
    let v = mount(&sim);
    let mut all = Expected::default();
    all.write(&v, "f", 0, &pattern(3000, 1), DSYNC);
    v.publish_durable().unwrap();
    let before = sim.seq();
    v.put(v.find("f").unwrap(), 0, &pattern(3000, 2), DIRECT_DSYNC);
    let trace = Trace::since(&sim, before);
    let (lost, ..) = trace.records().next().unwrap();
    let record = sim.current().read(lost.blocks.start * BLOCK as u64, BLOCK);
    let data = trace.writes.iter().find(|w| w.record().is_none()).unwrap();
    let bytes = sim.current().read(data.blocks.start * BLOCK as u64, 4096);
    let device = after_cut(&sim, before, Survivors::DropAll);
    drop(mount(&device));
    // Both land now, too late.
    for (at, bytes) in [(data.blocks.start, &bytes), (lost.blocks.start, &record)] {
        let buf = AlignedBuf::from_slice(bytes);
        device.write_at(at * BLOCK as u64, buf, true, IoClass::Data).unwrap();
    }
    all.check_device(&device, "after the tail landed late");
}

/// The largest journal there is, as full as it gets. The time is for the reader: a debug build on a
/// busy machine proves nothing about it.
#[test]
fn the_largest_journal_is_recovered() {
    let device = RamDevice::new(4 << 30, 4096);
    let format = FormatOptions { journal_bytes: Some(64 << 20), ..FormatOptions::default() };
    Volume::format(&device, &format, &TestEnv::default()).unwrap();
    break_rule();
    let open = |device: &RamDevice| {
        // Room for all the bytes that are in the journal only, or there would be a checkpoint.
        let options = MountOptions { cache_bytes: 1 << 30, ..options() };
        Volume::mount(Arc::new(device.clone()), options, Arc::new(TestEnv::default())).unwrap()
    };
    let v = open(&device);
    let mut all = Expected::default();
    // It is fullest just before it makes a checkpoint.
    let (fullest, want) = loop {
        let before = (device.snapshot(), all.clone());
        let round = v.counters().commits;
        let at = (round as usize / 40 % 8) * 60_000;
        all.write(&v, &format!("f{}", round % 40), at, &pattern(40_000, round), DSYNC);
        if v.counters().checkpoints > 0 {
            break before;
        }
    };
    let records = v.counters().records;
    drop(v);
    let start = Instant::now();
    let v = open(&fullest);
    println!("a journal of 64 MiB with {records} records was recovered in {:?}", start.elapsed());
    want.check(&v, "after the largest journal");
    assert!(records > 500, "only {records} records");
}

/// What a claim's ticket can hold.
#[derive(Clone, Copy, Debug, PartialEq)]
enum TicketState {
    Complete,
    Begun,
    Rotted,
    Empty,
}

/// A claim that is over and has served, with every state of its ticket and its roots: nothing that was
/// acknowledged is ever lost in silence.
#[test]
fn tickets_and_claims_in_every_state() {
    let sim = device();
    let mut all = Expected::default();
    {
        let v = mount(&sim);
        all.write(&v, "f", 0, &pattern(20_000, 9), DIRECT_DSYNC);
        v.checkpoint().unwrap();
    }
    let v = mount(&sim);
    let epoch = v.epoch();
    // No checkpoint: both roots are the claim.
    all.write(&v, "f", 77, &pattern(5000, 50), DSYNC);
    v.publish_durable().unwrap();
    drop(v);
    let base = after_power_cut(&sim);
    let sb = superblock(&sim);
    let ticket_at = Ticket::address(sb.slots_start, sb.slot_rows, epoch);
    let ticket = Ticket::decode(&base.current().read(ticket_at.offset(), BLOCK), &sb.uuid, ticket_at);
    let ticket = ticket.unwrap().unwrap();
    assert!(ticket.complete);
    let put = |device: &SimDevice, at: dbfs_fs_core::BlockNr, bytes: &[u8]| {
        device.write_at(at.offset(), AlignedBuf::from_slice(bytes), true, IoClass::Log).unwrap();
    };
    let mut refused = 0;
    for state in [TicketState::Complete, TicketState::Begun, TicketState::Rotted, TicketState::Empty] {
        for roots in [[true, true], [true, false], [false, true], [false, false]] {
            let device = base.current().into_sim(1);
            let mut bytes = ticket.encode(&sb.uuid, ticket_at).to_vec();
            match state {
                TicketState::Complete => {}
                TicketState::Begun => {
                    let begun = Ticket { complete: false, ..ticket };
                    bytes = begun.encode(&sb.uuid, ticket_at).to_vec();
                }
                TicketState::Rotted => bytes[45] ^= 1,
                TicketState::Empty => bytes.fill(0),
            }
            put(&device, ticket_at, &bytes);
            for (i, good) in roots.into_iter().enumerate() {
                let own = RootSlot::address(sb.slots_start, sb.slot_rows, epoch, i as u64);
                if !good {
                    let mut bytes = device.current().read(own.offset(), BLOCK);
                    bytes[300] ^= 4;
                    put(&device, own, &bytes);
                }
            }
            let when = format!("with ticket {state:?} and roots {roots:?}");
            match try_mount(&device) {
                Ok(_) if state == TicketState::Begun && roots == [false; 2] => {
                    // The completed ticket was lost, and both roots: three faults look like a claim that
                    // never served.
                }
                Ok(v) => {
                    assert!(v.epoch() > epoch, "{when}");
                    all.check(&v, &when);
                }
                Err(e) => {
                    assert_eq!(roots, [false; 2], "{when}: {e}");
                    assert!(e.to_string().contains("may have acknowledged changes"), "{when}: {e}");
                    refused += 1;
                }
            }
        }
    }
    assert_eq!(refused, 3);
}

/// A claim that was cut after any of its writes has served nothing: the epoch before goes on, and the
/// number of the claim is not used again.
#[test]
fn an_interrupted_claim_is_no_epoch() {
    let sim = device();
    let mut all = Expected::default();
    let v = mount(&sim);
    all.write(&v, "f", 0, &pattern(20_000, 9), DIRECT_DSYNC);
    v.checkpoint().unwrap();
    all.write(&v, "f", 77, &pattern(5000, 50), DSYNC);
    v.publish_durable().unwrap();
    let epoch = v.epoch();
    drop(v);
    let base = after_power_cut(&sim);
    drop(mount(&base));
    let sb = superblock(&sim);
    let area = sb.slots_start.0..sb.first_data_block.0;
    let trace = Trace::since(&base, 0);
    let claim: Vec<u64> =
        trace.writes.iter().filter(|w| area.contains(&w.blocks.start)).map(|w| w.seq).collect();
    assert_eq!(claim.len(), 4, "ticket, two roots, ticket");
    let mut skipped = 0;
    for cut in claim[0]..claim[3] + 3 {
        for survivors in [Survivors::DropAll, Survivors::KeepAll] {
            let device = after_cut(&base, cut, survivors);
            let v = mount(&device);
            assert!(v.epoch() > epoch);
            skipped += usize::from(v.epoch().0 > epoch.0 + 1);
            all.check(&v, &format!("cut {cut}, {survivors:?}"));
            drop(v);
            assert_clean(&device, &format!("cut {cut}, {survivors:?}"));
        }
    }
    assert!(skipped > 4, "only {skipped} claims were noticed");
}
