//! A device that holds data in flight, and what may happen meanwhile.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use blockdev::sim::{Effect, Fault, OpKind, SimDevice};
use blockdev::{BlockDevice, Capabilities, Completion, DeviceError, IoClass, Op, Pending, Request};
use dbfs_fs_core::api::{Fallocate, FsOps, SetAttr};
use dbfs_fs_core::{Ino, MountOptions, Volume};

use crate::rig::*;

/// A simulated device on which data stays in flight until it is told to land.
#[derive(Clone, Debug)]
pub struct Airspace {
    pub sim: SimDevice,
    state: Arc<(Mutex<Air>, Condvar)>,
}

#[derive(Debug, Default)]
struct Air {
    closed: bool,
    /// Data writes submitted since it was closed.
    flying: usize,
    /// The one of them that fails.
    unlucky: Option<usize>,
}

impl Airspace {
    /// One with a new volume.
    pub fn new(options: MountOptions) -> (Self, Arc<Volume>) {
        let sim = device();
        let air = Self { sim, state: Arc::default() };
        let v = Volume::mount(Arc::new(air.clone()), options, Arc::new(TestEnv::default())).unwrap();
        (air, v)
    }

    fn air(&self) -> MutexGuard<'_, Air> {
        self.state.0.lock().unwrap()
    }

    /// From now on data does not land; the write of this number fails when it does.
    pub fn close(&self, unlucky: Option<usize>) {
        *self.air() = Air { closed: true, flying: 0, unlucky };
    }

    /// What is in flight lands.
    pub fn open(&self) {
        self.air().closed = false;
        self.state.1.notify_all();
    }

    /// Waits until so many data writes are in flight.
    pub fn await_flying(&self, n: usize) {
        drop(self.state.1.wait_while(self.air(), |air| air.flying < n).unwrap());
    }

    /// Waits for leave to land, and does it.
    fn land(&self, number: usize, request: Request) -> Completion {
        let air = self.state.1.wait_while(self.air(), |air| air.closed).unwrap();
        if let Op::Write { offset, bufs, .. } = &request.op
            && air.unlucky == Some(number)
        {
            let len: usize = bufs.iter().map(|b| b.len()).sum();
            let range = *offset..*offset + len as u64;
            self.sim.inject(Fault::new(Effect::eio()).on(OpKind::Write).within(range));
        }
        drop(air);
        self.sim.execute(request)
    }
}

impl BlockDevice for Airspace {
    fn name(&self) -> Arc<str> {
        self.sim.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.sim.capabilities()
    }

    fn refresh_size(&self) -> Result<Capabilities, DeviceError> {
        self.sim.refresh_size()
    }

    /// Reads of what is in flight give what was there before: the writes are done when they land.
    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        let submit = |request: Request| {
            let held = request.class == IoClass::Data && matches!(request.op, Op::Write { .. });
            let mut air = self.air();
            if !held || !air.closed {
                drop(air);
                return self.sim.submit(vec![request]).pop().unwrap();
            }
            let (this, number) = (self.clone(), air.flying);
            air.flying += 1;
            self.state.1.notify_all();
            Pending::driven(move || this.land(number, request))
        };
        requests.into_iter().map(submit).collect()
    }
}

/// What somebody does while page 1 of `f` is in flight, and what it does to the expectation.
pub type Meanwhile = (&'static str, fn(&Volume, Ino), fn(&mut Vec<u8>));

fn truncate(v: &Volume, ino: Ino, size: u64) {
    v.setattr(ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
}

pub const MEANWHILE: &[Meanwhile] = &[
    ("reads", |v, ino| assert_eq!(v.bytes(ino).len(), 4 * PAGE), |_| {}),
    (
        "reads directly",
        |v, ino| assert_eq!(v.read(ino, PAGE as u64, &mut [0; PAGE], DIRECT).unwrap(), PAGE),
        |_| {},
    ),
    (
        "overwrites",
        |v, ino| v.put(ino, PAGE as u64, &pattern(PAGE, 8), DIRECT_DSYNC),
        |f| f[PAGE..2 * PAGE].copy_from_slice(&pattern(PAGE, 8)),
    ),
    (
        "overwrites a part",
        |v, ino| v.put(ino, PAGE as u64 + 50, &[7; 100], DSYNC),
        |f| f[PAGE + 50..PAGE + 150].fill(7),
    ),
    (
        "overwrites in the cache",
        |v, ino| v.put(ino, PAGE as u64 - 50, &[7; 100], BUFFERED),
        |f| f[PAGE - 50..PAGE + 50].fill(7),
    ),
    ("truncates", |v, ino| truncate(v, ino, PAGE as u64 + 10), |f| f.truncate(PAGE + 10)),
    (
        "punches",
        |v, ino| v.fallocate(ino, Fallocate::PunchHole, 0, 2 * PAGE as u64).unwrap(),
        |f| f[..2 * PAGE].fill(0),
    ),
    (
        "zeroes",
        |v, ino| v.fallocate(ino, Fallocate::ZeroRange, PAGE as u64, PAGE as u64).unwrap(),
        |f| f[PAGE..2 * PAGE].fill(0),
    ),
    ("makes a checkpoint", |v, _| v.checkpoint().unwrap(), |_| {}),
    (
        "makes a checkpoint and commits",
        |v, _| {
            v.make_file("late");
            v.checkpoint().unwrap();
            v.sync_all().unwrap();
        },
        |_| {},
    ),
    (
        "scrubs",
        |v, _| {
            let mut found = Vec::new();
            v.scrub(&mut |_| std::ops::ControlFlow::Continue(()), &mut |f| found.push(f)).unwrap();
            assert_eq!(found, []);
        },
        |_| {},
    ),
    ("unlinks", |v, _| v.unlink(Ino::ROOT, b"f").unwrap(), |f| f.clear()),
];
