//! Truncating and removing files of any number of fragments.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::sim::{Effect, Fault, SimDevice};
use dbfs_fs_core::api::{Fallocate, FsOps};
use dbfs_fs_core::{Ino, Volume};

use crate::rig::*;

/// An odd number: multiples of it modulo a power of two never follow each other.
const STRIDE: u64 = 40_503;

/// A file of `pages` pages (a power of two), hardly any two of which lie side by side on the device.
/// Every 256th page has data that `data_of` knows; the others are reserved.
fn fragmented(v: &Volume, name: &str, pages: u64) -> Ino {
    let ino = v.make_file(name);
    for i in 0..pages {
        let page = i * STRIDE % pages;
        if page.is_multiple_of(256) {
            v.put(ino, page as usize * PAGE, &data_of(page), DIRECT);
        } else {
            v.fallocate(ino, Fallocate::KeepSize, page * PAGE as u64, PAGE as u64).unwrap();
        }
    }
    v.resize_to(ino, pages * PAGE as u64).unwrap();
    assert_eq!(v.blocks(ino), pages * 8);
    ino
}

fn data_of(page: u64) -> Vec<u8> {
    pattern(PAGE, (page / 256) as u8)
}

/// The pages of the file below `end` have their data, those from there on are zero.
fn check_pages(v: &Volume, ino: Ino, end: u64, pages: u64) {
    for page in (0..pages).step_by(256) {
        let expected = if page < end { data_of(page) } else { vec![0; PAGE] };
        assert!(v.get(ino, page as usize * PAGE, PAGE) == expected, "page {page}, cut at {end}");
    }
}

fn find(v: &Volume, name: &str) -> Ino {
    v.lookup(Ino::ROOT, name.as_bytes()).unwrap().ino
}

/// The journal is far smaller than what it takes to free all the fragments: checkpoints come in
/// between, and the power may fail at any moment.
#[test]
fn a_file_of_many_fragments_is_truncated_with_a_small_journal() {
    let pages = 1 << 17;
    let sim = device(1 << 30);
    let v = mount(&sim);
    fragmented(&v, "f", pages);
    v.sync_all().unwrap();
    v.shutdown().unwrap();
    drop(v);
    for to in [0, pages / 2, 3] {
        let sim = sim.image_at(u64::MAX, &blockdev::sim::CutOptions::seeded(1)).into_sim(8);
        let v = mount(&sim);
        let ino = find(&v, "f");
        v.commit().unwrap();
        let (start, before) = (sim.seq(), v.counters());
        v.resize_to(ino, to * PAGE as u64).unwrap();
        assert_eq!(v.failure(), None, "the journal has filled");
        assert!(v.counters().checkpoints > before.checkpoints, "more frees than the journal can hold");
        assert_eq!(v.blocks(ino), to * 8);
        v.commit().unwrap();
        let end = sim.seq();
        drop(v);
        let mut unfinished = 0;
        for part in 1..6 {
            let cut = cut_at(&sim, start + (end - start) * part / 6);
            assert_clean(&cut, "before recovery");
            let v = mount(&cut);
            let size = v.size(ino);
            assert!(size == to * PAGE as u64 || size == pages * PAGE as u64, "{size}");
            unfinished += u32::from(size == to * PAGE as u64);
            // What was cut off does not show again.
            v.resize_to(ino, pages * PAGE as u64).unwrap();
            check_pages(&v, ino, size / PAGE as u64, pages);
            assert_eq!(v.blocks(ino), size / 512);
            v.shutdown().unwrap();
            drop(v);
            assert_clean(&cut, "after recovery and growth");
        }
        assert!(unfinished > 0, "the power has not failed between size and frees");
    }
}

/// While one thread truncates a large file, others write and read before and behind the new end.
#[test]
fn writers_behind_the_end_wait_for_the_truncation() {
    let pages = 1 << 14;
    let sim = device(256 << 20);
    let v = mount(&sim);
    let ino = fragmented(&v, "f", pages);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for to in [512, 256, 0] {
                v.resize_to(ino, to * PAGE as u64).unwrap();
                v.resize_to(ino, pages * PAGE as u64).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            let mut n = 0;
            while !done.load(Ordering::SeqCst) {
                n += 1;
                let page = (n * 7 % pages) as usize;
                let flags = [BUFFERED, DIRECT, DSYNC][n as usize % 3];
                v.put(ino, page * PAGE, &[0xEE; 100], flags);
                v.fallocate(ino, Fallocate::PunchHole, (page * PAGE) as u64, PAGE as u64).unwrap();
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                v.checkpoint().unwrap();
            }
        });
    });
    for page in (0..pages as usize).step_by(256) {
        let bytes =
            if (page * PAGE) as u64 >= v.size(ino) { continue } else { v.get(ino, page * PAGE, PAGE) };
        assert!(bytes.iter().all(|b| *b == 0 || *b == 0xEE), "page {page} shows old bytes");
    }
    v.shutdown().unwrap();
    drop(v);
    assert_clean(&sim, "at the end");
}

/// Every request to the device fails once during a truncation: what memory says then is what the disk
/// will say, and old bytes never show.
#[test]
fn a_failed_truncation_never_shows_old_bytes() {
    let pages = 1 << 14;
    let base = device(128 << 20);
    let v = mount(&base);
    fragmented(&v, "f", pages);
    v.shutdown().unwrap();
    drop(v);
    let to = pages / 8 + 1;
    let mut nth = 0;
    loop {
        let sim = base.image_at(u64::MAX, &blockdev::sim::CutOptions::seeded(1)).into_sim(8);
        let v = mount(&sim);
        let ino = find(&v, "f");
        sim.inject(Fault::new(Effect::eio()).after(nth));
        let outcome = v.resize_to(ino, to * PAGE as u64 + 1).and_then(|()| v.commit());
        let hit = sim.pending_faults() == 0;
        sim.clear_faults();
        let cut = after_failed_truncation(&v, ino, to, pages);
        let synced = v.fsync(ino, false).is_ok();
        assert!(!hit || synced || v.failure().is_some() || outcome.is_err(), "request {nth}");
        drop(v);
        for sim in [after_power_cut(&sim), sim] {
            assert_clean(&sim, "before recovery");
            let v = mount(&sim);
            if synced {
                check_pages(&v, ino, if cut { to } else { pages }, pages);
            }
            after_failed_truncation(&v, ino, to, pages);
            v.shutdown().unwrap();
            drop(v);
            assert_clean(&sim, "after recovery");
        }
        if !hit {
            break;
        }
        nth += 1;
    }
    assert!(nth > 5, "only {nth} requests");
}

/// The file is either as before or truncated (true); growing it shows zeros or is refused.
fn after_failed_truncation(v: &Arc<Volume>, ino: Ino, to: u64, pages: u64) -> bool {
    let whole = pages * PAGE as u64;
    let cut = to * PAGE as u64 + 1;
    let size = v.size(ino);
    assert!(size == cut || size == whole, "{size}");
    if size == cut && v.resize_to(ino, whole).is_ok() {
        check_pages(v, ino, to, pages);
    }
    size == cut
}

/// Removing a closed file is one step: a crash finds it whole or not at all, and no orphan.
#[test]
fn a_small_file_goes_in_one_step() {
    let sim = device(64 << 20);
    let v = mount(&sim);
    let keep = v.make_file("keep");
    let mut files = Vec::new();
    for i in 0..20usize {
        let name = format!("f{i}");
        let ino = v.make_file(&name);
        v.put(ino, 0, &pattern(i * 3000, i as u8), if i % 2 == 0 { DIRECT } else { DSYNC });
        v.symlink(Ino::ROOT, format!("s{i}").as_bytes(), &vec![b'x'; 1 + i * 200], OWNER).unwrap();
        files.push(ino);
    }
    v.sync_all().unwrap();
    let free = v.statfs().unwrap().bfree;
    for (i, file) in files.into_iter().enumerate() {
        let records = v.counters().records;
        v.unlink(Ino::ROOT, format!("f{i}").as_bytes()).unwrap();
        v.unlink(Ino::ROOT, format!("s{i}").as_bytes()).unwrap();
        assert_eq!(errno(v.getattr(file)), libc::ESTALE);
        v.fsync(keep, false).unwrap();
        assert_eq!(v.counters().records, records + 1);
        let cut = after_power_cut(&sim);
        assert_clean(&cut, "before recovery");
        let recovered = mount(&cut);
        assert_eq!(errno(recovered.lookup(Ino::ROOT, format!("f{i}").as_bytes())), libc::ENOENT);
        assert_eq!(errno(recovered.getattr(file)), libc::ESTALE);
    }
    assert!(v.statfs().unwrap().bfree > free);
    v.shutdown().unwrap();
    drop(v);
    assert_clean(&sim, "at the end");
}

/// An open file, a file with another name and a large file lose their name all the same.
#[test]
fn files_that_cannot_go_at_once_go_later() {
    let sim: SimDevice = device(256 << 20);
    let v = mount(&sim);
    let open = v.make_file("open");
    v.put(open, 0, &pattern(5000, 1), DIRECT);
    v.open(open).unwrap();
    let linked = v.make_file("linked");
    v.put(linked, 0, &pattern(5000, 2), DIRECT);
    v.link(linked, Ino::ROOT, b"other").unwrap();
    let large = fragmented(&v, "large", 1 << 13);
    for name in ["open", "linked", "large"] {
        v.unlink(Ino::ROOT, name.as_bytes()).unwrap();
    }
    assert_eq!(v.bytes(open), pattern(5000, 1));
    assert_eq!(v.bytes(linked), pattern(5000, 2));
    assert_eq!(errno(v.getattr(large)), libc::ESTALE);
    v.close(open);
    assert_eq!(errno(v.getattr(open)), libc::ESTALE);
    v.unlink(Ino::ROOT, b"other").unwrap();
    v.shutdown().unwrap();
    drop(v);
    assert_clean(&sim, "at the end");
}

/// Bytes that were only in the journal, behind all the fragments, do not come back either.
#[test]
fn journaled_bytes_behind_the_fragments_are_cut_off() {
    let sim = device(64 << 20);
    let v = mount(&sim);
    let ino = fragmented(&v, "f", 1 << 12);
    let far = 9000 * PAGE;
    v.sync_all().unwrap();
    v.put(ino, far, &[7; 100], DSYNC);
    assert!(v.counters().inline_pages > 0);
    v.resize_to(ino, 0).unwrap();
    v.fsync(ino, false).unwrap();
    let cut = after_power_cut(&sim);
    let v = mount(&cut);
    v.resize_to(ino, far as u64 + 100).unwrap();
    assert_eq!(v.get(ino, far, 100), [0; 100]);
    v.shutdown().unwrap();
    drop(v);
    assert_clean(&cut, "at the end");
}
