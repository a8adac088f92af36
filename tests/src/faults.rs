//! Every single I/O of a workload fails once: no panic, no lie, and the volume mounts afterwards.
//!
//! A lie is an operation that returned success and is not true after the power was cut. What a
//! failed operation leaves is free to be the state before or after it.

use std::sync::Arc;

use blockdev::sim::{Effect, Fault, Image};
use fs_core::Ino;
use fs_core::api::{FileType, FsOps, IoFlags, Owner};
use fs_core::env::Env;

use crate::clock::Clock;
use crate::crash::{Expectation, check, read_state};
use crate::fail_with;
use crate::model::State;
use crate::ops::{Op, Profile, history};
use crate::run::{Config, Failure, InoMap, Lockstep, Promise, Record, Subject, Tree};
use crate::subjects::{Engine, mount_options};

const SEED: u64 = 4711;
/// Operations before the volume that the faults meet, and on it.
const BEFORE: usize = 60;
const DURING: usize = 150;

/// A volume that lost its power in the middle of work, so that the workload starts with a recovery.
pub struct Workload {
    config: Config,
    image: Image,
    state: State,
    inos: InoMap,
    ops: Vec<Op>,
}

/// What became of one fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The workload has fewer requests than that.
    NotHit,
    /// The mount failed.
    MountFailed,
    /// An operation failed.
    OperationFailed,
    /// Nobody noticed, rightly.
    Absorbed,
}

fn told<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> Failure + '_ {
    move |e| Failure::new(format!("{what}: {e}"))
}

impl Workload {
    /// The fixed workload.
    pub fn new() -> Result<Self, Failure> {
        let config = Config { seed: SEED, page: 8192, profile: Profile::Mixed, fill: 0 };
        let mut ops = history(SEED, BEFORE + DURING, config.page, config.profile);
        ops.retain(|op| *op != Op::Remount);
        let clock = Arc::new(Clock::new(SEED));
        let medium = Engine::format(&config, &clock).map_err(told("format"))?;
        let engine = Engine::mount(medium, &config, &clock, 0).map_err(told("mount"))?;
        let mut state = State::empty(clock.now());
        state.adopt_root(&engine.fs().getattr(Ino::ROOT).map_err(told("root"))?);
        let mut live = Lockstep::new(engine, state, InoMap::default(), &config, &clock);
        ops.drain(..BEFORE.min(ops.len())).try_for_each(|op| live.step(&op))?;
        let end = live.subject().seq();
        let expect = Expectation::at(&live, end, config.page);
        let image = live.subject().power_cut(end, SEED);
        let engine = Engine::mount(image.clone(), &config, &clock, 1).map_err(told("second mount"))?;
        let found = check(engine.fs(), &expect)?;
        Ok(Self { config, image, state: found.state, inos: found.inos, ops })
    }

    fn clock(&self) -> Arc<Clock> {
        let clock = Arc::new(Clock::new(SEED));
        clock.advance(3_600_000_000_000);
        clock
    }

    /// Runs the workload with the `nth` request to the device going wrong.
    pub fn run(&self, nth: u64, effect: Effect) -> Result<Outcome, Failure> {
        let device = self.image.clone().into_sim(SEED ^ nth);
        device.inject(Fault::new(effect).after(nth));
        let clock = self.clock();
        let engine = match Engine::mount_device(device.clone(), mount_options(&self.config), &clock) {
            Ok(engine) => engine,
            Err(e) if device.pending_faults() > 0 => fail_with!("mount failed without a fault: {e}"),
            Err(_) => {
                let expect = self.expect_start();
                let image = device.image_at(u64::MAX, &blockdev::sim::CutOptions::seeded(nth));
                self.judge(image, expect, nth)?;
                return Ok(Outcome::MountFailed);
            }
        };
        let mut live = Lockstep::new(engine, self.state.clone(), self.inos.clone(), &self.config, &clock);
        let failed = match self.ops.iter().try_for_each(|op| live.step(op)) {
            Ok(()) => false,
            Err(f) if device.pending_faults() > 0 || f.device_refusal().is_none() => return Err(f),
            Err(_) => true,
        };
        let hit = device.pending_faults() == 0;
        self.aftermath(live, nth)?;
        Ok(match (hit, failed) {
            (false, _) => Outcome::NotHit,
            (true, true) => Outcome::OperationFailed,
            (true, false) => Outcome::Absorbed,
        })
    }

    fn expect_start(&self) -> Expectation {
        Expectation {
            states: vec![self.state.clone()],
            records: Vec::new(),
            acked: 0,
            inos: self.inos.clone(),
            page: self.config.page,
        }
    }

    /// Sees what users see now, syncs all that can be synced, cuts the power and judges.
    fn aftermath(&self, live: Lockstep<Engine>, nth: u64) -> Result<(), Failure> {
        let engine = live.subject();
        let mut expect = Expectation::at(&live, u64::MAX, self.config.page);
        see(engine.fs(), &mut expect)?;
        let files = files_of(expect.states.last());
        for ino in files {
            let promise = Promise::File { ino, times: true };
            note(&mut expect, engine.fs().fsync(live.inos().subject(ino), false), promise)?;
        }
        note(&mut expect, engine.fs().sync_all(), Promise::All)?;
        if nth % 2 == 1 && engine.shutdown().is_ok() {
            note(&mut expect, Ok(()), Promise::All)?;
        }
        for salt in 0..2 {
            let image = engine.power_cut(u64::MAX, nth * 2 + salt);
            self.judge(image, expect.clone(), nth)?;
        }
        self.judge(engine.current(), expect, nth)
    }

    /// The medium mounts, holds what was promised, is consistent, and can be used.
    fn judge(&self, image: Image, mut expect: Expectation, salt: u64) -> Result<(), Failure> {
        consistent(&image, "before the mount")?;
        let clock = self.clock();
        let engine =
            Engine::mount(image, &self.config, &clock, salt).map_err(told("mount after the fault"))?;
        expect.bind_new(&Tree::read(engine.fs())?);
        check(engine.fs(), &expect).map_err(|f| f.within("check after the fault"))?;
        use_it(engine.fs()).map_err(told("use after the fault"))?;
        engine.shutdown().map_err(told("shutdown after the fault"))?;
        consistent(&engine.current(), "at the end")
    }
}

fn consistent(image: &Image, when: &str) -> Result<(), Failure> {
    let problems = Engine::fsck(image).map_err(told("fsck"))?;
    if problems.is_empty() { Ok(()) } else { fail_with!("fsck {when} finds {problems:?}") }
}

fn use_it(fs: &dyn FsOps) -> fs_core::Result<()> {
    let name = b"written after the fault";
    let attr = fs.create(Ino::ROOT, name, 0o600, Owner::new(0, 0))?;
    fs.write(attr.ino, 0, &[7; 20_000], IoFlags::default())?;
    fs.fsync(attr.ino, false)?;
    fs.close(attr.ino);
    fs.unlink(Ino::ROOT, name)?;
    fs.sync_all()
}

fn files_of(state: Option<&State>) -> Vec<Ino> {
    let nodes = state.map(State::nodes).into_iter().flatten();
    nodes.filter(|(_, n)| n.kind == FileType::Regular && n.nlink > 0).map(|(i, _)| *i).collect()
}

/// Adds what one more call has promised; a refusal promises nothing.
fn note(expect: &mut Expectation, result: fs_core::Result<()>, promise: Promise) -> Result<(), Failure> {
    let promise = match result {
        Ok(()) => promise,
        Err(e) if [libc::EIO, libc::ENOSPC, libc::EROFS].contains(&e.errno()) => Promise::None,
        Err(e) => fail_with!("after the fault: {e}"),
    };
    let last = expect.states[expect.last()].clone();
    expect.states.push(last);
    expect.records.push(Record { op: Op::SyncAll, before: 0, after: 0, promise, written: None });
    expect.acked = expect.records.len();
    Ok(())
}

/// Appends the state that users see: whether the failed operation has happened is seen only here.
fn see(fs: &dyn FsOps, expect: &mut Expectation) -> Result<(), Failure> {
    let tree = Tree::read(fs).map_err(|f| f.within("walk after the fault"))?;
    expect.bind_new(&tree);
    let last = expect.last();
    let fits = |i: usize| tree.difference(&expect.states[i], |ino| expect.inos.subject(ino));
    if let (Some(text), Some(_)) = (fits(last), fits(last.saturating_sub(1))) {
        fail_with!("a failed operation left names that are neither old nor new: {text}");
    }
    let (state, mut inos) = read_state(fs, &tree, expect);
    // What has been removed since may be there again after a power cut.
    for (model, subject) in expect.inos.pairs().filter(|(model, _)| !state.nodes().contains_key(model)) {
        inos.insert(model, subject);
    }
    expect.states.push(state);
    expect.inos = inos;
    expect.records.push(Record {
        op: Op::Statfs,
        before: 0,
        after: 0,
        promise: Promise::None,
        written: None,
    });
    expect.acked = expect.records.len();
    Ok(())
}
