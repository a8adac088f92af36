//! R5: a bad record is corruption if anything says that it was durable, a torn tail if not; a read
//! error is neither.

use blockdev::sim::{CutOptions, Effect, Fault, OpKind, SimDevice, Survivors};
use blockdev::{AlignedBuf, BlockDevice, IoClass};
use dbfs_fs_core::api::FsOps;
use dbfs_fs_core::format::record::{RecordHeader, RecordPlace, encode_record};
use dbfs_fs_core::format::{Change, ItemKind, Key};
use dbfs_fs_core::{BlockNr, FsError, Ino, Lsn};

use crate::rig::*;
use crate::trace::Trace;

/// A volume with a few synchronous changes in its last epoch's journal, their durable LSN on the
/// device, and where each record of that epoch is.
fn with_records() -> (SimDevice, Expected, Vec<(u64, RecordHeader)>) {
    let sim = device();
    let start = sim.seq();
    let v = mount(&sim);
    let mut all = Expected::default();
    for i in 0..5u64 {
        all.write(&v, "f", i as usize * 1500, &pattern(6000, i), DSYNC);
        all.write(&v, &format!("g{i}"), 0, &pattern(20_000, 20 + i), DIRECT_DSYNC);
    }
    v.publish_durable().unwrap();
    let trace = Trace::since(&sim, start);
    let records = trace.records().map(|(w, h, _)| (w.blocks.start, *h)).collect();
    drop(v);
    (after_power_cut(&sim), all, records)
}

fn copy(device: &SimDevice) -> SimDevice {
    device.current().into_sim(3)
}

#[test]
fn damage_below_the_durable_lsn_is_refused() {
    let (sim, all, records) = with_records();
    all.check_device(&copy(&sim), "before any damage");
    let (last, acknowledged) = records.split_last().unwrap();
    assert!(acknowledged.len() > 10);
    for (block, header) in acknowledged {
        let last_byte = 95 + u64::from(header.payload_len);
        for (what, at) in [("magic", 1), ("LSN", 50), ("last byte", last_byte)] {
            let damaged = copy(&sim);
            damaged.rot(block * BLOCK as u64 + at, 0x10);
            let error = try_mount(&damaged).expect_err("damage must not be cut away");
            let text = error.to_string();
            assert!(matches!(error, FsError::Corrupt { .. }), "{what} of record {}: {text}", header.lsn);
            assert!(text.contains("refusing to drop acknowledged changes"), "{text}");
            assert!(text.contains(&format!("record {} ", header.lsn)), "{text}");
        }
    }
    // Nothing ever said that the last one, which carries the durable LSN, was durable itself.
    let cut = copy(&sim);
    cut.rot(last.0 * BLOCK as u64 + 50, 0x10);
    all.check_device(&cut, "without the last record");
}

#[test]
fn a_refused_mount_changes_nothing() {
    let (sim, all, records) = with_records();
    let (block, _) = records[3];
    sim.rot(block * BLOCK as u64 + 60, 1);
    let writes = sim.counters().writes;
    assert!(try_mount(&sim).is_err());
    assert_eq!(sim.counters().writes, writes);
    sim.rot(block * BLOCK as u64 + 60, 1);
    all.check_device(&sim, "after the damage was mended");
}

#[test]
fn a_torn_tail_is_cut() {
    let sim = device();
    let v = mount(&sim);
    let mut old = Expected::default();
    old.write(&v, "f", 0, &pattern(30_000, 1), DSYNC);
    old.write(&v, "g", 0, &pattern(30_000, 2), DIRECT_DSYNC);
    v.publish_durable().unwrap();
    let from = sim.seq();
    let mut new = old.clone();
    new.write(&v, "f", 0, &pattern(30_000, 3), DSYNC);
    let mut outcomes = [0, 0];
    for cut in from..=sim.seq() {
        for seed in 0..16 {
            let survivors = Survivors::Random(0.8);
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
fn a_valid_later_record_alone_proves_nothing() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    all.write(&v, "f", 0, &pattern(3000, 1), DSYNC);
    v.publish_durable().unwrap();
    let before = sim.seq();
    for i in 0..400 {
        v.make_file(&format!("{i:0>200}"));
    }
    assert_eq!(sim.seq(), before, "nothing has been committed yet");
    v.sync_all().unwrap();
    let trace = Trace::since(&sim, before);
    let batch: Vec<u64> = trace.records().map(|(w, ..)| w.seq).collect();
    assert!(batch.len() >= 2, "one batch of several records");
    let cut = batch.last().unwrap() + 1;
    let device = after_cut(&sim, cut, Survivors::OnlyLast);
    all.check_device(&device, "with the last record of a batch only");
}

#[test]
fn records_count_only_with_their_data() {
    let sim = device();
    let v = mount(&sim);
    let mut old = Expected::default();
    old.write(&v, "f", 0, &pattern(3 * PAGE, 1), DIRECT_DSYNC);
    v.publish_durable().unwrap();
    let before = sim.seq();
    let mut new = old.clone();
    new.write(&v, "f", PAGE, &pattern(PAGE, 2), DIRECT_DSYNC);
    let trace = Trace::since(&sim, before);
    let (record, ..) = trace.records().next().unwrap();
    let cut = record.seq + 1;
    old.check_device(&after_cut(&sim, cut, Survivors::OnlyLast), "with a record whose data is not there");
    new.check_device(&after_cut(&sim, cut, Survivors::KeepAll), "with a record and its data");
    new.check_device(&after_power_cut(&sim), "after the flush");
}

#[test]
fn a_read_error_is_not_a_torn_tail() {
    let (sim, all, _) = with_records();
    let mut failures = 0;
    loop {
        let device = copy(&sim);
        device.inject(Fault::new(Effect::eio()).on(OpKind::Read).after(failures));
        match try_mount(&device) {
            Err(e) => assert!(matches!(e, FsError::Device(_)), "read {failures}: {e}"),
            Ok(v) if device.pending_faults() == 1 => {
                device.clear_faults();
                all.check(&v, "without an error");
                break;
            }
            Ok(v) => all.check(&v, &format!("although read {failures} failed")),
        }
        device.clear_faults();
        all.check_device(&device, &format!("after read {failures} failed once"));
        failures += 1;
    }
    assert!(failures > 5, "only {failures} reads could fail");
}

/// A record that looks right but does not follow the last one: what a ring's old bytes, or another
/// copy of the volume, could leave there.
#[test]
fn a_record_that_does_not_follow_the_last_one_is_not_taken() {
    let (sim, all, records) = with_records();
    let uuid = crate::trace::superblock(&sim).uuid;
    let (block, last) = records.last().unwrap();
    let addr = BlockNr(block + u64::from(last.blocks()));
    let mut payload = Vec::new();
    let key = Key::new(Ino::ROOT, ItemKind::Inode, 0);
    Change::DelItem { key }.encode(&mut payload);
    let place = RecordPlace {
        addr,
        epoch: last.epoch,
        lsn: last.lsn.next(),
        durable_lsn: Lsn(1),
        prev_crc: last.crc ^ 1,
        inodes: last.inodes,
        node_id: 0,
    };
    let (record, _) = encode_record(&uuid, &place, &payload, 1);
    let record = AlignedBuf::from_slice(&record);
    sim.write_at(addr.offset(), record, true, IoClass::Log).unwrap();
    all.check_device(&sim, "with a foreign record behind the last one");
}
