//! The recipe of the first golden images.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockdev::{BlockDevice, RamDevice};
use dbfs_fs_core::api::{Attr, Fallocate, FileType, FsOps, IoFlags, Owner, RenameFlags, SetAttr, Timestamp};
use dbfs_fs_core::env::Env;
use dbfs_fs_core::{FormatOptions, Ino, PageSize, Volume};

const OWNER: Owner = Owner::new(1000, 100);
/// Straight to the device.
pub const DIRECT: IoFlags = IoFlags { direct: true, dsync: false, sync: false, kill_priv: false };
/// Into the journal.
pub const SYNC: IoFlags = IoFlags { direct: false, dsync: true, sync: false, kill_priv: false };
const MANY: u64 = 40;

/// Time that passes a second a look, and numbers that are no secret.
#[derive(Debug, Default)]
pub struct FixedEnv(AtomicU64);

impl FixedEnv {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

impl Env for FixedEnv {
    fn now(&self) -> Timestamp {
        Timestamp { secs: 1_700_000_000 + self.next() as i64, nanos: 123_456_789 }
    }
    fn monotonic_ns(&self) -> u64 {
        self.next() * 1_000_000
    }
    fn random(&self) -> u64 {
        (self.next() + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

fn long_name() -> Vec<u8> {
    vec![b'n'; 255]
}

fn long_target() -> Vec<u8> {
    (0..4095).map(|i| if i % 64 == 0 { b'/' } else { b'a' + (i / 64 % 26) as u8 }).collect()
}

/// Content of a page: its number at its start and end.
pub fn page(number: u64, page_size: usize) -> Vec<u8> {
    let mut out = vec![0; page_size];
    out[..8].copy_from_slice(&(number + 1).to_le_bytes());
    out[page_size - 8..].copy_from_slice(&(!number).to_le_bytes());
    out
}

/// Makes the volume: one epoch that ends well, one that ends in the middle of its work.
pub fn make(size: u64, page_size: u32) -> RamDevice {
    let ram = RamDevice::new(size, 512);
    let device: Arc<dyn BlockDevice> = Arc::new(ram.clone());
    let env = Arc::new(FixedEnv::default());
    let options = FormatOptions {
        page_size: PageSize::new(page_size).unwrap(),
        label: "golden".into(),
        ..FormatOptions::default()
    };
    Volume::format(device.as_ref(), &options, env.as_ref()).unwrap();
    let v = Volume::mount(device.clone(), Default::default(), env.clone()).unwrap();
    first_epoch(&v, page_size as usize);
    v.shutdown().unwrap();
    drop(v);
    let v = Volume::mount(device, Default::default(), env).unwrap();
    second_epoch(&v, page_size as usize);
    ram
}

fn first_epoch(v: &Volume, page_size: usize) {
    let dir = v.mkdir(Ino::ROOT, b"dir", 0o2750, OWNER).unwrap().ino;
    let scattered = v.create(dir, b"scattered", 0o600, OWNER).unwrap().ino;
    for i in 0..64 {
        // In an order that leaves no two pages behind each other: a dense page map.
        let number = i * 37 % 64;
        v.write(scattered, number * page_size as u64, &page(number, page_size), DIRECT).unwrap();
    }
    v.close(scattered);
    let tail = v.create(dir, b"tail", 0o644, OWNER).unwrap().ino;
    v.write(tail, 0, b"a short file", DIRECT).unwrap();
    v.link(tail, Ino::ROOT, b"tail again").unwrap();
    v.close(tail);
    let room = v.create(dir, b"room", 0o644, OWNER).unwrap().ino;
    v.fallocate(room, Fallocate::KeepSize, 0, 300_000).unwrap();
    v.close(room);
    v.symlink(dir, b"symlink", &long_target(), OWNER).unwrap();
    v.mknod(dir, b"pipe", FileType::Fifo, 0o622, 0, OWNER).unwrap();
    v.mknod(dir, b"null", FileType::CharDevice, 0o666, 0x103, OWNER).unwrap();
    let many = v.mkdir(dir, b"many", 0o755, OWNER).unwrap().ino;
    for i in 0..MANY {
        v.mknod(many, format!("number {i}").as_bytes(), FileType::Regular, 0o444, 0, OWNER).unwrap();
    }
    v.checkpoint().unwrap();
}

fn second_epoch(v: &Volume, page_size: usize) {
    let dir = v.lookup(Ino::ROOT, b"dir").unwrap().ino;
    let tail = v.lookup(dir, b"tail").unwrap().ino;
    let kept = v.create(Ino::ROOT, b"sparse", 0o644, OWNER).unwrap().ino;
    v.write(kept, 1 << 30, &page(7, page_size), DIRECT).unwrap();
    v.rename(dir, b"room", Ino::ROOT, &long_name(), RenameFlags::default()).unwrap();
    v.checkpoint().unwrap();
    // From here on in the journal only.
    v.write(tail, 2, b"LONGER", SYNC).unwrap();
    v.unlink(dir, b"pipe").unwrap();
    let scattered = v.lookup(dir, b"scattered").unwrap().ino;
    v.setattr(scattered, &SetAttr { size: Some(10 * page_size as u64), ..SetAttr::default() }).unwrap();
    v.write(scattered, 3 * page_size as u64, &page(99, page_size), DIRECT).unwrap();
    let gone = v.create(Ino::ROOT, b"gone", 0o644, OWNER).unwrap().ino;
    v.write(gone, 0, &page(1, page_size), DIRECT).unwrap();
    v.unlink(Ino::ROOT, b"gone").unwrap();
    v.commit().unwrap();
}

/// Where a path leads.
pub fn find(v: &Volume, path: &[&[u8]]) -> Attr {
    path.iter().fold(v.getattr(Ino::ROOT).unwrap(), |at, name| v.lookup(at.ino, name).unwrap())
}

/// Bytes of a file.
pub fn content(v: &Volume, ino: Ino, at: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    let n = v.read(ino, at, &mut buf, IoFlags::default()).unwrap();
    buf.truncate(n);
    buf
}

/// Entries of a directory, with the two that each has.
pub fn names(v: &Volume, dir: Ino) -> usize {
    let mut count = 0;
    v.readdir(dir, 0, &mut |_| {
        count += 1;
        true
    })
    .unwrap();
    count
}

/// All that was made is there, attributes included.
pub fn verify(v: &Volume, page_size: u32) {
    let page_size = page_size as usize;
    let root = find(v, &[]);
    assert_eq!((root.nlink, names(v, root.ino)), (3, 2 + 4));
    let dir = find(v, &[b"dir"]);
    assert_eq!((dir.perm, dir.nlink, dir.uid, dir.gid), (0o2750, 3, 1000, 100));
    assert_eq!(names(v, dir.ino), 2 + 5);
    assert_eq!(names(v, find(v, &[b"dir", b"many"]).ino), 2 + MANY as usize);
    let numbered = find(v, &[b"dir", b"many", b"number 33"]);
    assert_eq!((numbered.kind, numbered.perm, numbered.size), (FileType::Regular, 0o444, 0));
    assert_eq!((numbered.btime.nanos, numbered.btime.secs / 1000), (123_456_789, 1_700_000));
    let tail = find(v, &[b"dir", b"tail"]);
    assert_eq!((tail.nlink, tail.ino), (2, find(v, &[b"tail again"]).ino));
    assert_eq!(content(v, tail.ino, 0, 100), b"a LONGERfile");
    let room = find(v, &[&long_name()]);
    assert_eq!((room.size, room.blocks * 512 >= 300_000), (0, true));
    let link = find(v, &[b"dir", b"symlink"]);
    assert_eq!(v.readlink(link.ino).unwrap(), long_target());
    let null = find(v, &[b"dir", b"null"]);
    assert_eq!((null.kind, null.rdev, null.perm), (FileType::CharDevice, 0x103, 0o666));
    let sparse = find(v, &[b"sparse"]);
    assert_eq!(sparse.size, (1 << 30) + page_size as u64);
    assert_eq!(content(v, sparse.ino, 1 << 30, page_size), page(7, page_size));
    assert_eq!(content(v, sparse.ino, 12_345, 100), [0; 100]);
    let scattered = find(v, &[b"dir", b"scattered"]);
    assert_eq!(scattered.size, 10 * page_size as u64);
    for number in 0..10 {
        let want = page(if number == 3 { 99 } else { number }, page_size);
        assert_eq!(content(v, scattered.ino, number * page_size as u64, page_size), want);
    }
}
