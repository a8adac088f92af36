//! Scans are read ahead of, and see what everybody else sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use blockdev::{
    BlockDevice, Capabilities, Completion, DeviceError, ErrorKind, IoClass, Op, Pending, RamDevice, Request,
};
use dbfs_fs_core::api::{Fallocate, FsOps, IoFlags, Owner, SetAttr};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::{FormatOptions, Ino, MountOptions, Volume};
use parking_lot::Mutex;

const PAGE: usize = 16384;
const PAGES: u64 = 1000;
const CACHE: usize = 64 << 20;
const BUFFERED: IoFlags = IoFlags { direct: false, dsync: false, sync: false, kill_priv: false };
const DIRECT: IoFlags = IoFlags { direct: true, ..BUFFERED };

/// Counts reads ahead, and can let them fail or come late.
#[derive(Debug)]
struct Watched {
    device: RamDevice,
    /// Pages read ahead.
    ahead: AtomicUsize,
    fail_ahead: AtomicBool,
    /// Reads ahead take place when somebody waits for them: as late as can be.
    lazy: AtomicBool,
    lengths: Mutex<Vec<usize>>,
}

impl BlockDevice for Watched {
    fn name(&self) -> Arc<str> {
        self.device.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        requests.into_iter().map(|request| self.submit_one(request)).collect()
    }
}

impl Watched {
    fn submit_one(&self, request: Request) -> Pending {
        let class = request.class;
        let Request { op: Op::Read { offset, bufs }, .. } = request else {
            return self.device.submit(vec![request]).remove(0);
        };
        let bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
        if class != IoClass::ReadAhead {
            return self.device.submit(vec![Request::read(offset, bufs, class)]).remove(0);
        }
        self.ahead.fetch_add(bytes / PAGE, Ordering::SeqCst);
        self.lengths.lock().push(bytes / PAGE);
        if self.fail_ahead.load(Ordering::SeqCst) {
            let error = DeviceError {
                device: self.name(),
                op: "read",
                offset,
                len: bytes as u64,
                kind: ErrorKind::Io,
                errno: libc::EIO,
            };
            return Pending::ready(Completion { bufs, result: Err(error) });
        }
        if self.lazy.load(Ordering::SeqCst) {
            let device = self.device.clone();
            return Pending::driven(move || device.execute(Request::read(offset, bufs, class)));
        }
        self.device.submit(vec![Request::read(offset, bufs, class)]).remove(0)
    }

    fn ahead(&self) -> usize {
        self.ahead.load(Ordering::SeqCst)
    }
}

/// Pages that somebody had to wait for.
fn waited(v: &Volume) -> u64 {
    v.counters().cache_misses - v.counters().ahead_used
}

fn content(page: u64, version: u8) -> Vec<u8> {
    let mut bytes = vec![version; PAGE];
    bytes[..8].copy_from_slice(&page.to_le_bytes());
    bytes
}

fn mount(device: &Arc<Watched>, cache_bytes: usize) -> Arc<Volume> {
    let options = MountOptions { cache_bytes, ..MountOptions::default() };
    Volume::mount(device.clone(), options, Arc::new(SystemEnv)).unwrap()
}

/// A volume with a file of [`PAGES`] pages, none of them in its cache.
fn cold(cache_bytes: usize) -> (Arc<Watched>, Arc<Volume>, Ino) {
    let device = RamDevice::new(256 << 20, 512);
    Volume::format(&device, &FormatOptions::default(), &SystemEnv).unwrap();
    let device = Arc::new(Watched {
        device,
        ahead: AtomicUsize::new(0),
        fail_ahead: AtomicBool::new(false),
        lazy: AtomicBool::new(false),
        lengths: Mutex::new(Vec::new()),
    });
    let v = mount(&device, CACHE);
    let ino = v.create(Ino::ROOT, b"f", 0o644, Owner::new(1, 2)).unwrap().ino;
    (0..PAGES).for_each(|page| put(&v, ino, page, 0, BUFFERED));
    v.shutdown().unwrap();
    drop(v);
    (device.clone(), mount(&device, cache_bytes), ino)
}

fn put(v: &Volume, ino: Ino, page: u64, version: u8, flags: IoFlags) {
    assert_eq!(v.write(ino, page * PAGE as u64, &content(page, version), flags).unwrap(), PAGE);
}

fn check(v: &Volume, ino: Ino, page: u64, version: u8) {
    let mut buf = vec![0xEE; PAGE];
    assert_eq!(v.read(ino, page * PAGE as u64, &mut buf, BUFFERED).unwrap(), PAGE);
    assert!(buf == content(page, version), "page {page}: version {} instead of {version}", buf[PAGE - 1]);
}

#[test]
fn a_sequential_scan_waits_for_few_pages() {
    let (device, v, ino) = cold(CACHE);
    (0..PAGES).for_each(|page| check(&v, ino, page, 0));
    let counters = v.counters();
    let read = device.ahead();
    assert_eq!(waited(&v), 2);
    // With the slack that is between them.
    assert!((PAGES as usize - 2..PAGES as usize * 8 / 7).contains(&read), "each page is read once: {read}");
    assert_eq!(counters.ahead_pages, PAGES - 2);
    assert_eq!((counters.ahead_used, counters.ahead_dropped), (PAGES - 2, 0));
    // The window grows.
    let lengths = device.lengths.lock().clone();
    assert!(lengths[0] <= 4 && lengths.iter().any(|n| *n >= 32), "{lengths:?}");
    // What is in the cache is not read again.
    (0..PAGES).for_each(|page| check(&v, ino, page, 0));
    assert_eq!((waited(&v), device.ahead()), (2, read));
    v.shutdown().unwrap();
}

/// In pieces of 4 KiB, several scans of one file at the same time.
#[test]
fn scans_of_a_file_do_not_disturb_each_other() {
    let (device, v, ino) = cold(CACHE);
    let mut buf = [0; 4096];
    for piece in 0..100 * 4 {
        for start in [0, 300, 600] {
            let page = start + piece / 4;
            let at = page * PAGE as u64 + piece % 4 * 4096;
            assert_eq!(v.read(ino, at, &mut buf, BUFFERED).unwrap(), 4096);
            assert_eq!(buf[..], content(page, 0)[(piece % 4 * 4096) as usize..][..4096]);
        }
    }
    assert_eq!(waited(&v), 3 * 2);
    assert!(device.ahead() >= 3 * 98);
    v.shutdown().unwrap();
}

#[test]
fn strided_scans_are_read_ahead_and_random_reads_are_not() {
    let (device, v, ino) = cold(CACHE);
    (0..100).for_each(|i| check(&v, ino, i * 9, 0));
    assert_eq!(waited(&v), 4);
    assert!((96..=108).contains(&device.ahead()), "{}", device.ahead());
    v.shutdown().unwrap();
    let (device, v, ino) = cold(CACHE);
    // No two of them are as far apart as the two before.
    let mut at = 0;
    for step in 1..40 {
        at += step;
        check(&v, ino, at, 0);
    }
    assert_eq!((waited(&v), device.ahead()), (39, 0));
    v.shutdown().unwrap();
}

/// Whatever happens to a page between the read ahead and the reader, the reader sees what is there now.
#[test]
fn what_changed_since_it_was_read_ahead_is_read_anew() {
    for lazy in [false, true] {
        let (device, v, ino) = cold(CACHE);
        device.lazy.store(lazy, Ordering::SeqCst);
        (0..60).for_each(|page| check(&v, ino, page, 0));
        assert!(device.ahead() >= 80, "far enough ahead");
        put(&v, ino, 62, 1, DIRECT);
        put(&v, ino, 63, 1, BUFFERED);
        put(&v, ino, 64, 1, BUFFERED);
        v.fsync(ino, false).unwrap();
        // Written home, and evicted: only the device has it.
        v.set_cache_bytes(PAGE);
        v.set_cache_bytes(CACHE);
        v.fallocate(ino, Fallocate::PunchHole, 66 * PAGE as u64, PAGE as u64).unwrap();
        // The blocks that the pages had may be used for others by now.
        (0..20).for_each(|_| (200..230).for_each(|page| put(&v, ino, page, 7, DIRECT)));
        v.sync_all().unwrap();
        (60..62).for_each(|page| check(&v, ino, page, 0));
        (62..65).for_each(|page| check(&v, ino, page, 1));
        check(&v, ino, 65, 0);
        let mut buf = vec![1; PAGE];
        assert_eq!(v.read(ino, 66 * PAGE as u64, &mut buf, BUFFERED).unwrap(), PAGE);
        assert!(buf.iter().all(|b| *b == 0), "a hole");
        v.setattr(ino, &SetAttr { size: Some(70 * PAGE as u64), ..SetAttr::default() }).unwrap();
        (67..70).for_each(|page| check(&v, ino, page, 0));
        assert_eq!(v.read(ino, 70 * PAGE as u64, &mut buf, BUFFERED).unwrap(), 0);
        put(&v, ino, 75, 2, BUFFERED);
        assert_eq!(v.read(ino, 70 * PAGE as u64, &mut buf, BUFFERED).unwrap(), PAGE);
        assert!(buf.iter().all(|b| *b == 0), "beyond the old end");
        check(&v, ino, 75, 2);
        v.shutdown().unwrap();
    }
}

/// Errors of reads that nobody asked for are nobody's business.
#[test]
fn a_read_ahead_that_fails_costs_nothing_but_time() {
    let (device, v, ino) = cold(CACHE);
    device.fail_ahead.store(true, Ordering::SeqCst);
    (0..200).for_each(|page| check(&v, ino, page, 0));
    let counters = v.counters();
    assert_eq!((counters.ahead_used, counters.checksum_errors), (0, 0));
    assert_eq!(waited(&v), 200);
    v.shutdown().unwrap();
}

/// What is read ahead has its share of the cache, also when nobody comes for it.
#[test]
fn what_is_set_aside_is_bounded() {
    // 512 pages: 64 of them for all scans, 16 for one.
    let (device, v, ino) = cold(512 * PAGE);
    for start in (0..PAGES).step_by(50) {
        (start..start + 20).for_each(|page| check(&v, ino, page, 0));
    }
    let counters = v.counters();
    let aside = counters.ahead_pages - counters.ahead_used - counters.ahead_dropped;
    assert!(aside <= 64 && counters.ahead_dropped > 0, "{counters:?}");
    assert!(device.lengths.lock().iter().all(|n| *n <= 16));
    // A cache that is too small for it does without.
    v.set_cache_bytes(8 * PAGE);
    let before = device.ahead();
    (500..550).for_each(|page| check(&v, ino, page, 0));
    assert_eq!(device.ahead(), before);
    v.shutdown().unwrap();
}
