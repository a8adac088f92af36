//! Ways to fill a volume. After each: mapped data can be overwritten and synced, files can be deleted,
//! then there is space again, nothing is lost, and fsck finds nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use dbfs_fs_core::api::{Fallocate, FsOps};
use dbfs_fs_core::{Ino, StopFlag};

use crate::rig::{BUFFERED, DIRECT, DSYNC, MIB, OWNER, PAGES, Rig, bytes, is_full};

#[test]
fn by_buffered_data() {
    for page in PAGES {
        let mut rig = Rig::new(page);
        rig.create(b"data");
        assert!(rig.append_until_full(b"data", 256 << 10, BUFFERED) > 100);
        rig.append_until_full(b"data", 1000, BUFFERED);
        // All that was accepted is written.
        rig.v.fsync(rig.ino(b"data"), false).unwrap();
        rig.v.checkpoint().unwrap();
        rig.goes_on(&[b"data".to_vec()]);
    }
}

#[test]
fn by_direct_and_synchronous_data() {
    for page in PAGES {
        let mut rig = Rig::new(page);
        rig.create(b"direct");
        rig.create(b"sync");
        for _ in 0..20 {
            let at = rig.v.getattr(rig.ino(b"direct")).unwrap().size as usize;
            rig.put(b"direct", at, &bytes(4, MIB), DIRECT).unwrap();
        }
        rig.append_until_full(b"sync", 30_000, DSYNC);
        rig.append_until_full(b"direct", 4096, DIRECT);
        rig.goes_on(&[b"sync".to_vec()]);
    }
}

#[test]
fn by_small_files() {
    for page in PAGES {
        let mut rig = Rig::new(page);
        let mut made = Vec::new();
        for i in 0.. {
            let name = format!("small-{i}").into_bytes();
            if !rig.create(&name) {
                break;
            }
            made.push(name.clone());
            let len = 1 + i * 997 % (3 * 4096);
            let written = rig.put(&name, 0, &bytes(i as u64, len), BUFFERED);
            if is_full(&written) {
                break;
            }
            written.unwrap();
            if i % 64 == 0 {
                rig.v.fsync(rig.ino(&name), false).unwrap();
            }
        }
        rig.v.sync_all().unwrap();
        assert!(made.len() > 1000, "{}", made.len());
        rig.goes_on(&made[..made.len() / 2]);
    }
}

/// What remains when every second small file is gone is in pieces that no large page fits.
#[test]
fn by_small_files_and_holes_between_them() {
    let mut rig = Rig::new(65536);
    let mut made = Vec::new();
    while rig.create(format!("f{}", made.len()).as_bytes()) {
        let name = format!("f{}", made.len()).into_bytes();
        if rig.put(&name, 0, &bytes(made.len() as u64, 9 * 4096), DIRECT).is_err() {
            break;
        }
        made.push(name);
    }
    made.iter().step_by(2).for_each(|name| rig.unlink(name));
    rig.create(b"large");
    rig.append_until_full(b"large", 65536, BUFFERED);
    rig.append_until_full(b"large", 4096, BUFFERED);
    rig.v.sync_all().unwrap();
    let names: Vec<_> = rig.names().into_iter().filter(|n| n != b"kept" && n != b"tail").collect();
    rig.goes_on(&names);
}

#[test]
fn by_names() {
    let mut rig = Rig::new(16384);
    let dir = rig.v.mkdir(Ino::ROOT, b"dir", 0o755, OWNER).unwrap().ino;
    rig.create(b"data");
    // Most of the space is data, or it would take long.
    for at in (0..44 * MIB).step_by(MIB) {
        if rig.put(b"data", at, &bytes(1, MIB), DIRECT).is_err() {
            break;
        }
    }
    let name = |i: usize| format!("{i:0>250}").into_bytes();
    let mut made = 0;
    let refused = loop {
        let outcome = match made % 4 {
            0 => rig.v.mkdir(dir, &name(made), 0o755, OWNER),
            1 => rig.v.symlink(dir, &name(made), &[b'x'; 4000], OWNER),
            2 => rig.v.link(rig.ino(b"tail"), dir, &name(made)),
            _ => rig.v.mknod(dir, &name(made), dbfs_fs_core::api::FileType::Fifo, 0o600, 0, OWNER),
        };
        match outcome {
            Ok(_) => made += 1,
            refused => break refused,
        }
    };
    assert!(is_full(&refused), "{refused:?}");
    assert!(made > 100, "{made}");
    rig.overwrite(7);
    rig.crash();
    for i in 0..made {
        match i % 4 {
            0 => rig.v.rmdir(dir, &name(i)).unwrap(),
            _ => rig.v.unlink(dir, &name(i)).unwrap(),
        }
    }
    rig.v.rmdir(Ino::ROOT, b"dir").unwrap();
    rig.goes_on(&[b"data".to_vec()]);
}

#[test]
fn by_preallocation() {
    for page in PAGES {
        let mut rig = Rig::new(page);
        rig.create(b"reserved");
        let ino = rig.ino(b"reserved");
        let (mut end, mut piece) = (0u64, 8 << 20);
        while piece >= 4096 {
            match rig.v.fallocate(ino, Fallocate::KeepSize, end, piece) {
                Ok(()) => end += piece,
                outcome => {
                    assert!(is_full(&outcome), "{outcome:?}");
                    piece /= 2;
                }
            }
        }
        assert!(end > 30 << 20, "{end}");
        // What was reserved can be written, in every way.
        for (at, flags) in [(0, BUFFERED), (8 * MIB, DIRECT), (16 * MIB, DSYNC)] {
            for n in 0..4 {
                rig.put(b"reserved", at + n * MIB, &bytes(n as u64, MIB), flags).unwrap();
            }
        }
        rig.v.fsync(ino, false).unwrap();
        rig.goes_on(&[b"reserved".to_vec()]);
    }
}

#[test]
fn by_writing_into_holes_of_extended_files() {
    for page in PAGES {
        let mut rig = Rig::new(page);
        rig.create(b"holes");
        for round in 0..3u64 {
            rig.truncate(b"holes", 60 * MIB);
            let mut at = 0;
            while rig.put(b"holes", at, &bytes(round, 5000), BUFFERED).is_ok() {
                at = (at + 70_001) % (60 * MIB - 5000);
            }
            rig.v.fsync(rig.ino(b"holes"), true).unwrap();
            rig.overwrite(round);
            rig.truncate(b"holes", if round == 2 { 40 * MIB + 77 } else { 100 });
        }
        rig.goes_on(&[b"holes".to_vec()]);
    }
}

/// Threads that append and sync, and one that overwrites: nobody who was let in is refused later.
#[test]
fn by_many_who_sync() {
    let mut rig = Rig::new(16384);
    let inos: Vec<Ino> = (0..6u64)
        .map(|t| {
            let name = format!("log{t}").into_bytes();
            rig.create(&name);
            rig.ino(&name)
        })
        .collect();
    let (stop, filled) = (StopFlag::default(), AtomicU64::new(0));
    let kept = rig.ino(b"kept");
    let sizes: Vec<usize> = std::thread::scope(|scope| {
        let v = &rig.v;
        scope.spawn(|| v.run_background(&stop));
        let filled = &filled;
        let writers: Vec<_> = inos
            .iter()
            .enumerate()
            .map(|(t, ino)| {
                scope.spawn(move || {
                    let mut size = 0;
                    loop {
                        let len = [700, 9_000, 40_000, 200_000][(size + t) % 4];
                        let flags = [BUFFERED, DSYNC, DIRECT][(size / 3 + t) % 3];
                        let outcome = v.write(*ino, size as u64, &bytes(t as u64, len), flags);
                        if is_full(&outcome) {
                            break;
                        }
                        size += outcome.unwrap();
                        v.fsync(*ino, true).unwrap();
                    }
                    filled.fetch_add(1, Ordering::SeqCst);
                    size
                })
            })
            .collect();
        let mut round = 0;
        while filled.load(Ordering::SeqCst) < 6 || round < 20 {
            round += 1;
            v.write(kept, round % 100 * 16384, &bytes(round, 16384), BUFFERED).unwrap();
            v.write(kept, MIB as u64, &bytes(round, MIB), DIRECT).unwrap();
            v.fsync(kept, false).unwrap();
        }
        let sizes = writers.into_iter().map(|w| w.join().unwrap()).collect();
        stop.stop();
        sizes
    });
    for (t, size) in sizes.into_iter().enumerate() {
        let ino = inos[t];
        assert_eq!(rig.v.getattr(ino).unwrap().size, size as u64);
        rig.unlink(format!("log{t}").as_bytes());
    }
    rig.put(b"kept", 0, &bytes(2, 2 * MIB), BUFFERED).unwrap();
    rig.goes_on(&[]);
}

/// The largest atomic overwrites, from more threads than the reserve has room for at once.
#[test]
fn and_overwrite_from_many_threads() {
    let mut rig = Rig::new(65536);
    rig.create(b"data");
    rig.append_until_full(b"data", 64 << 10, BUFFERED);
    let (kept, data) = (rig.ino(b"kept"), rig.ino(b"data"));
    std::thread::scope(|scope| {
        for t in 0..6u64 {
            let v = &rig.v;
            scope.spawn(move || {
                for n in 0..30 {
                    let at = (t * 30 + n) % 20 * MIB as u64;
                    let flags = [DIRECT, BUFFERED][n as usize % 2];
                    v.write(data, at, &bytes(n, MIB), flags).unwrap();
                    v.write(kept, t * 65536 * 3, &bytes(n, 100), DSYNC).unwrap();
                    v.fsync(data, true).unwrap();
                }
            });
        }
    });
    rig.put(b"kept", 0, &bytes(2, 2 * MIB), BUFFERED).unwrap();
    rig.unlink(b"data");
    rig.goes_on(&[]);
}

/// Deleting and writing in turn, always near the end of the space.
#[test]
fn and_stay_full() {
    for page in PAGES {
        let mut rig = Rig::new(page);
        let (mut made, mut refused) = (Vec::<Vec<u8>>::new(), 0);
        for i in 0..900usize {
            let name = format!("file-{i}").into_bytes();
            let len = 1 + i * 7919 % 400_000;
            let flags = [BUFFERED, DIRECT, DSYNC][i % 3];
            let there = rig.create(&name);
            if there {
                made.push(name.clone());
            }
            if !there || rig.put(&name, 0, &bytes(i as u64, len), flags).is_err() {
                refused += 1;
                for _ in 0..made.len().min(4) {
                    let gone = made.swap_remove(i * 31 % made.len());
                    rig.unlink(&gone);
                }
            }
            if i % 100 == 99 {
                rig.overwrite(i as u64);
            }
        }
        assert!(refused > 20, "{refused}");
        rig.v.sync_all().unwrap();
        rig.goes_on(&made);
    }
}

/// A row of crashes on a full volume, each with bytes in the journal that are not at home.
#[test]
fn and_crash_again_and_again() {
    for page in PAGES {
        let mut rig = Rig::new(page);
        rig.create(b"data");
        rig.append_until_full(b"data", 64 << 10, DIRECT);
        for round in 0..12 {
            for n in 0..20 {
                let at = (n * 37 + round) % 120 * 16384 + 11;
                rig.put(b"kept", at, &bytes(round as u64, 50), DSYNC).unwrap();
                rig.put(b"data", at * 7, &bytes(n as u64, 5), DSYNC).unwrap();
            }
            rig.crash();
        }
        rig.verify();
        rig.goes_on(&[b"data".to_vec()]);
    }
}
