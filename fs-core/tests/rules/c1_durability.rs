//! C1 and C3: what fsync or a synchronous write has acknowledged is there after a power cut, with every
//! change of the name space before it; names change atomically and in order.

use blockdev::sim::{CutOptions, Survivors};
use dbfs_fs_core::api::{Fallocate, FileType, FsOps, RenameFlags, SetAttr};
use dbfs_fs_core::{Ino, Volume};

use crate::rig::*;

const ROOT: Ino = Ino::ROOT;

fn rename(v: &Volume, from: &str, to: &str) {
    v.rename(ROOT, from.as_bytes(), ROOT, to.as_bytes(), RenameFlags::default()).unwrap();
}

#[test]
fn fsync_makes_data_durable_whatever_its_way() {
    for (i, len) in [1, 5000, PAGE, 60_000, 200_000, 2 << 20].into_iter().enumerate() {
        for flags in [BUFFERED, DIRECT] {
            let sim = device();
            let v = mount(&sim);
            let mut all = Expected::default();
            all.write(&v, "f", 123, &pattern(len, i as u64), flags);
            v.fsync(v.find("f").unwrap(), true).unwrap();
            all.check_device(&after_power_cut(&sim), &format!("{len} bytes, {flags:?}"));
        }
    }
}

#[test]
fn a_synchronous_write_is_durable_when_it_returns() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for round in 0..20usize {
        let len = [10, 3000, PAGE, 150_000][round % 4];
        let flags = [DSYNC, DIRECT_DSYNC][round / 4 % 2];
        all.write(&v, "f", round * 2500, &pattern(len, round as u64), flags);
        all.check(&mount(&after_power_cut(&sim)), &format!("after synchronous write {round}"));
    }
}

#[test]
fn fsync_of_any_file_makes_earlier_names_durable() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    all.write(&v, "a", 0, b"a", BUFFERED);
    all.write(&v, "b", 0, b"bb", BUFFERED);
    all.write(&v, "c", 0, b"ccc", BUFFERED);
    all.sync(&v);
    let dir = v.mkdir(ROOT, b"dir", 0o755, OWNER).unwrap().ino;
    rename(&v, "a", "a2");
    v.rename(ROOT, b"b", dir, b"b2", RenameFlags::default()).unwrap();
    v.unlink(ROOT, b"c").unwrap();
    v.symlink(dir, b"link", b"target", OWNER).unwrap();
    let hard = v.find("a2").unwrap();
    v.link(hard, dir, b"hard").unwrap();
    let other = v.make_file("other");
    v.fsync(other, true).unwrap();
    let found = mount(&after_power_cut(&sim));
    assert_eq!(found.names(), ["a2", "dir", "other"]);
    let dir = found.find("dir").unwrap();
    let in_dir = |name: &[u8]| found.lookup(dir, name).unwrap();
    assert_eq!(found.bytes(in_dir(b"b2").ino), b"bb");
    assert_eq!(in_dir(b"hard").ino, found.find("a2").unwrap());
    assert_eq!(in_dir(b"hard").nlink, 2);
    assert_eq!(in_dir(b"link").kind, FileType::Symlink);
    assert_eq!(found.readlink(in_dir(b"link").ino).unwrap(), b"target");
}

#[test]
fn fsync_makes_attributes_durable() {
    let sim = device();
    let v = mount(&sim);
    let ino = v.make_file("f");
    v.put(ino, 0, &pattern(1000, 1), BUFFERED);
    v.fallocate(ino, Fallocate::Allocate, 0, 100_000).unwrap();
    let set = SetAttr { perm: Some(0o600), uid: Some(1), gid: Some(2), ..SetAttr::default() };
    v.setattr(ino, &set).unwrap();
    v.fsync(ino, false).unwrap();
    let want = v.getattr(ino).unwrap();
    let found = mount(&after_power_cut(&sim));
    assert_eq!(found.getattr(ino).unwrap(), want);
    let mut bytes = pattern(1000, 1);
    bytes.resize(100_000, 0);
    assert_eq!(found.bytes(ino), bytes);
}

/// Every state that a power cut can leave of a rename over a file is the old or the new one.
#[test]
fn a_rename_is_one_step() {
    let sim = device();
    let v = mount(&sim);
    let mut old = Expected::default();
    old.write(&v, "config", 0, &pattern(3000, 1), BUFFERED);
    old.write(&v, "other", 0, b"o", BUFFERED);
    old.sync(&v);
    v.publish_durable().unwrap();
    let mut outcomes = [0; 4];
    for round in 0..4u64 {
        old.write(&v, "config.new", 0, &pattern(3000, 2 + round), BUFFERED);
        v.fsync(v.find("config.new").unwrap(), false).unwrap();
        let before = sim.seq();
        rename(&v, "config.new", "config");
        rename(&v, "other", &format!("other{round}"));
        v.fsync(v.find("config").unwrap(), false).unwrap();
        rename(&v, &format!("other{round}"), "other");
        v.sync_all().unwrap();
        let mut new = old.clone();
        let moved = new.0.remove("config.new").unwrap();
        new.0.insert("config".into(), moved);
        let mut with_other = new.clone();
        let bytes = with_other.0.remove("other").unwrap();
        with_other.0.insert(format!("other{round}"), bytes);
        let states = [&old, &new, &with_other];
        for cut in before..=sim.seq() {
            for seed in 0..4 {
                let options = CutOptions { seed, ..CutOptions::plain(Survivors::Random(0.5)) };
                let found = mount(&sim.image_at(cut, &options).into_sim(seed));
                let names = found.names();
                let n = states.iter().position(|s| s.0.keys().eq(names.iter()));
                let n = n.unwrap_or_else(|| panic!("cut {cut} of round {round} left {names:?}"));
                states[n].check(&found, &format!("cut {cut} of round {round}"));
                outcomes[n] += 1;
            }
        }
        old = new;
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "old and new: {outcomes:?}");
}

#[test]
fn an_open_file_without_a_name_is_freed_after_a_crash() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    all.write(&v, "kept", 0, &pattern(100, 1), BUFFERED);
    all.sync(&v);
    let ino = v.create(ROOT, b"gone", 0o644, OWNER).unwrap().ino; // and open
    v.put(ino, 0, &pattern(1 << 20, 2), DIRECT);
    v.unlink(ROOT, b"gone").unwrap();
    v.sync_all().unwrap();
    assert_eq!(v.bytes(ino).len(), 1 << 20, "it lives as long as it is open");
    for checkpoint in [false, true] {
        if checkpoint {
            v.checkpoint().unwrap();
        }
        let device = after_power_cut(&sim);
        let found = mount(&device);
        assert_eq!(found.getattr(ino).unwrap_err().errno(), libc::ESTALE);
        all.check(&found, "after a crash with an orphan");
        found.sync_all().unwrap();
        drop(found);
        let found = mount(&after_power_cut(&device));
        assert_eq!(found.getattr(ino).unwrap_err().errno(), libc::ESTALE);
    }
    v.close(ino);
    assert_eq!(v.getattr(ino).unwrap_err().errno(), libc::ESTALE);
    v.sync_all().unwrap();
    all.check_device(&after_power_cut(&sim), "after the last close");
}

#[test]
fn inode_numbers_are_never_given_out_again() {
    let mut sim = device();
    let mut highest = Ino(0);
    for round in 0..6 {
        let v = mount(&sim);
        for i in 0..5 {
            let ino = v.make_file(&format!("{round}-{i}"));
            assert!(ino > highest, "{ino} after {highest}");
            highest = ino;
        }
        if round % 2 == 0 {
            v.unlink(ROOT, format!("{round}-4").as_bytes()).unwrap();
        }
        if round == 3 {
            v.checkpoint().unwrap();
        }
        v.sync_all().unwrap();
        sim = after_power_cut(&sim);
    }
}
