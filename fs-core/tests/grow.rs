//! Growing a volume (see also `rules/r7_grow.rs` for power cuts).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockdev::{AlignedBuf, BlockDevice, IoClass, RamDevice};
use dbfs_fs_core::api::{FsOps, IoFlags, Owner};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::fsck::{self, CheckOptions, ProblemKind};
use dbfs_fs_core::repair::{self, RepairOptions};
use dbfs_fs_core::{BLOCK_SIZE, FormatOptions, FsError, GrowTo, Ino, MountOptions, StopFlag, Volume, dump};

const OWNER: Owner = Owner::new(1, 2);
const BUFFERED: IoFlags = IoFlags { direct: false, dsync: false, sync: false, kill_priv: false };
const DIRECT: IoFlags = IoFlags { direct: true, ..BUFFERED };
const DSYNC: IoFlags = IoFlags { dsync: true, ..BUFFERED };
const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

fn new_device() -> (RamDevice, Arc<dyn BlockDevice>) {
    let ram = RamDevice::new(SIZE, 512);
    Volume::format(&ram, &FormatOptions::default(), &SystemEnv).unwrap();
    (ram.clone(), Arc::new(ram))
}

fn mount(device: &Arc<dyn BlockDevice>) -> Arc<Volume> {
    let options = MountOptions { cache_bytes: 32 << 20, ..MountOptions::default() };
    Volume::mount(device.clone(), options, Arc::new(SystemEnv)).unwrap()
}

fn file(v: &Volume, name: &str) -> Ino {
    let ino = v.create(Ino::ROOT, name.as_bytes(), 0o644, OWNER).unwrap().ino;
    v.close(ino);
    ino
}

/// Bytes that tell their place.
fn bytes(at: u64) -> Vec<u8> {
    (0..MIB / 8).flat_map(|i| (at << 20 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
}

/// Appends whole MiB until the volume is full; how many.
fn fill(v: &Volume, ino: Ino) -> u64 {
    let mut n = v.getattr(ino).unwrap().size / MIB;
    loop {
        match v.write(ino, n * MIB, &bytes(n), DIRECT) {
            Ok(len) => assert_eq!(len as u64, MIB),
            Err(e) => {
                assert_eq!(e.errno(), libc::ENOSPC, "{e}");
                return n;
            }
        }
        n += 1;
    }
}

fn verify(v: &Volume, ino: Ino, mib: u64) {
    let mut buf = vec![0; MIB as usize];
    for n in 0..mib {
        assert_eq!(v.read(ino, n * MIB, &mut buf, BUFFERED).unwrap() as u64, MIB);
        assert!(buf == bytes(n), "MiB {n}");
    }
}

fn problems(device: &Arc<dyn BlockDevice>) -> Vec<fsck::Problem> {
    fsck::check(device, &CheckOptions { data: true, progress: None }).unwrap().problems
}

fn total_bytes(v: &Volume) -> u64 {
    v.total_blocks() * BLOCK_SIZE as u64
}

/// Each step fills the volume; the ends of earlier steps become space like any other.
#[test]
fn a_full_volume_grows_again_and_again() {
    let (ram, device) = new_device();
    let v = mount(&device);
    let ino = file(&v, "f");
    let mut mib = fill(&v, ino);
    let mut before = v.statfs().unwrap();
    let mut size = SIZE;
    // By a lot, by less than a block group, by one block, to no whole number of blocks.
    for more in [40 * MIB, MIB, 4096, 17 * MIB + 4097, 30 * MIB] {
        let grown = v.grow(GrowTo::By(more)).unwrap();
        assert_eq!(grown.old_bytes, size);
        size = (size + more) / 4096 * 4096;
        assert_eq!((grown.new_bytes, total_bytes(&v)), (size, size));
        let now = v.statfs().unwrap();
        assert!(now.blocks + 1 >= before.blocks + more / 4096, "{} {}", now.blocks, before.blocks);
        before = now;
        let full = fill(&v, ino);
        assert!((full - mib) * MIB + 4 * MIB >= more / MIB * MIB, "{} MiB for {more}", full - mib);
        mib = full;
    }
    verify(&v, ino, mib);
    v.sync_all().unwrap();
    v.shutdown().unwrap();
    drop(v);
    assert_eq!(problems(&device), []);
    assert_eq!(ram.capabilities().size_bytes / 4096 * 4096, size);
    let v = mount(&device);
    assert_eq!(total_bytes(&v), size);
    verify(&v, ino, mib);
    v.unlink(Ino::ROOT, b"f").unwrap();
    let again = file(&v, "g");
    assert!(fill(&v, again) + 4 > mib, "all of it can be used again");
    v.shutdown().unwrap();
    drop(v);
    assert_eq!(problems(&device), []);
}

#[test]
fn what_cannot_be_is_refused() {
    let (ram, device) = new_device();
    let v = mount(&device);
    let refused = |to| match v.grow(to) {
        Err(FsError::Volume(why)) => why,
        other => panic!("{to:?}: {other:?}"),
    };
    assert!(refused(GrowTo::Size(SIZE - 1)).contains("not shrink"));
    assert!(refused(GrowTo::Size(0)).contains("not shrink"));
    assert!(refused(GrowTo::Size(u64::MAX)).contains("cannot grow to"));
    assert!(refused(GrowTo::By(u64::MAX)).contains("cannot grow to"));
    for to in [GrowTo::Device, GrowTo::Size(SIZE), GrowTo::Size(SIZE + 4095), GrowTo::By(0)] {
        let grown = v.grow(to).unwrap();
        assert_eq!((grown.old_bytes, grown.new_bytes), (SIZE, SIZE), "nothing to do");
    }
    assert_eq!(ram.capabilities().size_bytes, SIZE, "and the device is as it was");
    ram.grow(SIZE + 10 * MIB + 700);
    assert_eq!(v.grow(GrowTo::Device).unwrap().new_bytes, SIZE + 10 * MIB);
    v.shutdown().unwrap();
    assert_eq!(v.grow(GrowTo::Device).unwrap_err().errno(), libc::EROFS);
    let options = MountOptions { read_only: true, ..MountOptions::default() };
    let v = Volume::mount(device.clone(), options, Arc::new(SystemEnv)).unwrap();
    assert_eq!(v.grow(GrowTo::By(MIB)).unwrap_err().errno(), libc::EROFS);
}

/// Writers that find the volume full try again until it has grown; all they have written is there.
#[test]
fn threads_write_while_the_volume_grows() {
    const THREADS: u64 = 4;
    const EACH: u64 = 40;
    let (_, device) = new_device();
    let v = mount(&device);
    let inos: Vec<Ino> = (0..THREADS).map(|t| file(&v, &format!("f{t}"))).collect();
    let stop = StopFlag::default();
    let (waits, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| v.run_background(&stop));
        let writers: Vec<_> = inos
            .iter()
            .enumerate()
            .map(|(t, &ino)| {
                let (v, waits) = (&v, &waits);
                scope.spawn(move || {
                    let flags = [BUFFERED, DIRECT, DSYNC, DIRECT][t];
                    for n in 0..EACH {
                        loop {
                            match v.write(ino, n * MIB, &bytes(n), flags) {
                                Ok(len) if len as u64 == MIB => break,
                                // The first part of it, or nothing: once more.
                                Ok(_) => {}
                                Err(e) => assert_eq!(e.errno(), libc::ENOSPC, "{e}"),
                            }
                            waits.fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                        }
                    }
                    v.fsync(ino, false).unwrap();
                })
            })
            .collect();
        let (v, waits, done) = (&v, &waits, &done);
        scope.spawn(move || {
            let mut seen = 0;
            while !done.load(Ordering::SeqCst) {
                // Whenever somebody has found it full.
                let now = waits.load(Ordering::SeqCst);
                if now > seen {
                    v.grow(GrowTo::By(9 * MIB)).unwrap();
                    seen = waits.load(Ordering::SeqCst);
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let outcomes: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        done.store(true, Ordering::SeqCst);
        stop.stop();
        outcomes.into_iter().for_each(|outcome| outcome.unwrap());
    });
    assert!(total_bytes(&v) > THREADS * EACH * MIB, "{}", total_bytes(&v));
    assert_eq!(v.failure(), None);
    v.shutdown().unwrap();
    drop(v);
    assert_eq!(problems(&device), []);
    let v = mount(&device);
    inos.iter().for_each(|ino| verify(&v, *ino, EACH));
}

/// A volume that was made for 64 MiB takes no memory or time to speak of for a TiB.
#[test]
fn a_small_volume_grows_to_a_tebibyte() {
    const TIB: u64 = 1 << 40;
    let (ram, device) = new_device();
    let v = mount(&device);
    let ino = file(&v, "f");
    let mut mib = fill(&v, ino);
    let written = ram.allocated();
    v.grow(GrowTo::Size(TIB)).unwrap();
    assert!(ram.allocated() < written + MIB, "{} bytes written", ram.allocated() - written);
    let s = v.statfs().unwrap();
    assert!(s.bavail * 4096 > TIB / 100 * 99, "{} blocks are free", s.bavail);
    for _ in 0..40 {
        v.write(ino, mib * MIB, &bytes(mib), DIRECT).unwrap();
        mib += 1;
    }
    v.fsync(ino, false).unwrap();
    drop(v); // a crash
    let v = mount(&device);
    assert_eq!(total_bytes(&v), TIB);
    verify(&v, ino, mib);
    v.shutdown().unwrap();
    drop(v);
    assert_eq!(problems(&device), []);
}

fn damage(device: &Arc<dyn BlockDevice>, block: u64) {
    let buf = AlignedBuf::from_slice(&[0x5A; BLOCK_SIZE]);
    device.write_at(block * BLOCK_SIZE as u64, buf, false, IoClass::Data).unwrap();
}

fn mend(device: &Arc<dyn BlockDevice>) -> Vec<String> {
    let plan = repair::plan(device, &RepairOptions::default(), &SystemEnv).unwrap();
    assert!(plan.is_good(), "{:#?}", plan.report());
    let done = plan.report().actions.iter().map(|a| a.what.clone()).collect();
    plan.execute(device.as_ref()).unwrap();
    done
}

/// A volume that has grown twice and is used to its end.
fn grown_twice() -> (Arc<dyn BlockDevice>, Ino, u64, [u64; 3]) {
    let (_, device) = new_device();
    let v = mount(&device);
    let ino = file(&v, "f");
    let mut ends = [v.total_blocks() - 1; 3];
    for end in &mut ends[1..] {
        fill(&v, ino);
        v.grow(GrowTo::By(10 * MIB)).unwrap();
        *end = v.total_blocks() - 1;
    }
    let mib = fill(&v, ino);
    v.shutdown().unwrap();
    drop(v);
    assert_eq!(problems(&device), []);
    (device, ino, mib, ends)
}

/// Copies of the superblock: where mkfs has put it, and at the present end. fsck misses them there, repair
/// writes them again, and dump shows them; what lies at an earlier end is data.
#[test]
fn the_copies_of_the_superblock_are_known() {
    let (device, ino, mib, [first, middle, last]) = grown_twice();
    let copies = dump::superblock_json(device.as_ref()).unwrap()["copies"].clone();
    let blocks: Vec<u64> = copies.as_array().unwrap().iter().map(|c| c["block"].as_u64().unwrap()).collect();
    assert_eq!(blocks, [0, 8, first, last]);
    assert!(copies.as_array().unwrap().iter().all(|c| c["state"] == "good"), "{copies}");
    let info = dump::info_json(device.as_ref()).unwrap();
    assert_eq!(info["size_bytes"].as_u64(), Some((last + 1) * BLOCK_SIZE as u64));
    for copy in [0, 8, first, last] {
        damage(&device, copy);
        let found = problems(&device);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!((found[0].kind, found[0].block), (ProblemKind::Superblock, Some(copy)));
        mend(&device);
        assert_eq!(problems(&device), []);
    }
    // The last one is found by where the device ends.
    [0, 8, first].iter().for_each(|copy| damage(&device, *copy));
    mend(&device);
    assert_eq!(problems(&device), []);
    let v = mount(&device);
    verify(&v, ino, mib);
    let stats = v.scrub(&mut |_| std::ops::ControlFlow::Continue(()), &mut |f| panic!("{}", f.what)).unwrap();
    assert!(stats.pages >= mib * MIB / 16384);
    v.shutdown().unwrap();
    drop(v);
    damage(&device, middle);
    assert!(problems(&device).iter().all(|p| p.kind != ProblemKind::Superblock), "that is data, or free");
}

/// All root slots of the last two epochs are lost: nothing says how large the volume was, and yet
/// the repair loses nothing behind its first end.
#[test]
fn repair_finds_what_is_behind_the_first_end() {
    let (device, ino, mib, [.., last]) = grown_twice();
    let slots = dump::slots_json(device.as_ref()).unwrap();
    for slot in slots["slots"].as_array().unwrap() {
        damage(&device, slot["block"].as_u64().unwrap());
    }
    let done = mend(&device);
    assert!(done.iter().any(|a| a.contains("all of the device")), "{done:#?}");
    assert_eq!(problems(&device), []);
    let v = mount(&device);
    assert_eq!(v.total_blocks(), last + 1);
    verify(&v, ino, mib);
}

/// A device that has lost its end is refused, whatever size its superblock says.
#[test]
fn a_device_that_is_smaller_again_is_refused() {
    let (device, ..) = grown_twice();
    let small = RamDevice::new(SIZE + 10 * MIB, 512);
    for at in (0..SIZE + 10 * MIB).step_by(MIB as usize) {
        let buf = device.read_at(at, AlignedBuf::zeroed(MIB as usize), IoClass::Data).unwrap();
        small.write_at(at, buf, false, IoClass::Data).unwrap();
    }
    let outcome = Volume::mount(Arc::new(small), MountOptions::default(), Arc::new(SystemEnv));
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("truncated"), "{error}");
}

/// A volume whose last block group is cut short, and kept as room for a take-over, has no more free blocks than
/// blocks (found by `dbfs-soak --seed 150640466`).
#[test]
fn the_sizes_are_right_whatever_the_volume_has_grown_by() {
    for more in (100..6_000).step_by(311) {
        let (ram, device) = new_device();
        let v = mount(&device);
        ram.extend(SIZE + more * BLOCK_SIZE as u64).unwrap();
        v.grow(GrowTo::Device).unwrap();
        drop(v);
        let v = mount(&device);
        let after = v.statfs().unwrap();
        assert!(after.bfree <= after.blocks, "{more}: {after:?}");
        assert!(after.blocks - after.bfree < 100, "{more}: an empty volume is used: {after:?}");
        v.write(file(&v, "f"), 0, &bytes(0), DIRECT).unwrap();
        assert!(v.statfs().unwrap().bfree < after.bfree, "{more}");
    }
}
