//! What the statistics say about calls, stages and files. The clock is the test's own.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockdev::{BlockDevice, Capabilities, Pending, RamDevice, Request};
use dbfs_fs_core::api::{Fallocate, FsOps, IoFlags, Owner, RenameFlags, Timestamp};
use dbfs_fs_core::env::Env;
use dbfs_fs_core::stats::{Call, FileClass, Stage};
use dbfs_fs_core::{Explanation, Extent, FormatOptions, Ino, MountOptions, Volume};

/// A clock that stands still unless the device works.
#[derive(Debug, Default)]
struct Clock(AtomicU64);

impl Env for Clock {
    fn now(&self) -> Timestamp {
        Timestamp { secs: 1_700_000_000, nanos: 0 }
    }
    fn monotonic_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
    fn random(&self) -> u64 {
        7
    }
}

const WRITE: u64 = 10_000;
const READ: u64 = 3_000;
const FLUSH: u64 = 500_000;

/// Takes time for each batch of requests.
#[derive(Debug)]
struct Slow {
    device: RamDevice,
    clock: Arc<Clock>,
}

impl BlockDevice for Slow {
    fn name(&self) -> Arc<str> {
        self.device.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }
    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        let takes = |r: &Request| match r.op {
            blockdev::Op::Read { .. } => READ,
            blockdev::Op::Flush => FLUSH,
            blockdev::Op::Write { fua: true, .. } => WRITE + FLUSH,
            _ => WRITE,
        };
        let time = requests.iter().map(takes).max().unwrap_or(0);
        self.clock.0.fetch_add(time, Ordering::SeqCst);
        self.device.submit(requests)
    }
}

struct Rig {
    volume: Arc<Volume>,
    clock: Arc<Clock>,
}

fn rig() -> Rig {
    let clock = Arc::new(Clock::default());
    let device = Slow { device: RamDevice::new(64 << 20, 512), clock: clock.clone() };
    Volume::format(&device, &FormatOptions::default(), &*clock).unwrap();
    let volume = Volume::mount(Arc::new(device), MountOptions::default(), clock.clone()).unwrap();
    Rig { volume, clock }
}

fn create(v: &Volume, name: &str) -> Ino {
    v.create(Ino::ROOT, name.as_bytes(), 0o644, Owner::new(0, 0)).unwrap().ino
}

const BUFFERED: IoFlags = IoFlags { direct: false, dsync: false, sync: false, kill_priv: false };

#[test]
fn a_sync_is_the_sum_of_its_stages() {
    let Rig { volume: v, clock } = rig();
    let ino = create(&v, "log");
    v.write(ino, 0, &[1; 300], BUFFERED).unwrap();
    let begun = clock.monotonic_ns();
    v.fsync(ino, true).unwrap();
    let took = clock.monotonic_ns() - begun;
    let stats = v.stats();
    let fsync = stats.call(Call::Fsync);
    assert_eq!((fsync.count(), fsync.sum()), (1, took));
    let slowest = v.slowest_syncs();
    let (slow, ago) = slowest[0];
    assert_eq!((slow.ino, slow.call, slow.total_ns, ago), (ino, Call::Fsync, took, 0));
    let stages: u64 = Stage::ALL.iter().map(|s| slow.stage(*s)).sum();
    assert_eq!((stages, slow.elsewhere_ns()), (took, 0));
    // A record with FUA, or a record and a flush.
    let durable = slow.stage(Stage::Journal) + slow.stage(Stage::Flush);
    assert_eq!(durable, WRITE + FLUSH);
}

#[test]
fn large_writes_show_up_as_data_and_flush() {
    let Rig { volume: v, .. } = rig();
    let ino = create(&v, "big");
    let before = v.stats();
    v.write(ino, 0, &vec![1; 256 << 10], IoFlags { direct: true, ..BUFFERED }).unwrap();
    v.fsync(ino, false).unwrap();
    let after = v.stats();
    let grown = |s| after.stage(s).sum() - before.stage(s).sum();
    assert_eq!((grown(Stage::Data), grown(Stage::Flush)), (WRITE, FLUSH));
    assert_eq!(v.slowest_syncs()[0].0.culprit(), Some(Stage::Flush));
    let other = after.class(FileClass::Other);
    assert_eq!((other.bytes_written, other.call(Call::Write).count()), (256 << 10, 1));
}

#[test]
fn reads_from_the_device_are_a_stage_and_hits_are_not() {
    let Rig { volume: v, .. } = rig();
    let ino = create(&v, "file");
    v.write(ino, 0, &vec![1; 64 << 10], IoFlags { direct: true, ..BUFFERED }).unwrap();
    let mut buf = vec![0; 64 << 10];
    for _ in 0..3 {
        v.read(ino, 0, &mut buf, BUFFERED).unwrap();
    }
    let stats = v.stats();
    assert_eq!(stats.stage(Stage::Load).count(), 1);
    let reads = stats.call(Call::Read);
    assert_eq!((reads.count(), reads.sum(), reads.max()), (3, READ, READ));
    assert_eq!(stats.class(FileClass::Other).bytes_read, 3 * (64 << 10));
}

#[test]
fn files_are_told_apart_by_how_they_are_written() {
    let Rig { volume: v, .. } = rig();
    let (log, data) = (create(&v, "a"), create(&v, "b"));
    v.write(data, 0, &vec![1; 1 << 20], BUFFERED).unwrap();
    for i in 0..10u64 {
        v.write(log, i * 512, &[2; 512], IoFlags { dsync: true, ..BUFFERED }).unwrap();
        v.write(data, i * 7 % 10 * 16384, &[3; 16384], BUFFERED).unwrap();
    }
    v.fsync(data, true).unwrap();
    v.fsync(log, true).unwrap();
    let stats = v.stats();
    assert_eq!(stats.class(FileClass::Data).call(Call::Fsync).count(), 1);
    assert_eq!(stats.class(FileClass::Log).call(Call::Fsync).count(), 1);
    let logged = stats.class(FileClass::Log).call(Call::Write).count();
    assert!((5..10).contains(&logged), "{logged}");
    assert!(stats.class(FileClass::Data).stage(Stage::Data).count() > 0);
}

#[test]
fn names_are_counted() {
    let Rig { volume: v, .. } = rig();
    let ino = create(&v, "a");
    v.rename(Ino::ROOT, b"a", Ino::ROOT, b"b", RenameFlags::default()).unwrap();
    v.open(ino).unwrap();
    v.unlink(Ino::ROOT, b"b").unwrap();
    let stats = v.stats();
    let counts = [Call::Create, Call::Rename, Call::Open, Call::Unlink].map(|c| stats.call(c).count());
    assert_eq!(counts, [1; 4]);
}

#[test]
fn the_state_of_cache_and_journal() {
    let Rig { volume: v, .. } = rig();
    let ino = create(&v, "a");
    v.write(ino, 0, &[1; 100], BUFFERED).unwrap();
    let page = v.page_size().bytes() as u64;
    let status = v.status();
    assert_eq!((status.cache.dirty, status.cache.journal_only, status.cache.resident), (page, 0, page));
    v.fsync(ino, true).unwrap();
    let synced = v.status();
    assert_eq!((synced.cache.dirty, synced.cache.journal_only), (0, page));
    assert_eq!(synced.journal.durable, synced.journal.applied);
    assert!(synced.journal.checkpoint < synced.journal.durable);
    v.checkpoint().unwrap();
    let after = v.status();
    assert_eq!(after.cache.journal_only, 0);
    assert!(after.journal.checkpoint >= synced.journal.durable);
    let stats = v.stats();
    assert_eq!((stats.checkpoints.count(), stats.checkpoint_running_ns), (1, None));
    assert!(stats.checkpoints.sum() >= 2 * FLUSH);
}

/// Threads that sync at the same time share flushes; whoever waits for another's is told so.
#[test]
fn waiting_for_somebody_elses_commit_has_its_stages() {
    let Rig { volume: v, .. } = rig();
    std::thread::scope(|s| {
        for t in 0..4u64 {
            let v = &v;
            s.spawn(move || {
                let ino = create(v, &format!("f{t}"));
                for i in 0..200 {
                    v.write(ino, i * 100, &[1; 100], BUFFERED).unwrap();
                    v.fsync(ino, true).unwrap();
                }
            });
        }
    });
    let (stats, counters) = (v.stats(), v.counters());
    assert_eq!(stats.call(Call::Fsync).count(), 800);
    // A sync whose changes are durable before it asks, by the commit of another, counts as neither.
    assert!(counters.commits > 0);
    for (slow, _) in v.slowest_syncs() {
        let stages: u64 = Stage::ALL.iter().map(|s| slow.stage(*s)).sum();
        assert!(stages <= slow.total_ns, "{slow:?}");
    }
}

fn extents(v: &Volume, ino: Ino) -> (Explanation, Vec<Extent>) {
    let mut list = Vec::new();
    let each = &mut |e: &Extent| {
        list.push(*e);
        ControlFlow::Continue(())
    };
    (v.explain(ino, each).unwrap(), list)
}

#[test]
fn a_file_is_explained() {
    let Rig { volume: v, .. } = rig();
    let ino = create(&v, "a");
    let page = v.page_size().bytes();
    let direct = IoFlags { direct: true, ..BUFFERED };
    v.write(ino, 0, &vec![1; 12 * page], direct).unwrap();
    let (all, list) = extents(&v, ino);
    assert_eq!((list.len(), all.extents, all.mapped_pages, all.cached_pages), (1, 1, 12, 0));
    assert_eq!((list[0].offset, list[0].blocks.bytes(), list[0].unwritten), (0, 12 * page, false));
    // A page in the middle moves, one is cut out, and space is reserved behind the end.
    v.write(ino, 4 * page as u64, &vec![2; page], direct).unwrap();
    v.fallocate(ino, Fallocate::PunchHole, 8 * page as u64, page as u64).unwrap();
    v.fallocate(ino, Fallocate::KeepSize, 20 * page as u64, 4 * page as u64).unwrap();
    let (all, list) = extents(&v, ino);
    let pages: Vec<(u64, u64, bool)> = list
        .iter()
        .map(|e| (e.offset / page as u64, (e.blocks.bytes() / page) as u64, e.unwritten))
        .collect();
    assert_eq!(pages, [(0, 4, false), (4, 1, false), (5, 3, false), (9, 3, false), (20, 4, true)]);
    assert_eq!((all.extents, all.size), (5, 12 * page as u64));
    assert_eq!((all.written_bytes, all.unwritten_bytes), (11 * page as u64, 4 * page as u64));
    // What is in memory.
    v.read(ino, 0, &mut vec![0; 2 * page], BUFFERED).unwrap();
    v.write(ino, 0, &[3; 10], BUFFERED).unwrap();
    v.write(ino, page as u64, &[3; 10], IoFlags { dsync: true, ..BUFFERED }).unwrap();
    let (all, _) = extents(&v, ino);
    assert_eq!((all.cached_pages, all.dirty_pages, all.journal_only_pages), (2, 1, 1));
    assert_eq!(v.explain(Ino::ROOT, &mut |_| ControlFlow::Continue(())).unwrap_err().errno(), libc::EINVAL);
    assert_eq!(v.explain(Ino(999), &mut |_| ControlFlow::Continue(())).unwrap_err().errno(), libc::ESTALE);
    let stopped = v.explain(ino, &mut |_| ControlFlow::Break(())).unwrap_err();
    assert_eq!(stopped.errno(), libc::ECANCELED);
}
