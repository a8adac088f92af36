//! Replaced pages stay near what they replace, and a file that was overwritten at random is read in few pieces.

use std::ops::ControlFlow;
use std::sync::Arc;

use blockdev::sim::{Effect, Fault, OpKind, SimDevice, SimOptions};
use blockdev::{BlockDevice, RamDevice};
use dbfs_fs_core::api::{FsOps, IoFlags, Owner};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::{FormatOptions, Ino, MountOptions, Volume};

const PAGE: usize = 16384;
/// Blocks of a window for pages of this size.
const WINDOW: u64 = 128;
const DIRECT: IoFlags = IoFlags { direct: true, dsync: false, sync: false, kill_priv: false };
const DSYNC: IoFlags = IoFlags { dsync: true, ..DIRECT };
const BUFFERED: IoFlags = IoFlags { direct: false, ..DIRECT };

fn format(device: &dyn BlockDevice) {
    Volume::format(device, &FormatOptions::default(), &SystemEnv).unwrap();
}

fn mount(device: &Arc<dyn BlockDevice>) -> Arc<Volume> {
    Volume::mount(device.clone(), MountOptions::default(), Arc::new(SystemEnv)).unwrap()
}

fn content(page: u64, version: u64) -> Vec<u8> {
    let mut bytes = vec![version as u8; PAGE];
    bytes[..8].copy_from_slice(&page.to_le_bytes());
    bytes[8..16].copy_from_slice(&version.to_le_bytes());
    bytes
}

/// A file of so many pages, written one behind the other.
fn lay_out(v: &Volume, pages: u64) -> Ino {
    let ino = v.create(Ino::ROOT, b"f", 0o644, Owner::new(1, 2)).unwrap().ino;
    for first in (0..pages).step_by(64) {
        let bytes: Vec<u8> = (first..pages.min(first + 64)).flat_map(|page| content(page, 0)).collect();
        v.write(ino, first * PAGE as u64, &bytes, DIRECT).unwrap();
    }
    v.fsync(ino, false).unwrap();
    ino
}

/// The first block of each page.
fn places(v: &Volume, ino: Ino) -> Vec<u64> {
    let mut places = Vec::new();
    v.explain(ino, &mut |extent| {
        let pages = extent.blocks.bytes() / PAGE;
        assert_eq!(extent.offset, (places.len() * PAGE) as u64);
        places.extend((0..pages as u64).map(|i| extent.blocks.start.0 + i * (PAGE / 4096) as u64));
        ControlFlow::Continue(())
    })
    .unwrap();
    places
}

/// Overwrites pages at random.
fn overwrite(
    v: &Volume,
    ino: Ino,
    versions: &mut [u64],
    times: u64,
    seed: u64,
    flags: impl Fn(u64) -> IoFlags,
) {
    let mut random = seed;
    for n in 0..times {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let page = (random >> 33) % versions.len() as u64;
        versions[page as usize] += 1;
        v.write(ino, page * PAGE as u64, &content(page, versions[page as usize]), flags(n)).unwrap();
        if n % 32 == 31 {
            v.fsync(ino, true).unwrap();
        }
    }
}

fn check(v: &Volume, ino: Ino, versions: &[u64]) {
    let mut bytes = vec![0; 64 * PAGE];
    for first in (0..versions.len()).step_by(64) {
        v.read(ino, (first * PAGE) as u64, &mut bytes, DIRECT).unwrap();
        for (page, found) in (first..versions.len()).zip(bytes.chunks(PAGE)) {
            assert!(found == content(page as u64, versions[page]), "page {page}");
        }
    }
}

/// Pages that are far from the one before them.
fn astray(places: &[u64]) -> usize {
    places.windows(2).filter(|two| two[0].abs_diff(two[1]) > 2 * WINDOW).count()
}

#[test]
fn replaced_pages_stay_near_each_other() {
    const PAGES: u64 = 4096;
    let ram = RamDevice::new(512 << 20, 512);
    format(&ram);
    let device: Arc<dyn BlockDevice> = Arc::new(ram);
    let v = mount(&device);
    let ino = lay_out(&v, PAGES);
    let fresh = places(&v, ino);
    assert!(fresh.iter().all(|at| at % WINDOW < WINDOW / 8 * 7), "new data leaves slack");
    let mut versions = vec![0; PAGES as usize];
    let kinds: [fn(u64) -> IoFlags; 3] =
        [|_| DIRECT, |_| DSYNC, |n| if n % 2 == 0 { BUFFERED } else { DIRECT }];
    for (i, flags) in kinds.into_iter().enumerate() {
        overwrite(&v, ino, &mut versions, 2 * PAGES, i as u64, flags);
        v.sync_all().unwrap();
        let astray = astray(&places(&v, ino));
        assert!(astray < PAGES as usize / 10, "{astray} pages after the {i}th kind of writes");
    }
    check(&v, ino, &versions);
    v.shutdown().unwrap();
    drop(v);
    // A new epoch has reserved none of the file's groups.
    let v = mount(&device);
    let ino = v.open(ino).unwrap().ino;
    overwrite(&v, ino, &mut versions, 2 * PAGES, 9, |_| DIRECT);
    v.sync_all().unwrap();
    let astray = astray(&places(&v, ino));
    assert!(astray < PAGES as usize / 10, "{astray} pages after another mount");
    check(&v, ino, &versions);
    v.close(ino);
    v.shutdown().unwrap();
}

/// Without slack there is none to be left.
#[test]
fn all_of_the_space_can_be_used() {
    let ram = RamDevice::new(64 << 20, 512);
    format(&ram);
    let v = mount(&(Arc::new(ram) as Arc<dyn BlockDevice>));
    let free = v.statfs().unwrap().bavail;
    let ino = v.create(Ino::ROOT, b"f", 0o644, Owner::new(1, 2)).unwrap().ino;
    let pages = (0..1 << 20)
        .take_while(|page| v.write(ino, page * PAGE as u64, &content(*page, 0), DIRECT).is_ok())
        .count() as u64;
    let blocks = pages * (PAGE / 4096) as u64;
    assert!(blocks > free / 100 * 95, "{blocks} of {free} blocks");
    let mut versions = vec![0; pages as usize];
    overwrite(&v, ino, &mut versions, 500, 3, |_| DIRECT);
    check(&v, ino, &versions[..pages as usize / 64 * 64]);
    v.shutdown().unwrap();
}

#[test]
fn pages_out_of_order_are_read_together_and_a_fault_between_them_harms_nobody() {
    const PAGES: u64 = 256;
    let sim = SimDevice::with_options(SimOptions::new(64 << 20, 5));
    format(&sim);
    let device: Arc<dyn BlockDevice> = Arc::new(sim.clone());
    let v = mount(&device);
    let ino = lay_out(&v, PAGES);
    let mut versions = vec![0; PAGES as usize];
    overwrite(&v, ino, &mut versions, 4 * PAGES, 7, |_| DIRECT);
    v.sync_all().unwrap();
    let requests = |bytes: &mut [u8]| {
        let before = sim.counters().reads;
        v.read(ino, 0, bytes, DIRECT).unwrap();
        sim.counters().reads - before
    };
    let mut bytes = vec![0; PAGES as usize * PAGE];
    let few = requests(&mut bytes);
    assert!(few < PAGES / 8, "{few} requests for {PAGES} pages");
    // Each free piece of the first window cannot be read.
    let places = places(&v, ino);
    let first = places.iter().min().unwrap() / WINDOW * WINDOW;
    let free = (first..first + WINDOW).step_by(PAGE / 4096).filter(|at| !places.contains(at));
    for at in free {
        let fault = Fault::new(Effect::eio()).on(OpKind::Read).within(at * 4096..(at + 4) * 4096);
        sim.inject(fault.forever());
    }
    let more = requests(&mut bytes);
    assert!(more > few, "{more} requests, with faults between the pages, and {few} without");
    for (page, found) in bytes.chunks(PAGE).enumerate() {
        assert!(found == content(page as u64, versions[page]), "page {page}");
    }
    // One of a page itself does.
    let fault = Fault::new(Effect::eio()).on(OpKind::Read).within(places[3] * 4096..places[3] * 4096 + 1);
    sim.inject(fault.forever());
    assert_eq!(v.read(ino, 0, &mut bytes, DIRECT).unwrap_err().errno(), libc::EIO);
    sim.clear_faults();
    check(&v, ino, &versions);
    v.shutdown().unwrap();
}
