//! First things: a volume is made, used, left, and found again as it was.

use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};
use dbfs_fs_core::api::{FileType, FsOps, IoFlags, Owner, SetAttr};
use dbfs_fs_core::env::SystemEnv;
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

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(31).wrapping_add(seed * 7) >> 3) as u8).collect()
}

fn read_all(v: &Volume, ino: Ino) -> Vec<u8> {
    let size = v.getattr(ino).unwrap().size as usize;
    let mut buf = vec![0; size + 10];
    let n = v.read(ino, 0, &mut buf, IoFlags::default()).unwrap();
    assert_eq!(n, size);
    buf.truncate(n);
    buf
}

#[test]
fn an_empty_volume_mounts_again_and_again() {
    let device = new_device();
    for epoch in 2..20 {
        let v = mount(&device);
        assert_eq!(v.epoch().get(), epoch);
        assert_eq!(v.getattr(Ino::ROOT).unwrap().kind, FileType::Directory);
    }
}

#[test]
fn data_survives_with_and_without_a_clean_end() {
    for clean in [true, false] {
        let device = new_device();
        let v = mount(&device);
        let dir = v.mkdir(Ino::ROOT, b"dir", 0o755, OWNER).unwrap().ino;
        let mut files = Vec::new();
        for i in 0..50u64 {
            let ino = v.create(dir, format!("f{i}").as_bytes(), 0o644, OWNER).unwrap().ino;
            let data = pattern((i * 3001 + 1) as usize, i);
            assert_eq!(v.write(ino, 0, &data, IoFlags::default()).unwrap(), data.len());
            if i % 3 == 0 {
                v.checkpoint().unwrap();
            }
            v.fsync(ino, true).unwrap();
            assert_eq!(read_all(&v, ino), data);
            files.push((ino, data));
            v.close(ino);
        }
        if clean {
            v.shutdown().unwrap();
        }
        drop(v);
        let v = mount(&device);
        for (ino, data) in &files {
            assert_eq!(&read_all(&v, *ino), data);
        }
        v.checkpoint().unwrap();
        for (i, (ino, _)) in files.iter().enumerate() {
            v.unlink(dir, format!("f{i}").as_bytes()).unwrap();
            assert!(v.getattr(*ino).is_err());
        }
        v.rmdir(Ino::ROOT, b"dir").unwrap();
        v.checkpoint().unwrap();
        v.checkpoint().unwrap();
    }
}

#[test]
fn direct_overwrites_free_what_they_replace() {
    let device = new_device();
    let v = mount(&device);
    let ino = v.create(Ino::ROOT, b"f", 0o644, OWNER).unwrap().ino;
    let flags = IoFlags { direct: true, ..IoFlags::default() };
    let mut want = vec![0; 4 << 20];
    for round in 0..200u64 {
        let at = (round * 7 % 256) as usize * 16384;
        let data = pattern(16384, round);
        want[at..at + 16384].copy_from_slice(&data);
        v.write(ino, at as u64, &data, flags).unwrap();
        if round % 20 == 0 {
            v.fsync(ino, true).unwrap();
            v.publish_durable().unwrap();
        }
    }
    v.fsync(ino, true).unwrap();
    let size = v.getattr(ino).unwrap().size as usize;
    assert_eq!(read_all(&v, ino), want[..size]);
    drop(v);
    let v = mount(&device);
    assert_eq!(read_all(&v, ino), want[..size]);
    let set = SetAttr { size: Some(5000), ..SetAttr::default() };
    v.setattr(ino, &set).unwrap();
    let set = SetAttr { size: Some(50_000), ..SetAttr::default() };
    v.setattr(ino, &set).unwrap();
    let got = read_all(&v, ino);
    assert_eq!(got[..5000], want[..5000]);
    assert!(got[5000..].iter().all(|b| *b == 0));
    v.sync_all().unwrap();
    drop(v);
    let v = mount(&device);
    assert_eq!(read_all(&v, ino), got);
}

/// A direct write takes bytes of its last page with it that a buffered write had left in the cache.
#[test]
fn a_direct_write_keeps_buffered_bytes_behind_it() {
    let device = new_device();
    let v = mount(&device);
    let ino = v.create(Ino::ROOT, b"f", 0o644, OWNER).unwrap().ino;
    let mut want = pattern(20_680, 1);
    v.write(ino, 0, &want[..20_480], IoFlags::default()).unwrap();
    v.fsync(ino, false).unwrap();
    v.write(ino, 20_480, &want[20_480..], IoFlags::default()).unwrap();
    let direct = pattern(12_288, 2);
    v.write(ino, 8192, &direct, IoFlags { direct: true, ..IoFlags::default() }).unwrap();
    want[8192..20_480].copy_from_slice(&direct);
    v.sync_all().unwrap();
    drop(v);
    assert!(read_all(&mount(&device), ino) == want);
}
