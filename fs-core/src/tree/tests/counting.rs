//! Which reads reach the device, and how they are submitted.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use blockdev::sim::Rng;
use blockdev::{
    BlockDevice, Capabilities, Completion, DeviceError, ErrorKind, IoClass, Op, Pending, Request,
};
use parking_lot::Mutex;

use super::harness::{Harness, VOLUME, key, puts, value};
use crate::error::FsError;
use crate::tree::*;

/// Counts reads by offset and remembers the size of each submission; fails reads when told to.
#[derive(Debug)]
struct Counting {
    inner: blockdev::RamDevice,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    reads: BTreeMap<u64, usize>,
    submissions: Vec<usize>,
    classes: Vec<IoClass>,
    failing: bool,
}

impl BlockDevice for Counting {
    fn name(&self) -> Arc<str> {
        self.inner.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        let mut log = self.log.lock();
        log.submissions.push(requests.len());
        log.classes.extend(requests.iter().map(|r| r.class));
        for request in &requests {
            if let Op::Read { offset, .. } = &request.op {
                *log.reads.entry(*offset).or_default() += 1;
            }
        }
        if !log.failing {
            return self.inner.submit(requests);
        }
        requests.into_iter().map(|_| Pending::ready(failed())).collect()
    }
}

fn failed() -> Completion {
    let error = DeviceError {
        device: "counting".into(),
        op: "read",
        offset: 0,
        len: 0,
        kind: ErrorKind::Io,
        errno: libc::EIO,
    };
    Completion { bufs: Vec::new(), result: Err(error) }
}

/// A tree of 20,000 items and a cold reader of it.
fn cold() -> (Harness, Arc<Counting>, TreeReader) {
    let mut tree = Harness::new(16 << 20);
    tree.apply_and_check(&puts((0..20_000).map(|n| (n * 2, value(n, 300)))));
    let device = Arc::new(Counting { inner: tree.device.clone(), log: Mutex::default() });
    let reader = TreeReader::new(Arc::new(NodeCache::new(device.clone(), VOLUME, 16 << 20)));
    (tree, device, reader)
}

#[test]
fn applying_reads_each_old_node_once_and_ahead() {
    let (mut tree, device, reader) = cold();
    tree.reader = reader.with_class(IoClass::Background);
    let mut rng = Rng::new(30);
    let changes = puts((0..200).map(|n| (rng.below(40_000), value(n, 300))));
    let before = tree.root;
    tree.apply(&changes).unwrap();
    let log = device.log.lock();
    assert_eq!(log.reads.values().copied().max(), Some(1));
    assert!(log.reads.len() > 150);
    assert!(log.submissions.len() < 60, "{:?}", log.submissions);
    assert!(log.classes.iter().all(|class| *class == IoClass::Background));
    assert_ne!(before, tree.root);
}

#[test]
fn scanning_reads_each_node_once_and_ahead() {
    let (tree, device, reader) = cold();
    let mut items = 0;
    let mut count = |_: crate::format::Key, _: &[u8]| {
        items += 1;
        ControlFlow::Continue(())
    };
    reader.scan(&tree.root, key(0), key(1 << 40), &mut count).unwrap();
    assert_eq!(items, tree.model.len());
    let log = device.log.lock();
    assert_eq!(log.reads.values().copied().max(), Some(1));
    assert!(log.submissions.len() < log.reads.len() / 5, "{:?}", log.submissions);
}

#[test]
fn verifying_bypasses_the_cache() {
    let (tree, device, reader) = cold();
    let first = super::harness::walk(&reader, &tree.root);
    assert_eq!((reader.stats().nodes, first.bad.len()), (0, 0));
    super::harness::walk(&reader, &tree.root);
    let log = device.log.lock();
    assert!(log.reads.values().all(|reads| *reads == 2));
    assert_eq!(log.reads.len(), first.nodes.len());
}

#[test]
fn device_errors_are_passed_on_and_not_kept() {
    let (mut tree, device, reader) = cold();
    device.log.lock().failing = true;
    let is_io = |e: FsError| matches!(e, FsError::Device(e) if e.errno == libc::EIO);
    assert!(is_io(reader.get(&tree.root, &key(8)).unwrap_err()));
    assert_eq!(super::harness::walk(&reader, &tree.root).bad.len(), 1);
    tree.reader = reader.clone();
    let root = tree.root;
    assert!(is_io(tree.apply(&puts([(5, vec![5])])).unwrap_err()));
    assert_eq!(tree.root, root);
    device.log.lock().failing = false;
    assert!(reader.get(&tree.root, &key(8)).unwrap().is_some());
    tree.apply_and_check(&puts([(5, vec![5])]));
}
