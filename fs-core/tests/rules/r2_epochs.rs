//! R2: no block is written by two epochs as long as the older one's writes may still land.

use std::collections::BTreeSet;

use blockdev::sim::SimDevice;
use dbfs_fs_core::Volume;
use dbfs_fs_core::api::FsOps;
use dbfs_fs_core::format::{Change, RootSlot};

use crate::audit;
use crate::rig::*;
use crate::trace::{Trace, What};

#[test]
fn a_new_epoch_is_durable_before_anything_is_served() {
    let sim = device();
    let mut last_record = None;
    let mut all = Expected::default();
    for epoch in 2..8 {
        let start = sim.seq();
        let v = mount(&sim);
        let served = sim.seq();
        assert_eq!(v.epoch().0, epoch);
        let trace = Trace::since(&sim, start);
        let slots: Vec<_> = trace.slots().collect();
        assert!(slots.len() >= 2, "the claim is both slots of the row");
        let sb = &trace.superblock;
        for (i, (write, slot)) in slots[..2].iter().enumerate() {
            let own = RootSlot::address(sb.slots_start, sb.slot_rows, v.epoch(), i as u64);
            assert_eq!((write.blocks.start, slot.epoch), (own.0, v.epoch()));
        }
        assert!(slots[0].0.durable_by(slots[1].0.submitted_at), "one slot after the other");
        let (write, header, changes) = trace.records().next().expect("an epoch has a first record");
        assert!(slots[1].0.durable_by(write.submitted_at), "the claim comes before the first record");
        assert!(write.durable_by(served), "the first record comes before the first answer");
        assert_eq!(header.epoch, v.epoch());
        let Change::EpochStart { previous, cut_lsn, cut_crc } = &changes[0] else {
            panic!("the first record begins with {:?}", changes[0]);
        };
        assert_eq!(previous.0, epoch - 1);
        if let Some(last) = last_record {
            assert_eq!((*cut_lsn, *cut_crc), last, "it names the cut of the epoch before");
        }
        assert_eq!(header.lsn, cut_lsn.next());
        all.write(&v, "f", (epoch * 7) as usize, &pattern(5000, epoch), DSYNC);
        if epoch == 5 {
            v.checkpoint().unwrap();
        }
        let trace = Trace::since(&sim, start);
        last_record = trace.records().last().map(|(_, h, _)| (h.lsn, h.crc));
        let old: BTreeSet<_> = slots[0].1.journal.iter().rev().skip(1).flat_map(|p| &p.segments).collect();
        let own = &slots[0].1.journal.last().unwrap().segments;
        assert!(own.iter().all(|s| !old.contains(s)), "an epoch's journal is in fresh segments");
        all.check(&v, "before the next epoch");
    }
}

#[test]
fn writes_stay_within_groups_whose_reservation_is_durable() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for i in 0..36 {
        let flags = if i % 3 == 0 { BUFFERED } else { DIRECT };
        all.write(&v, &format!("f{}", i % 4), i << 20, &pattern(1 << 20, i as u64), flags);
        if i % 10 == 9 {
            v.checkpoint().unwrap();
        }
    }
    all.sync(&v);
    let trace = Trace::since(&sim, 0);
    audit::reservations(&trace);
    let group = u64::from(trace.superblock.group_blocks);
    let used: BTreeSet<u64> = trace.in_data_area().map(|w| w.blocks.start / group).collect();
    assert!(used.len() > 18, "{} groups were written", used.len());
    drop(v);
    let v = mount(&after_power_cut(&sim));
    all.check(&v, "after the reservations");
}

/// What an old owner does when it is about to lose the device: errors are expected.
fn old_owner_goes_on(v: &Volume, versions: u64) -> u64 {
    let mut acked = 0;
    for version in 1..=versions {
        let Some(ino) = v.find("risky") else { continue };
        let data = pattern(4 * PAGE, version);
        let flags = if version % 2 == 0 { DIRECT } else { BUFFERED };
        let written = v.write(ino, 0, &data, flags).is_ok();
        // More writes that never get a record: they stay in flight.
        for other in 0..3 {
            let _ = v.write(ino, (10 + other) * PAGE as u64, &pattern(PAGE, version), DIRECT);
        }
        if written && v.fsync(ino, false).is_ok() {
            acked = version;
        }
        if version % 3 == 0 {
            let _ = v.checkpoint();
        }
    }
    acked
}

#[test]
fn late_writes_of_an_old_epoch_change_nothing() {
    let versions = 8;
    let mut landed = 0;
    for hold in 0..60 {
        let when = format!("with writes held after {hold}");
        let old = device();
        let v = mount(&old);
        let mut all = Expected::default();
        all.write(&v, "safe", 0, &pattern(200_000, 5), DIRECT);
        all.write(&v, "risky", 0, &pattern(4 * PAGE, 0), DIRECT);
        all.sync(&v);
        v.publish_durable().unwrap();
        old.hold_writes_after(hold);
        let acked = old_owner_goes_on(&v, versions);
        drop(v);

        let new = old.handle(false);
        let v = mount(&new);
        let found = v.bytes(v.find("risky").unwrap());
        let version = (0..=versions).rev().find(|n| found[..4 * PAGE] == pattern(4 * PAGE, *n));
        assert!(version.is_some_and(|n| n >= acked), "{when}: {acked} was acknowledged, {version:?} found");
        all.0.insert("risky".into(), found);
        for round in 0..4 {
            all.write(&v, "safe", round * 3 * PAGE, &pattern(2 * PAGE, 50 + round as u64), DIRECT);
            all.write(&v, "mine", round * 70_000, &pattern(70_000, 60 + round as u64), BUFFERED);
            landed += old.release_late(if round == 3 { usize::MAX } else { 4 });
            all.sync(&v);
            all.check(&v, &when);
            if round % 2 == 1 {
                v.checkpoint().unwrap();
            }
            old.release_late(2);
        }
        drop(v);
        all.check_device(&after_power_cut(&new), &when);
        all.check_device(&old.handle(true), &when);
    }
    assert!(landed > 200, "only {landed} writes landed late");
}

/// Groups that the epoch of `v` has reserved, by what is on the device.
fn reserved(device: &SimDevice, v: &Volume) -> BTreeSet<u64> {
    let trace = Trace::since(device, 0);
    trace.writes.iter().flat_map(|w| audit::reserved_by(w, v.epoch().0)).collect()
}

#[test]
fn a_take_over_writes_to_other_groups() {
    let old = device();
    let v = mount(&old);
    let mut all = Expected::default();
    all.write(&v, "f", 0, &pattern(8 << 20, 1), DIRECT);
    all.sync(&v);
    let old_groups = reserved(&old, &v);
    assert!(old_groups.len() > 3);
    drop(v);
    let new = old.handle(false);
    let start = new.seq();
    let v = mount(&new);
    all.write(&v, "f", 1 << 20, &pattern(6 << 20, 2), DIRECT);
    all.sync(&v);
    v.checkpoint().unwrap();
    let trace = Trace::since(&new, start);
    let group = u64::from(trace.superblock.group_blocks);
    for write in trace.in_data_area() {
        for b in write.blocks.clone() {
            assert!(!old_groups.contains(&(b / group)), "block {b} is in a group of the old epoch");
        }
    }
    all.check(&v, "after a take-over");
    drop(v);
    // Once the lock proves that nothing is in flight, all groups may be used again.
    let last = old.handle(true);
    let start = last.seq();
    let v = mount(&last);
    all.write(&v, "f", 0, &pattern(12 << 20, 3), DIRECT);
    all.sync(&v);
    all.check(&v, "after a mount with the lock");
    let trace = Trace::since(&last, start);
    let hit = trace.in_data_area().any(|w| old_groups.contains(&(w.blocks.start / group)));
    assert!(hit, "groups of drained epochs are used again");
}

#[test]
fn the_highest_epoch_wins_whatever_the_counts() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for i in 0..5 {
        all.write(&v, "f", i * 1000, &pattern(3000, i as u64), DIRECT);
        v.checkpoint().unwrap();
    }
    drop(v);
    let v = mount(&sim);
    let epoch = v.epoch();
    all.write(&v, "f", 500, &pattern(1000, 9), DSYNC);
    drop(v);
    let image = after_power_cut(&sim);
    let v = mount(&image);
    assert_eq!(v.epoch().0, epoch.0 + 1);
    all.check(&v, "after the newest epoch");
}

#[test]
fn rows_of_root_slots_are_used_in_a_ring() {
    let sim = device();
    let mut all = Expected::default();
    let rows = {
        let v = mount(&sim);
        all.write(&v, "f", 0, &pattern(100, 1), DSYNC);
        u64::from(v.superblock().slot_rows)
    };
    for _ in 0..rows + 3 {
        drop(mount(&sim));
    }
    let v = mount(&sim);
    assert!(v.epoch().0 > rows);
    all.check(&v, "after more epochs than rows");
    let trace = Trace::since(&sim, 0);
    assert!(trace.slots().count() as u64 > 2 * rows);
    assert!(trace.writes.iter().all(|w| !w.late && !w.failed));
    assert!(trace.writes.iter().any(|w| matches!(w.what, What::Other)), "mkfs writes plain blocks");
}
