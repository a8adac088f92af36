//! C7: every block that is read from the device is verified; a bad one gives an error, never wrong
//! data.

use std::sync::Arc;

use blockdev::sim::{Effect, Fault, OpKind, SimDevice};
use dbfs_fs_core::api::FsOps;
use dbfs_fs_core::format::Change;
use dbfs_fs_core::{FsError, Ino, MountOptions, Volume};

use crate::rig::*;
use crate::trace::{Trace, nodes_of, superblock};

/// First blocks of the pages that the journal of `sim` maps for `ino`.
fn blocks_of(sim: &SimDevice, ino: Ino) -> Vec<u64> {
    let trace = Trace::since(sim, 0);
    let changes = trace.records().flat_map(|(_, _, changes)| changes);
    let runs = changes.filter_map(|c| match c {
        Change::MapRun { ino: of, run, .. } if *of == ino => Some((run.start.0, u64::from(run.pages))),
        _ => None,
    });
    runs.flat_map(|(start, pages)| (0..pages).map(move |n| start + n * 4)).collect()
}

/// A volume with a file of 20 pages, checkpointed and unmounted.
fn with_file() -> (SimDevice, Ino, Vec<u8>) {
    let sim = device();
    let v = mount(&sim);
    let ino = v.make_file("f");
    let data = pattern(20 * PAGE, 1);
    v.put(ino, 0, &data, DIRECT);
    v.sync_all().unwrap();
    v.checkpoint().unwrap();
    (sim, ino, data)
}

#[test]
fn bad_data_gives_an_error_and_nothing_else() {
    let (sim, ino, data) = with_file();
    let blocks = blocks_of(&sim, ino);
    assert_eq!(blocks.len(), 20);
    for (page, at) in [(0, 0), (7, 5000), (19, PAGE - 1)] {
        let damaged = sim.current().into_sim(1);
        damaged.rot(blocks[page] * BLOCK as u64 + at as u64, 0x01);
        let v = mount(&damaged);
        for flags in [BUFFERED, DIRECT, BUFFERED] {
            let mut buf = vec![0; PAGE];
            for i in 0..20 {
                let offset = (i * PAGE) as u64;
                match v.read(ino, offset, &mut buf, flags) {
                    Ok(n) => {
                        assert_ne!(i, page, "page {page} is damaged");
                        assert_eq!(buf[..n], data[i * PAGE..][..PAGE]);
                    }
                    Err(e) => {
                        assert_eq!((i, e.errno()), (page, libc::EIO));
                        let FsError::DataChecksum { ino: of, offset: at, .. } = e else {
                            panic!("the error does not name the place: {e}");
                        };
                        assert_eq!((of, at), (ino, offset));
                    }
                }
            }
        }
        assert_eq!(v.counters().checksum_errors, 3, "every bad read is counted");
        // A partial write must not spread the damage under a new checksum; a whole one mends it.
        let offset = (page * PAGE) as u64;
        for flags in [BUFFERED, DIRECT] {
            assert_eq!(v.write(ino, offset + 100, b"part", flags).unwrap_err().errno(), libc::EIO);
        }
        v.put(ino, offset, &data[page * PAGE..][..PAGE], DIRECT);
        assert_eq!(v.bytes(ino), data);
    }
}

#[test]
fn writes_that_were_lost_or_went_astray_are_found() {
    for effect in [Effect::Lose, Effect::Misdirect(60 << 20)] {
        let (sim, ino, mut data) = with_file();
        let v = mount(&sim);
        sim.inject(Fault::new(effect).on(OpKind::Write));
        v.put(ino, 3 * PAGE as u64, &pattern(PAGE, 9), DIRECT);
        assert_eq!(sim.pending_faults(), 0);
        v.sync_all().unwrap();
        let mut page = vec![0; PAGE];
        let error = v.read(ino, 3 * PAGE as u64, &mut page, BUFFERED).unwrap_err();
        assert_eq!(error.errno(), libc::EIO, "{effect:?}");
        v.put(ino, 3 * PAGE as u64, &pattern(PAGE, 10), DIRECT);
        data[3 * PAGE..4 * PAGE].copy_from_slice(&pattern(PAGE, 10));
        assert_eq!(v.bytes(ino), data);
    }
}

#[test]
fn a_bit_that_flips_on_the_way_is_found() {
    let (sim, ino, data) = with_file();
    let v = mount(&sim);
    sim.inject(Fault::new(Effect::FlipBit).on(OpKind::Read));
    let mut buf = vec![0; PAGE];
    assert_eq!(v.read(ino, 0, &mut buf, BUFFERED).unwrap_err().errno(), libc::EIO);
    assert_eq!(v.bytes(ino), data, "the medium is good");
}

/// Damages each node of a tree in turn; whatever can still be read is right.
#[test]
fn bad_nodes_give_errors_and_never_wrong_answers() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for i in 0..150 {
        all.write(&v, &format!("{i:0>120}"), 0, &pattern(40 + i, i as u64), BUFFERED);
    }
    all.write(&v, "large", 0, &pattern(100 * PAGE, 3), DIRECT);
    all.sync(&v);
    v.checkpoint().unwrap();
    drop(v);
    let base = after_power_cut(&sim);
    let sb = superblock(&sim);
    let trace = Trace::since(&sim, 0);
    let (_, slot) = trace.slots().last().unwrap();
    let nodes = nodes_of(Arc::new(base.clone()), slot, &sb);
    assert!(nodes.len() / 4 > 4, "{} nodes", nodes.len() / 4);
    let mut errors = 0;
    for (i, node) in nodes.into_iter().step_by(4).enumerate() {
        for at in [70, 2000 + i as u64 * 100, 16_000] {
            let damaged = base.current().into_sim(1);
            damaged.rot(node * BLOCK as u64 + at, 0x40);
            errors += readable_is_right(&damaged, &all);
        }
    }
    assert!(errors > 10, "only {errors} errors were met");
}

/// Reads everything; returns how many errors there were.
fn readable_is_right(device: &SimDevice, all: &Expected) -> usize {
    let options = MountOptions { read_only: true, ..options() };
    let v = match Volume::mount(Arc::new(device.clone()), options, Arc::new(TestEnv::default())) {
        Ok(v) => v,
        Err(e) => {
            assert_eq!(e.errno(), libc::EIO, "{e}");
            return 1;
        }
    };
    let mut errors = 0;
    for (name, want) in &all.0 {
        let read = || -> Result<Vec<u8>, FsError> {
            let attr = v.lookup(Ino::ROOT, name.as_bytes())?;
            let mut buf = vec![0; attr.size as usize + 1];
            let n = v.read(attr.ino, 0, &mut buf, BUFFERED)?;
            buf.truncate(n);
            Ok(buf)
        };
        match read() {
            Ok(got) => assert!(got == *want, "{name} reads wrong"),
            Err(e) => {
                assert_eq!(e.errno(), libc::EIO, "{name}: {e}");
                errors += 1;
            }
        }
    }
    errors
}

/// The list that a root refers to beside its tree is checked as well.
#[test]
fn a_bad_pending_list_is_refused() {
    let (sim, ..) = with_file();
    let trace = Trace::since(&sim, 0);
    let (_, slot) = trace.slots().last().unwrap();
    let list = slot.pending.expect("a checkpoint that wrote nodes has a list");
    sim.rot(list.start.offset() + 3, 1);
    let error = try_mount(&sim).expect_err("a bad list");
    assert!(error.to_string().contains("pending list"), "{error}");
}

/// Any single bad copy of the superblock is no reason not to mount.
#[test]
fn one_good_superblock_is_enough() {
    let (sim, ino, data) = with_file();
    let blocks = SIZE / BLOCK as u64;
    let copies = dbfs_fs_core::format::Superblock::copies(blocks);
    for good in copies {
        let device = sim.current().into_sim(1);
        for bad in copies.iter().filter(|c| **c != good) {
            device.rot(bad.offset() + 40, 0xFF);
        }
        assert_eq!(mount(&device).bytes(ino), data);
    }
    for bad in copies {
        sim.rot(bad.offset() + 40, 0xFF);
    }
    assert!(try_mount(&sim).is_err());
}
