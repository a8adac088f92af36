//! Files that are made without a name, and whiteouts.

use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};
use dbfs_fs_core::api::{FileType, FsOps, IoFlags, Owner, RenameFlags, SetAttr};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::fsck::{CheckOptions, check};
use dbfs_fs_core::{FormatOptions, Ino, MountOptions, Volume};

const OWNER: Owner = Owner::new(1, 2);

fn new_device() -> Arc<dyn BlockDevice> {
    let device: Arc<dyn BlockDevice> = Arc::new(RamDevice::new(64 << 20, 512));
    Volume::format(device.as_ref(), &FormatOptions::default(), &SystemEnv).unwrap();
    device
}

fn mount(device: &Arc<dyn BlockDevice>) -> Arc<Volume> {
    Volume::mount(device.clone(), MountOptions::default(), Arc::new(SystemEnv)).unwrap()
}

/// Inodes and orphans that fsck counts on a volume without problems.
fn counts(device: &Arc<dyn BlockDevice>) -> (u64, u64) {
    let report = check(device, &CheckOptions { data: true, progress: None }).unwrap();
    assert!(report.is_clean(), "{:#?}", report.problems);
    (report.stats.inodes, report.stats.orphans)
}

#[test]
fn a_file_without_a_name_goes_with_its_last_close() {
    let device = new_device();
    let v = mount(&device);
    let ino = v.tmpfile(Ino::ROOT, 0o600, OWNER).unwrap().ino;
    v.write(ino, 0, &[7; 100_000], IoFlags::default()).unwrap();
    v.fsync(ino, false).unwrap();
    let attr = v.getattr(ino).unwrap();
    assert_eq!((attr.nlink, attr.size, attr.kind), (0, 100_000, FileType::Regular));
    assert_eq!(counts(&device), (2, 1));
    v.close(ino);
    assert_eq!(v.getattr(ino).unwrap_err().errno(), libc::ESTALE);
    v.shutdown().unwrap();
    assert_eq!(counts(&device), (1, 0));
}

#[test]
fn a_crash_frees_it() {
    let device = new_device();
    let v = mount(&device);
    let ino = v.tmpfile(Ino::ROOT, 0o600, OWNER).unwrap().ino;
    v.write(ino, 0, &[7; 100_000], IoFlags::default()).unwrap();
    v.fsync(ino, false).unwrap();
    drop(v);
    mount(&device).shutdown().unwrap();
    assert_eq!(counts(&device), (1, 0));
}

#[test]
fn its_first_name_makes_it_a_file_like_others() {
    let device = new_device();
    let v = mount(&device);
    let ino = v.tmpfile(Ino::ROOT, 0o600, OWNER).unwrap().ino;
    v.write(ino, 0, &[7; 100_000], IoFlags::default()).unwrap();
    v.setattr(ino, &SetAttr { size: Some(50_000), ..SetAttr::default() }).unwrap();
    assert_eq!(v.link(ino, Ino::ROOT, b"named").unwrap().nlink, 1);
    assert_eq!(v.link(ino, Ino::ROOT, b"again").unwrap().nlink, 2);
    v.fsync(ino, false).unwrap();
    drop(v);
    let v = mount(&device);
    assert_eq!(v.lookup(Ino::ROOT, b"named").unwrap().ino, ino);
    assert_eq!((v.getattr(ino).unwrap().size, v.getattr(ino).unwrap().nlink), (50_000, 2));
    v.unlink(Ino::ROOT, b"named").unwrap();
    v.open(ino).unwrap();
    v.unlink(Ino::ROOT, b"again").unwrap();
    // What lost its last name does not get another one.
    assert_eq!(v.link(ino, Ino::ROOT, b"named").unwrap_err().errno(), libc::ENOENT);
    v.close(ino);
    v.shutdown().unwrap();
    assert_eq!(counts(&device), (1, 0));
}

#[test]
fn the_directory_must_be_one_and_be_there() {
    let device = new_device();
    let v = mount(&device);
    let file = v.create(Ino::ROOT, b"f", 0o600, OWNER).unwrap().ino;
    assert_eq!(v.tmpfile(file, 0o600, OWNER).unwrap_err().errno(), libc::ENOTDIR);
    let dir = v.mkdir(Ino::ROOT, b"d", 0o2755, OWNER).unwrap().ino;
    assert_eq!(v.tmpfile(dir, 0o600, Owner::new(1, 99)).unwrap().gid, 2, "of a setgid directory");
    v.open(dir).unwrap();
    v.rmdir(Ino::ROOT, b"d").unwrap();
    assert_eq!(v.tmpfile(dir, 0o600, OWNER).unwrap_err().errno(), libc::ENOENT);
}

#[test]
fn a_rename_can_leave_a_whiteout() {
    let device = new_device();
    let v = mount(&device);
    let whiteout = RenameFlags { whiteout: Some(OWNER), ..RenameFlags::default() };
    let file = v.create(Ino::ROOT, b"f", 0o600, OWNER).unwrap().ino;
    let dir = v.mkdir(Ino::ROOT, b"d", 0o755, OWNER).unwrap().ino;
    v.rename(Ino::ROOT, b"f", dir, b"g", whiteout).unwrap();
    assert_eq!(v.lookup(dir, b"g").unwrap().ino, file);
    let left = v.lookup(Ino::ROOT, b"f").unwrap();
    assert_eq!((left.kind, left.rdev, left.nlink, left.perm), (FileType::CharDevice, 0, 1, 0));
    // Over something, in one directory, and a directory.
    v.create(dir, b"h", 0o600, OWNER).unwrap();
    v.rename(dir, b"g", dir, b"h", whiteout).unwrap();
    assert_eq!(
        (v.lookup(dir, b"h").unwrap().ino, v.lookup(dir, b"g").unwrap().kind),
        (file, FileType::CharDevice)
    );
    v.rename(Ino::ROOT, b"d", Ino::ROOT, b"e", whiteout).unwrap();
    assert_eq!(v.getattr(Ino::ROOT).unwrap().nlink, 3);
    let both = RenameFlags { exchange: true, ..whiteout };
    assert_eq!(v.rename(Ino::ROOT, b"d", Ino::ROOT, b"e", both).unwrap_err().errno(), libc::EINVAL);
    let keep = RenameFlags { no_replace: true, ..whiteout };
    assert_eq!(v.rename(Ino::ROOT, b"d", Ino::ROOT, b"e", keep).unwrap_err().errno(), libc::EEXIST);
    v.shutdown().unwrap();
    counts(&device);
}
