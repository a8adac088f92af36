//! Sizes that matter: metadata of files overwritten at random, directories with many names, and the
//! recovery of a full journal. Nothing here is timed; `cargo xtask bench` measures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockdev::{BlockDevice, Capabilities, Op, Pending, RamDevice, Request};
use dbfs_fs_core::api::{FsOps, IoFlags, Owner};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::fsck::{self, CheckOptions};
use dbfs_fs_core::{FormatOptions, Ino, MountOptions, Volume};

const OWNER: Owner = Owner::new(0, 0);
const DIRECT: IoFlags = IoFlags { direct: true, dsync: false, sync: false, kill_priv: false };
const PAGE: u64 = 16384;

fn volume(bytes: u64) -> (Arc<dyn BlockDevice>, Arc<Volume>) {
    let device: Arc<dyn BlockDevice> = Arc::new(RamDevice::new(bytes, 512));
    Volume::format(device.as_ref(), &FormatOptions::default(), &SystemEnv).unwrap();
    let volume = mount(&device);
    (device, volume)
}

fn mount(device: &Arc<dyn BlockDevice>) -> Arc<Volume> {
    Volume::mount(device.clone(), MountOptions::default(), Arc::new(SystemEnv)).unwrap()
}

/// What the background threads of a daemon would do.
fn maintain(v: &Volume) {
    if v.checkpoint_due() {
        v.checkpoint().unwrap();
    }
}

/// Counts the bytes that are written to a device.
#[derive(Debug)]
struct Counting {
    device: RamDevice,
    written: AtomicU64,
}

impl BlockDevice for Counting {
    fn name(&self) -> Arc<str> {
        self.device.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        for request in &requests {
            if let Op::Write { bufs, .. } = &request.op {
                let bytes: usize = bufs.iter().map(|b| b.len()).sum();
                self.written.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        }
        self.device.submit(requests)
    }
}

/// A permutation of `0..n`, the same every time.
fn shuffled(n: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..n).collect();
    let mut state = 88172645463325252u64;
    for i in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(i, (state % (i as u64 + 1)) as usize);
    }
    order
}

fn report(device: &Arc<dyn BlockDevice>) -> fsck::Report {
    let report = fsck::check(device, &CheckOptions { data: false, ..CheckOptions::default() }).unwrap();
    assert!(report.is_clean(), "{:#?}", report.problems);
    report
}

/// Every page of a file overwritten at random: at most 1.5 MiB of metadata for each GiB of data.
#[test]
fn metadata_of_a_randomly_overwritten_file_is_small() {
    let file_bytes: u64 = 512 << 20;
    let (device, v) = volume(2 << 30);
    let ino = v.create(Ino::ROOT, b"table", 0o644, OWNER).unwrap().ino;
    for at in (0..file_bytes).step_by(1 << 20) {
        v.write(ino, at, &vec![1; 1 << 20], DIRECT).unwrap();
    }
    for (i, page) in shuffled(file_bytes / PAGE).into_iter().enumerate() {
        v.write(ino, page * PAGE, &vec![page as u8; PAGE as usize], DIRECT).unwrap();
        if i % 32 == 31 {
            v.fsync(ino, true).unwrap();
        }
        // Checkpoints in between, as an aged volume has had them.
        if i % 4000 == 3999 {
            v.checkpoint().unwrap();
        }
    }
    v.shutdown().unwrap();
    drop(v);
    let stats = report(&device).stats;
    let per_gib = stats.metadata_bytes as f64 * (1u64 << 30) as f64 / file_bytes as f64;
    println!("{} nodes, {:.2} MiB of metadata per GiB", stats.nodes, per_gib / (1 << 20) as f64);
    assert!(per_gib <= 1.5 * (1 << 20) as f64, "{per_gib} bytes per GiB");
}

/// Bytes written to the device when pages are overwritten at random, 32 a sync, checkpoints included: at most
/// 1.15 of the pages' own. File, and changes kept in memory, are a sixteenth of a 4 GiB file and of the
/// default, so checkpoints come as often for each page of the file, and cost as much for each page written.
#[test]
fn random_overwrites_write_little_more_than_their_pages() {
    const FILE: u64 = 256 << 20;
    const OVERWRITES: u64 = 3 * FILE / PAGE;
    let device = Arc::new(Counting { device: RamDevice::new(1 << 30, 512), written: AtomicU64::new(0) });
    Volume::format(&device, &FormatOptions::default(), &SystemEnv).unwrap();
    let options = MountOptions { delta_bytes: 4 << 20, ..MountOptions::default() };
    let v = Volume::mount(device.clone(), options, Arc::new(SystemEnv)).unwrap();
    let ino = v.create(Ino::ROOT, b"table", 0o644, OWNER).unwrap().ino;
    for at in (0..FILE).step_by(1 << 20) {
        v.write(ino, at, &vec![1; 1 << 20], DIRECT).unwrap();
    }
    for flags in [DIRECT, IoFlags::default()] {
        v.fsync(ino, true).unwrap();
        v.checkpoint().unwrap();
        let (before, written_before) = (v.counters(), device.written.load(Ordering::Relaxed));
        let pages = shuffled(FILE / PAGE).into_iter().cycle().take(OVERWRITES as usize);
        for (i, page) in pages.enumerate() {
            v.write(ino, page * PAGE, &vec![i as u8; PAGE as usize], flags).unwrap();
            if i % 32 == 31 {
                v.fsync(ino, true).unwrap();
                maintain(&v);
            }
        }
        let now = v.counters();
        let written = device.written.load(Ordering::Relaxed) - written_before;
        let [data, journal, nodes, slots] = [
            now.data_bytes - before.data_bytes,
            now.journal_bytes - before.journal_bytes,
            now.node_bytes - before.node_bytes,
            now.slot_bytes - before.slot_bytes,
        ];
        let checkpoints = now.checkpoints - before.checkpoints;
        let of_pages = |bytes: u64| bytes as f64 / (OVERWRITES * PAGE) as f64;
        println!(
            "{:.4} of the pages' bytes: data {:.4}, journal {:.4}, nodes {:.4}, slots {:.6}; {checkpoints} checkpoints",
            of_pages(written),
            of_pages(data),
            of_pages(journal),
            of_pages(nodes),
            of_pages(slots),
        );
        assert_eq!(written, data + journal + nodes + slots, "something writes that is not counted");
        assert!(checkpoints >= 2, "{checkpoints} checkpoints");
        assert!(of_pages(written) <= 1.15, "{}", of_pages(written));
    }
    v.shutdown().unwrap();
}

/// Many names in one directory: all found, listed once, and removable.
#[test]
fn a_large_directory_works() {
    let names: u64 = 60_000;
    let (device, v) = volume(1 << 30);
    let dir = v.mkdir(Ino::ROOT, b"dir", 0o755, OWNER).unwrap().ino;
    let name = |i: u64| format!("a file with a name of usual length {i}").into_bytes();
    for i in 0..names {
        let ino = v.create(dir, &name(i), 0o644, OWNER).unwrap().ino;
        v.close(ino);
        maintain(&v);
        if i % 20_000 == 10_000 {
            v.checkpoint().unwrap();
        }
    }
    let mut listed = std::collections::HashSet::new();
    let mut cookie = 0;
    loop {
        let mut n = 0;
        v.readdir(dir, cookie, &mut |e| {
            if n == 500 {
                return false;
            }
            n += 1;
            cookie = e.next_cookie;
            assert!(listed.insert(e.name.clone()), "listed twice");
            true
        })
        .unwrap();
        if n == 0 {
            break;
        }
    }
    assert_eq!(listed.len() as u64, names + 2);
    for i in shuffled(names) {
        if i % 2 == 0 {
            v.unlink(dir, &name(i)).unwrap();
            maintain(&v);
        } else {
            v.lookup(dir, &name(i)).unwrap();
        }
    }
    v.shutdown().unwrap();
    drop(v);
    assert_eq!(report(&device).stats.names, names / 2 + 1);
}

/// The largest journal, full of small synchronous writes, is recovered.
#[test]
fn a_full_journal_is_recovered() {
    let (device, v) = volume(4 << 30);
    let ino = v.create(Ino::ROOT, b"wal", 0o644, OWNER).unwrap().ino;
    let mut n = 0u64;
    while !v.checkpoint_due() {
        n += 1;
        let offset = n * 8192 % (16 << 20);
        v.write(ino, offset, &n.to_le_bytes().repeat(1024), IoFlags::default()).unwrap();
        v.fsync(ino, true).unwrap();
    }
    drop(v);
    let start = std::time::Instant::now();
    let v = mount(&device);
    println!("recovered {n} synchronous writes in {:?}", start.elapsed());
    let mut buf = vec![0; 8192];
    for i in n - 100..=n {
        v.read(ino, i * 8192 % (16 << 20), &mut buf, IoFlags::default()).unwrap();
        assert_eq!(buf, i.to_le_bytes().repeat(1024));
    }
    v.shutdown().unwrap();
    drop(v);
    report(&device);
}
