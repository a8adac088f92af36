//! The recipe of the image with extended attributes: short ones and one of many parts, access control lists, a file
//! without a name, holes, unwritten space, and maps of both encodings.

use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};
use dbfs_fs_core::api::{Fallocate, FsOps, Owner, Seek, XattrFlags};
use dbfs_fs_core::{FormatOptions, Ino, PageSize, Volume};

use crate::workload::{DIRECT, FixedEnv, SYNC, content, find, names, page};

const OWNER: Owner = Owner::new(1000, 100);
const ANY: XattrFlags = XattrFlags { create: false, replace: false, clear_setgid: false };
const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
/// Size of the long value: three parts.
const LONG: usize = 9000;
/// Pages of the file with holes, and those that are one.
const PAGES: u64 = 20;
const HOLE: std::ops::Range<u64> = 4..9;
const LATE_HOLE: std::ops::Range<u64> = 12..14;

/// Version 2 of Linux, and for each entry its tag, permissions and id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&perm.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    }
    out
}

const NO_ID: u32 = u32::MAX;

/// The owner, user 77, the group, the mask, others.
fn access() -> Vec<u8> {
    acl(&[(1, 6, NO_ID), (2, 7, 77), (4, 4, NO_ID), (16, 5, NO_ID), (32, 0, NO_ID)])
}

fn default() -> Vec<u8> {
    acl(&[(1, 7, NO_ID), (4, 5, NO_ID), (8, 6, 88), (16, 7, NO_ID), (32, 1, NO_ID)])
}

fn long_value() -> Vec<u8> {
    (0..LONG).map(|i| (i * 7 % 251) as u8).collect()
}

/// Makes the volume: one epoch that ends well, one that ends in the middle of its work.
pub fn make(size: u64, page_size: u32) -> RamDevice {
    let ram = RamDevice::new(size, 512);
    let device: Arc<dyn BlockDevice> = Arc::new(ram.clone());
    let env = Arc::new(FixedEnv::default());
    let page_size = PageSize::new(page_size).unwrap();
    let options = FormatOptions { page_size, label: "golden".into(), ..FormatOptions::default() };
    Volume::format(device.as_ref(), &options, env.as_ref()).unwrap();
    let v = Volume::mount(device.clone(), Default::default(), env.clone()).unwrap();
    first_epoch(&v, page_size.bytes());
    v.shutdown().unwrap();
    drop(v);
    let v = Volume::mount(device, Default::default(), env).unwrap();
    second_epoch(&v, page_size.bytes());
    ram
}

fn first_epoch(v: &Volume, page_size: usize) {
    let dir = v.mkdir(Ino::ROOT, b"dir", 0o770, OWNER).unwrap().ino;
    v.setxattr(dir, DEFAULT, &default(), ANY).unwrap();
    let file = v.create(Ino::ROOT, b"file", 0o640, OWNER).unwrap().ino;
    v.setxattr(file, b"user.short", b"value", ANY).unwrap();
    v.setxattr(file, b"user.empty", b"", ANY).unwrap();
    v.setxattr(file, b"user.long", &long_value(), ANY).unwrap();
    v.setxattr(file, b"user.gone", &[1; 100], ANY).unwrap();
    v.setxattr(file, b"trusted.of root", &[0, 255, 0], ANY).unwrap();
    v.setxattr(file, ACCESS, &access(), ANY).unwrap();
    v.write(file, 0, b"twelve bytes", DIRECT).unwrap();
    v.close(file);
    // A new file in it takes over its default list.
    let heir = v.create(dir, b"heir", 0o666, OWNER).unwrap().ino;
    v.close(heir);
    let holes = v.create(Ino::ROOT, b"holes", 0o600, OWNER).unwrap().ino;
    for number in 0..PAGES {
        v.write(holes, number * page_size as u64, &page(number, page_size), DIRECT).unwrap();
    }
    punch(v, holes, HOLE, page_size);
    v.close(holes);
    let room = v.create(Ino::ROOT, b"room", 0o600, OWNER).unwrap().ino;
    v.fallocate(room, Fallocate::Allocate, 0, 30 * page_size as u64).unwrap();
    v.write(room, 10 * page_size as u64, &page(10, page_size), DIRECT).unwrap();
    v.close(room);
    let dense = v.create(Ino::ROOT, b"dense", 0o600, OWNER).unwrap().ino;
    for i in 0..64 {
        let number = i * 29 % 64;
        v.write(dense, number * page_size as u64, &page(number, page_size), DIRECT).unwrap();
    }
    v.close(dense);
    v.checkpoint().unwrap();
}

fn second_epoch(v: &Volume, page_size: usize) {
    let file = v.lookup(Ino::ROOT, b"file").unwrap().ino;
    let nameless = v.tmpfile(Ino::ROOT, 0o600, OWNER).unwrap().ino;
    v.write(nameless, 0, &page(5, page_size), DIRECT).unwrap();
    v.setxattr(nameless, b"user.nameless", b"goes with its file", ANY).unwrap();
    v.checkpoint().unwrap();
    // From here on in the journal only.
    v.setxattr(file, b"user.short", b"another value", ANY).unwrap();
    v.setxattr(file, b"user.late", b"late", ANY).unwrap();
    v.commit().unwrap();
    v.removexattr(file, b"user.gone").unwrap();
    punch(v, v.lookup(Ino::ROOT, b"holes").unwrap().ino, LATE_HOLE, page_size);
    v.write(file, 2, b"IN THE", SYNC).unwrap();
    v.commit().unwrap();
}

fn punch(v: &Volume, ino: Ino, pages: std::ops::Range<u64>, page_size: usize) {
    let (start, len) = (pages.start * page_size as u64, (pages.end - pages.start) * page_size as u64);
    v.fallocate(ino, Fallocate::PunchHole, start, len).unwrap();
}

/// All that was made is there.
pub fn verify(v: &Volume, page_size: u32) {
    let page_size = page_size as usize;
    assert_eq!(names(v, Ino::ROOT), 2 + 5);
    let file = find(v, &[b"file"]);
    assert_eq!((file.perm, file.size), (0o650, 12), "the mask is the group's permission");
    assert_eq!(content(v, file.ino, 0, 100), b"twIN THEytes");
    let want: [(&[u8], &[u8]); 6] = [
        (b"user.short", b"another value"),
        (b"user.empty", b""),
        (b"user.long", &long_value()),
        (b"user.late", b"late"),
        (b"trusted.of root", &[0, 255, 0]),
        (ACCESS, &access()),
    ];
    for (name, value) in want {
        assert_eq!(v.getxattr(file.ino, name).unwrap(), value, "{}", String::from_utf8_lossy(name));
    }
    let list = v.listxattr(file.ino, true).unwrap();
    assert_eq!(list.iter().filter(|b| **b == 0).count(), want.len());
    let dir = find(v, &[b"dir"]);
    assert_eq!(v.getxattr(dir.ino, DEFAULT).unwrap(), default());
    let heir = find(v, &[b"dir", b"heir"]);
    assert_eq!(v.getxattr(heir.ino, ACCESS).unwrap()[..4], [2, 0, 0, 0]);
    assert!(v.getxattr(heir.ino, DEFAULT).is_err(), "a file has none");
    verify_pages(v, page_size);
}

fn verify_pages(v: &Volume, page_size: usize) {
    let at = |number: u64| number * page_size as u64;
    let holes = find(v, &[b"holes"]);
    assert_eq!(holes.size, at(PAGES));
    for number in 0..PAGES {
        let is_hole = HOLE.contains(&number) || LATE_HOLE.contains(&number);
        let want = if is_hole { vec![0; page_size] } else { page(number, page_size) };
        assert_eq!(content(v, holes.ino, at(number), page_size), want, "page {number}");
    }
    assert_eq!(v.seek(holes.ino, 0, Seek::Hole).unwrap(), at(HOLE.start));
    assert_eq!(v.seek(holes.ino, at(HOLE.start), Seek::Data).unwrap(), at(HOLE.end));
    let room = find(v, &[b"room"]);
    assert_eq!((room.size, room.blocks * 512), (at(30), at(30)));
    assert_eq!(content(v, room.ino, at(10), page_size), page(10, page_size));
    assert_eq!(content(v, room.ino, at(20), page_size), vec![0; page_size]);
    assert_eq!(v.seek(room.ino, 0, Seek::Data).unwrap(), at(10), "unwritten space is a hole");
    let dense = find(v, &[b"dense"]);
    for number in 0..64 {
        assert_eq!(content(v, dense.ino, at(number), page_size), page(number, page_size));
    }
}
