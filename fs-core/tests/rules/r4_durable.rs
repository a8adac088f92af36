//! R4: what is acknowledged as durable is covered by a flush that was submitted after all writes up
//! to it had completed.

use std::sync::Barrier;

use dbfs_fs_core::Ino;
use dbfs_fs_core::api::FsOps;

use crate::audit;
use crate::rig::*;
use crate::trace::Trace;

#[test]
fn what_fsync_acknowledged_survives_a_power_cut_that_drops_all_else() {
    let sim = device();
    assert_volatile(&sim);
    let v = mount(&sim);
    let mut all = Expected::default();
    for round in 0..24 {
        let name = format!("f{}", round % 5);
        let flags = [BUFFERED, DIRECT][round % 2];
        let len = [300, PAGE, 40_000, 300_000][round % 4];
        all.write(&v, &name, (round / 5) * 7000, &pattern(len, round as u64), flags);
        // Something in flight that nobody waits for.
        all.write(&v, "other", round * 100, &pattern(100, round as u64), DIRECT);
        v.fsync(v.find(&name).unwrap(), round % 3 == 0).unwrap();
        if round % 10 == 9 {
            v.checkpoint().unwrap();
        }
        let found = mount(&after_power_cut(&sim));
        all.check(&found, &format!("after fsync {round}"));
    }
}

#[test]
fn records_and_their_data_are_durable_when_fsync_returns() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for round in 0..40usize {
        let name = format!("f{}", round % 3);
        all.write(&v, &name, (round % 8) * PAGE, &pattern(PAGE, round as u64), [DIRECT, BUFFERED][round % 2]);
        v.fsync(v.find(&name).unwrap(), true).unwrap();
        let now = sim.seq();
        let trace = Trace::since(&sim, 0);
        for write in &trace.writes {
            assert!(write.durable_by(now), "write {} is not durable after fsync {round}", write.seq);
        }
    }
    audit::durable_lsns(&Trace::since(&sim, 0));
}

#[test]
fn nothing_claims_to_be_durable_before_it_is() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for round in 0..60usize {
        all.write(&v, &format!("f{}", round % 7), round * 900, &pattern(5000, round as u64), BUFFERED);
        match round % 6 {
            0 => all.sync(&v),
            3 => v.publish_durable().unwrap(),
            5 => v.checkpoint().unwrap(),
            _ => {}
        }
    }
    // Several records in one batch.
    for i in 0..500 {
        v.make_file(&format!("{i:0>200}"));
    }
    v.sync_all().unwrap();
    let trace = Trace::since(&sim, 0);
    audit::durable_lsns(&trace);
    let batches: std::collections::BTreeSet<u64> = trace.records().map(|(w, ..)| w.submitted_at).collect();
    assert!(batches.len() < trace.records().count(), "records of one batch are in flight together");
}

#[test]
fn concurrent_fsyncs_share_records_and_lose_nothing() {
    const THREADS: usize = 4;
    let sim = device();
    let v = mount(&sim);
    let files: Vec<Ino> = (0..THREADS).map(|i| v.make_file(&format!("f{i}"))).collect();
    let barrier = Barrier::new(THREADS);
    for round in 0..10u64 {
        std::thread::scope(|scope| {
            for (i, ino) in files.iter().enumerate() {
                let (v, barrier) = (&v, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    v.put(*ino, 0, &pattern(9000, round * 10 + i as u64), [BUFFERED, DIRECT][i % 2]);
                    v.fsync(*ino, true).unwrap();
                });
            }
        });
        let found = mount(&after_power_cut(&sim));
        for (i, ino) in files.iter().enumerate() {
            assert_eq!(found.bytes(*ino), pattern(9000, round * 10 + i as u64), "file {i}, round {round}");
        }
    }
    audit::durable_lsns(&Trace::since(&sim, 0));
}

#[test]
fn unflushed_data_is_bounded() {
    const LIMIT: u64 = 64 << 20;
    // Groups so large that no reservation has to be flushed meanwhile.
    let sim = device_of(16 << 30);
    let v = mount(&sim);
    let ino = v.make_file("large");
    let data = pattern(1 << 20, 1);
    for mib in 0..140u64 {
        v.put(ino, mib << 20, &data, DIRECT);
    }
    let trace = Trace::since(&sim, 0);
    for write in trace.in_data_area() {
        let now = write.seq;
        let before = trace.in_data_area().take_while(|w| w.seq <= now);
        let loose: u64 = before.filter(|w| !w.durable_by(now)).map(|w| w.blocks.end - w.blocks.start).sum();
        let bytes = loose * BLOCK as u64;
        assert!(bytes <= LIMIT + (2 << 20), "{bytes} bytes are unflushed at write {now}");
    }
}
