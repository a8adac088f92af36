//! The largest file, the most links, the longest name.

use dbfs_fs_core::Ino;
use dbfs_fs_core::api::{Fallocate, FsOps, Seek};

use crate::rig::*;

/// Largest size of a file: 8 EiB - 1.
const MAX: u64 = i64::MAX as u64;

#[test]
fn the_far_end_of_a_file_works() {
    for flags in [BUFFERED, DIRECT, DSYNC] {
        let sim = device(64 << 20);
        let v = mount(&sim);
        let ino = v.make_file("f");
        v.put(ino, 10, b"near", flags);
        assert_eq!(v.write(ino, MAX - 5, b"the e", flags).unwrap(), 5);
        assert_eq!(v.size(ino), MAX);
        assert_eq!(errno(v.write(ino, MAX - 4, b"the e", flags)), libc::EFBIG);
        assert_eq!(errno(v.write(ino, MAX, b"x", flags)), libc::EFBIG);
        assert_eq!(errno(v.write(ino, u64::MAX, b"x", flags)), libc::EFBIG);
        assert_eq!(errno(v.resize_to(ino, MAX + 1)), libc::EFBIG);
        v.fsync(ino, false).unwrap();
        v.checkpoint().unwrap();
        let v = mount(&after_power_cut(&sim));
        let mut buf = [9; 10];
        assert_eq!(v.read(ino, MAX - 7, &mut buf, flags).unwrap(), 7);
        assert_eq!(&buf[..7], b"\0\0the e");
        assert_eq!(v.read(ino, MAX, &mut buf, flags).unwrap(), 0);
        assert_eq!(v.read(ino, u64::MAX, &mut buf, flags).unwrap(), 0);
        let page = (MAX - 5) / PAGE as u64 * PAGE as u64;
        assert_eq!(v.seek(ino, PAGE as u64, Seek::Data).unwrap(), page);
        assert_eq!(v.seek(ino, page, Seek::Hole).unwrap(), MAX);
        // From the far end back: nothing of it is left, and nothing else is touched.
        v.resize_to(ino, MAX - 4).unwrap();
        v.resize_to(ino, MAX).unwrap();
        assert_eq!(v.read(ino, MAX - 7, &mut buf, flags).unwrap(), 7);
        assert_eq!(&buf[..7], b"\0\0t\0\0\0\0");
        v.fallocate(ino, Fallocate::PunchHole, PAGE as u64, MAX - PAGE as u64).unwrap();
        assert_eq!(errno(v.seek(ino, PAGE as u64, Seek::Data)), libc::ENXIO);
        v.fallocate(ino, Fallocate::Allocate, MAX - 9, 9).unwrap();
        assert_eq!(errno(v.fallocate(ino, Fallocate::Allocate, MAX - 9, 10)), libc::EFBIG);
        v.resize_to(ino, 14).unwrap();
        assert_eq!(v.get(ino, 10, 4), b"near");
        v.unlink(Ino::ROOT, b"f").unwrap();
        v.shutdown().unwrap();
    }
}

#[test]
fn a_file_has_at_most_65000_links() {
    let sim = device(256 << 20);
    let v = mount(&sim);
    let ino = v.make_file("f");
    for i in 1..65_000 {
        v.link(ino, Ino::ROOT, format!("{i}").as_bytes()).unwrap();
    }
    assert_eq!(v.getattr(ino).unwrap().nlink, 65_000);
    assert_eq!(errno(v.link(ino, Ino::ROOT, b"one more")), libc::EMLINK);
    v.unlink(Ino::ROOT, b"77").unwrap();
    v.link(ino, Ino::ROOT, b"one more").unwrap();
    v.shutdown().unwrap();
    drop(v);
    assert_clean(&sim, "at the end");
}

#[test]
fn a_name_has_at_most_255_bytes() {
    let sim = device(64 << 20);
    let v = mount(&sim);
    let (fits, long) = ([b'n'; 255], [b'n'; 256]);
    let ino = v.create(Ino::ROOT, &fits, 0o644, OWNER).unwrap().ino;
    assert_eq!(v.lookup(Ino::ROOT, &fits).unwrap().ino, ino);
    assert_eq!(errno(v.create(Ino::ROOT, &long, 0o644, OWNER)), libc::ENAMETOOLONG);
    assert_eq!(errno(v.mkdir(Ino::ROOT, &long, 0o755, OWNER)), libc::ENAMETOOLONG);
    assert_eq!(errno(v.symlink(Ino::ROOT, &long, b"x", OWNER)), libc::ENAMETOOLONG);
    assert_eq!(errno(v.link(ino, Ino::ROOT, &long)), libc::ENAMETOOLONG);
    assert_eq!(errno(v.lookup(Ino::ROOT, &long)), libc::ENAMETOOLONG);
    assert_eq!(errno(v.unlink(Ino::ROOT, &long)), libc::ENAMETOOLONG);
}
