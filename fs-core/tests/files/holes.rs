//! fallocate: holes, zeros, reserved space.

use blockdev::sim::{Effect, Fault, OpKind};
use dbfs_fs_core::api::{Fallocate, FsOps};

use crate::rig::*;

const ZEROING: [Fallocate; 3] = [Fallocate::PunchHole, Fallocate::ZeroRange, Fallocate::ZeroRangeKeepSize];

/// Every way to have bytes (at home, in the cache, in the journal), every kind of edge.
#[test]
fn a_range_becomes_zeros_and_stays_so() {
    let len = 5 * PAGE + 700;
    let ranges =
        [(0, len), (PAGE, 2 * PAGE), (100, 50), (PAGE - 1, PAGE + 2), (4 * PAGE, 5 * PAGE), (5 * PAGE, 900)];
    for mode in ZEROING {
        for flags in [BUFFERED, DIRECT, DSYNC] {
            for (offset, n) in ranges {
                let sim = device(64 << 20);
                let v = mount(&sim);
                let ino = v.make_file("f");
                let mut want = pattern(len, 3);
                v.put(ino, 0, &want, flags);
                v.fallocate(ino, mode, offset as u64, n as u64).unwrap();
                let end = (offset + n).min(len);
                want[offset..end].fill(0);
                if mode == Fallocate::ZeroRange {
                    want.resize(len.max(offset + n), 0);
                }
                let told = format!("{mode:?} of {n} at {offset}, written with {flags:?}");
                assert!(v.bytes(ino) == want, "{told}");
                v.fsync(ino, true).unwrap();
                assert!(v.bytes(ino) == want, "{told}, after fsync");
                let cut = after_power_cut(&sim);
                assert_clean(&cut, &told);
                let w = mount(&cut);
                assert!(w.bytes(ino) == want, "{told}, after a power cut");
                w.shutdown().unwrap();
                drop(w);
                assert_clean(&cut, &told);
                v.shutdown().unwrap();
                drop(v);
                assert_clean(&sim, &told);
                let v = mount(&sim);
                assert!(v.bytes(ino) == want, "{told}, after a remount");
            }
        }
    }
}

#[test]
fn a_hole_takes_no_space_and_zeros_have_theirs() {
    let sim = device(64 << 20);
    let v = mount(&sim);
    let ino = v.make_file("f");
    v.put(ino, 0, &pattern(64 * PAGE, 1), DIRECT);
    assert_eq!(v.blocks(ino), 64 * 8);
    v.fallocate(ino, Fallocate::PunchHole, 10, 32 * PAGE as u64).unwrap();
    assert_eq!(v.blocks(ino), 33 * 8);
    v.fallocate(ino, Fallocate::ZeroRangeKeepSize, 0, 128 * PAGE as u64).unwrap();
    assert_eq!((v.blocks(ino), v.size(ino)), (128 * 8, 64 * PAGE as u64));
    assert!(v.bytes(ino).iter().all(|b| *b == 0));
    v.fallocate(ino, Fallocate::ZeroRange, 0, 100 * PAGE as u64 + 1).unwrap();
    assert_eq!((v.blocks(ino), v.size(ino)), (128 * 8, 100 * PAGE as u64 + 1));
    // Space behind the end can be punched, too.
    v.fallocate(ino, Fallocate::PunchHole, 0, 1 << 40).unwrap();
    assert_eq!((v.blocks(ino), v.size(ino)), (0, 100 * PAGE as u64 + 1));
    v.shutdown().unwrap();
    drop(v);
    assert_clean(&sim, "at the end");
}

/// The size of a file whose last pages were never written, only punched, is durable after fsync.
#[test]
fn punching_dirty_pages_does_not_lose_the_size() {
    for (offset, len) in [(0, 1 << 20), (8 * PAGE, 1 << 20), (0, 9 * PAGE)] {
        let sim = device(64 << 20);
        let v = mount(&sim);
        let ino = v.make_file("f");
        let mut want = pattern(20 * PAGE + 5, 7);
        v.put(ino, 0, &want, BUFFERED);
        v.fallocate(ino, Fallocate::PunchHole, offset as u64, len as u64).unwrap();
        let end = (offset + len).min(want.len());
        want[offset..end].fill(0);
        v.fsync(ino, true).unwrap();
        let v = mount(&after_power_cut(&sim));
        assert!(v.bytes(ino) == want, "{len} at {offset}");
    }
}

/// On a volume without a free block, holes are punched and what is mapped is zeroed.
#[test]
fn nothing_of_what_is_mapped_fails_for_lack_of_space() {
    let sim = device(64 << 20);
    let v = mount(&sim);
    let (ino, rest) = (v.make_file("f"), v.make_file("rest"));
    let pages = 1000;
    v.put(ino, 0, &pattern(pages * PAGE, 1), DIRECT);
    let mut size = 0;
    for step in [1 << 20, PAGE] {
        while v.write(rest, size as u64, &vec![5; step], DIRECT).is_ok() {
            size += step;
        }
    }
    assert_eq!(errno(v.fallocate(rest, Fallocate::KeepSize, size as u64, 64 << 20)), libc::ENOSPC);
    v.fallocate(ino, Fallocate::ZeroRange, 100, 300 * PAGE as u64).unwrap();
    assert_eq!(v.blocks(ino), pages as u64 * 8);
    v.fallocate(ino, Fallocate::PunchHole, 400 * PAGE as u64 + 9, 300 * PAGE as u64).unwrap();
    assert_eq!(v.blocks(ino), (pages as u64 - 299) * 8);
    v.put(rest, size, &[6; 100 * PAGE], DIRECT);
    let mut want = pattern(pages * PAGE, 1);
    want[100..100 + 300 * PAGE].fill(0);
    want[400 * PAGE + 9..700 * PAGE + 9].fill(0);
    assert!(v.bytes(ino) == want);
    v.shutdown().unwrap();
    drop(v);
    assert_clean(&sim, "at the end");
}

/// A partial page that cannot be read stops the operation before anything of it has happened.
#[test]
fn an_edge_that_cannot_be_read_is_an_error() {
    let sim = device(64 << 20);
    let v = mount(&sim);
    let ino = v.make_file("f");
    let data = pattern(8 * PAGE, 2);
    v.put(ino, 0, &data, DIRECT);
    sim.inject(Fault::new(Effect::eio()).on(OpKind::Read));
    assert_eq!(errno(v.fallocate(ino, Fallocate::PunchHole, 100, 5 * PAGE as u64)), libc::EIO);
    assert!(v.bytes(ino) == data);
    v.shutdown().unwrap();
    drop(v);
    assert_clean(&sim, "at the end");
}

/// A hole of many thousands of fragments, with a journal that cannot hold all the frees.
#[test]
fn a_large_hole_is_punched_in_steps() {
    let sim = device(1 << 30);
    let v = mount(&sim);
    let ino = v.make_file("f");
    let pages = 1u64 << 17;
    for i in 0..pages {
        let page = i * 40_503 % pages;
        v.fallocate(ino, Fallocate::KeepSize, page * PAGE as u64, PAGE as u64).unwrap();
    }
    v.resize_to(ino, pages * PAGE as u64).unwrap();
    v.commit().unwrap();
    let (start, checkpoints) = (sim.seq(), v.counters().checkpoints);
    v.fallocate(ino, Fallocate::PunchHole, PAGE as u64 + 1, (pages - 2) * PAGE as u64).unwrap();
    assert!(v.counters().checkpoints > checkpoints);
    assert_eq!(v.failure(), None);
    assert_eq!(v.blocks(ino), 3 * 8);
    // The first checkpoint comes before the first step.
    let middle = cut_at(&sim, start + (sim.seq() - start) * 13 / 16);
    assert_clean(&middle, "in the middle");
    let w = mount(&middle);
    assert!(w.blocks(ino) > 3 * 8 && w.blocks(ino) < pages * 8, "{}", w.blocks(ino));
    w.shutdown().unwrap();
    v.shutdown().unwrap();
    drop((v, w));
    assert_clean(&middle, "in the middle, recovered");
    assert_clean(&sim, "at the end");
}

#[test]
fn arguments_are_checked() {
    let sim = device(64 << 20);
    let v = mount(&sim);
    let ino = v.make_file("f");
    let dir = v.mkdir(dbfs_fs_core::Ino::ROOT, b"d", 0o755, OWNER).unwrap().ino;
    for mode in ZEROING {
        assert_eq!(errno(v.fallocate(ino, mode, 0, 0)), libc::EINVAL);
        assert_eq!(errno(v.fallocate(ino, mode, i64::MAX as u64, 1)), libc::EFBIG);
        assert_eq!(errno(v.fallocate(dir, mode, 0, 1)), libc::EISDIR);
    }
    let before = v.getattr(ino).unwrap();
    v.fallocate(ino, Fallocate::PunchHole, 0, i64::MAX as u64).unwrap();
    let after = v.getattr(ino).unwrap();
    assert_eq!(after.size, 0);
    assert!(after.mtime >= before.mtime && after.ctime >= before.ctime);
}
