//! C2: one direct or synchronous write of up to 1 MiB is there as a whole or not at all after a power
//! cut; a buffered write is whole within each page.

use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::sim::{CutOptions, SimDevice, Survivors};
use dbfs_fs_core::Volume;
use dbfs_fs_core::api::{FsOps, IoFlags};

use crate::rig::*;
use crate::trace::Trace;

/// Cuts the power at moments from `from` on, and gives `check` what is found.
fn at_cuts(sim: &SimDevice, from: u64, seeds: u64, mut check: impl FnMut(&Volume, &str)) {
    for cut in from..=sim.seq() {
        for seed in 0..seeds {
            let options = CutOptions::seeded(cut * 31 + seed);
            let found = mount(&sim.image_at(cut, &options).into_sim(seed));
            check(&found, &format!("cut {cut}, seed {seed}"));
        }
    }
}

fn whole_writes(flags: IoFlags, lens: &[usize]) {
    let sim = device();
    let v = mount(&sim);
    let size = 3 << 20;
    let mut versions = vec![pattern(size, 0)];
    let ino = v.make_file("f");
    v.put(ino, 0, &versions[0], DIRECT);
    v.sync_all().unwrap();
    let from = sim.seq();
    for (i, len) in lens.iter().enumerate() {
        let data = pattern(*len, 1 + i as u64);
        let at = i * 12_345;
        v.put(ino, at as u64, &data, flags);
        let mut next = versions[i].clone();
        next[at..at + len].copy_from_slice(&data);
        versions.push(next);
        if i % 2 == 1 {
            v.fsync(ino, true).unwrap();
        }
    }
    let mut seen = vec![0; versions.len()];
    at_cuts(&sim, from, 3, |found, when| {
        let bytes = found.bytes(ino);
        let n = versions.iter().position(|v| *v == bytes);
        seen[n.unwrap_or_else(|| panic!("half of a write {when}"))] += 1;
    });
    assert!(seen[0] > 0 && *seen.last().unwrap() > 0, "versions seen: {seen:?}");
}

#[test]
fn a_direct_write_is_all_or_nothing() {
    whole_writes(DIRECT, &[1 << 20, 3 * PAGE, 700_000, 512]);
}

#[test]
fn a_synchronous_write_is_all_or_nothing() {
    whole_writes(DSYNC, &[60_000, 1 << 20, 100, 40_000]);
}

#[test]
fn a_synchronous_direct_write_is_all_or_nothing() {
    whole_writes(DIRECT_DSYNC, &[1 << 20, 2 * PAGE, 5000]);
}

#[test]
fn a_write_that_grows_a_file_is_all_or_nothing() {
    let sim = device();
    let v = mount(&sim);
    let ino = v.make_file("f");
    v.sync_all().unwrap();
    let from = sim.seq();
    let data = pattern(900_000, 1);
    v.put(ino, 0, &data[..300_000], DIRECT);
    v.put(ino, 300_000, &data[300_000..], DIRECT_DSYNC);
    at_cuts(&sim, from, 6, |found, when| {
        let bytes = found.bytes(ino);
        assert!([0, 300_000, 900_000].contains(&bytes.len()), "{} bytes {when}", bytes.len());
        assert_eq!(bytes, data[..bytes.len()], "{when}");
    });
}

/// With a database page no larger than the volume's, no page is ever torn.
#[test]
fn a_buffered_page_is_never_torn() {
    const PAGES: usize = 24;
    let sim = device();
    let v = mount(&sim);
    let ino = v.make_file("f");
    let page = |version: u64, n: usize| pattern(PAGE, version * 1000 + n as u64);
    let whole = |version: u64| (0..PAGES).flat_map(|n| page(version, n)).collect::<Vec<u8>>();
    v.put(ino, 0, &whole(0), BUFFERED);
    v.sync_all().unwrap();
    let from = sim.seq();
    for version in 1..=3 {
        v.put(ino, 0, &whole(version), BUFFERED);
        if version == 2 {
            v.writeback_all().unwrap();
        } else {
            v.fsync(ino, true).unwrap();
        }
    }
    v.sync_all().unwrap();
    at_cuts(&sim, from, 4, |found, when| {
        let bytes = found.bytes(ino);
        for (n, got) in bytes.chunks(PAGE).enumerate() {
            assert!((0..=3).any(|version| got == page(version, n)), "page {n} is torn {when}");
        }
    });
}

/// Writeback of one of its pages, and somebody else's commit, do not come in between.
#[test]
fn a_synchronous_write_is_whole_beside_writeback() {
    const VERSIONS: u64 = 300;
    let sim = device();
    let v = mount(&sim);
    let (ino, other) = (v.make_file("f"), v.make_file("other"));
    let version = |n: u64| pattern(2 * PAGE - 3000, n);
    v.put(ino, 0, &version(0), DIRECT);
    v.sync_all().unwrap();
    let from = sim.seq();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                v.writeback_some(1).unwrap();
                v.fsync(other, true).unwrap();
            }
        });
        for n in 1..=VERSIONS {
            v.put(ino, 0, &version(n), DSYNC);
        }
        done.store(true, Ordering::SeqCst);
    });
    let trace = Trace::since(&sim, from);
    let mut last = 0;
    for (write, ..) in trace.records() {
        let found = mount(&after_cut(&sim, write.seq + 1, Survivors::KeepAll));
        let bytes = found.bytes(ino);
        let n = (last..=VERSIONS).find(|n| version(*n) == bytes);
        last = n.unwrap_or_else(|| panic!("half of a write at record write {}", write.seq));
    }
    assert_eq!(last, VERSIONS);
}
