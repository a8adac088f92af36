//! Holes, seeks and copies, as programs ask for them.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::fixture::Fixture;
use crate::memfs::Event;

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn open(m: &Fixture, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(m.path(name)).unwrap()
}

fn seek(f: &File, offset: i64, whence: i32) -> Result<i64, i32> {
    // SAFETY: plain numbers and an open file.
    match unsafe { libc::lseek(f.as_raw_fd(), offset, whence) } {
        -1 => Err(errno()),
        at => Ok(at),
    }
}

fn fallocate(f: &File, mode: i32, offset: i64, len: i64) -> Result<(), i32> {
    // SAFETY: plain numbers and an open file.
    match unsafe { libc::fallocate(f.as_raw_fd(), mode, offset, len) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

fn copy(from: &File, from_offset: i64, to: &File, to_offset: i64, len: usize) -> Result<isize, i32> {
    let (mut a, mut b) = (from_offset, to_offset);
    // SAFETY: the offsets outlive the call, the files are open.
    match unsafe { libc::copy_file_range(from.as_raw_fd(), &mut a, to.as_raw_fd(), &mut b, len, 0) } {
        -1 => Err(errno()),
        n => Ok(n),
    }
}

#[test]
fn seeks_for_data_and_holes_are_answered_by_the_file_system() {
    let m = Fixture::new();
    let f = open(&m, "f");
    f.set_len(100_000).unwrap();
    f.write_all_at(&[1; 10], 50_000).unwrap();
    assert_eq!(seek(&f, 7, libc::SEEK_DATA), Ok(50_000));
    assert_eq!(seek(&f, 50_005, libc::SEEK_HOLE), Ok(50_010));
    assert_eq!(seek(&f, 50_010, libc::SEEK_DATA), Err(libc::ENXIO));
    assert_eq!(seek(&f, 100_000, libc::SEEK_HOLE), Err(libc::ENXIO));
    assert_eq!(seek(&f, 0, libc::SEEK_END), Ok(100_000));
    // The next implicit write goes to where the seek led.
    assert_eq!(seek(&f, 0, libc::SEEK_DATA), Ok(50_000));
    assert_eq!(seek(&f, 0, libc::SEEK_CUR), Ok(50_000));
}

#[test]
fn copies_stay_in_the_daemon() {
    let m = Fixture::new();
    let (a, b) = (open(&m, "a"), open(&m, "b"));
    let data: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    a.write_all_at(&data, 0).unwrap();
    b.write_all_at(&[7; 1000], 0).unwrap();
    let mut cached = [0; 1000];
    b.read_exact_at(&mut cached, 0).unwrap();
    m.fs.take_events();
    assert_eq!(copy(&a, 5, &b, 500, 1 << 20), Ok(199_995));
    let copies = m.fs.take_events().iter().filter(|e| matches!(e, Event::CopyRange { .. })).count();
    assert_eq!(copies, 1);
    assert_eq!(b.metadata().unwrap().len(), 200_495);
    let mut got = vec![0; 200_495];
    b.read_exact_at(&mut got, 0).unwrap();
    assert!(got[..500] == [7; 500] && got[500..] == data[5..], "the kernel shows pages from before the copy");
    assert_eq!(copy(&a, 0, &a, 100, 1000), Err(libc::EINVAL));
}

/// Pages that a program has mapped show the zeros, too.
#[test]
fn holes_are_seen_through_mappings() {
    let m = Fixture::new();
    let f = open(&m, "f");
    f.write_all_at(&[5; 16384], 0).unwrap();
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of an open file, placed by the kernel.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), 16384, prot, libc::MAP_SHARED, f.as_raw_fd(), 0) };
    assert_ne!(start, libc::MAP_FAILED);
    let at = |i: usize| {
        assert!(i < 16384);
        // SAFETY: within the mapping, which lives until the end of the test.
        unsafe { start.cast::<u8>().add(i).read_volatile() }
    };
    assert_eq!((at(0), at(8192)), (5, 5));
    // SAFETY: within the mapping, which lives until the end of the test.
    unsafe { start.cast::<u8>().add(12_288).write_volatile(9) };
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(&f, punch, 4096, 4096 + 100).unwrap();
    assert_eq!([at(4095), at(4096), at(8291), at(8292), at(12_288)], [5, 0, 0, 5, 9]);
    fallocate(&f, libc::FALLOC_FL_ZERO_RANGE, 12_000, 8_000).unwrap();
    assert_eq!([at(11_999), at(12_000), at(12_288), at(16_383)], [5, 0, 0, 0]);
    assert_eq!(f.metadata().unwrap().len(), 20_000);
    // SAFETY: the mapping made above, not used any more.
    unsafe { libc::munmap(start, 16384) };
}

#[test]
fn what_cannot_be_done_is_refused() {
    let m = Fixture::new();
    let f = open(&m, "f");
    f.set_len(1 << 20).unwrap();
    for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE] {
        assert_eq!(fallocate(&f, mode, 0, 4096), Err(libc::EOPNOTSUPP));
    }
    fallocate(&f, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, 1 << 20, 4096).unwrap();
    assert_eq!(f.metadata().unwrap().len(), 1 << 20);
}
