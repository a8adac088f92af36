//! Volumes that names fill: trees of directories, hard links, symbolic links.

use dbfs_fs_core::Ino;
use dbfs_fs_core::api::{FileType, FsOps, SetAttr};

use crate::rig::{DIRECT, MIB, OWNER, Rig, bytes, is_full};

/// A volume with so much data that names soon fill the rest.
fn nearly_full() -> Rig {
    let mut rig = Rig::new(16384);
    rig.create(b"data");
    for at in (0..44 * MIB).step_by(MIB) {
        rig.put(b"data", at, &bytes(1, MIB), DIRECT).unwrap();
    }
    rig
}

/// A name of the length `len`.
fn name(i: usize, len: usize) -> Vec<u8> {
    format!("{i:0>len$}").into_bytes()
}

/// Each directory in the one before, with a file in it: as deep as there is space.
#[test]
fn by_a_deep_tree() {
    let mut rig = nearly_full();
    let mut dirs = vec![Ino::ROOT];
    loop {
        let dir = *dirs.last().unwrap();
        let made = rig.v.mkdir(dir, &name(dirs.len(), 200), 0o755, OWNER);
        if is_full(&made) {
            break;
        }
        let made = made.unwrap().ino;
        dirs.push(made);
        let file = rig.v.mknod(made, b"file", FileType::Regular, 0o644, 0, OWNER);
        if is_full(&file) {
            break;
        }
        file.unwrap();
    }
    assert!(dirs.len() > 200, "{}", dirs.len());
    rig.overwrite(7);
    rig.crash();
    // Attributes and moves, which take nothing for good.
    let (deepest, above) = (dirs[dirs.len() - 1], dirs[dirs.len() - 2]);
    let attr = rig.v.setattr(deepest, &SetAttr { perm: Some(0o700), ..Default::default() }).unwrap();
    assert_eq!(attr.perm, 0o700);
    assert_eq!(rig.v.lookup(above, &name(dirs.len() - 1, 200)).unwrap().ino, deepest);
    for depth in (1..dirs.len()).rev() {
        match rig.v.unlink(dirs[depth], b"file") {
            Err(e) if e.errno() == libc::ENOENT && depth == dirs.len() - 1 => {}
            outcome => outcome.unwrap(),
        }
        rig.v.rmdir(dirs[depth - 1], &name(depth, 200)).unwrap();
    }
    rig.goes_on(&[b"data".to_vec()]);
}

/// Many directories with a file each, side by side.
#[test]
fn by_directories() {
    let mut rig = nearly_full();
    let mut made = Vec::new();
    loop {
        let dir = rig.v.mkdir(Ino::ROOT, &name(made.len(), 100), 0o755, OWNER);
        if is_full(&dir) {
            break;
        }
        let dir = dir.unwrap().ino;
        made.push(dir);
        let inner = rig.v.mkdir(dir, b"inner", 0o755, OWNER);
        if is_full(&inner) {
            break;
        }
        inner.unwrap();
    }
    assert!(made.len() > 200, "{}", made.len());
    rig.overwrite(8);
    rig.crash();
    for (i, dir) in made.iter().enumerate() {
        match rig.v.rmdir(*dir, b"inner") {
            Err(e) if e.errno() == libc::ENOENT && i == made.len() - 1 => {}
            outcome => outcome.unwrap(),
        }
        rig.v.rmdir(Ino::ROOT, &name(i, 100)).unwrap();
    }
    rig.goes_on(&[b"data".to_vec()]);
}

/// Hard links to one file, then symbolic links with the longest targets in the rest.
#[test]
fn by_links() {
    let mut rig = nearly_full();
    let dir = rig.v.mkdir(Ino::ROOT, b"links", 0o755, OWNER).unwrap().ino;
    let tail = rig.ino(b"tail");
    let target = |i: usize| bytes(i as u64, 4095).iter().map(|b| b | 1).collect::<Vec<u8>>();
    let (mut hard, mut soft) = (0, 0);
    loop {
        let outcome = match hard < 3000 {
            true => rig.v.link(tail, dir, &name(hard, 255)),
            false => rig.v.symlink(dir, &name(soft, 254), &target(soft), OWNER),
        };
        if is_full(&outcome) {
            break;
        }
        outcome.unwrap();
        if hard < 3000 { hard += 1 } else { soft += 1 }
    }
    assert!(hard == 3000 && soft > 20, "{hard} {soft}");
    rig.overwrite(9);
    rig.crash();
    assert_eq!(rig.v.getattr(tail).unwrap().nlink, 1 + hard as u32);
    for i in 0..soft {
        let link = rig.v.lookup(dir, &name(i, 254)).unwrap().ino;
        assert!(rig.v.readlink(link).unwrap() == target(i));
        rig.v.unlink(dir, &name(i, 254)).unwrap();
    }
    (0..hard).for_each(|i| rig.v.unlink(dir, &name(i, 255)).unwrap());
    assert_eq!(rig.v.getattr(tail).unwrap().nlink, 1);
    rig.v.rmdir(Ino::ROOT, b"links").unwrap();
    rig.goes_on(&[b"data".to_vec()]);
}
