//! Space that comes and goes without a name: files that have none, holes that are punched and refilled,
//! copies within the volume.

use dbfs_fs_core::Ino;
use dbfs_fs_core::api::{FsOps, RenameFlags};

use crate::rig::{BUFFERED, DIRECT, DSYNC, MIB, OWNER, PAGES, Rig, bytes, is_full};

/// Files without a name fill the volume; closing them, or a crash, makes space. One gets a name.
#[test]
fn by_files_without_a_name() {
    for page in PAGES {
        let mut rig = Rig::new(page);
        for round in 0..2 {
            let mut open: Vec<Ino> = Vec::new();
            'full: loop {
                let made = rig.v.tmpfile(Ino::ROOT, 0o600, OWNER);
                if is_full(&made) {
                    break;
                }
                open.push(made.unwrap().ino);
                for at in (0..4 * MIB as u64).step_by(MIB) {
                    let outcome =
                        rig.v.write(*open.last().unwrap(), at, &bytes(at, MIB), [DIRECT, BUFFERED][round]);
                    if is_full(&outcome) {
                        break 'full;
                    }
                    outcome.unwrap();
                }
            }
            assert!(open.len() > 5, "{}", open.len());
            rig.overwrite(round as u64);
            assert!(!rig.create(b"more") || is_full(&rig.put(b"more", 0, &bytes(1, 4 * MIB), DIRECT)));
            if round == 0 {
                open.into_iter().for_each(|ino| rig.v.close(ino));
            }
            // In the second round the crash frees them.
            rig.crash();
            if rig.names().contains(&b"more".to_vec()) {
                rig.unlink(b"more");
            }
            rig.create(b"again");
            for at in (0..30 * MIB).step_by(MIB) {
                rig.put(b"again", at, &bytes(5, MIB), DIRECT).unwrap();
            }
            rig.unlink(b"again");
        }
        rig.create(b"data");
        rig.append_until_full(b"data", 256 << 10, BUFFERED);
        rig.goes_on(&[b"data".to_vec()]);
    }
}

/// Holes in a full file: what was there can be written again, elsewhere too.
#[test]
fn by_punching_and_filling_again() {
    for page in PAGES {
        let mut rig = Rig::new(page);
        rig.create(b"data");
        rig.append_until_full(b"data", 64 << 10, DIRECT);
        for round in 0..6usize {
            for i in 0..8 {
                rig.punch(b"data", (i * 5 + round) * MIB + round * 4096, MIB);
            }
            if round % 2 == 0 {
                rig.overwrite(round as u64);
            }
            for i in 0..8 {
                let flags = [BUFFERED, DIRECT, DSYNC][round % 3];
                // A piece less: pages that were cut keep their blocks.
                let at = ((i * 5 + round) * MIB + round * 4096).next_multiple_of(page as usize);
                rig.put(b"data", at, &bytes(round as u64 + i as u64, MIB - 2 * page as usize), flags)
                    .unwrap();
            }
            rig.v.fsync(rig.ino(b"data"), false).unwrap();
        }
        rig.goes_on(&[b"data".to_vec()]);
    }
}

/// Copies within the volume end where the space does; overwriting by a copy goes on.
#[test]
fn by_copies() {
    let mut rig = Rig::new(16384);
    rig.create(b"copy");
    let mut at = 0;
    loop {
        let outcome = rig.copy(b"kept", b"copy", at, 2 * MIB);
        if is_full(&outcome) {
            break;
        }
        at += outcome.unwrap();
    }
    assert!(at > 20 * MIB, "{at}");
    // What has blocks takes copies as it takes writes.
    for round in 0..40 {
        let to = round * 7 % 20 * MIB;
        assert_eq!(rig.copy(b"kept", b"copy", to, 2 * MIB).unwrap(), 2 * MIB);
    }
    rig.v.fsync(rig.ino(b"copy"), false).unwrap();
    rig.goes_on(&[b"copy".to_vec()]);
}

/// A new version of a file is written beside it and renamed over it, again and again, where there is
/// space for one and a half of them.
#[test]
fn by_new_versions() {
    let mut rig = Rig::new(16384);
    rig.create(b"data");
    rig.append_until_full(b"data", 256 << 10, DIRECT);
    rig.create(b"file");
    rig.punch(b"data", 0, 3 * MIB);
    rig.v.checkpoint().unwrap();
    rig.put(b"file", 0, &bytes(1, MIB), BUFFERED).unwrap();
    for round in 0..60 {
        assert!(rig.create(b"next"), "round {round}");
        rig.put(b"next", 0, &bytes(round, MIB), [BUFFERED, DIRECT][round as usize % 2]).unwrap();
        rig.v.fsync(rig.ino(b"next"), false).unwrap();
        rig.v.rename(Ino::ROOT, b"next", Ino::ROOT, b"file", RenameFlags::default()).unwrap();
        rig.renamed(b"next", b"file");
    }
    rig.goes_on(&[b"file".to_vec()]);
}
