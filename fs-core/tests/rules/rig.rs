//! What all rules are tried on: a small volume on the simulator, with a clock and randomness that
//! are the same in every run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockdev::BlockDevice;
use blockdev::sim::{CutOptions, Rng, SimDevice, SimOptions, Survivors};
use dbfs_fs_core::api::{FileType, FsOps, IoFlags, Owner, Timestamp};
use dbfs_fs_core::env::Env;
use dbfs_fs_core::fsck::{CheckOptions, check};
use dbfs_fs_core::{FormatOptions, FsError, Ino, MountOptions, Volume};

/// Size of most volumes here: the smallest one.
pub const SIZE: u64 = 64 << 20;
/// Bytes in a page of the volumes.
pub const PAGE: usize = 16384;
/// Bytes in a block.
pub const BLOCK: usize = 4096;

pub const OWNER: Owner = Owner::new(7, 8);
pub const BUFFERED: IoFlags = IoFlags { direct: false, dsync: false, sync: false, kill_priv: false };
pub const DIRECT: IoFlags = IoFlags { direct: true, ..BUFFERED };
pub const DSYNC: IoFlags = IoFlags { dsync: true, ..BUFFERED };
pub const DIRECT_DSYNC: IoFlags = IoFlags { direct: true, dsync: true, ..BUFFERED };

/// A clock that goes on by a microsecond whenever somebody looks, and seeded randomness.
#[derive(Debug, Default)]
pub struct TestEnv(AtomicU64);

impl TestEnv {
    /// One whose random numbers are not those of the default one.
    pub fn of_another_node() -> Self {
        Self(AtomicU64::new(1 << 40))
    }
}

impl Env for TestEnv {
    fn now(&self) -> Timestamp {
        let ns = self.monotonic_ns();
        Timestamp { secs: 1_700_000_000 + (ns / 1_000_000_000) as i64, nanos: (ns % 1_000_000_000) as u32 }
    }

    fn monotonic_ns(&self) -> u64 {
        self.0.fetch_add(1000, Ordering::SeqCst)
    }

    fn random(&self) -> u64 {
        Rng::new(self.0.fetch_add(1, Ordering::SeqCst)).next_u64()
    }
}

/// Breaks the rule that the environment names, in a test build that can. The table of mutants
/// drives this; see `mutants.rs`.
pub fn break_rule() {
    #[cfg(feature = "mutants")]
    if let Some(number) = std::env::var(crate::mutants::VARIABLE).ok().and_then(|n| n.parse().ok()) {
        dbfs_fs_core::mutants::set(dbfs_fs_core::mutants::Mutant::from_number(number));
    }
}

/// A formatted device that keeps the order of the requests of one batch.
pub fn device() -> SimDevice {
    device_of(SIZE)
}

pub fn device_of(size: u64) -> SimDevice {
    formatted(SimOptions { shuffle: false, ..SimOptions::new(size, 42) })
}

/// The same with native FUA.
pub fn fua_device() -> SimDevice {
    formatted(SimOptions { shuffle: false, native_fua: true, ..SimOptions::new(SIZE, 42) })
}

fn formatted(options: SimOptions) -> SimDevice {
    let sim = SimDevice::with_options(options);
    break_rule();
    Volume::format(&sim, &FormatOptions::default(), &TestEnv::default()).unwrap();
    sim
}

pub fn options() -> MountOptions {
    MountOptions { cache_bytes: 16 << 20, node_cache_bytes: 4 << 20, ..MountOptions::default() }
}

pub fn mount(device: &SimDevice) -> Arc<Volume> {
    try_mount(device).unwrap()
}

pub fn try_mount(device: &SimDevice) -> Result<Arc<Volume>, FsError> {
    break_rule();
    Volume::mount(Arc::new(device.clone()), options(), Arc::new(TestEnv::default()))
}

/// A device as it is after the power failed when the log was `cut` long.
pub fn after_cut(sim: &SimDevice, cut: u64, survivors: Survivors) -> SimDevice {
    sim.image_at(cut, &CutOptions::plain(survivors)).into_sim(7)
}

/// As [`after_cut`], at this moment, with nothing left that was not durable.
pub fn after_power_cut(sim: &SimDevice) -> SimDevice {
    let options = CutOptions { in_flight: false, ..CutOptions::plain(Survivors::DropAll) };
    sim.image_at(sim.seq(), &options).into_sim(7)
}

/// The volume on the device, which nobody has mounted, is consistent, all data included.
pub fn assert_clean(device: &SimDevice, when: &str) {
    let device: Arc<dyn BlockDevice> = Arc::new(device.clone());
    let report = check(&device, &CheckOptions { data: true, ..CheckOptions::default() }).unwrap();
    assert!(report.is_clean(), "{when}: {:#?}", report.problems);
}

/// Bytes that no other seed gives.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    out.truncate(len);
    out
}

/// The shorthand that tests use on volumes.
pub trait VolumeExt {
    /// An empty file that nobody has open.
    fn make_file(&self, name: &str) -> Ino;
    fn put(&self, ino: Ino, offset: u64, data: &[u8], flags: IoFlags);
    fn bytes(&self, ino: Ino) -> Vec<u8>;
    fn find(&self, name: &str) -> Option<Ino>;
    fn names(&self) -> Vec<String>;
}

impl VolumeExt for Volume {
    fn make_file(&self, name: &str) -> Ino {
        self.mknod(Ino::ROOT, name.as_bytes(), FileType::Regular, 0o644, 0, OWNER).unwrap().ino
    }

    fn put(&self, ino: Ino, offset: u64, data: &[u8], flags: IoFlags) {
        assert_eq!(self.write(ino, offset, data, flags).unwrap(), data.len());
    }

    fn bytes(&self, ino: Ino) -> Vec<u8> {
        let size = self.getattr(ino).unwrap().size as usize;
        let mut buf = vec![0xAA; size];
        assert_eq!(self.read(ino, 0, &mut buf, BUFFERED).unwrap(), size);
        buf
    }

    fn find(&self, name: &str) -> Option<Ino> {
        match self.lookup(Ino::ROOT, name.as_bytes()) {
            Ok(attr) => Some(attr.ino),
            Err(e) if e.errno() == libc::ENOENT => None,
            Err(e) => panic!("lookup of {name}: {e}"),
        }
    }

    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        self.readdir(Ino::ROOT, 0, &mut |e| {
            names.push(String::from_utf8_lossy(&e.name).into_owned());
            true
        })
        .unwrap();
        names.retain(|n| n != "." && n != "..");
        names.sort();
        names
    }
}

/// Files by name, as they have to be.
#[derive(Clone, Debug, Default)]
pub struct Expected(pub std::collections::BTreeMap<String, Vec<u8>>);

impl Expected {
    /// Writes to a file of the volume and to the expectation.
    pub fn write(&mut self, v: &Volume, name: &str, offset: usize, data: &[u8], flags: IoFlags) {
        let ino = v.find(name).unwrap_or_else(|| v.make_file(name));
        v.put(ino, offset as u64, data, flags);
        let bytes = self.0.entry(name.to_owned()).or_default();
        bytes.resize(bytes.len().max(offset + data.len()), 0);
        bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Makes everything durable.
    pub fn sync(&self, v: &Volume) {
        v.sync_all().unwrap();
    }

    /// The volume holds exactly this.
    pub fn check(&self, v: &Volume, when: &str) {
        let wanted: Vec<&String> = self.0.keys().collect();
        assert_eq!(v.names().iter().collect::<Vec<_>>(), wanted, "names {when}");
        for (name, want) in &self.0 {
            let got = v.bytes(v.find(name).unwrap());
            if got != *want {
                let at = got.iter().zip(want).position(|(a, b)| a != b);
                panic!("{name} differs from byte {at:?} on ({} of {} bytes) {when}", got.len(), want.len());
            }
        }
    }

    /// Checks the device, mounts it and checks the files, changes something, and does it all again.
    pub fn check_device(&self, device: &SimDevice, when: &str) {
        assert_clean(device, when);
        let v = match try_mount(device) {
            Ok(v) => v,
            Err(e) => panic!("mount {when}: {e}"),
        };
        self.check(&v, when);
        let mut next = self.clone();
        next.write(&v, "another", 0, &pattern(30_000, 99), DIRECT);
        next.sync(&v);
        v.checkpoint().unwrap();
        drop(v);
        assert_clean(device, &format!("{when}, after a mount"));
        next.check(&mount(device), &format!("{when}, mounted once more"));
    }
}

/// The device's capabilities are what the tests rely on.
pub fn assert_volatile(device: &SimDevice) {
    assert!(device.capabilities().volatile_write_cache);
}
