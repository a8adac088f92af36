//! The page cache of a mounted volume: what stays in it, its capacity, and reads that threads share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use blockdev::{BlockDevice, Capabilities, IoClass, Op, Pending, RamDevice, Request};
use dbfs_fs_core::api::{FsOps, IoFlags, Owner};
use dbfs_fs_core::cache::policy::{PolicyKind, S3FifoOptions, TouchOptions};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::{FormatOptions, Ino, MountOptions, Volume};
use parking_lot::{Condvar, Mutex};

const PAGE: usize = 16384;
const BUFFERED: IoFlags = IoFlags { direct: false, dsync: false, sync: false, kill_priv: false };

/// A device that can hold back reads of data.
#[derive(Debug)]
struct Gated {
    device: RamDevice,
    closed: Mutex<bool>,
    opened: Condvar,
    /// Who came to the gate when it was closed.
    readers: AtomicUsize,
    /// Pages that they wanted to read.
    pages: AtomicUsize,
}

impl BlockDevice for Gated {
    fn name(&self) -> Arc<str> {
        self.device.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        let bytes = |r: &Request| match &r.op {
            Op::Read { bufs, .. } if r.class == IoClass::Data => bufs.iter().map(|buf| buf.len()).sum(),
            _ => 0,
        };
        let bytes: usize = requests.iter().map(bytes).sum();
        if bytes > 0 {
            let mut closed = self.closed.lock();
            if *closed {
                self.readers.fetch_add(1, Ordering::SeqCst);
                self.pages.fetch_add(bytes / PAGE, Ordering::SeqCst);
                self.opened.wait_while(&mut closed, |closed| *closed);
            }
        }
        self.device.submit(requests)
    }
}

fn device() -> Arc<Gated> {
    let device = RamDevice::new(256 << 20, 512);
    Volume::format(&device, &FormatOptions::default(), &SystemEnv).unwrap();
    Arc::new(Gated {
        device,
        closed: Mutex::new(false),
        opened: Condvar::new(),
        readers: AtomicUsize::new(0),
        pages: AtomicUsize::new(0),
    })
}

fn mount(device: &Arc<Gated>, cache_pages: usize, cache_policy: PolicyKind) -> Arc<Volume> {
    let options = MountOptions { cache_bytes: cache_pages * PAGE, cache_policy, ..MountOptions::default() };
    Volume::mount(device.clone(), options, Arc::new(SystemEnv)).unwrap()
}

fn policies() -> [PolicyKind; 2] {
    [PolicyKind::Touch(TouchOptions::default()), PolicyKind::S3Fifo(S3FifoOptions::default())]
}

/// Content of a page: tells its file, number and version.
fn content(file: u64, page: u64, version: u8) -> Vec<u8> {
    let mut bytes = vec![version; PAGE];
    bytes[..8].copy_from_slice(&file.to_le_bytes());
    bytes[8..16].copy_from_slice(&page.to_le_bytes());
    bytes
}

fn make(v: &Volume, name: &str, pages: u64) -> Ino {
    let ino = v.create(Ino::ROOT, name.as_bytes(), 0o644, Owner::new(1, 2)).unwrap().ino;
    for page in 0..pages {
        put(v, ino, page, 0);
    }
    v.fsync(ino, false).unwrap();
    ino
}

fn put(v: &Volume, ino: Ino, page: u64, version: u8) {
    let bytes = content(ino.get(), page, version);
    assert_eq!(v.write(ino, page * PAGE as u64, &bytes, BUFFERED).unwrap(), PAGE);
}

/// The version of a page that is what it should be.
fn version(v: &Volume, ino: Ino, page: u64) -> u8 {
    let mut buf = vec![0; PAGE];
    assert_eq!(v.read(ino, page * PAGE as u64, &mut buf, BUFFERED).unwrap(), PAGE);
    assert_eq!(buf, content(ino.get(), page, buf[PAGE - 1]), "page {page}");
    buf[PAGE - 1]
}

fn resident(v: &Volume) -> usize {
    v.status().cache.resident as usize / PAGE
}

/// A table of twice the cache's size is scanned while the hot set is in use: that loses at most 5 %.
#[test]
fn a_full_scan_does_not_push_out_the_hot_set() {
    const CACHE: u64 = 512;
    const HOT: u64 = 200;
    for policy in policies() {
        let device = device();
        let v = mount(&device, CACHE as usize, policy);
        let (hot, table) = (make(&v, "hot", HOT), make(&v, "table", 2 * CACHE));
        // It has been in use for a while, beside other things.
        for round in 0..8 * HOT {
            version(&v, hot, round * 7 % HOT);
            version(&v, table, round % (CACHE / 8));
        }
        let misses = || v.counters().cache_misses;
        let mut hot_misses = 0;
        for page in 0..2 * CACHE {
            version(&v, table, page);
            let before = misses();
            version(&v, hot, page * 7 % HOT);
            hot_misses += misses() - before;
        }
        let loss = hot_misses as f64 / (2 * CACHE) as f64;
        println!("{policy:?}: {loss:.4} of the hot set's hits are lost");
        assert!(loss <= 0.05, "{policy:?}: {loss}");
        assert!(misses() >= 2 * CACHE - CACHE / 8, "the scan has read the table");
        assert!(resident(&v) <= CACHE as usize);
        v.shutdown().unwrap();
    }
}

/// The capacity changes while threads write and read; nothing that is dirty is lost by it.
#[test]
fn the_capacity_changes_under_load_and_nothing_is_lost() {
    const PAGES: u64 = 600;
    for policy in policies() {
        let device = device();
        let v = mount(&device, 1024, policy);
        let files: Vec<Ino> = (0..3).map(|i| make(&v, &format!("f{i}"), PAGES)).collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for cache in [64, 2000, 1, 512, 70, 3000].iter().cycle() {
                    v.set_cache_bytes(cache * PAGE);
                    std::thread::yield_now();
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let workers: Vec<_> = files
                .iter()
                .map(|ino| {
                    let v = &v;
                    scope.spawn(move || {
                        for i in 0..4 * PAGES {
                            let page = i * 13 % PAGES;
                            let round = (i / PAGES) as u8;
                            assert_eq!(version(v, *ino, page), round, "page {page}");
                            put(v, *ino, page, round + 1);
                        }
                    })
                })
                .collect();
            let outcomes: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
            stop.store(true, Ordering::Relaxed);
            outcomes.into_iter().for_each(|o| o.unwrap());
        });
        // Dirty pages do not go, however small the cache is.
        v.sync_all().unwrap();
        (0..100).for_each(|page| put(&v, files[0], page, 9));
        v.set_cache_bytes(PAGE);
        assert!(resident(&v) >= 100);
        (0..100).for_each(|page| assert_eq!(version(&v, files[0], page), 9));
        v.sync_all().unwrap();
        v.set_cache_bytes(64 * PAGE);
        (0..PAGES).for_each(|page| assert_eq!(version(&v, files[1], page), 4));
        assert!(resident(&v) <= 64, "{}", resident(&v));
        v.shutdown().unwrap();
        let v = mount(&device, 64, policy);
        for (i, ino) in files.iter().enumerate() {
            let wanted = |page| if i == 0 && page < 100 { 9 } else { 4 };
            (0..PAGES).for_each(|page| assert_eq!(version(&v, *ino, page), wanted(page)));
        }
        v.shutdown().unwrap();
    }
}

/// Threads that miss the same pages at the same time read each once.
#[test]
fn misses_of_many_threads_make_one_read() {
    const THREADS: usize = 8;
    let device = device();
    let v = mount(&device, 256, PolicyKind::default());
    let ino = make(&v, "f", 4);
    v.shutdown().unwrap();
    let v = mount(&device, 256, PolicyKind::default());
    v.open(ino).unwrap();
    *device.closed.lock() = true;
    std::thread::scope(|scope| {
        // Ranges that overlap: all have pages 1 and 2.
        let reader = |i: usize| {
            let (v, first) = (&v, (i % 2) as u64);
            move || {
                let mut buf = vec![0; 3 * PAGE];
                assert_eq!(v.read(ino, first * PAGE as u64, &mut buf, BUFFERED).unwrap(), buf.len());
                for (i, page) in buf.chunks(PAGE).enumerate() {
                    assert_eq!(page, content(ino.get(), first + i as u64, 0));
                }
            }
        };
        let readers: Vec<_> = (0..THREADS).map(|i| scope.spawn(reader(i))).collect();
        // Until each thread is at the gate, or waits for three pages that others read.
        let arrived = || device.readers.load(Ordering::SeqCst) + v.counters().cache_waits as usize / 3;
        while arrived() < THREADS {
            std::thread::yield_now();
        }
        *device.closed.lock() = false;
        device.opened.notify_all();
        readers.into_iter().for_each(|r| r.join().unwrap());
    });
    assert_eq!(device.pages.load(Ordering::SeqCst), 4, "each page is read once");
    assert_eq!(v.counters().cache_misses, 4);
    assert_eq!(v.counters().cache_waits as usize, 3 * THREADS - 4);
    v.shutdown().unwrap();
}
