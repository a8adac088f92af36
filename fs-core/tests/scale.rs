//! Sizes that matter: metadata of files overwritten at random, directories with many names, and the
//! recovery of a full journal. Nothing here is timed; `cargo xtask bench` measures.

use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};
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
