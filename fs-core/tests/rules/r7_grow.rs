//! R7 when the volume grows: a power cut leaves the old size or the new one, whichever of the two root slots
//! recovery can start from.

use blockdev::sim::{CutOptions, Effect, Event, EventKind, Fault, OpKind, SimDevice, Survivors};
use dbfs_fs_core::api::FsOps;
use dbfs_fs_core::format::RootSlot;
use dbfs_fs_core::{Epoch, GrowTo, Volume};

use crate::rig::*;
use crate::trace::superblock;

const GROWN: u64 = 96 << 20;
const MIB: usize = 1 << 20;

fn bytes_of(v: &Volume) -> u64 {
    v.total_blocks() * BLOCK as u64
}

/// Breaks a root slot of an epoch, as rot would.
fn rot_slot(device: &SimDevice, epoch: Epoch, index: u64) {
    let sb = superblock(device);
    let at = RootSlot::address(sb.slots_start, sb.slot_rows, epoch, index);
    device.rot(at.offset() + 77, 0x20);
}

/// Breaks the slot of an epoch with the newer root.
fn rot_newest(device: &SimDevice, epoch: Epoch) {
    let sb = superblock(device);
    let number = |index: u64| {
        let at = RootSlot::address(sb.slots_start, sb.slot_rows, epoch, index);
        let bytes = device.current().read(at.offset(), BLOCK);
        RootSlot::decode(&bytes, &sb.uuid, at).unwrap().unwrap().seq
    };
    rot_slot(device, epoch, u64::from(number(1) > number(0)));
}

/// Leaves no space for a large write.
fn fill(v: &Volume, all: &mut Expected) {
    for mib in 0.. {
        let data = pattern(MIB, mib as u64);
        let ino = v.find("fill").unwrap_or_else(|| v.make_file("fill"));
        match v.write(ino, (mib * MIB) as u64, &data, DIRECT) {
            Ok(n) => {
                assert_eq!(n, MIB);
                all.0.entry("fill".into()).or_default().extend(data);
            }
            Err(e) => {
                assert_eq!(e.errno(), libc::ENOSPC);
                break;
            }
        }
    }
    all.sync(v);
}

/// The volume has one of the two sizes and all its files, and can grow and be used.
fn goes_on(device: &SimDevice, all: &Expected, when: &str) -> u64 {
    assert_clean(device, when);
    let v = try_mount(device).unwrap_or_else(|e| panic!("mount {when}: {e}"));
    let size = bytes_of(&v);
    assert!(size == SIZE || size == GROWN, "{size} bytes {when}");
    all.check(&v, when);
    v.grow(GrowTo::Size(GROWN)).unwrap_or_else(|e| panic!("grow {when}: {e}"));
    assert_eq!(bytes_of(&v), GROWN);
    let mut next = all.clone();
    next.write(&v, "more", 0, &pattern(MIB, 5), DIRECT);
    next.sync(&v);
    drop(v);
    let after = after_power_cut(device);
    assert_clean(&after, &format!("{when}, grown and cut again"));
    next.check(&mount(&after), &format!("{when}, grown and cut again"));
    size
}

#[test]
fn a_grow_that_is_cut_leaves_the_old_size_or_the_new_one() {
    let sim = device();
    let v = mount(&sim);
    let epoch = v.epoch();
    let mut all = Expected::default();
    all.write(&v, "f", 0, &pattern(300_000, 1), DIRECT);
    v.checkpoint().unwrap();
    all.write(&v, "f", 70_000, &pattern(100_000, 2), DIRECT);
    all.write(&v, "log", 0, &pattern(3000, 3), DSYNC);
    all.sync(&v);
    v.publish_durable().unwrap();
    let before = sim.seq();
    let grown = v.grow(GrowTo::Size(GROWN + 100)).unwrap();
    assert_eq!((grown.old_bytes, grown.new_bytes), (SIZE, GROWN));
    assert_eq!(bytes_of(&v), GROWN);
    let mut sizes = std::collections::BTreeMap::<u64, usize>::new();
    let mut cuts = 0;
    for cut in before..=sim.seq() {
        for seed in 0..3 {
            let device = sim.image_at(cut, &CutOptions::seeded(cut * 5 + seed)).into_sim(seed);
            *sizes.entry(goes_on(&device, &all, &format!("cut {cut}, seed {seed}"))).or_default() += 1;
        }
        // A good device at the cut, and then one of the slots is lost.
        for index in 0..2 {
            let device = after_cut(&sim, cut, Survivors::KeepAll);
            rot_slot(&device, epoch, index);
            *sizes.entry(goes_on(&device, &all, &format!("cut {cut}, slot {index} lost"))).or_default() += 1;
        }
        cuts += 1;
    }
    assert!(cuts > 10, "{cuts} cuts");
    assert!(sizes[&SIZE] > 10 && sizes[&GROWN] > 5, "{sizes:?}");
}

/// What is written behind the old end, and cut at any moment, is found there by recovery.
#[test]
fn what_is_written_behind_the_old_end_survives() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    fill(&v, &mut all);
    v.grow(GrowTo::Size(GROWN)).unwrap();
    let begun = sim.seq();
    for i in 0..10 {
        all.write(&v, "behind", i * MIB, &pattern(MIB, 90 + i as u64), DIRECT);
        all.write(&v, "behind", i * 7000, &pattern(2000, 80 + i as u64), DSYNC);
    }
    all.sync(&v);
    let written = |e: &Event| matches!(&e.kind, EventKind::Write { offset, .. } if *offset >= SIZE);
    assert!(sim.events_since(begun).iter().filter(|e| written(e)).count() > 5);
    // The journal alone leads to it; then the tree does.
    all.check_device(&after_power_cut(&sim), "in the journal");
    let mut rotten = after_power_cut(&sim);
    rot_newest(&rotten, v.epoch());
    all.check_device(&rotten, "in the journal, newest root lost");
    v.checkpoint().unwrap();
    all.check_device(&after_power_cut(&sim), "in the tree");
    rotten = after_power_cut(&sim);
    rot_newest(&rotten, v.epoch());
    all.check_device(&rotten, "in the tree, newest root lost");
}

/// If only one of the root slots has the new size, nobody uses the new blocks: recovery may have to start
/// from the other one, which does not know of them.
#[test]
fn new_space_is_used_when_both_roots_know_of_it() {
    let mut all = Expected::default();
    let full = {
        let sim = device();
        let v = mount(&sim);
        fill(&v, &mut all);
        v.shutdown().unwrap();
        sim.current()
    };
    // Where the second of the two checkpoints writes its first node.
    let rehearsal = full.clone().into_sim(9);
    let v = mount(&rehearsal);
    let before = rehearsal.seq();
    v.grow(GrowTo::Size(GROWN)).unwrap();
    let (mut writes, mut ended) = (0, false);
    for event in rehearsal.events_since(before) {
        match &event.kind {
            EventKind::Name(name) => ended |= &**name == "checkpoint end",
            EventKind::Write { data, .. } if ended && data.starts_with(b"dbfsnode") => break,
            EventKind::Write { .. } => writes += 1,
            _ => {}
        }
    }
    drop(v);
    let sim = full.into_sim(9);
    let v = mount(&sim);
    sim.inject(Fault::new(Effect::eio()).on(OpKind::Write).after(writes));
    let error = v.grow(GrowTo::Size(GROWN)).unwrap_err();
    assert_eq!((error.errno(), sim.pending_faults(), v.failure()), (libc::EIO, 0, None), "{error}");
    assert_eq!(bytes_of(&v), SIZE);
    // There is no room for this unless the growing is brought to its end before.
    all.write(&v, "behind", 0, &pattern(MIB, 90), DIRECT);
    all.sync(&v);
    assert_eq!(bytes_of(&v), GROWN);
    let device = after_power_cut(&sim);
    rot_newest(&device, v.epoch());
    all.check_device(&device, "newest root lost");
}

#[test]
fn a_volume_without_the_lock_on_its_device_does_not_grow() {
    let sim = device();
    let v = mount(&sim.handle(false));
    let error = v.grow(GrowTo::Size(GROWN)).unwrap_err().to_string();
    assert!(error.contains("without the lock"), "{error}");
    assert_eq!(bytes_of(&v), SIZE);
}
