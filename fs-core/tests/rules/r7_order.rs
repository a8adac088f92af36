//! R7: a root follows its tree, reuse follows the root after the next, and recovery flushes before it
//! serves.

use blockdev::BlockDevice;
use blockdev::sim::{EventKind, SimDevice, Survivors};
use dbfs_fs_core::api::FsOps;
use dbfs_fs_core::format::RootSlot;
use dbfs_fs_core::{Ino, Volume};

use crate::audit;
use crate::rig::*;
use crate::trace::{Trace, superblock};

/// Leaves so little space that nodes and journals are soon overwritten.
fn fill(v: &Volume, all: &mut Expected) {
    for at in (0..45 << 20).step_by(1 << 20) {
        all.write(v, "fill", at, &pattern(1 << 20, at as u64), DIRECT);
    }
    all.sync(v);
}

/// Metadata that changes all over, some data, some bytes in the journal.
fn work(v: &Volume, all: &mut Expected, round: u64) {
    for i in 0..40u64 {
        let n = (round * 37 + i * 13) % 300;
        all.write(v, &format!("n{n:0>100}"), 0, &pattern(50, round), BUFFERED);
        if i % 8 == 7 {
            v.fsync(v.find(&format!("n{n:0>100}")).unwrap(), false).unwrap();
        }
    }
    all.write(v, "page", (round % 6) as usize * PAGE, &pattern(PAGE, round), DIRECT);
    all.write(v, "log", (round % 20) as usize * 30_000, &pattern(30_000, round), DSYNC);
}

/// Breaks the newest root slot of the running epoch, as rot would.
fn rot_newest_root(device: &SimDevice) {
    let sb = superblock(device);
    let mut newest: Option<(u64, u64, u64)> = None;
    for i in 0..u64::from(sb.slot_rows) * 2 {
        let at = sb.slots_start.plus(i);
        let bytes = device.current().read(at.offset(), BLOCK);
        if let Ok(Some(slot)) = RootSlot::decode(&bytes, &sb.uuid, at) {
            newest = newest.max(Some((slot.epoch.0, slot.seq, at.offset())));
        }
    }
    device.rot(newest.expect("a volume has a root").2 + 77, 0x20);
}

#[test]
fn roots_follow_what_they_lead_to() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for round in 0..14 {
        work(&v, &mut all, round);
        // Data in flight when the checkpoint begins.
        all.write(&v, "loose", 0, &pattern(2 * PAGE, round), DIRECT);
        let before = sim.seq();
        v.checkpoint().unwrap();
        let trace = Trace::since(&sim, before);
        let (root, _) = trace.slots().last().expect("a checkpoint writes a root");
        assert!(root.durable_by(sim.seq()), "a root is durable when its checkpoint is done");
    }
    assert!(audit::roots_follow_their_trees(&sim, &Trace::since(&sim, 0)) >= 14);
}

#[test]
fn what_the_last_two_roots_need_is_not_overwritten() {
    let sim = device();
    let start = sim.seq();
    let v = mount(&sim);
    let mut all = Expected::default();
    fill(&v, &mut all);
    for round in 0..120 {
        work(&v, &mut all, round);
        if round % 3 == 2 {
            v.checkpoint().unwrap();
        }
    }
    let trace = Trace::since(&sim, start);
    let reused = audit::roots_stay_whole(&sim, &trace);
    assert!(reused > 300, "only {reused} blocks of old roots were overwritten");
    assert!(v.counters().journal_wraps > 0);
    all.sync(&v);
    drop(v);
    all.check_device(&after_power_cut(&sim), "in the end");
}

/// The journal alone fills up: checkpoints are made for its sake.
#[test]
fn the_journal_is_kept_one_checkpoint_longer() {
    let sim = device();
    let start = sim.seq();
    let v = mount(&sim);
    let mut all = Expected::default();
    for round in 0..260u64 {
        all.write(&v, "log", (round % 40) as usize * 50_000, &pattern(40_000, round), DSYNC);
        if round % 29 == 28 {
            let device = after_power_cut(&sim);
            rot_newest_root(&device);
            all.check(&mount(&device), &format!("from the older root after write {round}"));
        }
    }
    assert!(v.counters().journal_wraps > 2);
    audit::roots_stay_whole(&sim, &Trace::since(&sim, start));
}

#[test]
fn the_older_root_serves_when_the_newest_rots() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for round in 0..10 {
        work(&v, &mut all, round);
        let before = sim.seq();
        all.sync(&v);
        if round % 2 == 1 {
            v.checkpoint().unwrap();
        }
        let after = sim.seq();
        if round % 2 == 1 {
            // At every moment of the checkpoint, and after it.
            let step = ((after - before) / 8).max(1) as usize;
            let synced = before + 1..=after;
            for cut in synced.step_by(step).filter(|cut| durable_from(&sim, before) <= *cut) {
                let device = after_cut(&sim, cut, Survivors::DropAll);
                rot_newest_root(&device);
                all.check(&mount(&device), &format!("from the older root, round {round}, cut {cut}"));
            }
        }
        let device = after_power_cut(&sim);
        rot_newest_root(&device);
        all.check_device(&device, &format!("from the older root after round {round}"));
    }
}

/// When the first flush after `since` was known to be complete.
fn durable_from(sim: &SimDevice, since: u64) -> u64 {
    let events = sim.events_since(since);
    let flush = |e: &&blockdev::sim::Event| matches!(e.kind, EventKind::Flush { .. });
    let fua = |e: &&blockdev::sim::Event| matches!(e.kind, EventKind::Write { fua: true, .. });
    let first = events.iter().find(|e| flush(e) || fua(e));
    first.and_then(|e| e.acked_at).unwrap_or(since)
}

#[test]
fn recovery_flushes_before_it_writes_or_serves() {
    let sim = device();
    let mut all = Expected::default();
    for round in 0..4 {
        let before = sim.seq();
        let v = mount(&sim);
        let events = sim.events_since(before);
        let first = events.iter().find(|e| !matches!(e.kind, EventKind::Mark(_) | EventKind::Name(_)));
        let first = first.expect("a mount writes");
        assert!(matches!(first.kind, EventKind::Flush { honest: true }), "the first request is {first:?}");
        all.write(&v, "f", round * 5000, &pattern(6000, round as u64), DIRECT);
        all.sync(&v);
        all.check(&v, "while mounted");
    }
    // A read-only mount promises nothing and changes nothing.
    let before = sim.seq();
    let options = dbfs_fs_core::MountOptions { read_only: true, ..options() };
    let v = Volume::mount(std::sync::Arc::new(sim.clone()), options, std::sync::Arc::new(TestEnv::default()));
    all.check(&v.unwrap(), "mounted read-only");
    assert_eq!(sim.seq(), before);
}

/// A killed process leaves writes that were completed but never flushed: what the next one shows to
/// its users must not vanish in a power cut later.
#[test]
fn what_recovery_showed_does_not_vanish() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    all.write(&v, "f", 0, &pattern(40_000, 1), BUFFERED);
    all.sync(&v);
    // A flush that does nothing: the process is killed before it could wait for a real one.
    sim.inject(blockdev::sim::Fault::new(blockdev::sim::Effect::Lie).on(blockdev::sim::OpKind::Flush));
    all.write(&v, "f", 0, &pattern(PAGE, 2), DIRECT);
    all.sync(&v);
    drop(v);
    let v = mount(&sim);
    all.check(&v, "after the process was killed");
    drop(v);
    all.check_device(&after_power_cut(&sim), "after the power cut that followed");
}

#[test]
fn a_checkpoint_without_changes_writes_nothing() {
    let sim = device();
    let v = mount(&sim);
    v.make_file("f");
    v.checkpoint().unwrap();
    let before = sim.counters();
    v.checkpoint().unwrap();
    assert_eq!(sim.counters().writes, before.writes);
    v.unlink(Ino::ROOT, b"f").unwrap();
    v.checkpoint().unwrap();
    assert!(sim.counters().writes > before.writes);
    assert!(sim.capabilities().volatile_write_cache);
}
