//! A full volume (contract C9).

mod followers;
mod links;
mod rig;
mod rooms;
mod ways;
mod xattrs;

use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};
use dbfs_fs_core::api::{FsOps, IoFlags, Owner};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::fsck::{self, CheckOptions};
use dbfs_fs_core::{FormatOptions, FsError, Ino, MountOptions, Volume};

const OWNER: Owner = Owner::new(1, 2);
const CHUNK: usize = 256 << 10;
const DIRECT: IoFlags = IoFlags { direct: true, dsync: false, sync: false, kill_priv: false };
const BUFFERED: IoFlags = IoFlags { direct: false, dsync: false, sync: false, kill_priv: false };

fn new_device(bytes: u64) -> Arc<dyn BlockDevice> {
    let device: Arc<dyn BlockDevice> = Arc::new(RamDevice::new(bytes, 512));
    Volume::format(device.as_ref(), &FormatOptions::default(), &SystemEnv).unwrap();
    device
}

fn mount(device: &Arc<dyn BlockDevice>) -> Arc<Volume> {
    Volume::mount(device.clone(), MountOptions::default(), Arc::new(SystemEnv)).unwrap()
}

fn is_full<T: std::fmt::Debug>(outcome: Result<T, FsError>) {
    assert!(matches!(outcome, Err(FsError::Posix(libc::ENOSPC))), "{outcome:?}");
}

/// Fills the volume with one file; returns it and its size.
fn fill(v: &Volume, name: &[u8], flags: IoFlags) -> (Ino, usize) {
    let ino = v.create(Ino::ROOT, name, 0o644, OWNER).unwrap().ino;
    for size in [CHUNK, 16384] {
        loop {
            let at = v.getattr(ino).unwrap().size;
            match v.write(ino, at, &vec![at as u8 | 1; size], flags) {
                Ok(n) => assert_eq!(n, size),
                Err(e) => {
                    is_full::<()>(Err(e));
                    break;
                }
            }
        }
    }
    (ino, v.getattr(ino).unwrap().size as usize)
}

/// However full, it can be mounted after a clean end and after crashes, overwritten, and emptied.
#[test]
fn a_full_volume_can_be_mounted_overwritten_and_emptied() {
    for (bytes, flags) in [(64 << 20, DIRECT), (64 << 20, BUFFERED), (200 << 20, DIRECT)] {
        let device = new_device(bytes);
        let v = mount(&device);
        let (ino, size) = fill(&v, b"f", flags);
        assert!(size > bytes as usize / 2, "{size}");
        v.fsync(ino, false).unwrap();
        v.shutdown().unwrap();
        drop(v);
        for round in 0..6 {
            let v = mount(&device);
            let mut buf = vec![0; 16384];
            for at in (0..size).step_by(size / 16 / 16384 * 16384) {
                v.write(ino, at as u64, &vec![round; 16384], flags).unwrap();
                v.read(ino, at as u64, &mut buf, IoFlags::default()).unwrap();
                assert_eq!(buf, vec![round; 16384]);
            }
            v.fsync(ino, false).unwrap();
            drop(v); // a crash
        }
        let v = mount(&device);
        for at in (0..size).step_by(CHUNK) {
            v.write(ino, at as u64, &vec![9; CHUNK.min(size - at)], flags).unwrap();
        }
        v.fsync(ino, false).unwrap();
        v.unlink(Ino::ROOT, b"f").unwrap();
        v.close(ino);
        let (_, again) = fill(&v, b"g", flags);
        assert!(again > size / 10 * 9, "{again} of {size}");
        drop(v);
        let report = fsck::check(&device, &CheckOptions { data: true, progress: None }).unwrap();
        assert!(report.is_clean(), "{:?}", report.problems);
    }
}

/// Filled with data, and then with small files until their metadata finds no more space: deleting
/// them works, although that needs space too.
#[test]
fn a_volume_full_of_metadata_can_be_emptied() {
    let device = new_device(64 << 20);
    let v = mount(&device);
    let (big, _) = fill(&v, b"big", DIRECT);
    let mut made = 0;
    let refused = loop {
        let name = format!("a-file-with-quite-a-long-name-to-fill-directories-{made}");
        match v.create(Ino::ROOT, name.as_bytes(), 0o644, OWNER) {
            Ok(attr) => v.close(attr.ino),
            Err(e) => break e,
        }
        made += 1;
    };
    is_full::<()>(Err(refused));
    v.sync_all().unwrap();
    v.checkpoint().unwrap();
    v.write(big, 0, &vec![3; CHUNK], DIRECT).unwrap();
    for i in 0..made {
        let name = format!("a-file-with-quite-a-long-name-to-fill-directories-{i}");
        v.unlink(Ino::ROOT, name.as_bytes()).unwrap();
    }
    v.shutdown().unwrap();
    drop(v);
    let report = fsck::check(&device, &CheckOptions::default()).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
}
