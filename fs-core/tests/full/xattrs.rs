//! A volume that extended attributes fill.

use dbfs_fs_core::api::{FsOps, XattrFlags};

use crate::rig::{DIRECT, MIB, PAGES, Rig, bytes, is_full};

const ANY: XattrFlags = XattrFlags { create: false, replace: false, clear_setgid: false };

fn name(i: usize) -> Vec<u8> {
    format!("user.attribute-{i}").into_bytes()
}

/// Sets attributes of `len` bytes, `each` a file, until the volume is full. Returns the files, and how many
/// attributes there are.
fn set_until_full(rig: &mut Rig, len: usize, each: usize) -> (Vec<Vec<u8>>, usize) {
    let mut files: Vec<Vec<u8>> = Vec::new();
    for n in 0.. {
        if n % each == 0 {
            let file = format!("f{n}").into_bytes();
            if !rig.create(&file) {
                return (files, n);
            }
            files.push(file);
        }
        let ino = rig.ino(files.last().unwrap());
        let outcome = rig.v.setxattr(ino, &name(n % each), &bytes(n as u64, len), ANY);
        if is_full(&outcome) {
            return (files, n);
        }
        outcome.unwrap();
    }
    unreachable!("the volume has an end")
}

fn fill_with_data(rig: &mut Rig, mib: usize) {
    rig.create(b"data");
    for at in (0..mib * MIB).step_by(MIB) {
        rig.put(b"data", at, &bytes(1, MIB), DIRECT).unwrap();
    }
}

/// Attributes read as they were set, over a crash, and can be removed; then others find space.
fn attributes_go_on(mut rig: Rig, files: &[Vec<u8>], count: usize, each: usize, len: usize) {
    rig.overwrite(5);
    rig.crash();
    for n in 0..count {
        let ino = rig.ino(&files[n / each]);
        assert!(rig.v.getxattr(ino, &name(n % each)).unwrap() == bytes(n as u64, len), "attribute {n}");
    }
    let (first, rest) = files.split_at(files.len() / 2);
    for file in first {
        let ino = rig.ino(file);
        for i in 0..each {
            rig.v.removexattr(ino, &name(i)).unwrap();
        }
        assert!(rig.v.listxattr(ino, true).unwrap().is_empty());
    }
    rig.v.sync_all().unwrap();
    for i in 0..each {
        rig.v.setxattr(rig.ino(&first[0]), &name(i), &bytes(7, len), ANY).unwrap();
    }
    rest.iter().for_each(|file| rig.unlink(file));
    rig.goes_on(&first[1..]);
}

#[test]
fn by_large_attributes() {
    for page in PAGES {
        let mut rig = Rig::new(page);
        fill_with_data(&mut rig, 24);
        let (files, count) = set_until_full(&mut rig, 64 << 10, 3);
        assert!(count > 100, "{count}");
        // The last file may lack some.
        let whole = count / 3;
        files[whole..].iter().for_each(|file| rig.unlink(file));
        attributes_go_on(rig, &files[..whole], whole * 3, 3, 64 << 10);
    }
}

#[test]
fn by_short_attributes() {
    let mut rig = Rig::new(16384);
    fill_with_data(&mut rig, 40);
    let (files, count) = set_until_full(&mut rig, 200, 20);
    assert!(count > 2000, "{count}");
    let whole = count / 20;
    files[whole..].iter().for_each(|file| rig.unlink(file));
    attributes_go_on(rig, &files[..whole], whole * 20, 20, 200);
}
