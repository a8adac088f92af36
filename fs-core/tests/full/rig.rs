//! A small volume, what must survive on it, and what must go on when it is full.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};
use dbfs_fs_core::api::{Fallocate, FsOps, IoFlags, Owner, Seek};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::fsck::{self, CheckOptions};
use dbfs_fs_core::{FormatOptions, FsError, Ino, MountOptions, PageSize, Volume};

pub const OWNER: Owner = Owner::new(1, 2);
pub const BUFFERED: IoFlags = IoFlags { direct: false, dsync: false, sync: false, kill_priv: false };
pub const DIRECT: IoFlags = IoFlags { direct: true, ..BUFFERED };
pub const DSYNC: IoFlags = IoFlags { dsync: true, ..BUFFERED };
/// Page sizes at which the ways of filling a volume differ most.
pub const PAGES: [u32; 3] = [4096, 16384, 65536];
/// Largest atomic write.
pub const MIB: usize = 1 << 20;

/// Bytes that tell their file and version.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u64 / 8 * 31 + seed * 7 + i as u64 % 8 * seed) as u8).collect()
}

/// The outcome is a refusal for lack of space.
pub fn is_full<T>(outcome: &Result<T, FsError>) -> bool {
    matches!(outcome, Err(FsError::Posix(libc::ENOSPC)))
}

/// A mounted volume, and what its files hold.
pub struct Rig {
    pub device: Arc<dyn BlockDevice>,
    pub v: Arc<Volume>,
    pub page: usize,
    files: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Rig {
    /// 64 MiB, with a file `kept` of 2 MiB and one `tail` of some bytes.
    pub fn new(page: u32) -> Self {
        let device: Arc<dyn BlockDevice> = Arc::new(RamDevice::new(64 << 20, 512));
        let page_size = PageSize::new(page).unwrap();
        let options = FormatOptions { page_size, ..FormatOptions::default() };
        Volume::format(device.as_ref(), &options, &SystemEnv).unwrap();
        let v = mount(&device);
        let mut rig = Self { device, v, page: page as usize, files: BTreeMap::new() };
        for (name, len) in [(b"kept", 2 * MIB), (b"tail", 300)] {
            rig.v.close(rig.v.create(Ino::ROOT, name, 0o644, OWNER).unwrap().ino);
            rig.put(name, 0, &bytes(1, len), BUFFERED).unwrap();
        }
        rig.v.sync_all().unwrap();
        rig
    }

    pub fn ino(&self, name: &[u8]) -> Ino {
        self.v.lookup(Ino::ROOT, name).unwrap().ino
    }

    /// Creates a file; `false`: the volume is full.
    pub fn create(&mut self, name: &[u8]) -> bool {
        match self.v.create(Ino::ROOT, name, 0o644, OWNER) {
            Ok(attr) => {
                self.v.close(attr.ino);
                self.files.insert(name.to_vec(), Vec::new());
                true
            }
            outcome => {
                assert!(is_full(&outcome), "{outcome:?}");
                false
            }
        }
    }

    /// Writes, and remembers it. What a refused write has written is remembered too: nothing.
    pub fn put(&mut self, name: &[u8], offset: usize, data: &[u8], flags: IoFlags) -> Result<(), FsError> {
        let n = self.v.write(self.ino(name), offset as u64, data, flags)?;
        assert_eq!(n, data.len());
        let file = self.files.entry(name.to_vec()).or_default();
        file.resize(file.len().max(offset + n), 0);
        file[offset..offset + n].copy_from_slice(data);
        Ok(())
    }

    /// Makes the file's size `size`.
    pub fn truncate(&mut self, name: &[u8], size: usize) {
        let set = dbfs_fs_core::api::SetAttr { size: Some(size as u64), ..Default::default() };
        self.v.setattr(self.ino(name), &set).unwrap();
        self.files.get_mut(name).unwrap().resize(size, 0);
    }

    /// Appends pieces of `len` bytes until the volume is full.
    pub fn append_until_full(&mut self, name: &[u8], len: usize, flags: IoFlags) -> usize {
        for n in 0.. {
            let at = self.files[name].len();
            if let Err(e) = self.put(name, at, &bytes(at as u64 + 3, len), flags) {
                assert!(is_full::<()>(&Err(e.clone())), "{e}");
                return n;
            }
        }
        unreachable!("the volume has an end")
    }

    pub fn unlink(&mut self, name: &[u8]) {
        self.v.unlink(Ino::ROOT, name).unwrap();
        self.files.remove(name);
    }

    pub fn names(&self) -> Vec<Vec<u8>> {
        self.files.keys().cloned().collect()
    }

    /// Mapped data is overwritten in every way, and made durable.
    pub fn overwrite(&mut self, version: u64) {
        let page = self.page;
        for (i, flags) in [BUFFERED, DIRECT, DSYNC].into_iter().enumerate() {
            let name: &[u8] = b"kept";
            for n in 0..16 {
                let at = (n * 3 + i) % (2 * MIB / page) * page;
                self.put(name, at, &bytes(version + n as u64, page), flags).unwrap();
                self.put(name, at + 5, b"a few", flags).unwrap();
            }
            self.v.fsync(self.ino(name), false).unwrap();
            self.put(name, MIB, &bytes(version, MIB), flags).unwrap();
            self.put(b"tail", 10, &bytes(version, 100), flags).unwrap();
            self.v.fsync(self.ino(b"tail"), false).unwrap();
        }
        self.put_mapped(b"kept", page, &bytes(version + 40, 3 * page));
        self.v.fsync(self.ino(b"kept"), false).unwrap();
        // All of it dirty at once.
        self.put(b"kept", 0, &bytes(version + 50, 2 * MIB), BUFFERED).unwrap();
        self.v.sync_all().unwrap();
    }

    /// All that has blocks is overwritten, each file in another way, and made durable.
    pub fn overwrite_all(&mut self, version: u64) {
        let names = self.names();
        // Of very many small files some will do.
        let step = names.len() / 400 + 1;
        for (i, name) in names.into_iter().enumerate().step_by(step) {
            let (ino, len) = (self.ino(&name), self.files[&name].len());
            // New bytes in a hole are new data.
            if len > 0 && self.v.seek(ino, 0, Seek::Hole).unwrap() < len as u64 {
                continue;
            }
            for at in (0..len).step_by(MIB) {
                let data = bytes(version + i as u64, MIB.min(len - at));
                match (i + at / MIB) % 4 {
                    0 => self.put(&name, at, &data, BUFFERED).unwrap(),
                    1 => self.put(&name, at, &data, DIRECT).unwrap(),
                    2 => self.put(&name, at, &data, DSYNC).unwrap(),
                    _ => self.put_mapped(&name, at, &data),
                }
            }
            if i % 16 == 0 {
                self.v.fsync(ino, i % 32 == 0).unwrap();
            }
        }
        self.v.sync_all().unwrap();
    }

    /// The kernel hands over what a program has written through a mapping, page by page.
    pub fn put_mapped(&mut self, name: &[u8], offset: usize, data: &[u8]) {
        let ino = self.ino(name);
        for (at, piece) in (offset..).step_by(4096).zip(data.chunks(4096)) {
            assert_eq!(self.v.write_back(ino, at as u64, piece).unwrap(), piece.len());
        }
        self.files.get_mut(name).unwrap()[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Bytes of a range are zero now.
    pub fn punch(&mut self, name: &[u8], offset: usize, len: usize) {
        self.v.fallocate(self.ino(name), Fallocate::PunchHole, offset as u64, len as u64).unwrap();
        let file = self.files.get_mut(name).unwrap();
        let end = file.len().min(offset + len);
        file[offset.min(end)..end].fill(0);
    }

    /// Copies within the volume, as far as there is space.
    pub fn copy(&mut self, from: &[u8], to: &[u8], at: usize, len: usize) -> Result<usize, FsError> {
        let copied = self.v.copy_range(self.ino(from), 0, self.ino(to), at as u64, len as u64, BUFFERED)?;
        let data = self.files[from][..copied as usize].to_vec();
        let file = self.files.get_mut(to).unwrap();
        file.resize(file.len().max(at + data.len()), 0);
        file[at..at + data.len()].copy_from_slice(&data);
        Ok(data.len())
    }

    /// A file has another name.
    pub fn renamed(&mut self, from: &[u8], to: &[u8]) {
        let file = self.files.remove(from).unwrap();
        self.files.insert(to.to_vec(), file);
    }

    /// Everything reads as it was written.
    pub fn verify(&self) {
        for (name, want) in &self.files {
            let ino = self.ino(name);
            let mut got = vec![0; want.len() + 1];
            let mut n = 0;
            while n < got.len() {
                match self.v.read(ino, n as u64, &mut got[n..], BUFFERED).unwrap() {
                    0 => break,
                    more => n += more,
                }
            }
            assert_eq!(n, want.len(), "{}", String::from_utf8_lossy(name));
            assert!(got[..n] == want[..], "{}", String::from_utf8_lossy(name));
        }
    }

    /// The process dies; the volume is mounted again.
    pub fn crash(&mut self) {
        self.v = mount(&self.device);
    }

    /// The volume is full: it goes on, survives a crash, becomes writable by deleting `names`, and is
    /// consistent after all.
    pub fn goes_on(mut self, names: &[Vec<u8>]) {
        self.overwrite(100);
        self.v.sync_all().unwrap();
        self.crash();
        self.overwrite(200);
        self.overwrite_all(300);
        self.crash();
        self.verify();
        names.iter().for_each(|name| self.unlink(name));
        self.v.sync_all().unwrap();
        assert!(self.create(b"new"), "there is space again");
        self.put(b"new", 0, &bytes(9, 2 * MIB), BUFFERED).unwrap();
        self.v.fsync(self.ino(b"new"), false).unwrap();
        self.crash();
        self.verify();
        self.ends_consistent();
    }

    /// The volume has not stopped; after a clean end fsck finds nothing, and everything is there.
    pub fn ends_consistent(mut self) {
        assert_eq!(self.v.failure(), None);
        self.v.shutdown().unwrap();
        let report = fsck::check(&self.device, &CheckOptions { data: true, progress: None }).unwrap();
        assert!(report.is_clean(), "{:#?}", report.problems);
        assert_eq!(report.notes, Vec::<String>::new());
        self.crash();
        self.verify();
    }
}

pub fn mount(device: &Arc<dyn BlockDevice>) -> Arc<Volume> {
    let options = MountOptions { cache_bytes: 16 << 20, dirty_bytes: 6 << 20, ..MountOptions::default() };
    Volume::mount(device.clone(), options, Arc::new(SystemEnv)).unwrap()
}
