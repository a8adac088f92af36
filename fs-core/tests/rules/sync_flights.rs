//! Flights of dirty pages: an fsync of overwritten pages writes them together with the record that maps them
//! (rules R4, R6, R7, R8). Until they have arrived they stay dirty, and readers find them in memory.

use std::sync::Arc;
use std::time::Duration;

use blockdev::sim::{CutOptions, Effect, Fault, OpKind, SimDevice, Survivors};
use dbfs_fs_core::api::{Fallocate, FsOps};
use dbfs_fs_core::{FsError, MountOptions, Volume};

use crate::airspace::{Airspace, MEANWHILE};
use crate::audit;
use crate::flights::{EFFECTS, fail_data, start};
use crate::rig::*;
use crate::trace::{Trace, What};

/// Little goes into the journal.
fn small_inline() -> MountOptions {
    MountOptions { inline_max: 4096, ..options() }
}

fn mount_small(sim: &SimDevice) -> Arc<Volume> {
    Volume::mount(Arc::new(sim.clone()), small_inline(), Arc::new(TestEnv::default())).unwrap()
}

fn sync(v: &Volume, name: &str) -> Result<(), FsError> {
    v.fsync(v.find(name).unwrap(), true)
}

/// Makes pages dirty, one by one.
fn dirty(all: &mut Expected, v: &Volume, pages: &[usize], seed: u64) {
    for page in pages {
        all.write(v, "f", page * PAGE, &pattern(PAGE, seed + *page as u64), BUFFERED);
    }
}

/// In one range, or in several.
const SPREADS: [&[usize]; 2] = [&[1, 2], &[0, 2, 3]];

#[test]
fn dirty_pages_and_record_are_in_flight_together_and_flushed_once() {
    for (sim, flushes) in [(device(), 1), (fua_device(), 0)] {
        let v = mount_small(&sim);
        let mut all = start(&v);
        for round in 0..6 {
            let pages = SPREADS[round % 2];
            dirty(&mut all, &v, pages, 10 * round as u64);
            let ino = v.find("f").unwrap();
            let (from, before, flights) = (sim.seq(), sim.counters(), v.counters().flights);
            // The times are in the same record.
            v.fsync(ino, round >= 3).unwrap();
            let after = sim.counters();
            let runs = pages.chunk_by(|a, b| a + 1 == *b).count() as u64;
            assert!(after.writes - before.writes <= runs + 1, "round {round}");
            assert_eq!((after.flushes - before.flushes, v.counters().flights), (flushes, flights + 1));
            let trace = Trace::since(&sim, from);
            let (record, data) = trace.writes.split_last().unwrap();
            assert!(matches!(record.what, What::Record(..)));
            for data in data {
                let landed = sim.events_since(data.seq)[0].acked_at;
                assert!(landed.is_none_or(|at| at > record.submitted_at), "the record waited for the data");
            }
            assert!(
                trace.writes.iter().all(|w| w.durable_by(sim.seq())),
                "acknowledged before it is durable"
            );
            let found = mount(&after_power_cut(&sim));
            all.check(&found, "after a power cut");
            if round < 3 {
                assert_eq!(found.getattr(ino).unwrap().mtime, v.getattr(ino).unwrap().mtime);
            }
        }
        audit::durable_lsns(&Trace::since(&sim, 0));
    }
}

/// One flush instead of many writes that each wait for the medium.
#[test]
fn many_pieces_are_flushed_where_fua_is_cheap_too() {
    let sim = fua_device();
    let v = mount_small(&sim);
    let mut all = start(&v);
    all.write(&v, "f", 0, &pattern(20 * PAGE, 3), DIRECT);
    all.sync(&v);
    for (step, flushes) in [(2, 1), (3, 0)] {
        dirty(&mut all, &v, &(0..20).step_by(step).collect::<Vec<_>>(), 20 * step as u64);
        let (before, flights) = (sim.counters(), v.counters().flights);
        sync(&v, "f").unwrap();
        let after = sim.counters();
        assert_eq!((after.flushes - before.flushes, v.counters().flights), (flushes, flights + 1));
        assert_eq!(after.fua_writes > before.fua_writes, flushes == 0);
        all.check_device(&after_power_cut(&sim), &format!("every {step} pages"));
    }
}

/// The last step flies; the others are durable with it.
#[test]
fn a_large_sync_flies_in_the_end() {
    let sim = device();
    let v = mount_small(&sim);
    let mut all = Expected::default();
    all.write(&v, "f", 0, &pattern(3 << 20, 1), DIRECT);
    all.sync(&v);
    for (round, len) in [1 << 20, (1 << 20) + PAGE, (2 << 20) + 3 * PAGE].into_iter().enumerate() {
        let flights = v.counters().flights;
        all.write(&v, "f", PAGE, &pattern(len, 2 + round as u64), BUFFERED);
        sync(&v, "f").unwrap();
        assert_eq!(v.counters().flights, flights + 1);
        all.check_device(&after_power_cut(&sim), &format!("after a sync of {len} bytes"));
    }
}

#[test]
fn what_is_not_simple_to_take_back_is_written_first() {
    let sim = device();
    let v = mount_small(&sim);
    let mut all = start(&v);
    let mut attempt = |offset: usize, len: usize, flies: bool| {
        let before = v.counters().flights;
        all.write(&v, "f", offset, &pattern(len, offset as u64), BUFFERED);
        sync(&v, "f").unwrap();
        assert_eq!(v.counters().flights - before, u64::from(flies), "{len} bytes at {offset}");
        all.check(&mount(&after_power_cut(&sim)), &format!("after a sync of {len} bytes at {offset}"));
    };
    attempt(0, 4 * PAGE, true);
    attempt(PAGE / 2, 2 * PAGE, true);
    attempt(3 * PAGE, 2 * PAGE, false); // it grows
    attempt(3 * PAGE, 2 * PAGE, true);
    attempt(9 * PAGE, PAGE, false);
    attempt(7 * PAGE, PAGE, false); // a hole
    attempt(4 * PAGE, 100, false); // into the journal
    attempt(4 * PAGE, PAGE, false); // bytes of it are there
    attempt(4 * PAGE, PAGE, true);
    attempt(9 * PAGE + 100, PAGE - 100, true);
    attempt(9 * PAGE + 5000, PAGE, false);
    drop(v);
    all.check_device(&after_power_cut(&sim), "in the end");
}

/// Pages that have blocks without content fly, also to the places that they took when they had none.
#[test]
fn preallocated_pages_fly() {
    for place in [false, true] {
        for lost in [false, true] {
            let sim = device();
            let v = mount_small(&sim);
            let mut old = Expected::default();
            old.write(&v, "f", 0, b"", BUFFERED);
            let ino = v.find("f").unwrap();
            let data = pattern(3 * PAGE - 77, 1);
            if place {
                v.put(ino, 0, &data, BUFFERED);
            }
            v.fallocate(ino, Fallocate::Allocate, 0, 4 * PAGE as u64).unwrap();
            old.0.insert("f".into(), vec![0; 4 * PAGE]);
            v.commit().unwrap();
            if !place {
                v.put(ino, 0, &data, BUFFERED);
            }
            let mut new = old.clone();
            new.0.get_mut("f").unwrap()[..data.len()].copy_from_slice(&data);
            if lost {
                fail_data(&sim, Effect::eio(), 0);
                sync(&v, "f").unwrap_err();
                v.commit().unwrap();
                old.check_device(&after_power_cut(&sim), "after the data was lost");
            }
            sync(&v, "f").unwrap();
            assert_eq!(v.counters().flights, 1 + u64::from(lost));
            new.check(&v, "in memory");
            new.check_device(&after_power_cut(&sim), &format!("place: {place}, lost: {lost}"));
            v.checkpoint().unwrap();
            drop(v);
            new.check_device(&after_power_cut(&sim), &format!("place: {place}, lost: {lost}, checkpoint"));
        }
    }
}

/// The state that a power cut leaves is one of these. Returns which.
fn old_or_new(device: &SimDevice, states: [&Expected; 2], when: &str) -> usize {
    let found = mount(device);
    let is_new = found.bytes(found.find("f").unwrap()) == states[1].0["f"];
    drop(found);
    states[usize::from(is_new)].check_device(device, when);
    usize::from(is_new)
}

#[test]
fn a_cut_in_flight_leaves_all_or_nothing() {
    for (i, sim) in [device(), fua_device()].into_iter().enumerate() {
        let v = mount_small(&sim);
        let old = start(&v);
        let mut new = old.clone();
        dirty(&mut new, &v, SPREADS[i], 2);
        let from = sim.seq();
        sync(&v, "f").unwrap();
        assert_eq!(v.counters().flights, 1);
        let mut outcomes = [0, 0];
        for cut in from..=sim.seq() {
            for seed in 0..24 {
                let survivors =
                    [Survivors::Random(0.7), Survivors::OnlyLast, Survivors::KeepAll][seed as usize % 3];
                let options = CutOptions { seed, torn: Some(512), survivors, in_flight: true };
                let device = sim.image_at(cut, &options).into_sim(seed);
                outcomes[old_or_new(&device, [&old, &new], &format!("cut {cut}, seed {seed}"))] += 1;
            }
        }
        assert!(outcomes[0] > 0 && outcomes[1] > 0, "old and new: {outcomes:?}");
        old_or_new(&after_power_cut(&sim), [&new, &new], "once it is acknowledged");
    }
}

/// The pages stay dirty, the device has what it had, and what others were told is safe is safe.
#[test]
fn lost_data_stays_dirty() {
    for (i, effect) in [EFFECTS, EFFECTS].concat().into_iter().enumerate() {
        let sim = if i < EFFECTS.len() { device() } else { fua_device() };
        let v = mount_small(&sim);
        let mut all = start(&v);
        for round in 0..4u64 {
            let mut old = all.clone();
            let pages = SPREADS[round as usize % 2];
            dirty(&mut all, &v, pages, 10 * round);
            // In the record whose data is lost, and acknowledged behind it.
            for all in [&mut old, &mut all] {
                all.0.insert(format!("with{round}"), Vec::new());
            }
            v.make_file(&format!("with{round}"));
            for attempt in 0..2 {
                fail_data(&sim, effect, 0);
                let error = sync(&v, "f");
                assert!(matches!(error, Err(FsError::Device(_))), "{error:?}");
                assert_eq!(sim.pending_faults(), 0);
                assert_eq!(v.failure(), None, "one bad sector does not stop the volume");
                let when = format!("after data was lost ({effect:?}, round {round}, attempt {attempt})");
                all.check(&v, &when);
                v.commit().unwrap();
                old.check_device(&after_power_cut(&sim), &format!("{when}, and a power cut"));
                if (round + attempt) % 2 == i as u64 % 2 {
                    v.checkpoint().unwrap();
                    old.check_device(&after_power_cut(&sim), &format!("{when} and a checkpoint"));
                }
            }
            sync(&v, "f").unwrap();
            all.check(&v, "once it is written");
            all.check_device(&after_power_cut(&sim), &format!("once it is written ({effect:?}, {round})"));
        }
        audit::durable_lsns(&Trace::since(&sim, 0));
        assert!(v.counters().quarantined_blocks >= 8 * 8);
        assert_eq!((v.counters().lost_flights, v.counters().flights), (8, 12));
    }
}

#[test]
fn a_cut_while_lost_data_is_superseded_leaves_all_or_nothing() {
    for (i, effect) in [EFFECTS, EFFECTS].concat().into_iter().enumerate() {
        let sim = if i < EFFECTS.len() { device() } else { fua_device() };
        let v = mount_small(&sim);
        let old = start(&v);
        let mut new = old.clone();
        dirty(&mut new, &v, SPREADS[i % 2], 2);
        let from = sim.seq();
        fail_data(&sim, effect, 0);
        sync(&v, "f").unwrap_err();
        let end = sim.seq();
        for cut in from..=end {
            for seed in 0..9 {
                let survivors =
                    [Survivors::KeepAll, Survivors::DropAll, Survivors::Random(0.7)][seed as usize % 3];
                let options = CutOptions { seed, torn: Some(512), survivors, in_flight: true };
                let device = sim.image_at(cut, &options).into_sim(seed);
                let when = format!("{effect:?}, cut {cut}, seed {seed}");
                let is_new = old_or_new(&device, [&old, &new], &when) == 1;
                assert!(!is_new || cut < end, "the sync has failed for good");
            }
        }
    }
}

/// If the journal or a flush fails, alone or while lost data is superseded, the epoch ends. What is in
/// memory can be read, and no fsync says that it is safe.
#[test]
fn a_failed_commit_ends_the_epoch_and_keeps_the_pages() {
    for lost in [false, true] {
        for (op, nth) in [(OpKind::Write, 0), (OpKind::Write, 1), (OpKind::Flush, 0)] {
            let sim = device();
            let v = mount_small(&sim);
            let old = start(&v);
            let mut new = old.clone();
            dirty(&mut new, &v, &[1, 2], 2);
            if lost {
                fail_data(&sim, Effect::eio(), 0);
            }
            if nth > 0 && !lost {
                continue; // there is only one record
            }
            let data = u64::from(op == OpKind::Write);
            sim.inject(Fault::new(Effect::eio()).on(op).after(nth + data));
            sync(&v, "f").unwrap_err();
            assert_eq!(sim.pending_faults(), 0, "{op:?} {nth}");
            assert!(v.failure().is_some(), "{op:?} {nth}");
            for _ in 0..2 {
                assert_eq!(sync(&v, "f").unwrap_err().errno(), libc::EIO);
            }
            new.check(&v, "in memory");
            drop(v);
            let when = format!("{op:?} {nth}, lost: {lost}");
            old_or_new(&after_power_cut(&sim), [&old, &new], &when);
            old_or_new(&sim.current().into_sim(1), [&old, &new], &format!("{when}, restart"));
        }
    }
}

#[test]
fn bytes_in_the_journal_survive_lost_data() {
    for recovered in [false, true] {
        let mut sim = device();
        let mut v = mount_small(&sim);
        let mut all = start(&v);
        all.write(&v, "f", PAGE + 100, &pattern(3000, 2), DSYNC);
        if recovered {
            drop(v);
            sim = after_power_cut(&sim);
            v = mount_small(&sim);
        }
        let old = all.clone();
        all.write(&v, "f", 0, &pattern(3 * PAGE, 3), BUFFERED);
        fail_data(&sim, Effect::eio(), 0);
        sync(&v, "f").unwrap_err();
        assert_eq!(sim.pending_faults(), 0);
        v.commit().unwrap();
        all.check(&v, "in memory");
        old.check_device(&after_power_cut(&sim), "after a power cut");
        sync(&v, "f").unwrap();
        all.check_device(&after_power_cut(&sim), "after it has been written");
    }
}

/// Whoever comes across dirty pages in flight finds them in memory, and what they do comes after the sync or
/// before it, also if the data is lost in the end.
#[test]
fn whoever_meets_a_sync_in_flight_finds_whole_pages() {
    for (what, act, expect) in MEANWHILE {
        for lost in [false, true] {
            let (air, v) = Airspace::new(small_inline());
            let mut all = start(&v);
            let ino = v.find("f").unwrap();
            v.checkpoint().unwrap();
            dirty(&mut all, &v, &[1], 2);
            air.close(lost.then_some(0));
            let synced = std::thread::scope(|scope| {
                let syncer = scope.spawn(|| v.fsync(ino, true));
                air.await_flying(1);
                let other = scope.spawn(|| act(&v, ino));
                // Time for it to go wrong.
                std::thread::sleep(Duration::from_millis(30));
                air.open();
                other.join().unwrap_or_else(|_| panic!("{what}, lost: {lost}"));
                syncer.join().unwrap()
            });
            assert_eq!(synced.is_err(), lost, "{what}: {synced:?}");
            assert_eq!(v.failure(), None);
            let mut f = all.0.remove("f").unwrap();
            expect(&mut f);
            if !f.is_empty() {
                all.0.insert("f".into(), f);
            }
            if v.find("late").is_some() {
                all.0.insert("late".into(), Vec::new());
            }
            let when = format!("{what} while a page is in flight, lost: {lost}");
            all.check(&v, &when);
            all.sync(&v);
            all.check_device(&after_power_cut(&air.sim), &format!("{when}, and a power cut"));
            v.checkpoint().unwrap();
            all.check_device(&after_power_cut(&air.sim), &format!("{when}, a checkpoint, and a power cut"));
        }
    }
}

/// A test that fails ends all the same.
struct OpenAtLast<'a>(&'a Airspace);

impl Drop for OpenAtLast<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Readers do not wait for a sync, nor do writers of other pages, also not of those between its own.
#[test]
fn a_sync_in_flight_keeps_only_writers_of_its_pages_waiting() {
    let (air, v) = Airspace::new(small_inline());
    let mut all = start(&v);
    dirty(&mut all, &v, &[0, 2, 3], 2);
    let ino = v.find("f").unwrap();
    air.close(None);
    std::thread::scope(|scope| {
        let _in_the_end = OpenAtLast(&air);
        let syncer = scope.spawn(|| v.fsync(ino, true));
        air.await_flying(2);
        all.check(&v, "while it is in flight");
        let mut page = vec![0; PAGE];
        for i in 0..4 {
            v.read(ino, (i * PAGE) as u64, &mut page, DIRECT).unwrap();
            assert_eq!(page, all.0["f"][i * PAGE..(i + 1) * PAGE]);
        }
        all.write(&v, "f", PAGE + 9, &[1; 1000], BUFFERED);
        assert!(!syncer.is_finished());
        let writer = scope.spawn(|| v.put(ino, 2 * PAGE as u64, &[7; 100], BUFFERED));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!writer.is_finished(), "what is in flight changes");
        air.open();
        writer.join().unwrap();
        syncer.join().unwrap().unwrap();
    });
    all.0.get_mut("f").unwrap()[2 * PAGE..2 * PAGE + 100].fill(7);
    all.check(&v, "in memory");
    sync(&v, "f").unwrap();
    all.check_device(&after_power_cut(&air.sim), "after a power cut");
}

/// Two syncs of one file: the second one has its own pages in flight beside those of the first, and is done
/// when all of them are durable.
#[test]
fn syncs_of_a_file_fly_side_by_side() {
    for unlucky in [None, Some(0), Some(1)] {
        let (air, v) = Airspace::new(small_inline());
        let mut all = start(&v);
        let ino = v.find("f").unwrap();
        dirty(&mut all, &v, &[0, 1], 2);
        air.close(unlucky);
        let outcomes = std::thread::scope(|scope| {
            let _in_the_end = OpenAtLast(&air);
            let first = scope.spawn(|| v.fsync(ino, true));
            air.await_flying(1);
            // It has its pages until its record has been submitted, too.
            std::thread::sleep(Duration::from_millis(20));
            all.write(&v, "f", 3 * PAGE, &pattern(PAGE, 9), BUFFERED);
            let second = scope.spawn(|| v.fsync(ino, true));
            air.await_flying(2);
            std::thread::sleep(Duration::from_millis(20));
            assert!(!first.is_finished() && !second.is_finished());
            air.open();
            [first, second].map(|t| t.join().unwrap())
        });
        assert_eq!(v.failure(), None);
        // The second one writes what the first has lost.
        let failed = [unlucky == Some(0), unlucky == Some(1)];
        assert_eq!(outcomes.map(|o| o.is_err()), failed, "unlucky: {unlucky:?}");
        all.check(&v, "in memory");
        if unlucky != Some(1) {
            all.check_device(&after_power_cut(&air.sim), &format!("unlucky: {unlucky:?}"));
        }
        sync(&v, "f").unwrap();
        all.check_device(&after_power_cut(&air.sim), &format!("in the end, unlucky: {unlucky:?}"));
    }
}

/// A sync and synchronous writes in one record: what of them is lost is the others' no concern.
#[test]
fn a_group_loses_only_what_is_lost() {
    for unlucky in 0..=3 {
        let (air, v) = Airspace::new(small_inline());
        let mut all = start(&v);
        for name in ["g", "h"] {
            all.write(&v, name, 0, &pattern(2 * PAGE, 5), DIRECT);
        }
        all.sync(&v);
        v.publish_durable().unwrap();
        let old = all.clone();
        let (f, g, h) = (v.find("f").unwrap(), v.find("g").unwrap(), v.find("h").unwrap());
        v.put(g, 0, &pattern(PAGE, 8), BUFFERED);
        // The first flight keeps the others waiting, who will share a record.
        air.close(Some(unlucky));
        let v = &v;
        let outcomes = std::thread::scope(|scope| {
            let leader = scope.spawn(move || v.write(f, 0, &pattern(PAGE, 7), DIRECT_DSYNC).map(drop));
            air.await_flying(1);
            let syncer = scope.spawn(move || v.fsync(g, true));
            air.await_flying(2);
            let writer = scope.spawn(move || v.write(h, 0, &pattern(PAGE, 9), DIRECT_DSYNC).map(drop));
            air.await_flying(3);
            std::thread::sleep(Duration::from_millis(20));
            air.open();
            [leader, syncer, writer].map(|t| t.join().unwrap())
        });
        assert_eq!(v.failure(), None);
        let mut durable = old;
        for (i, (name, seed)) in [("f", 7), ("g", 8), ("h", 9)].into_iter().enumerate() {
            assert_eq!(outcomes[i].is_err(), i == unlucky, "{name}, unlucky: {unlucky}");
            if i != unlucky {
                durable.0.get_mut(name).unwrap()[..PAGE].copy_from_slice(&pattern(PAGE, seed));
            }
        }
        durable.check_device(&after_power_cut(&air.sim), &format!("after a power cut, unlucky: {unlucky}"));
        all = durable;
        all.0.get_mut("g").unwrap()[..PAGE].copy_from_slice(&pattern(PAGE, 8));
        all.check(v, &format!("in memory, unlucky: {unlucky}"));
        sync(v, "g").unwrap();
        all.check_device(&after_power_cut(&air.sim), &format!("in the end, unlucky: {unlucky}"));
    }
}
