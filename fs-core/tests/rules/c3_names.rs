//! C3: what changes together is there together, or not at all; and what has no name any more, or none
//! yet, leaves nothing behind.

use blockdev::sim::{CutOptions, SimDevice, Survivors};
use dbfs_fs_core::Volume;
use dbfs_fs_core::api::{FsOps, XattrFlags};

use crate::rig::*;

const ANY: XattrFlags = XattrFlags { create: false, replace: false, clear_setgid: false };

/// Mounts every state that a power cut from event `from` on can leave; each is consistent.
fn each_cut(sim: &SimDevice, from: u64, look: impl Fn(&Volume, u64)) {
    for cut in from..=sim.seq() {
        for seed in 0..3 {
            let options = CutOptions { seed, ..CutOptions::plain(Survivors::Random(0.5)) };
            let device = sim.image_at(cut, &options).into_sim(seed);
            assert_clean(&device, &format!("cut at {cut}"));
            look(&mount(&device), cut);
        }
    }
}

#[test]
fn an_extended_attribute_is_one_step() {
    let sim = device();
    let v = mount(&sim);
    let ino = v.make_file("f");
    let (old, new) = (pattern(20_000, 1), pattern(50_000, 2));
    v.setxattr(ino, b"user.a", &old, ANY).unwrap();
    v.sync_all().unwrap();
    let before = sim.seq();
    v.setxattr(ino, b"user.a", &new, ANY).unwrap();
    v.setxattr(ino, b"user.b", &old, ANY).unwrap();
    v.sync_all().unwrap();
    each_cut(&sim, before, |found, cut| {
        let a = found.getxattr(ino, b"user.a").unwrap();
        assert!(a == old || a == new, "cut at {cut}: a mixture of {} bytes", a.len());
        match found.getxattr(ino, b"user.b") {
            Ok(b) => assert!(a == new && b == old, "cut at {cut}"),
            Err(e) => assert_eq!(e.errno(), libc::ENODATA),
        }
    });
}

#[test]
fn extended_attributes_go_with_their_inode() {
    let sim = device();
    let v = mount(&sim);
    let ino = v.make_file("f");
    for i in 0..70 {
        v.setxattr(ino, format!("user.{i}").as_bytes(), &pattern(5000, i), ANY).unwrap();
    }
    v.sync_all().unwrap();
    let before = sim.seq();
    v.unlink(dbfs_fs_core::Ino::ROOT, b"f").unwrap();
    v.sync_all().unwrap();
    each_cut(&sim, before, |found, cut| {
        let there = found.find("f").is_some();
        assert_eq!(found.getattr(ino).is_ok(), there, "cut at {cut}");
        found.checkpoint().unwrap();
    });
    assert_clean(&after_power_cut(&sim), "at the end");
}

#[test]
fn new_content_never_has_old_privileges() {
    let sim = device();
    let v = mount(&sim);
    let ino = v.make_file("f");
    v.put(ino, 0, b"trusted program", BUFFERED);
    v.setxattr(ino, b"security.capability", b"everything", ANY).unwrap();
    v.sync_all().unwrap();
    let before = sim.seq();
    v.put(ino, 0, b"harmful program", BUFFERED);
    assert_eq!(v.getxattr(ino, b"security.capability").unwrap_err().errno(), libc::ENODATA);
    v.sync_all().unwrap();
    each_cut(&sim, before, |found, cut| {
        let changed = found.bytes(ino) != b"trusted program";
        let privileged = found.getxattr(ino, b"security.capability").is_ok();
        assert!(!(changed && privileged), "cut at {cut}");
    });
}

#[test]
fn a_file_that_never_had_a_name_is_freed_after_a_crash() {
    let sim = device();
    let v = mount(&sim);
    let before = sim.seq();
    let ino = v.tmpfile(dbfs_fs_core::Ino::ROOT, 0o600, OWNER).unwrap().ino;
    v.put(ino, 0, &pattern(300_000, 1), DIRECT);
    v.sync_all().unwrap();
    each_cut(&sim, before, |found, cut| {
        assert_eq!(found.getattr(ino).unwrap_err().errno(), libc::ESTALE, "cut at {cut}");
    });
}

#[test]
fn the_first_name_of_a_file_is_one_step() {
    let sim = device();
    let v = mount(&sim);
    let ino = v.tmpfile(dbfs_fs_core::Ino::ROOT, 0o600, OWNER).unwrap().ino;
    let data = pattern(300_000, 1);
    v.put(ino, 0, &data, DIRECT);
    v.sync_all().unwrap();
    let before = sim.seq();
    v.link(ino, dbfs_fs_core::Ino::ROOT, b"f").unwrap();
    v.sync_all().unwrap();
    each_cut(&sim, before, |found, cut| match found.find("f") {
        Some(at) => assert_eq!((at, found.bytes(ino) == data), (ino, true), "cut at {cut}"),
        None => assert_eq!(found.getattr(ino).unwrap_err().errno(), libc::ESTALE, "cut at {cut}"),
    });
    assert!(mount(&after_power_cut(&sim)).find("f").is_some());
}
