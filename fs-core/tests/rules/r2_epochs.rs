//! R2: no block is written by two epochs as long as the older one's writes may still land.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use blockdev::sim::SimDevice;
use blockdev::{BlockDevice, Capabilities, Op, Pending, Request};
use dbfs_fs_core::api::FsOps;
use dbfs_fs_core::format::{Change, RootSlot};
use dbfs_fs_core::{MountOptions, Volume};

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
        // More writes that never get a record: they stay in flight. (The next fsync may well be the last.)
        for other in 0..8 {
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

/// Kill, take-over, kill, take-over, nobody with the lock: the writes of both dead epochs land late.
#[test]
fn late_writes_of_two_dead_epochs_change_nothing() {
    let versions = 6;
    let mut landed = [0, 0];
    for hold in 0..40 {
        let first = device();
        let v = mount(&first);
        let mut all = Expected::default();
        all.write(&v, "safe", 0, &pattern(200_000, 5), DIRECT);
        all.write(&v, "risky", 0, &pattern(4 * PAGE, 0), DIRECT);
        all.sync(&v);
        v.publish_durable().unwrap();
        first.hold_writes_after(hold);
        let mut acked = old_owner_goes_on(&v, versions);
        drop(v);

        // The second one dies in its claim or later.
        let second = first.handle(false);
        let when = format!("with writes held after {hold}");
        if hold % 4 == 0 {
            second.hold_writes_after(hold / 4);
        }
        let mut groups = BTreeSet::new();
        if let Ok(v) = try_mount(&second) {
            second.hold_writes_after(hold * 3 % 25);
            acked = acked.max(old_owner_goes_on(&v, versions));
            groups = reserved_by_all(&first.handle(false));
        }
        let third = first.handle(false);
        let start = third.seq();
        let v = mount(&third);
        let found = v.bytes(v.find("risky").unwrap());
        let version = (0..=versions).rev().find(|n| found[..4 * PAGE] == pattern(4 * PAGE, *n));
        assert!(version.is_some(), "{when}: {acked} was acknowledged, nothing whole was found");
        all.0.insert("risky".into(), found);
        for round in 0..4 {
            all.write(&v, "safe", round * 3 * PAGE, &pattern(2 * PAGE, 50 + round as u64), DIRECT);
            all.write(&v, "mine", round * 70_000, &pattern(70_000, 60 + round as u64), BUFFERED);
            for (dead, landed) in [&first, &second].into_iter().zip(&mut landed) {
                *landed += dead.release_late(if round == 3 { usize::MAX } else { 3 });
            }
            all.sync(&v);
            all.check(&v, &when);
            if round % 2 == 1 {
                v.checkpoint().unwrap();
            }
        }
        let trace = Trace::since(&third, start);
        let group = u64::from(trace.superblock.group_blocks);
        for write in trace.in_data_area().filter(|w| !w.late) {
            let hit = write.blocks.clone().find(|b| groups.contains(&(b / group)));
            assert!(hit.is_none(), "{when}: block {hit:?} is in a group of a dead epoch");
        }
        drop(v);
        all.check_device(&after_power_cut(&third), &when);
    }
    assert!(landed.iter().all(|n| *n > 100), "only {landed:?} writes landed late");
}

/// Groups that any epoch has reserved durably, by what was written.
fn reserved_by_all(device: &SimDevice) -> BTreeSet<u64> {
    let trace = Trace::since(device, 0);
    let last = trace.slots().map(|(_, s)| s.epoch.0).max().unwrap();
    let landed = trace.writes.iter().filter(|w| !w.failed);
    landed.flat_map(|w| (1..=last).flat_map(|e| audit::reserved_by(w, e))).collect()
}

/// The lock proves that epochs have drained which held it; others stay excluded.
#[test]
fn the_lock_proves_nothing_about_epochs_without_it() {
    let first = device();
    drop(mount(&first));
    let second = first.handle(false);
    let v = mount(&second);
    let mut all = Expected::default();
    all.write(&v, "f", 0, &pattern(4 << 20, 1), DIRECT);
    all.sync(&v);
    let unlocked = reserved(&second, &v);
    drop(v);
    for _ in 0..3 {
        let locked = first.handle(true);
        let start = locked.seq();
        let v = mount(&locked);
        all.write(&v, "f", 0, &pattern(8 << 20, 2), DIRECT);
        all.sync(&v);
        v.checkpoint().unwrap();
        let trace = Trace::since(&locked, start);
        let group = u64::from(trace.superblock.group_blocks);
        let hit = trace.in_data_area().find(|w| unlocked.contains(&(w.blocks.start / group)));
        assert!(hit.is_none(), "{hit:?} is in a group of an epoch that nobody proved dead");
        all.check(&v, "beside groups of an epoch without the lock");
    }
}

/// Take-overs without the lock until there is no room: then a clear refusal, and the volume is whole.
#[test]
fn take_overs_without_the_lock_end_with_a_clear_error() {
    let first = device();
    let mut all = Expected::default();
    {
        let v = mount(&first);
        all.write(&v, "f", 0, &pattern(300_000, 1), DIRECT);
        all.sync(&v);
    }
    let mut done = 0;
    let error = loop {
        let v = match try_mount(&first.handle(false)) {
            Ok(v) => v,
            Err(e) => break e,
        };
        done += 1;
        all.write(&v, "f", done * 1000, &pattern(5000, done as u64), DSYNC);
    };
    assert!(done >= 2, "only {done} take-overs in a row");
    assert!(error.to_string().contains("the volume is full"), "{error}");
    assert_clean(&first, "after the last take-over");
}

/// A device on which somebody else acts just before a chosen write or flush.
struct Interrupted {
    inner: SimDevice,
    left: AtomicU64,
    action: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl BlockDevice for Interrupted {
    fn name(&self) -> Arc<str> {
        self.inner.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        let changes = requests.iter().any(|r| !matches!(r.op, Op::Read { .. }));
        if changes && self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            let action = self.action.lock().unwrap().take();
            action.into_iter().for_each(|act| act());
        }
        self.inner.submit(requests)
    }
}

/// Two nodes claim the volume at the same time: one of them at most serves, and what it acknowledges
/// stays.
#[test]
fn of_two_claimants_one_at_most_serves() {
    let mut winners = [0, 0, 0];
    for moment in 0..14 {
        for depth in [None, Some(3), Some(6), Some(8)] {
            let when = format!("another claimant before write {moment}, stopped after {depth:?}");
            let sim = device();
            let mut all = Expected::default();
            {
                let v = mount(&sim);
                all.write(&v, "f", 0, &pattern(30_000, 1), DIRECT);
                all.sync(&v);
            }
            let (a, b) = (sim.handle(false), sim.handle(false));
            let other = Arc::new(Mutex::new(None));
            let act = {
                let (b, other) = (b.clone(), other.clone());
                move || {
                    // It may be killed in its claim.
                    if let Some(n) = depth {
                        b.hold_writes_after(n);
                    }
                    let env = Arc::new(TestEnv::of_another_node());
                    *other.lock().unwrap() = Volume::mount(Arc::new(b), options(), env).ok();
                }
            };
            let device = Arc::new(Interrupted {
                inner: a.clone(),
                left: AtomicU64::new(moment),
                action: Mutex::new(Some(Box::new(act))),
            });
            let mine = Volume::mount(device.clone(), options(), Arc::new(TestEnv::default()));
            // A running owner that is replaced is another story.
            device.action.lock().unwrap().take();
            let other: Option<Arc<Volume>> = other.lock().unwrap().take();
            let served = |v: &Arc<Volume>, seed: u64| {
                let ino = v.find("f")?;
                let written = v.write(ino, 0, &pattern(5000, seed), DSYNC).is_ok();
                written.then_some(seed)
            };
            let acked = match (&mine, &other) {
                (Ok(_), Some(_)) => panic!("{when}: both serve"),
                (Ok(v), None) => served(v, 2),
                (Err(_), Some(v)) => served(v, 3),
                (Err(_), None) => None,
            };
            if let Err(e) = &mine {
                assert!(e.to_string().contains("another node"), "{when}: {e}");
            }
            winners[acked.map_or(0, |seed| seed as usize - 1)] += 1;
            if let Some(seed) = acked {
                all.0.get_mut("f").unwrap()[..5000].copy_from_slice(&pattern(5000, seed));
            }
            drop((mine, other));
            b.release_late(usize::MAX);
            let device = after_power_cut(&sim);
            assert_clean(&device, &when);
            // With everybody dead, and that known, all space can be used again.
            let options = MountOptions { assume_drained: true, ..options() };
            let v = Volume::mount(Arc::new(device.clone()), options, Arc::new(TestEnv::default())).unwrap();
            all.check(&v, &when);
            drop(v);
            all.check_device(&device, &when);
        }
    }
    assert!(winners[1] > 3 && winners[2] > 3, "nobody, the first, the second: {winners:?}");
}

/// An owner that was replaced without knowing it notices at its next checkpoint.
#[test]
fn an_owner_that_was_replaced_stops_at_its_next_checkpoint() {
    let sim = device();
    let old = mount(&sim.handle(false));
    let mut all = Expected::default();
    all.write(&old, "f", 0, &pattern(30_000, 1), DIRECT);
    all.sync(&old);
    let v = mount(&sim.handle(false));
    all.write(&v, "g", 0, &pattern(30_000, 2), DIRECT);
    all.sync(&v);
    let ino = old.find("f").unwrap();
    old.write(ino, 0, &pattern(100, 3), BUFFERED).unwrap();
    let error = old.checkpoint().expect_err("the volume belongs to somebody else");
    assert!(error.to_string().contains("another node has taken the volume over"), "{error}");
    assert_eq!(old.write(ino, 0, &pattern(100, 3), BUFFERED).unwrap_err().errno(), libc::EROFS);
    drop(old);
    all.check(&v, "beside an old owner");
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
