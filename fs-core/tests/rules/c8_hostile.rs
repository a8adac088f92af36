//! C8: volumes that were made to harm. All checksums are right; what they say is not.

use blockdev::sim::SimDevice;
use blockdev::{AlignedBuf, BlockDevice, IoClass, RamDevice};
use dbfs_fs_core::format::record::{RecordPlace, encode_record};
use dbfs_fs_core::format::{Change, MappedRun, RootSlot, Superblock};
use dbfs_fs_core::{BlockNr, BlockRun, FsError, GroupNr, Ino, MountOptions, PageNr, Volume};

use crate::rig::*;
use crate::trace::{Trace, superblock};

/// A volume with a checkpoint and a few records behind it.
fn volume() -> (SimDevice, Expected) {
    let (sim, all) = volume_with_history();
    (after_power_cut(&sim), all)
}

fn volume_with_history() -> (SimDevice, Expected) {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    all.write(&v, "f", 0, &pattern(200_000, 1), DIRECT);
    all.sync(&v);
    v.checkpoint().unwrap();
    all.write(&v, "f", 50, &pattern(3000, 2), DSYNC);
    v.publish_durable().unwrap();
    drop(v);
    (sim, all)
}

fn put(device: &dyn BlockDevice, at: BlockNr, buf: AlignedBuf) {
    device.write_at(at.offset(), buf, true, IoClass::Log).unwrap();
}

/// Changes every root slot of the newest epoch.
fn forge_roots(device: &SimDevice, forge: impl Fn(&mut RootSlot)) {
    let sb = superblock(device);
    let blocks = (0..u64::from(sb.slot_rows) * 2).map(|i| sb.slots_start.plus(i));
    let read = |own: BlockNr| device.current().read(own.offset(), BLOCK);
    let slots: Vec<(BlockNr, RootSlot)> =
        blocks.filter_map(|own| Some((own, RootSlot::decode(&read(own), &sb.uuid, own).ok()??))).collect();
    let epoch = slots.iter().map(|(_, s)| s.epoch).max().unwrap();
    for (own, mut slot) in slots.into_iter().filter(|(_, s)| s.epoch == epoch) {
        forge(&mut slot);
        put(device, own, slot.encode(&sb.uuid, own).unwrap());
    }
}

/// Puts a record with these changes behind the last one.
fn forge_record(device: &SimDevice, history: &SimDevice, changes: &[Change]) {
    let trace = Trace::since(history, 0);
    let (write, last, _) = trace.records().last().unwrap();
    let addr = BlockNr(write.blocks.start + u64::from(last.blocks()));
    let place = RecordPlace {
        addr,
        epoch: last.epoch,
        lsn: last.lsn.next(),
        durable_lsn: last.lsn.next(),
        prev_crc: last.crc,
        inodes: last.inodes,
        node_id: 0,
    };
    let mut payload = Vec::new();
    changes.iter().for_each(|c| c.encode(&mut payload));
    let (record, _) = encode_record(&superblock(device).uuid, &place, &payload, changes.len() as u32);
    put(device, addr, AlignedBuf::from_slice(&record));
}

fn refused(device: &SimDevice, want: &str) -> FsError {
    let error = try_mount(device).expect_err(want);
    assert!(error.to_string().contains(want), "{error}");
    error
}

#[test]
fn a_device_shorter_than_its_root_says_is_refused() {
    let (sim, all) = volume();
    let longer = RamDevice::new(SIZE + (8 << 20), 4096);
    for at in (0..SIZE).step_by(1 << 20) {
        let bytes = sim.current().read(at, 1 << 20);
        longer.write_at(at, AlignedBuf::from_slice(&bytes), false, IoClass::Data).unwrap();
    }
    let longer = std::sync::Arc::new(longer);
    let v = Volume::mount(longer, MountOptions::default(), std::sync::Arc::<TestEnv>::default()).unwrap();
    all.check(&v, "on a longer device");
    drop(v);
    forge_roots(&sim, |slot| slot.total_blocks += 1);
    let error = refused(&sim, "the device is truncated");
    assert!(error.to_string().contains(&(SIZE + BLOCK as u64).to_string()), "{error}");
}

#[test]
fn features_that_can_only_be_read_need_a_read_only_mount() {
    let (sim, all) = volume();
    let sb = Superblock { ro_compat: 1 << 40, ..superblock(&sim) };
    for copy in Superblock::copies(sb.total_blocks) {
        put(&sim, copy, sb.encode(copy));
    }
    refused(&sim, "mount it read-only");
    let options = MountOptions { read_only: true, ..options() };
    let device = std::sync::Arc::new(sim.clone());
    let v = Volume::mount(device, options, std::sync::Arc::<TestEnv>::default()).unwrap();
    all.check(&v, "read-only");
}

#[test]
fn impossible_roots_are_refused() {
    let (sim, _) = volume();
    let forgeries: [fn(&mut RootSlot); 6] = [
        |s| s.pending = Some(BlockRun::new(BlockNr(2000), 1 << 13)),
        |s| s.free_blocks = u64::MAX,
        |s| s.next_ino = Ino(u64::MAX),
        |s| s.journal[0].segments[1] = BlockNr(u64::MAX),
        |s| s.tree.addr = BlockNr(0),
        |s| s.pending_len = u32::MAX,
    ];
    for forge in forgeries {
        let device = sim.current().into_sim(1);
        forge_roots(&device, forge);
        let error = try_mount(&device).expect_err("an impossible root");
        assert!(matches!(error, FsError::Corrupt { .. }), "{error}");
    }
}

#[test]
fn a_journal_that_maps_more_pages_than_there_are_blocks_is_refused() {
    let (sim, _) = volume_with_history();
    let changes: Vec<Change> = (0..3)
        .map(|i| Change::MapRun {
            ino: Ino(20 + i),
            page: PageNr(0),
            run: MappedRun { start: BlockNr(1000), pages: 3000, last_blocks: 4, crcs: None },
        })
        .collect();
    let device = after_power_cut(&sim);
    forge_record(&device, &sim, &changes[..1]);
    drop(mount(&device));
    let many: Vec<Change> = changes
        .iter()
        .cycle()
        .take(40)
        .cloned()
        .enumerate()
        .map(|(i, mut c)| {
            if let Change::MapRun { ino, .. } = &mut c {
                *ino = Ino(20 + i as u64);
            }
            c
        })
        .collect();
    let device = after_power_cut(&sim);
    forge_record(&device, &sim, &many);
    refused(&device, "pages on a volume of");
}

/// A few bytes of the journal stand for much: all groups, again and again; a page of zeros.
#[test]
fn small_changes_that_stand_for_much_are_harmless() {
    let (sim, all) = volume_with_history();
    let mut changes: Vec<Change> =
        (0..300).map(|_| Change::Reserve { first: GroupNr(0), count: u32::MAX }).collect();
    let f = {
        let v = mount(&after_power_cut(&sim));
        v.find("f").unwrap()
    };
    changes.extend((0..500).map(|i| {
        let offset = (1 << 40) + i * PAGE as u64;
        Change::InlineZero { ino: f, offset, len: PAGE as u32 }
    }));
    let device = after_power_cut(&sim);
    forge_record(&device, &sim, &changes);
    let v = mount(&device);
    all.check(&v, "with bytes behind the end of the file");
    v.checkpoint().unwrap();
    all.check(&v, "after a checkpoint");
    let far = Change::InlineZero { ino: f, offset: u64::MAX - 10, len: 4 };
    let device = after_power_cut(&sim);
    forge_record(&device, &sim, &[far]);
    refused(&device, "impossible change");
}
