//! Flights: a large synchronous overwrite writes its data together with the record that maps it, and
//! flushes once (rules R4, R6, R7). Whatever becomes of the data, nobody sees it before it is there, and
//! nothing acknowledged depends on it when it is lost.

use std::time::Duration;

use blockdev::ErrorKind;
use blockdev::sim::{CutOptions, Effect, Fault, Leaves, OpKind, SimDevice, Survivors};
use dbfs_fs_core::api::FsOps;
use dbfs_fs_core::{FsError, Volume};

use crate::airspace::{Airspace, MEANWHILE};
use crate::audit;
use crate::rig::*;
use crate::trace::{Trace, What, superblock};

/// The failures of a data write.
pub const EFFECTS: [Effect; 4] = [
    Effect::Fail { kind: ErrorKind::Io, leaves: Leaves::Mix },
    Effect::Fail { kind: ErrorKind::Io, leaves: Leaves::Old },
    Effect::Fail { kind: ErrorKind::Short, leaves: Leaves::New },
    Effect::Fail { kind: ErrorKind::NoSpace, leaves: Leaves::Old },
];

/// A volume whose file `f` has four pages, all of it durable, and known to be.
pub fn start(v: &Volume) -> Expected {
    let mut all = Expected::default();
    all.write(v, "f", 0, &pattern(4 * PAGE, 1), DIRECT);
    all.sync(v);
    v.publish_durable().unwrap();
    all
}

pub fn fail_data(sim: &SimDevice, effect: Effect, after: u64) {
    let sb = superblock(sim);
    let data = sb.first_data_block.offset()..SIZE;
    sim.inject(Fault::new(effect).on(OpKind::Write).within(data).after(after));
}

#[test]
fn data_and_record_are_in_flight_together_and_flushed_once() {
    let sim = device();
    let v = mount(&sim);
    let mut all = start(&v);
    for round in 0..6 {
        let (from, before) = (sim.seq(), sim.counters());
        all.write(&v, "f", round % 3 * PAGE, &pattern(PAGE, 10 + round as u64), DIRECT_DSYNC);
        let after = sim.counters();
        assert_eq!((after.writes - before.writes, after.flushes - before.flushes), (2, 1));
        let trace = Trace::since(&sim, from);
        let [data, record] = &trace.writes[..] else { panic!("two writes") };
        assert!(matches!((&data.what, &record.what), (What::Other, What::Record(..))));
        let landed = sim.events_since(data.seq)[0].acked_at;
        assert!(landed.is_none_or(|at| at > record.submitted_at), "the record waited for the data");
        assert!(trace.writes.iter().all(|w| w.durable_by(sim.seq())), "acknowledged before it is durable");
        all.check(&mount(&after_power_cut(&sim)), "after a power cut");
    }
    audit::durable_lsns(&Trace::since(&sim, 0));
}

/// Where FUA is cheap, data and record are durable by themselves. A flush is made only if the record also maps
/// data that is not durable yet: otherwise recovery would end at it, and lose what was acknowledged.
#[test]
fn with_fua_there_is_no_flush_unless_something_earlier_needs_one() {
    let sim = fua_device();
    let v = mount(&sim);
    let mut all = start(&v);
    for round in 0..9u64 {
        let earlier = round % 3 == 2;
        if earlier {
            all.write(&v, "g", 0, &pattern(3 * PAGE, round), DIRECT);
        }
        let before = sim.counters();
        all.write(&v, "f", round as usize % 4 * PAGE, &pattern(PAGE, 20 + round), DIRECT_DSYNC);
        let after = sim.counters();
        assert_eq!(after.writes - before.writes, 2);
        assert_eq!(after.flushes - before.flushes, u64::from(earlier), "round {round}");
        if !earlier {
            assert_eq!(after.fua_writes - before.fua_writes, 2);
        }
        all.check_device(&after_power_cut(&sim), &format!("after round {round}"));
    }
    audit::durable_lsns(&Trace::since(&sim, 0));
}

/// What must not fly is written first: what grows, what has no blocks, what is in several steps.
#[test]
fn what_is_not_simple_to_take_back_does_not_fly() {
    let sim = device();
    let v = mount(&sim);
    let mut all = start(&v);
    let mut attempt = |offset: usize, len: usize, flies: bool| {
        let before = v.counters().flights;
        all.write(&v, "f", offset, &pattern(len, offset as u64), DIRECT_DSYNC);
        assert_eq!(v.counters().flights - before, u64::from(flies), "{len} bytes at {offset}");
    };
    attempt(0, 4 * PAGE, true);
    attempt(PAGE, PAGE + 1, true);
    attempt(4 * PAGE, PAGE, false);
    attempt(4 * PAGE, PAGE, true);
    attempt(4 * PAGE + 5, PAGE, false);
    attempt(9 * PAGE, PAGE, false);
    attempt(7 * PAGE, PAGE, false);
    all.check_device(&after_power_cut(&sim), "in the end");
}

#[test]
fn a_cut_in_flight_leaves_all_or_nothing() {
    cut_in_flight(&device());
    cut_in_flight(&fua_device());
}

fn cut_in_flight(sim: &SimDevice) {
    let v = mount(sim);
    let old = start(&v);
    let from = sim.seq();
    let mut new = old.clone();
    new.write(&v, "f", PAGE, &pattern(2 * PAGE, 2), DIRECT_DSYNC);
    let mut outcomes = [0, 0];
    for cut in from..=sim.seq() {
        for seed in 0..24 {
            let survivors =
                [Survivors::Random(0.7), Survivors::OnlyLast, Survivors::KeepAll][seed as usize % 3];
            let options = CutOptions { seed, torn: Some(512), survivors, in_flight: true };
            let device = sim.image_at(cut, &options).into_sim(seed);
            let found = mount(&device);
            let is_new = found.bytes(found.find("f").unwrap()) == new.0["f"];
            drop(found);
            outcomes[usize::from(is_new)] += 1;
            let want = if is_new { &new } else { &old };
            want.check_device(&device, &format!("cut {cut}, seed {seed}"));
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "old and new: {outcomes:?}");
}

#[test]
fn lost_data_costs_nobody_anything_else() {
    for (i, effect) in [EFFECTS, EFFECTS].concat().into_iter().enumerate() {
        let sim = if i < EFFECTS.len() { device() } else { fua_device() };
        let v = mount(&sim);
        let mut all = start(&v);
        let ino = v.find("f").unwrap();
        for round in 0..5u64 {
            // In the record whose data is lost, and acknowledged behind it.
            all.write(&v, &format!("with{round}"), 0, &[], BUFFERED);
            fail_data(&sim, effect, 0);
            let error = v.write(ino, PAGE as u64, &pattern(2 * PAGE, round), DIRECT_DSYNC);
            assert!(matches!(error, Err(FsError::Device(_))), "{error:?}");
            assert_eq!(sim.pending_faults(), 0);
            assert_eq!(v.failure(), None, "one bad sector does not stop the volume");
            let when = format!("after data was lost ({effect:?}, round {round})");
            v.commit().unwrap();
            all.check_device(&after_power_cut(&sim), &format!("{when}, and a power cut at once"));
            all.sync(&v);
            all.check(&v, &when);
            all.check_device(&after_power_cut(&sim), &format!("{when} and a power cut"));
            if round % 2 == i as u64 % 2 {
                v.checkpoint().unwrap();
                all.check_device(&after_power_cut(&sim), &format!("{when} and a checkpoint"));
            }
            all.write(&v, "f", 2 * PAGE, &pattern(PAGE, 50 + round), DIRECT_DSYNC);
        }
        audit::durable_lsns(&Trace::since(&sim, 0));
        assert!(v.counters().quarantined_blocks >= 5 * 8);
        assert_eq!(v.counters().lost_flights, 5);
    }
}

/// At every moment of the superseding the volume can be recovered, with the old content or, if the write
/// that failed is there all the same, the new one.
#[test]
fn a_cut_while_lost_data_is_superseded_leaves_all_or_nothing() {
    for (i, effect) in [EFFECTS, EFFECTS].concat().into_iter().enumerate() {
        let sim = if i < EFFECTS.len() { device() } else { fua_device() };
        let v = mount(&sim);
        let old = start(&v);
        let ino = v.find("f").unwrap();
        let from = sim.seq();
        fail_data(&sim, effect, 0);
        let data = pattern(2 * PAGE, 2);
        assert!(v.write(ino, PAGE as u64, &data, DIRECT_DSYNC).is_err());
        let end = sim.seq();
        let mut new = old.clone();
        new.0.get_mut("f").unwrap()[PAGE..3 * PAGE].copy_from_slice(&data);
        for cut in from..=end {
            for seed in 0..9 {
                let survivors =
                    [Survivors::KeepAll, Survivors::DropAll, Survivors::Random(0.7)][seed as usize % 3];
                let options = CutOptions { seed, torn: Some(512), survivors, in_flight: true };
                let device = sim.image_at(cut, &options).into_sim(seed);
                let found = mount(&device);
                let is_new = found.bytes(found.find("f").unwrap()) == new.0["f"];
                drop(found);
                assert!(!is_new || cut < end, "the write has failed for good");
                let want = if is_new { &new } else { &old };
                want.check_device(&device, &format!("{effect:?}, cut {cut}, seed {seed}"));
            }
        }
    }
}

/// If the journal or the flush fails while lost data is superseded the epoch ends, and nothing is lied about.
#[test]
fn a_second_failure_while_lost_data_is_superseded_ends_the_epoch() {
    for (op, nth) in [(OpKind::Write, 1), (OpKind::Write, 2), (OpKind::Write, 3), (OpKind::Flush, 0)] {
        let sim = device();
        let v = mount(&sim);
        let all = start(&v);
        let ino = v.find("f").unwrap();
        fail_data(&sim, Effect::eio(), 0);
        let skip = if op == OpKind::Write { nth - 1 } else { nth };
        sim.inject(Fault::new(Effect::eio()).on(op).after(skip + u64::from(op == OpKind::Write)));
        assert!(v.write(ino, PAGE as u64, &pattern(PAGE, 2), DIRECT_DSYNC).is_err());
        assert_eq!(sim.pending_faults(), 0, "{op:?} {nth}");
        assert!(v.failure().is_some(), "{op:?} {nth}");
        assert_eq!(v.fsync(ino, true).unwrap_err().errno(), libc::EIO);
        all.check(&v, "in memory");
        drop(v);
        all.check_device(&after_power_cut(&sim), &format!("after {op:?} {nth} failed, too"));
    }
}

#[test]
fn old_blocks_that_came_back_are_not_used_again() {
    let sim = device();
    let v = mount(&sim);
    let mut all = start(&v);
    for at in (0..44 << 20).step_by(1 << 20) {
        all.write(&v, "fill", at, &pattern(1 << 20, at as u64), DIRECT);
    }
    all.sync(&v);
    let ino = v.find("f").unwrap();
    fail_data(&sim, Effect::eio(), 0);
    assert!(v.write(ino, 0, &pattern(3 * PAGE, 2), DIRECT_DSYNC).is_err());
    let start = sim.seq();
    for round in 0..900u64 {
        let at = (round * 7 % 96) as usize * PAGE;
        all.write(&v, "churn", at, &pattern(PAGE, round), DIRECT);
        if round % 9 == 8 {
            all.sync(&v);
            v.publish_durable().unwrap();
        }
    }
    assert!(audit::reuse(&Trace::since(&sim, start)) > 500);
    all.check(&v, "after all free blocks have been used");
    // They are freed like any others.
    all.write(&v, "f", 0, &pattern(3 * PAGE, 3), DIRECT_DSYNC);
    all.sync(&v);
    v.checkpoint().unwrap();
    drop(v);
    all.check_device(&after_power_cut(&sim), "in the end");
}

#[test]
fn bytes_in_the_journal_survive_lost_data() {
    for recovered in [false, true] {
        let sim = device();
        let v = mount(&sim);
        let mut all = start(&v);
        all.write(&v, "f", PAGE + 100, &pattern(3000, 2), DSYNC);
        let (sim, v) = if recovered {
            drop(v);
            let sim = after_power_cut(&sim);
            let v = mount(&sim);
            (sim, v)
        } else {
            (sim, v)
        };
        fail_data(&sim, Effect::eio(), 0);
        assert!(v.write(v.find("f").unwrap(), 0, &pattern(3 * PAGE, 3), DIRECT_DSYNC).is_err());
        assert_eq!(sim.pending_faults(), 0);
        all.sync(&v);
        all.check(&v, "in memory");
        all.check_device(&after_power_cut(&sim), "after a power cut");
        all.write(&v, "f", 0, &pattern(3 * PAGE, 4), DIRECT_DSYNC);
        all.check_device(&after_power_cut(&sim), "after it has been written");
    }
}

/// Whoever comes across pages in flight finds them whole, old or new, and what they do comes after the write
/// or before it, also if the data is lost in the end.
#[test]
fn whoever_meets_a_flight_finds_whole_pages() {
    for (what, act, expect) in MEANWHILE {
        for lost in [false, true] {
            let (air, v) = Airspace::new(options());
            let mut all = start(&v);
            let ino = v.find("f").unwrap();
            v.checkpoint().unwrap();
            air.close(lost.then_some(0));
            let (wrote, new) = std::thread::scope(|scope| {
                let new = pattern(PAGE, 2);
                let data = new.clone();
                let writer = scope.spawn(|| v.write(ino, PAGE as u64, &{ data }, DIRECT_DSYNC));
                air.await_flying(1);
                let other = scope.spawn(|| act(&v, ino));
                // Time for it to go wrong.
                std::thread::sleep(Duration::from_millis(30));
                air.open();
                other.join().unwrap_or_else(|_| panic!("{what}, lost: {lost}"));
                (writer.join().unwrap(), new)
            });
            assert_eq!(wrote.is_err(), lost, "{what}: {wrote:?}");
            assert_eq!(v.failure(), None);
            let mut f = all.0.remove("f").unwrap();
            if !lost {
                f[PAGE..2 * PAGE].copy_from_slice(&new);
            }
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

/// Several writers in one record: one of them loses its data, the others nothing.
#[test]
fn a_group_loses_only_what_is_lost() {
    const WRITERS: usize = 4;
    for unlucky in 0..=WRITERS {
        let (air, v) = Airspace::new(options());
        let mut all = start(&v);
        let names: Vec<String> = (0..WRITERS).map(|i| format!("g{i}")).collect();
        for (i, name) in names.iter().enumerate() {
            all.write(&v, name, 0, &pattern(2 * PAGE, i as u64), DIRECT);
        }
        all.sync(&v);
        v.publish_durable().unwrap();
        // The first flight keeps the others waiting, who will share a record.
        air.close((unlucky < WRITERS).then_some(1 + unlucky));
        let outcomes = std::thread::scope(|scope| {
            let v = &v;
            let first = v.find("f").unwrap();
            let leader = scope.spawn(move || v.write(first, 0, &pattern(PAGE, 7), DIRECT_DSYNC));
            air.await_flying(1);
            let write = |i: usize| {
                let ino = v.find(&names[i]).unwrap();
                scope.spawn(move || v.write(ino, PAGE as u64, &pattern(PAGE, 70 + i as u64), DIRECT_DSYNC))
            };
            let writers: Vec<_> = (0..WRITERS).map(write).collect();
            air.await_flying(1 + WRITERS);
            std::thread::sleep(Duration::from_millis(20));
            air.open();
            leader.join().unwrap().unwrap();
            writers.into_iter().map(|w| w.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(v.failure(), None);
        assert_eq!(outcomes.iter().filter(|o| o.is_err()).count(), usize::from(unlucky < WRITERS));
        all.0.get_mut("f").unwrap()[..PAGE].copy_from_slice(&pattern(PAGE, 7));
        for (i, outcome) in outcomes.iter().enumerate().filter(|(_, o)| o.is_ok()) {
            assert_eq!(outcome.as_ref().unwrap(), &PAGE);
            all.0.get_mut(&names[i]).unwrap()[PAGE..].copy_from_slice(&pattern(PAGE, 70 + i as u64));
        }
        all.check(&v, &format!("unlucky: {unlucky}"));
        all.check_device(&after_power_cut(&air.sim), &format!("after a power cut, unlucky: {unlucky}"));
    }
}
