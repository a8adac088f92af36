//! R6: a failed flush or journal write ends the epoch; a failed data write gives an error and changes
//! nothing. Nothing that was lost is ever reported as safe.

use std::collections::BTreeMap;

use blockdev::BlockDevice;
use blockdev::sim::{Effect, Fault, OpKind, SimDevice};
use dbfs_fs_core::api::{FsOps, IoFlags};
use dbfs_fs_core::{Ino, Volume};

use crate::rig::*;
use crate::trace::{Trace, superblock};

/// The epoch has ended: no change is taken or acknowledged, everything can be read.
fn assert_ended(v: &Volume, all: &Expected) {
    assert!(v.failure().is_some());
    let ino = v.find("f").unwrap();
    let refused = [
        v.write(ino, 0, b"x", BUFFERED).map(|_| ()),
        v.write(ino, 0, &pattern(PAGE, 1), DIRECT).map(|_| ()),
        v.create(Ino::ROOT, b"new", 0o644, OWNER).map(|_| ()),
        v.unlink(Ino::ROOT, b"f"),
        v.checkpoint(),
    ];
    for outcome in refused {
        assert_eq!(outcome.expect_err("the epoch has ended").errno(), libc::EROFS);
    }
    for _ in 0..2 {
        assert_eq!(v.fsync(ino, true).unwrap_err().errno(), libc::EIO, "fsync must not lie later");
        assert_eq!(v.sync_all().unwrap_err().errno(), libc::EIO);
    }
    let mut byte = [0; 10];
    assert_eq!(v.read(ino, 0, &mut byte, BUFFERED).unwrap(), 10);
    assert_eq!(byte, all.0["f"][..10]);
}

fn start() -> (SimDevice, std::sync::Arc<Volume>, Expected) {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    all.write(&v, "f", 0, &pattern(50_000, 1), BUFFERED);
    all.write(&v, "g", 0, &pattern(50_000, 2), DIRECT);
    all.sync(&v);
    (sim, v, all)
}

#[test]
fn a_failed_flush_ends_the_epoch() {
    let (sim, v, all) = start();
    let ino = v.find("g").unwrap();
    v.put(ino, PAGE as u64, &pattern(PAGE, 3), DIRECT);
    sim.inject(Fault::new(Effect::eio()).on(OpKind::Flush));
    assert_eq!(v.fsync(ino, true).unwrap_err().errno(), libc::EIO);
    let written = sim.counters().writes;
    assert_ended(&v, &all);
    assert_eq!(sim.counters().writes, written, "a stopped volume writes nothing");
    drop(v);
    all.check_device(&after_power_cut(&sim), "after a failed flush and a power cut");
}

#[test]
fn a_failed_journal_write_ends_the_epoch() {
    for effect in [Effect::eio(), Effect::enospc(), Effect::short()] {
        let (sim, v, all) = start();
        let ino = v.find("f").unwrap();
        v.put(ino, 20_000, &pattern(500, 3), BUFFERED);
        sim.inject(Fault::new(effect).on(OpKind::Write));
        assert_eq!(v.fsync(ino, true).unwrap_err().errno(), libc::EIO, "{effect:?}");
        assert_eq!(sim.pending_faults(), 0);
        assert_ended(&v, &all);
        drop(v);
        all.check_device(&after_power_cut(&sim), &format!("after a failed record ({effect:?})"));
    }
}

#[test]
fn a_failed_direct_write_changes_nothing() {
    let (sim, v, mut all) = start();
    let ino = v.find("g").unwrap();
    for round in 0..6u64 {
        let effect = [Effect::eio(), Effect::enospc(), Effect::short()][round as usize % 3];
        sim.inject(Fault::new(effect).on(OpKind::Write));
        assert!(v.write(ino, PAGE as u64, &pattern(PAGE, 30 + round), DIRECT).is_err());
        assert_eq!(sim.pending_faults(), 0);
        all.check(&v, "after a failed direct write");
        v.fsync(ino, true).unwrap();
        let found = mount(&after_power_cut(&sim));
        all.check(&found, "after a failed direct write and a power cut");
        all.write(&v, "g", 2 * PAGE, &pattern(PAGE, 40 + round), DIRECT);
    }
    assert!(v.failure().is_none());
    all.sync(&v);
    v.checkpoint().unwrap();
    all.check_device(&after_power_cut(&sim), "in the end");
}

/// A large write is sent in parts, and is all or nothing all the same.
#[test]
fn a_large_write_of_which_a_part_fails_changes_nothing() {
    const LEN: usize = 1 << 20;
    for flags in [DIRECT, IoFlags { dsync: true, ..DIRECT }] {
        let mut parts = 0;
        loop {
            let (sim, v, mut all) = start();
            all.write(&v, "f", 0, &pattern(LEN, 5), DIRECT);
            all.sync(&v);
            let ino = v.find("f").unwrap();
            let area = superblock(&sim).first_data_block.offset()..SIZE;
            sim.inject(Fault::new(Effect::eio()).on(OpKind::Write).within(area).after(parts));
            let outcome = v.write(ino, 0, &pattern(LEN, 6), flags);
            // All parts have been sent, and the record of a synchronous write comes next.
            if sim.pending_faults() > 0 || v.failure().is_some() {
                break;
            }
            assert_eq!(outcome.unwrap_err().errno(), libc::EIO, "part {parts}");
            all.check(&v, "a part has failed");
            v.fsync(ino, true).unwrap();
            all.check_device(&after_power_cut(&sim), "a part has failed, and a power cut");
            all.write(&v, "f", 0, &pattern(LEN, 7), flags);
            all.sync(&v);
            all.check_device(&after_power_cut(&sim), "it has succeeded the second time");
            parts += 1;
        }
        assert!(parts >= 4, "{parts} parts");
    }
}

/// Contract C1: the error is reported, by every fsync, until the pages are written after all.
#[test]
fn a_lost_buffered_write_is_reported_until_it_is_written() {
    let (sim, v, mut all) = start();
    let area = superblock(&sim).first_data_block.offset()..SIZE;
    // Too much for the journal: it goes through writeback.
    all.write(&v, "f", 0, &pattern(300_000, 5), BUFFERED);
    let ino = v.find("f").unwrap();
    for _ in 0..3 {
        sim.inject(Fault::new(Effect::eio()).on(OpKind::Write).within(area.clone()));
        let error = v.fsync(v.find("f").unwrap(), true).expect_err("the write was lost");
        assert_eq!(error.errno(), libc::EIO);
        assert_eq!(sim.pending_faults(), 0);
        all.check(&v, "the cache has what the device has not");
    }
    v.fsync(ino, true).unwrap();
    all.check_device(&after_power_cut(&sim), "once fsync has succeeded");
}

#[test]
fn a_failed_background_write_is_not_forgotten() {
    let (sim, v, mut all) = start();
    all.write(&v, "f", 0, &pattern(300_000, 5), BUFFERED);
    sim.inject(Fault::new(Effect::eio()).on(OpKind::Write).times(2));
    assert!(v.writeback_all().is_err());
    sim.clear_faults();
    v.fsync(v.find("f").unwrap(), true).unwrap();
    all.check_device(&after_power_cut(&sim), "after a later fsync");
}

#[test]
fn a_failed_checkpoint_is_tried_again() {
    let (sim, v, mut all) = start();
    for i in 0..200 {
        all.write(&v, &format!("many{i}"), 0, b"x", BUFFERED);
    }
    all.sync(&v);
    // The last writes before a checkpoint's flush are its nodes and its list.
    for skip in [0, 1, 2] {
        all.write(&v, "g", 0, &pattern(PAGE, 60 + skip), DIRECT_DSYNC);
        v.sync_all().unwrap();
        sim.inject(Fault::new(Effect::eio()).on(OpKind::Write).after(skip));
        let outcome = v.checkpoint();
        let hit = sim.pending_faults() == 0;
        sim.clear_faults();
        assert_eq!(outcome.is_err(), hit, "write {skip}");
        if v.failure().is_some() {
            panic!("a failed node write must not end the epoch (write {skip})");
        }
        all.check(&v, "after a failed checkpoint");
        all.check_device(&after_power_cut(&sim), "after a failed checkpoint and a power cut");
        v.checkpoint().unwrap();
        all.check_device(&after_power_cut(&sim), "after the next checkpoint");
    }
}

#[test]
fn a_failed_root_ends_the_epoch() {
    for op in [OpKind::Write, OpKind::Flush] {
        let (sim, v, all) = start();
        let sb = superblock(&sim);
        let slots = sb.slots_start.offset()..sb.first_data_block.offset();
        if op == OpKind::Write {
            sim.inject(Fault::new(Effect::eio()).on(op).within(slots));
        } else {
            // Flushes of a checkpoint: its records (or none), its nodes, its root.
            sim.inject(Fault::new(Effect::eio()).on(op).after(flushes_of_a_checkpoint() - 1));
        }
        assert!(v.checkpoint().is_err(), "{op:?}");
        assert_eq!(sim.pending_faults(), 0);
        assert_ended(&v, &all);
        drop(v);
        all.check_device(&after_power_cut(&sim), "after a failed root");
        all.check_device(&sim.current().into_sim(1), "after a failed root and a restart");
    }
}

fn flushes_of_a_checkpoint() -> u64 {
    let (sim, v, _) = start();
    let before = sim.counters().flushes;
    v.checkpoint().unwrap();
    sim.counters().flushes - before
}

const ROUNDS: u64 = 12;

/// What round `round` of the workload writes, and where to.
fn version(round: u64) -> (String, Vec<u8>) {
    let len = [700, PAGE, 150_000][round as usize % 3];
    (format!("w{}", round % 3), pattern(len, round))
}

/// A workload that goes on after errors, as programs do; returns the last round of each file that
/// was promised.
fn workload(v: &Volume) -> BTreeMap<String, u64> {
    let mut promised = BTreeMap::new();
    for round in 0..ROUNDS {
        let (name, data) = version(round);
        let found = v
            .lookup(Ino::ROOT, name.as_bytes())
            .or_else(|_| v.create(Ino::ROOT, name.as_bytes(), 0o644, OWNER));
        let Ok(ino) = found.map(|attr| attr.ino) else { continue };
        let flags = [BUFFERED, DIRECT, DIRECT_DSYNC][round as usize / 3 % 3];
        let Ok(n) = v.write(ino, 0, &data, flags) else { continue };
        assert_eq!(n, data.len());
        if flags.dsync || v.fsync(ino, false).is_ok() {
            promised.insert(name, round);
        }
        if round % 4 == 3 {
            let _ = v.checkpoint();
        }
    }
    promised
}

/// Every page is of the promised round or of a later one.
fn assert_promised(v: &Volume, name: &str, promised: u64, when: &str) {
    let ino = v.find(name).unwrap_or_else(|| panic!("{name} is gone {when}"));
    let got = v.bytes(ino);
    let versions: Vec<Vec<u8>> =
        (promised..ROUNDS).map(version).filter(|(n, _)| n == name).map(|(_, data)| data).collect();
    assert_eq!(got.len(), versions[0].len(), "size of {name} {when}");
    for (i, page) in got.chunks(PAGE).enumerate() {
        let at = i * PAGE..i * PAGE + page.len();
        assert!(versions.iter().any(|v| v[at.clone()] == *page), "page {i} of {name} {when}");
    }
}

/// No request can fail in a way that breaks a promise, or keeps the volume from being mounted.
#[test]
fn every_single_request_may_fail() {
    let base = {
        let sim = device();
        drop(mount(&sim));
        sim.current()
    };
    for (effect, kinds) in [(Effect::eio(), 3), (Effect::enospc(), 1), (Effect::short(), 1)] {
        for op in &[OpKind::Write, OpKind::Flush, OpKind::Read][..kinds] {
            let mut nth = 0;
            loop {
                let sim = base.clone().into_sim(1);
                sim.inject(Fault::new(effect).on(*op).after(nth));
                let when = format!("with {op:?} {nth} failed ({effect:?})");
                let promised = try_mount(&sim).map(|v| workload(&v)).unwrap_or_default();
                if sim.pending_faults() == 1 {
                    break;
                }
                for device in [after_power_cut(&sim), sim] {
                    assert_clean(&device, &when);
                    let v = try_mount(&device).unwrap_or_else(|e| panic!("mount {when}: {e}"));
                    for (name, round) in &promised {
                        assert_promised(&v, name, *round, &when);
                    }
                }
                nth += 1;
            }
            assert!(nth > 3, "only {nth} times {op:?}");
        }
    }
}

/// What the simulator's faults rely on: the engine waits for every request it submits.
#[test]
fn every_write_is_waited_for() {
    let (sim, v, mut all) = start();
    all.write(&v, "f", 0, &pattern(500_000, 9), BUFFERED);
    all.sync(&v);
    v.checkpoint().unwrap();
    sim.flush().unwrap();
    let trace = Trace::since(&sim, 0);
    assert!(trace.writes.iter().all(|w| w.durable_by(sim.seq())));
}
