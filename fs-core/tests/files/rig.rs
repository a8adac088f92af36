//! Volumes on the simulator, and the shorthand of these tests.

use std::sync::Arc;

use blockdev::BlockDevice;
use blockdev::sim::{CutOptions, SimDevice, SimOptions, Survivors};
use dbfs_fs_core::api::{FileType, FsOps, IoFlags, Owner, SetAttr};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::fsck::{CheckOptions, check};
use dbfs_fs_core::{FormatOptions, FsError, Ino, MountOptions, PageSize, Result, Volume};

pub const OWNER: Owner = Owner::new(1, 2);
pub const PAGE: usize = 4096;
pub const BUFFERED: IoFlags = IoFlags { direct: false, dsync: false, sync: false, kill_priv: false };
pub const DIRECT: IoFlags = IoFlags { direct: true, ..BUFFERED };
pub const DSYNC: IoFlags = IoFlags { dsync: true, ..BUFFERED };

/// A new volume with pages of 4 KiB and the smallest journal.
pub fn device(bytes: u64) -> SimDevice {
    let sim = SimDevice::with_options(SimOptions { shuffle: false, ..SimOptions::new(bytes, 42) });
    let options = FormatOptions {
        page_size: PageSize::new(PAGE as u32).unwrap(),
        journal_bytes: Some(2 << 20),
        ..FormatOptions::default()
    };
    Volume::format(&sim, &options, &SystemEnv).unwrap();
    sim
}

pub fn mount(sim: &SimDevice) -> Arc<Volume> {
    let options = MountOptions { node_cache_bytes: 1 << 20, cache_bytes: 8 << 20, ..MountOptions::default() };
    Volume::mount(Arc::new(sim.clone()), options, Arc::new(SystemEnv)).unwrap()
}

/// The device as it is when the power fails now: without what is not durable.
pub fn after_power_cut(sim: &SimDevice) -> SimDevice {
    cut_at(sim, sim.seq())
}

/// As [`after_power_cut`], at an earlier moment.
pub fn cut_at(sim: &SimDevice, seq: u64) -> SimDevice {
    let options = CutOptions { in_flight: false, ..CutOptions::plain(Survivors::DropAll) };
    sim.image_at(seq, &options).into_sim(7)
}

pub fn assert_clean(sim: &SimDevice, when: &str) {
    let device: Arc<dyn BlockDevice> = Arc::new(sim.clone());
    let report = check(&device, &CheckOptions { data: true, ..CheckOptions::default() }).unwrap();
    assert!(report.is_clean(), "{when}: {:#?}", report.problems);
}

/// Bytes that tell their place and their seed.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| ((i / 7) as u8).wrapping_mul(31).wrapping_add(seed) | 1).collect()
}

pub fn errno<T: std::fmt::Debug>(result: Result<T>) -> i32 {
    result.map_err(|e: FsError| e.errno()).unwrap_err()
}

pub trait VolumeExt {
    fn make_file(&self, name: &str) -> Ino;
    fn put(&self, ino: Ino, offset: usize, data: &[u8], flags: IoFlags);
    fn get(&self, ino: Ino, offset: usize, len: usize) -> Vec<u8>;
    fn bytes(&self, ino: Ino) -> Vec<u8>;
    fn resize_to(&self, ino: Ino, size: u64) -> Result<()>;
    fn size(&self, ino: Ino) -> u64;
    fn blocks(&self, ino: Ino) -> u64;
}

impl VolumeExt for Volume {
    fn make_file(&self, name: &str) -> Ino {
        self.mknod(Ino::ROOT, name.as_bytes(), FileType::Regular, 0o644, 0, OWNER).unwrap().ino
    }

    fn put(&self, ino: Ino, offset: usize, data: &[u8], flags: IoFlags) {
        assert_eq!(self.write(ino, offset as u64, data, flags).unwrap(), data.len());
    }

    fn get(&self, ino: Ino, offset: usize, len: usize) -> Vec<u8> {
        let mut buf = vec![0xAA; len];
        assert_eq!(self.read(ino, offset as u64, &mut buf, BUFFERED).unwrap(), len);
        buf
    }

    fn bytes(&self, ino: Ino) -> Vec<u8> {
        self.get(ino, 0, self.size(ino) as usize)
    }

    fn resize_to(&self, ino: Ino, size: u64) -> Result<()> {
        self.setattr(ino, &SetAttr { size: Some(size), ..SetAttr::default() }).map(|_| ())
    }

    fn size(&self, ino: Ino) -> u64 {
        self.getattr(ino).unwrap().size
    }

    fn blocks(&self, ino: Ino) -> u64 {
        self.getattr(ino).unwrap().blocks
    }
}
