//! lseek with SEEK_DATA and SEEK_HOLE.

use dbfs_fs_core::api::{Fallocate, FsOps, Seek};
use dbfs_fs_core::{Ino, Volume};

use crate::rig::*;

const P: u64 = PAGE as u64;

fn data(v: &Volume, ino: Ino, offset: u64) -> Option<u64> {
    match v.seek(ino, offset, Seek::Data) {
        Ok(at) => Some(at),
        Err(e) => {
            assert_eq!(e.errno(), libc::ENXIO);
            None
        }
    }
}

fn hole(v: &Volume, ino: Ino, offset: u64) -> u64 {
    v.seek(ino, offset, Seek::Hole).unwrap()
}

#[test]
fn data_and_holes_are_found_to_the_page() {
    let sim = device(64 << 20);
    let v = mount(&sim);
    let ino = v.make_file("f");
    assert_eq!(data(&v, ino, 0), None);
    assert_eq!(errno(v.seek(ino, 0, Seek::Hole)), libc::ENXIO);
    v.put(ino, 1000 * PAGE + 10, &[1; 10], DIRECT);
    v.put(ino, 10 * PAGE, &[1; PAGE], DIRECT);
    v.resize_to(ino, 2000 * P).unwrap();
    assert_eq!(data(&v, ino, 0), Some(10 * P));
    assert_eq!(data(&v, ino, 10 * P + 5), Some(10 * P + 5));
    assert_eq!(data(&v, ino, 11 * P), Some(1000 * P));
    assert_eq!(data(&v, ino, 1001 * P), None);
    assert_eq!(data(&v, ino, 2000 * P), None);
    assert_eq!(hole(&v, ino, 3), 3);
    assert_eq!(hole(&v, ino, 10 * P + 7), 11 * P);
    assert_eq!(hole(&v, ino, 1000 * P), 1001 * P);
    v.put(ino, 1999 * PAGE, &[2; PAGE], DIRECT);
    assert_eq!(hole(&v, ino, 1999 * P), 2000 * P, "the end is a hole");
    v.checkpoint().unwrap();
    assert_eq!(data(&v, ino, 11 * P), Some(1000 * P));
    let dir = v.mkdir(Ino::ROOT, b"d", 0o755, OWNER).unwrap().ino;
    assert_eq!(errno(v.seek(dir, 0, Seek::Data)), libc::EINVAL);
}

/// Bytes that are not at home are data: dirty ones, and those in the journal, also after a crash.
#[test]
fn dirty_and_journaled_pages_are_data() {
    let sim = device(64 << 20);
    let v = mount(&sim);
    let ino = v.make_file("f");
    v.resize_to(ino, 100 * P).unwrap();
    v.put(ino, 20 * PAGE + 1, &[1; 10], BUFFERED);
    assert_eq!((data(&v, ino, 0), hole(&v, ino, 20 * P)), (Some(20 * P), 21 * P));
    v.fsync(ino, true).unwrap();
    assert!(v.counters().inline_pages > 0);
    assert_eq!((data(&v, ino, 0), hole(&v, ino, 20 * P)), (Some(20 * P), 21 * P));
    let w = mount(&after_power_cut(&sim));
    assert_eq!((data(&w, ino, 0), hole(&w, ino, 20 * P)), (Some(20 * P), 21 * P));
    v.checkpoint().unwrap();
    assert_eq!((data(&v, ino, 0), hole(&v, ino, 20 * P)), (Some(20 * P), 21 * P));
}

#[test]
fn reserved_space_is_a_hole_until_it_is_written() {
    let sim = device(64 << 20);
    let v = mount(&sim);
    let ino = v.make_file("f");
    v.fallocate(ino, Fallocate::Allocate, 0, 1000 * P).unwrap();
    assert_eq!((data(&v, ino, 0), hole(&v, ino, 0)), (None, 0));
    v.put(ino, 500 * PAGE, &[1], BUFFERED);
    assert_eq!((data(&v, ino, 0), hole(&v, ino, 500 * P)), (Some(500 * P), 501 * P));
    v.fallocate(ino, Fallocate::PunchHole, 500 * P, P).unwrap();
    assert_eq!(data(&v, ino, 0), None);
}
