//! Operations that run in the middle of a checkpoint.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use blockdev::{BlockDevice, Capabilities, IoClass, Op, Pending, RamDevice, Request};

use super::workload::{OWNER, Rnd};
use super::{assert_clean, mount};
use crate::api::{FsOps, IoFlags};
use crate::env::SystemEnv;
use crate::types::{Ino, NODE_SIZE, PageSize};
use crate::volume::{FormatOptions, Volume};

/// Overwrites pages of a file whenever a checkpoint writes nodes.
#[derive(Debug)]
struct Meddler {
    inner: RamDevice,
    target: Mutex<Option<(Weak<Volume>, Ino, Rnd)>>,
    nodes: AtomicU64,
}

const PAGES: u64 = 10_000;

impl BlockDevice for Meddler {
    fn name(&self) -> Arc<str> {
        self.inner.name()
    }
    fn capabilities(&self) -> Capabilities {
        // As a device that is locked: the next mount may use the groups of the one before.
        Capabilities { exclusive: true, ..self.inner.capabilities() }
    }
    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        let is_node = |r: &Request| {
            matches!(&r.op, Op::Write { bufs, .. } if bufs[0].len() == NODE_SIZE)
                && r.class == IoClass::Background
        };
        if requests.iter().any(is_node) && self.nodes.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            self.meddle();
        }
        self.inner.submit(requests)
    }
}

impl Meddler {
    /// Frees blocks, durably and published, so that the checkpoint's next nodes can have them.
    fn meddle(&self) {
        let Ok(mut target) = self.target.try_lock() else { return };
        let Some((volume, ino, rnd)) = target.as_mut() else { return };
        let Some(v) = volume.upgrade() else { return };
        overwrite(&v, *ino, rnd, 16);
        v.fsync(*ino, true).unwrap();
        v.publish_durable().unwrap();
    }
}

/// Overwrites runs of eight pages, so that what comes free has room for nodes.
fn overwrite(v: &Volume, ino: Ino, rnd: &mut Rnd, times: usize) {
    for _ in 0..times {
        let at = rnd.below(PAGES - 8) * 4096;
        v.write(ino, at, &[9; 8 * 4096], IoFlags { direct: true, ..IoFlags::default() }).unwrap();
    }
}

/// On a nearly full volume, overwrites go on while a checkpoint writes its nodes: what they free is
/// used again by the same checkpoint.
#[test]
fn overwrites_in_the_middle_of_checkpoints() {
    let ram = RamDevice::new(64 << 20, 512);
    let meddler = Arc::new(Meddler { inner: ram, target: Mutex::new(None), nodes: AtomicU64::new(0) });
    let device: Arc<dyn BlockDevice> = meddler.clone();
    let page_size = PageSize::new(4096).unwrap();
    let options = FormatOptions { page_size, ..FormatOptions::default() };
    Volume::format(device.as_ref(), &options, &SystemEnv).unwrap();
    let v = mount(&device);
    let ino = v.create(Ino::ROOT, b"f", 0o644, OWNER).unwrap().ino;
    let direct = IoFlags { direct: true, ..IoFlags::default() };
    for i in 0..PAGES / 100 {
        v.write(ino, i * 409_600, &[1; 409_600], direct).unwrap();
    }
    // Little is left free, so that nodes have to take what was freed a moment ago.
    let filler = v.create(Ino::ROOT, b"filler", 0o644, OWNER).unwrap().ino;
    let mut at = 0;
    while v.write(filler, at, &[2; 65_536], direct).is_ok() {
        at += 65_536;
    }
    v.checkpoint().unwrap();
    *meddler.target.lock().unwrap() = Some((Arc::downgrade(&v), ino, Rnd::new(5)));
    let mut rnd = Rnd::new(6);
    for round in 0..12 {
        overwrite(&v, ino, &mut rnd, 40);
        v.checkpoint().unwrap();
        assert_clean(&device, &format!("round {round}"));
    }
    assert!(meddler.nodes.load(Ordering::Relaxed) > 50);
    drop(v);
    let v = mount(&device);
    assert_clean(&device, "mounted again");
    v.shutdown().unwrap();
    assert_clean(&device, "at the end");
}
