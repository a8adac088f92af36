//! copy_file_range.

use dbfs_fs_core::Ino;
use dbfs_fs_core::api::{FileType, FsOps};

use crate::rig::*;

#[test]
fn ranges_are_copied_between_and_within_files() {
    let sim = device(64 << 20);
    let v = mount(&sim);
    let (a, b) = (v.make_file("a"), v.make_file("b"));
    let data = pattern(3 << 20, 1);
    v.put(a, 0, &data[..1 << 20], DIRECT);
    v.put(a, 1 << 20, &data[1 << 20..], BUFFERED);
    assert_eq!(
        v.copy_range(a, 5, b, 100, 3 << 20, BUFFERED).unwrap(),
        (3 << 20) - 5,
        "to the end of the source"
    );
    let mut want = vec![0; 100];
    want.extend(&data[5..]);
    assert!(v.bytes(b) == want);
    assert_eq!(v.copy_range(b, 0, b, 4 << 20, 1 << 20, BUFFERED).unwrap(), 1 << 20);
    want.resize(4 << 20, 0);
    want.extend_from_within(..1 << 20);
    assert!(v.bytes(b) == want);
    assert_eq!(v.copy_range(a, 3 << 20, b, 0, 10, BUFFERED).unwrap(), 0);
    assert_eq!(v.copy_range(a, 1 << 40, b, 0, 10, BUFFERED).unwrap(), 0);
    v.fsync(b, true).unwrap();
    let w = mount(&after_power_cut(&sim));
    assert!(w.bytes(b) == want);
}

#[test]
fn copies_that_cannot_be() {
    let sim = device(64 << 20);
    let v = mount(&sim);
    let (a, b) = (v.make_file("a"), v.make_file("b"));
    let dir = v.mkdir(Ino::ROOT, b"d", 0o755, OWNER).unwrap().ino;
    let fifo = v.mknod(Ino::ROOT, b"p", FileType::Fifo, 0o644, 0, OWNER).unwrap().ino;
    v.put(a, 0, &pattern(10_000, 1), BUFFERED);
    let copy = |from, at, to, to_at, len| v.copy_range(from, at, to, to_at, len, BUFFERED);
    for (at, to) in [(0, 9_999), (500, 0), (0, 0)] {
        assert_eq!(errno(copy(a, at, a, to, 10_000)), libc::EINVAL);
    }
    assert_eq!(copy(a, 0, a, 5_000, 5_000).unwrap(), 5_000, "neighbours do not overlap");
    assert_eq!(errno(copy(a, i64::MAX as u64, b, 0, 1)), libc::EOVERFLOW);
    assert_eq!(errno(copy(a, 0, b, i64::MAX as u64 - 5, 6)), libc::EOVERFLOW);
    assert_eq!(errno(copy(a, u64::MAX, b, 0, 6)), libc::EOVERFLOW);
    assert_eq!(errno(copy(dir, 0, b, 0, 1)), libc::EISDIR);
    assert_eq!(errno(copy(a, 0, dir, 0, 1)), libc::EISDIR);
    assert_eq!(errno(copy(fifo, 0, b, 0, 1)), libc::EINVAL);
    assert_eq!(v.size(b), 0);
}

/// One call copies no more than 64 MiB; whoever goes on gets everything.
#[test]
fn a_large_copy_takes_several_calls() {
    let sim = device(512 << 20);
    let v = mount(&sim);
    let (a, b) = (v.make_file("a"), v.make_file("b"));
    let size = (64 << 20) + 12_345u64;
    v.resize_to(a, size).unwrap();
    v.put(a, (64 << 20) - 7, &[3; 14], BUFFERED);
    assert_eq!(v.copy_range(a, 0, b, 0, 1 << 32, BUFFERED).unwrap(), 64 << 20);
    assert_eq!(v.copy_range(a, 64 << 20, b, 64 << 20, 1 << 32, BUFFERED).unwrap(), 12_345);
    assert_eq!(v.size(b), size);
    assert_eq!(v.get(b, (64 << 20) - 8, 16), [&[0][..], &[3; 14], &[0]].concat());
}
