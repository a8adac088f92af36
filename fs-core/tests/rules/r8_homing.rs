//! R8: bytes that live in the journal are written home once, and never over something newer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use blockdev::sim::SimDevice;
use blockdev::{BlockDevice, Capabilities, IoClass, Op, Pending, Request};
use dbfs_fs_core::api::{FsOps, SetAttr};
use dbfs_fs_core::{Ino, Volume};
use parking_lot::Mutex;

use crate::rig::*;
use crate::trace::Trace;

#[test]
fn a_direct_write_supersedes_bytes_in_the_journal() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for round in 0..6 {
        all.write(&v, "f", round * 1000, &pattern(2 * PAGE, round as u64), BUFFERED);
        all.write(&v, "f", 5 * PAGE, &pattern(100, round as u64), DSYNC);
        v.fsync(v.find("f").unwrap(), true).unwrap();
        all.write(&v, "f", PAGE, &pattern(PAGE, 50 + round as u64), DIRECT);
        all.write(&v, "f", 5 * PAGE, &pattern(2 * PAGE, 70 + round as u64), DIRECT);
        v.checkpoint().unwrap();
        all.check(&v, "after the checkpoint");
        all.sync(&v);
        all.check_device(&after_power_cut(&sim), &format!("round {round}"));
    }
    assert!(v.counters().inline_homed > 0);
}

#[test]
fn a_buffered_write_over_bytes_in_the_journal_is_written_home() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for round in 0..8 {
        all.write(&v, "f", round * 3000, &pattern(2000, round as u64), DSYNC);
        let promised = all.clone();
        all.write(&v, "f", round * 3000 + 500, &pattern(100, 90), BUFFERED);
        v.checkpoint().unwrap();
        let found = mount(&after_power_cut(&sim));
        let got = found.bytes(found.find("f").unwrap());
        for (i, byte) in got.iter().enumerate() {
            let either = [promised.0["f"][i], all.0["f"][i]];
            assert!(either.contains(byte), "byte {i} in round {round}");
        }
        all.sync(&v);
        all.check_device(&after_power_cut(&sim), "after fsync");
    }
}

/// What recovery found in the journal is as inline as it was before the crash.
#[test]
fn recovered_bytes_are_homed_or_superseded() {
    let sim = device();
    let mut all = Expected::default();
    {
        let v = mount(&sim);
        all.write(&v, "f", 0, &pattern(8 * PAGE, 1), DIRECT_DSYNC);
        for page in 0..8 {
            all.write(&v, "f", page * PAGE + 300, &pattern(700, page as u64), DSYNC);
        }
    }
    let mut device = after_power_cut(&sim);
    {
        let v = mount(&device);
        all.write(&v, "f", PAGE, &pattern(PAGE, 20), DIRECT); // all of a page
        all.write(&v, "f", 2 * PAGE + 400, &pattern(100, 21), BUFFERED); // a part
        all.write(&v, "f", 3 * PAGE + 400, &pattern(100, 22), DSYNC);
        all.write(&v, "f", 4 * PAGE + 512, &pattern(512, 23), DIRECT);
        all.write(&v, "f", 5 * PAGE, &pattern(PAGE, 24), BUFFERED);
        let mut page = vec![0; PAGE];
        v.read(v.find("f").unwrap(), 6 * PAGE as u64, &mut page, DIRECT).unwrap();
        assert_eq!(page, all.0["f"][6 * PAGE..7 * PAGE], "a direct read sees them");
        all.sync(&v);
        all.check(&v, "mounted after the crash");
    }
    device = after_power_cut(&device);
    {
        let v = mount(&device);
        all.check(&v, "after the second crash");
        v.checkpoint().unwrap();
        v.make_file("x");
        all.0.insert("x".into(), Vec::new());
        v.checkpoint().unwrap();
    }
    all.check_device(&after_power_cut(&device), "after checkpoints");
}

#[test]
fn a_checkpoint_leaves_no_bytes_behind_in_the_journal() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    for i in 0..20 {
        all.write(&v, &format!("f{i}"), i * 100, &pattern(900, i as u64), DSYNC);
    }
    assert!(v.counters().inline_pages >= 20);
    let before = sim.seq();
    v.checkpoint().unwrap();
    assert_eq!(v.counters().inline_homed, 20);
    let found = mount(&after_power_cut(&sim));
    all.check(&found, "from the tree");
    // The home-writes are of the checkpoint: their records are at or before its LSN.
    let trace = Trace::since(&sim, before);
    let (_, slot) = trace.slots().last().unwrap();
    let homes = trace.records().filter(|(_, _, changes)| !changes.is_empty());
    assert!(homes.map(|(_, h, _)| h.lsn).all(|lsn| lsn <= slot.checkpoint_lsn));
}

#[test]
fn truncated_bytes_never_come_back() {
    let sim = device();
    let v = mount(&sim);
    let mut all = Expected::default();
    let resize = |v: &Volume, all: &mut Expected, name: &str, size: usize| {
        let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
        v.setattr(v.find(name).unwrap(), &set).unwrap();
        all.0.get_mut(name).unwrap().resize(size, 0);
    };
    for (i, flags) in [BUFFERED, DIRECT, DSYNC].into_iter().enumerate() {
        let name = format!("f{i}");
        all.write(&v, &name, 0, &pattern(3 * PAGE, i as u64), flags);
        all.sync(&v);
        resize(&v, &mut all, &name, PAGE + 77);
        resize(&v, &mut all, &name, 2 * PAGE);
        all.check(&v, "after truncating and growing");
        all.sync(&v);
        all.check(&mount(&after_power_cut(&sim)), "after a power cut");
        v.checkpoint().unwrap();
        all.check(&mount(&after_power_cut(&sim)), "after a checkpoint and a power cut");
        resize(&v, &mut all, &name, 10);
        v.checkpoint().unwrap();
        resize(&v, &mut all, &name, 500);
        all.sync(&v);
        all.check_device(&after_power_cut(&sim), "in the end");
    }
}

/// A device that tells when a page of a file is being written back, and waits a while for an answer.
#[derive(Debug)]
struct Watched {
    inner: SimDevice,
    armed: AtomicBool,
    seen: Mutex<(Sender<()>, Receiver<()>)>,
}

impl BlockDevice for Watched {
    fn name(&self) -> Arc<str> {
        self.inner.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        let writeback =
            requests.iter().any(|r| r.class == IoClass::Background && matches!(r.op, Op::Write { .. }));
        if writeback && self.armed.swap(false, Ordering::SeqCst) {
            let (tell, answer) = &*self.seen.lock();
            tell.send(()).unwrap();
            // Whoever holds to the rule cannot answer: its write waits for this one. Time enough for
            // whoever does not.
            let _ = answer.recv_timeout(Duration::from_millis(500));
        }
        self.inner.submit(requests)
    }
}

/// While an older copy of a page is on its way home, a direct write of the same page waits, or wins.
#[test]
fn writeback_does_not_overtake_a_direct_write() {
    let sim = device();
    let (tell, told) = channel();
    let (answer, answered) = channel();
    let watched = Arc::new(Watched {
        inner: sim.clone(),
        armed: AtomicBool::new(false),
        seen: Mutex::new((tell, answered)),
    });
    let v = Volume::mount(watched.clone(), options(), Arc::new(TestEnv::default())).unwrap();
    let mut all = Expected::default();
    all.write(&v, "f", 0, &pattern(4 * PAGE, 1), BUFFERED);
    let ino: Ino = v.find("f").unwrap();
    let newer = pattern(PAGE, 2);
    watched.armed.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let (v, newer) = (&v, &newer);
        scope.spawn(move || {
            told.recv().unwrap();
            v.put(ino, PAGE as u64, newer, DIRECT);
            // Nobody may be waiting any more.
            let _ = answer.send(());
        });
        v.writeback_all().unwrap();
    });
    all.0.get_mut("f").unwrap()[PAGE..2 * PAGE].copy_from_slice(&newer);
    all.sync(&v);
    all.check(&v, "in memory");
    drop(v);
    all.check_device(&after_power_cut(&sim), "on the device");
}
