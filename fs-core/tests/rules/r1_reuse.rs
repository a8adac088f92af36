//! R1: a freed block is used again only when the device durably says that the record that freed it
//! is durable; a block is written once per allocation; blocks of failed writes stay out of use.

use std::sync::Arc;

use blockdev::sim::{Effect, Fault, OpKind, Rng, SimDevice};
use blockdev::{AlignedBuf, BlockDevice, IoClass, RamDevice};
use dbfs_fs_core::Ino;
use dbfs_fs_core::api::FsOps;
use dbfs_fs_core::fsck::{CheckOptions, check};

use crate::audit;
use crate::rig::*;
use crate::trace::{Trace, superblock};

/// Leaves so little free space that blocks are soon used again.
const FILL: usize = 44 << 20;

/// Overwrites single pages of a file, committing now and then.
fn churn(v: &dbfs_fs_core::Volume, all: &mut Expected, rounds: u64, seed: u64) {
    let mut rng = Rng::new(seed);
    for round in 0..rounds {
        let page = rng.below(96) as usize;
        all.write(v, "churn", page * PAGE, &pattern(PAGE, seed * 10_000 + round), DIRECT);
        if round % 9 == 8 {
            v.fsync(v.find("churn").unwrap(), true).unwrap();
        }
        if round % 40 == 39 {
            v.publish_durable().unwrap();
        }
        if round % 150 == 149 {
            v.checkpoint().unwrap();
        }
    }
}

fn fill(v: &dbfs_fs_core::Volume, all: &mut Expected) {
    for at in (0..FILL).step_by(1 << 20) {
        all.write(v, "fill", at, &pattern(1 << 20, at as u64), DIRECT);
    }
    all.sync(v);
}

#[test]
fn freed_blocks_wait_until_their_record_is_known_to_be_durable() {
    let sim = device();
    let start = sim.seq();
    let v = mount(&sim);
    let mut all = Expected::default();
    fill(&v, &mut all);
    churn(&v, &mut all, 1200, 1);
    all.sync(&v);
    let reused = audit::reuse(&Trace::since(&sim, start));
    assert!(reused > 500, "only {reused} blocks were used again");
    assert!(v.counters().blocks_reused > 500);
    drop(v);
    all.check_device(&after_power_cut(&sim), "after the churn");
}

#[test]
fn a_power_cut_between_free_and_reuse_loses_nothing() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    fill(&v, &mut all);
    churn(&v, &mut all, 300, 2);
    all.sync(&v);
    // Whatever is written from here on, what was promised here has to be found: mapped by records
    // that are durable, in blocks that later records free.
    let mut rng = Rng::new(3);
    let mut checked = 0;
    for round in 0..16 {
        let promised = all.clone();
        let (from, commits) = (sim.seq(), v.counters().commits);
        for _ in 0..25 {
            let page = rng.below(96) as usize;
            all.write(&v, "churn", page * PAGE, &pattern(PAGE, rng.next_u64()), DIRECT);
        }
        if v.counters().commits == commits {
            // Nothing new was promised.
            let cut = from + rng.below(sim.seq() - from + 1);
            let found = mount(&after_cut(&sim, cut, blockdev::sim::Survivors::KeepAll));
            promised.check(&found, &format!("cut in round {round}"));
            checked += 1;
        }
        v.fsync(v.find("churn").unwrap(), true).unwrap();
    }
    assert!(checked > 6, "only {checked} rounds were checked");
}

#[test]
fn blocks_of_failed_writes_stay_out_of_use() {
    let sim = device();
    let start = sim.seq();
    let v = mount(&sim);
    let mut all = Expected::default();
    fill(&v, &mut all);
    churn(&v, &mut all, 100, 4);
    let sb = superblock(&sim);
    let area = sb.first_data_block.offset()..SIZE;
    let ino = v.find("churn").unwrap();
    for i in 0..20 {
        sim.inject(Fault::new(Effect::eio()).on(OpKind::Write).within(area.clone()));
        let error = v.write(ino, i * PAGE as u64, &pattern(PAGE, 77), DIRECT).unwrap_err();
        assert_eq!(error.errno(), libc::EIO);
        assert_eq!(sim.pending_faults(), 0);
    }
    churn(&v, &mut all, 1500, 5);
    all.sync(&v);
    let trace = Trace::since(&sim, start);
    assert_eq!(trace.in_data_area().filter(|w| w.failed).count(), 20);
    audit::reuse(&trace);
    all.check(&v, "after failed writes");
    drop(v);
    let image = after_power_cut(&sim);
    all.check_device(&image, "after failed writes and a power cut");
}

#[test]
fn overwritten_and_deleted_blocks_come_back() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    let settle = |v: &dbfs_fs_core::Volume| {
        for i in 0..3 {
            // A checkpoint without changes does nothing.
            v.make_file(&format!("settle{i}"));
            v.checkpoint().unwrap();
            v.unlink(dbfs_fs_core::Ino::ROOT, format!("settle{i}").as_bytes()).unwrap();
        }
        v.sync_all().unwrap();
        v.statfs().unwrap().bfree
    };
    let empty = settle(&v);
    all.write(&v, "f", 0, &pattern(2 << 20, 1), DIRECT);
    let before = settle(&v);
    for round in 0..10 {
        all.write(&v, "f", 0, &pattern(1 << 20, round), DIRECT);
        all.write(&v, "f", 1 << 20, &pattern(1 << 20, 100 + round), BUFFERED);
        all.sync(&v);
    }
    let after = settle(&v);
    assert!(before.abs_diff(after) < 64, "{before} blocks were free, {after} are after overwrites");
    let attr = v.getattr(v.find("f").unwrap()).unwrap();
    assert_eq!(attr.blocks * 512, 2 << 20);
    drop(v);
    let v = mount(&sim);
    let after = settle(&v);
    assert!(before.abs_diff(after) < 128, "{before} blocks were free, {after} are after a mount");
    v.unlink(dbfs_fs_core::Ino::ROOT, b"f").unwrap();
    let after = settle(&v);
    assert!(empty.abs_diff(after) < 128, "{empty} blocks were free, {after} are after a deletion");
}

#[test]
fn a_durable_lsn_is_published_without_waiting_for_a_change() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    all.write(&v, "f", 0, &pattern(PAGE, 1), DIRECT);
    all.write(&v, "f", 0, &pattern(PAGE, 2), DIRECT);
    all.sync(&v);
    let before = sim.seq();
    v.publish_durable().unwrap();
    let trace = Trace::since(&sim, before);
    let (write, header, changes) = trace.records().next().expect("a record carries the durable LSN");
    assert!(changes.is_empty());
    assert_eq!(header.durable_lsn.0 + 1, header.lsn.0);
    assert!(write.durable_by(sim.seq()));
}

/// What somebody finds who knows the roots and the journal as they were `then`, and reads all else as it is
/// `now`.
fn as_a_follower_sees(then: &SimDevice, now: &SimDevice) -> Arc<dyn BlockDevice> {
    let sb = superblock(then);
    let group = u64::from(sb.group_blocks);
    let journal = sb.first_journal_group().0 * group;
    let journal = journal..journal + u64::from(sb.journal_groups) * group;
    let data = sb.first_data_block.0..sb.total_blocks - 1;
    let mixed = RamDevice::new(SIZE, 512);
    for block in 0..SIZE / BLOCK as u64 {
        let from = if data.contains(&block) && !journal.contains(&block) { now } else { then };
        let at = block * BLOCK as u64;
        let bytes = from.read_at(at, AlignedBuf::zeroed(BLOCK), IoClass::Data).unwrap();
        mixed.write_at(at, bytes, false, IoClass::Data).unwrap();
    }
    Arc::new(mixed)
}

#[test]
fn what_a_follower_may_read_is_not_used_again() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    fill(&v, &mut all);
    let mut rng = Rng::new(11);
    let mut make = |all: &mut Expected, name: String| {
        all.write(&v, &name, 0, &pattern(PAGE, rng.next_u64()), DIRECT);
    };
    // Less is left than is written while a follower has its claim.
    let mut count = 0;
    while v.statfs().unwrap().bavail > 250 * 4 {
        make(&mut all, format!("small{count}"));
        count += 1;
    }
    assert!(count > 10, "{count}");
    churn(&v, &mut all, 60, 12);
    v.checkpoint().unwrap();
    churn(&v, &mut all, 60, 13);
    for round in 0..4 {
        all.sync(&v);
        v.publish_durable().unwrap();
        let claim = v.claim_for_follower("a test").unwrap();
        let then = after_power_cut(&sim);
        for i in (round..count).step_by(5) {
            v.unlink(Ino::ROOT, format!("small{i}").as_bytes()).unwrap();
            all.0.remove(&format!("small{i}"));
        }
        v.publish_durable().unwrap();
        churn(&v, &mut all, 60, 20 + round);
        v.checkpoint().unwrap();
        for i in (round..count).step_by(5) {
            make(&mut all, format!("small{i}"));
        }
        all.sync(&v);
        v.checkpoint().unwrap();
        v.publish_durable().unwrap();
        assert_eq!(claim.lost(), None);
        let seen = as_a_follower_sees(&then, &sim);
        let report = check(&seen, &CheckOptions { data: true, ..CheckOptions::default() }).unwrap();
        assert!(report.is_clean(), "round {round}: {:#?}", report.problems);
    }
    drop(v);
    all.check_device(&after_power_cut(&sim), "after the follower left");
}
