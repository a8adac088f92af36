//! One history: a run, power cuts at several of its moments, and life after them.

use std::sync::Arc;

use fs_core::api::Fallocate;
use fs_core::env::Env;

use super::check::check;
use super::coverage::Coverage;
use super::expect::Expectation;
use crate::clock::Clock;
use crate::fail_with;
use crate::model::State;
use crate::ops::{Generator, Maintenance, Op};
use crate::rng::Rng;
use crate::run::{Config, Failure, InoMap, Lockstep, Promise, Subject, Tree};

/// What a history consists of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Parameters.
    pub config: Config,
    /// The operations.
    pub ops: Vec<Op>,
    /// Number of power cuts.
    pub cuts: usize,
}

impl Plan {
    /// The plan that follows from `seed`.
    pub fn from_seed(seed: u64, len: usize, cuts: usize) -> Self {
        let config = Config::from_seed(seed);
        let ops = crate::ops::history(seed, len, config.page, config.profile);
        Self { config, ops, cuts }
    }
}

/// A history that can be stepped and then cut.
pub struct History<S: Subject> {
    config: Config,
    clock: Arc<Clock>,
    live: Lockstep<S>,
    /// What happened so far.
    pub coverage: Coverage,
}

/// Operations after a crash, before the next.
const AFTERLIFE: usize = 40;

impl<S: Subject> History<S> {
    /// Formats and mounts.
    pub fn start(config: &Config) -> Result<Self, Failure> {
        let clock = Arc::new(Clock::new(config.seed));
        let told = |what: &str, e: String| Failure::new(format!("{what}: {e}"));
        let medium = S::format(config, &clock).map_err(|e| told("format", e))?;
        let subject = S::mount(medium, config, &clock, 0).map_err(|e| told("first mount", e))?;
        let root = subject.fs().getattr(fs_core::Ino::ROOT).map_err(|e| told("root", e.to_string()))?;
        let mut state = State::empty(clock.now());
        state.adopt_root(&root);
        let live = Lockstep::new(subject, state, InoMap::default(), config, &clock);
        let mut history = Self { config: config.clone(), clock, live, coverage: Coverage::default() };
        history.fill()?;
        Ok(history)
    }

    fn fill(&mut self) -> Result<(), Failure> {
        if self.config.fill == 0 {
            return Ok(());
        }
        self.step(&Op::Create { dir: 0, name: 240, perm: 0o600 })?;
        // In pieces: one that is too large would leave room behind.
        let mut at = 0;
        for piece in [4 << 20, 256 << 10] {
            let refused = self.live.refused();
            while at < self.config.fill && self.live.refused() == refused {
                let len = piece.min(self.config.fill - at);
                self.step(&Op::Fallocate { file: 0, mode: Fallocate::KeepSize, offset: at, len })?;
                at += if self.live.refused() == refused { len } else { 0 };
            }
        }
        Ok(())
    }

    /// Runs the whole plan.
    pub fn run(plan: &Plan) -> Result<Coverage, Failure> {
        let mut history = Self::start(&plan.config)?;
        plan.ops.iter().try_for_each(|op| history.step(op))?;
        history.finish(plan.cuts)
    }

    /// One operation.
    pub fn step(&mut self, op: &Op) -> Result<(), Failure> {
        self.live.step(op)?;
        self.coverage.add("operations", 1);
        if self.live.records().len().is_multiple_of(64) {
            self.live.compare_all()?;
        }
        Ok(())
    }

    /// Compares everything, then cuts the power at `cuts` moments of the run and checks each.
    pub fn finish(mut self, cuts: usize) -> Result<Coverage, Failure> {
        self.live.compare_all()?;
        let mut rng = Rng::new(self.config.seed ^ 0x63_7574);
        for number in 0..cuts {
            let cut = self.choose_cut(&self.live, &mut rng);
            let seed = rng.next_u64();
            self.cut(&self.live, cut, seed, 0, &mut rng)
                .map(|c| self.coverage.merge(&c))
                .map_err(|f| f.within(format!("power cut {number}, at device event {cut}, seed {seed}")))?;
        }
        self.live.subject().cover(&mut self.coverage);
        self.coverage.add("histories", 1);
        self.coverage.add("operations refused for lack of space", self.live.refused());
        if rng.one_in(2) { self.killed(&mut rng) } else { self.clean_end() }
    }

    fn choose_cut(&self, live: &Lockstep<S>, rng: &mut Rng) -> u64 {
        let end = live.subject().seq();
        self.any_cut(live, end, rng).clamp(live.base(), end)
    }

    fn any_cut(&self, live: &Lockstep<S>, end: u64, rng: &mut Rng) -> u64 {
        let records = live.records();
        let interesting = live.subject().interesting_cuts();
        let checkpoints = live.subject().checkpoints();
        match rng.below(7) {
            0 if !interesting.is_empty() => (*rng.pick(&interesting) + rng.below(6)).min(end),
            1 | 6 if !checkpoints.is_empty() => {
                let within = rng.pick(&checkpoints);
                rng.between(within.start, within.end)
            }
            2 => {
                // Right after an acknowledgement: the promise was only just made.
                let acked: Vec<u64> =
                    records.iter().filter(|r| r.promise != Promise::None).map(|r| r.after).collect();
                if acked.is_empty() { rng.below(end + 1) } else { *rng.pick(&acked) }
            }
            3 => {
                let busy: Vec<_> = records.iter().filter(|r| r.after > r.before).collect();
                match busy.is_empty() {
                    true => end,
                    false => {
                        let record = rng.pick(&busy);
                        rng.between(record.before, record.after)
                    }
                }
            }
            _ => rng.between(live.base(), end),
        }
    }

    /// One power cut of `live`, recovery, check; then sometimes more life and another cut.
    fn cut(
        &self,
        live: &Lockstep<S>,
        cut: u64,
        seed: u64,
        depth: u32,
        rng: &mut Rng,
    ) -> Result<Coverage, Failure> {
        let mut coverage = Coverage::default();
        coverage.add("power cuts", 1);
        note_where(live, cut, &mut coverage);
        let expect = Expectation::at(live, cut, self.config.page);
        let mut medium = live.subject().power_cut(cut, seed);
        fsck::<S>(&medium, "before recovery")?;
        if rng.one_in(3) {
            medium = self.cut_in_recovery(medium, rng, &mut coverage)?;
        }
        let subject = self.mount(medium, rng.next_u64())?;
        let recovered = check(subject.fs(), &expect)
            .map_err(|f| f.within(format!("check ({} of {} returned)", expect.acked, expect.last())))?;
        if recovered.prefix < expect.last() {
            coverage.add("recovered to before the last operation", 1);
        }
        fsck::<S>(&subject.current(), "after recovery")?;
        subject.cover(&mut coverage);
        if depth == 0 && rng.one_in(3) {
            let mut next = Lockstep::new(subject, recovered.state, recovered.inos, &self.config, &self.clock);
            next.number_writes_from(live.last_write() + 1000);
            let again = self.live_on(next, rng).map_err(|f| f.within("life after the power cut"))?;
            coverage.merge(&again);
        } else {
            subject.shutdown().map_err(|e| Failure::new(format!("shutdown after recovery: {e}")))?;
            fsck::<S>(&subject.current(), "after recovery and a clean end")?;
        }
        Ok(coverage)
    }

    fn live_on(&self, mut live: Lockstep<S>, rng: &mut Rng) -> Result<Coverage, Failure> {
        let mut generator = Generator::new(rng.next_u64(), self.config.page, self.config.profile);
        for _ in 0..AFTERLIFE {
            live.step(&generator.op())?;
        }
        live.compare_all()?;
        let cut = self.choose_cut(&live, rng);
        let seed = rng.next_u64();
        let told = |f: Failure| f.within(format!("second power cut, at device event {cut}, seed {seed}"));
        let mut coverage = self.cut(&live, cut, seed, 1, rng).map_err(told)?;
        coverage.add("power cuts after a power cut", 1);
        Ok(coverage)
    }

    /// Mounts, and loses the power during the recovery.
    fn cut_in_recovery(
        &self,
        medium: S::Medium,
        rng: &mut Rng,
        coverage: &mut Coverage,
    ) -> Result<S::Medium, Failure> {
        let subject = self.mount(medium, rng.next_u64())?;
        coverage.add("power cuts during recovery", 1);
        let cut = rng.below(subject.seq() + 1);
        Ok(subject.power_cut(cut, rng.next_u64()))
    }

    fn mount(&self, medium: S::Medium, salt: u64) -> Result<S, Failure> {
        S::mount(medium, &self.config, &self.clock, salt)
            .map_err(|e| Failure::new(format!("mount after a power cut: {e}")))
    }

    fn clean_end(self) -> Result<Coverage, Failure> {
        if let Err(e) = self.live.subject().shutdown() {
            fail_with!("shutdown: {e}");
        }
        fsck::<S>(&self.live.subject().current(), "after a clean end")?;
        Ok(self.coverage)
    }

    /// The process is killed, perhaps with writes in flight; another one takes over the device,
    /// lives on it while the old writes land, and then the power is cut.
    fn killed(self, rng: &mut Rng) -> Result<Coverage, Failure> {
        let Self { config, clock, mut live, mut coverage } = self;
        let mut generator = Generator::new(rng.next_u64(), config.page, config.profile);
        let hangs = rng.one_in(2);
        if hangs {
            live.subject().stall_after(rng.below(40));
            coverage.add("kills with writes in flight", 1);
            run_until_stalled(&mut live, &mut generator)?;
        }
        let told = |f: Failure| f.within("take-over after a kill");
        let mut expect = Expectation::at(&live, u64::MAX, config.page);
        let writes = live.last_write();
        let exclusive = rng.one_in(2);
        let killed_at = live.subject().seq();
        let subject = live.into_subject().take_over(exclusive).map_err(|e| told(Failure::new(e)))?;
        expect.bind_new(&Tree::read(subject.fs()).map_err(told)?);
        let recovered = check(subject.fs(), &expect).map_err(told)?;
        let cut = rng.between(killed_at, subject.seq());
        let seed = rng.next_u64();
        cut_in_take_over(&subject, (&config, &clock), &expect, cut, seed).map_err(|f| {
            told(f.within(format!("power cut in the take-over, at event {cut}, seed {seed}")))
        })?;
        let mut live =
            Lockstep::new(subject, recovered.state, recovered.inos, &config, &clock).durable_from_now();
        live.number_writes_from(writes + 1000);
        for _ in 0..AFTERLIFE {
            if rng.one_in(4) {
                let landed = live.subject().land_late(rng.below(4) as usize);
                coverage.add("writes that landed after a take-over", landed as u64);
            }
            live.step(&generator.op()).map_err(told)?;
        }
        live.compare_all().map_err(told)?;
        coverage.add("kills", 1);
        let history = Self { config, clock, live, coverage };
        let cut = history.choose_cut(&history.live, rng);
        let seed = rng.next_u64();
        let more = history.cut(&history.live, cut, seed, 1, rng).map_err(|f| {
            told(f.within(format!("power cut after the take-over, at device event {cut}, seed {seed}")))
        })?;
        let mut coverage = history.coverage;
        coverage.merge(&more);
        Ok(coverage)
    }
}

/// The power is cut while another process takes over: nothing that was promised before may be lost.
fn cut_in_take_over<S: Subject>(
    subject: &S,
    (config, clock): (&Config, &Arc<Clock>),
    expect: &Expectation,
    cut: u64,
    seed: u64,
) -> Result<(), Failure> {
    let medium = subject.power_cut(cut, seed);
    fsck::<S>(&medium, "before recovery")?;
    let after = S::mount(medium, config, clock, seed).map_err(|e| Failure::new(format!("mount: {e}")))?;
    check(after.fs(), expect)?;
    fsck::<S>(&after.current(), "after recovery")
}

fn run_until_stalled<S: Subject>(live: &mut Lockstep<S>, generator: &mut Generator) -> Result<(), Failure> {
    for _ in 0..AFTERLIFE {
        let op = generator.op();
        // A remount would end the process properly.
        if op == Op::Remount {
            continue;
        }
        match live.step(&op) {
            Ok(()) => {}
            Err(f) if f.device_refusal().is_some() || live.subject().is_stalled() => return Ok(()),
            Err(f) => return Err(f.within("a process that is about to hang")),
        }
    }
    Ok(())
}

fn note_where<S: Subject>(live: &Lockstep<S>, cut: u64, coverage: &mut Coverage) {
    if live.subject().checkpoints().iter().any(|c| c.start < cut && cut < c.end) {
        coverage.add("checkpoint cut in half", 1);
    }
    let within = live.records().iter().find(|r| r.before < cut && cut < r.after);
    match within.map(|r| &r.op) {
        Some(Op::Remount) => coverage.add("cut within a clean remount", 1),
        Some(Op::Maintain(Maintenance::Grow(_))) => coverage.add("cut within a grow", 1),
        Some(_) => coverage.add("cut within another operation", 1),
        None => coverage.add("cut between operations", 1),
    }
}

fn fsck<S: Subject>(medium: &S::Medium, when: &str) -> Result<(), Failure> {
    match S::fsck(medium) {
        Ok(problems) if problems.is_empty() => Ok(()),
        Ok(problems) => fail_with!("fsck {when} finds:\n    {}", problems.join("\n    ")),
        Err(e) => fail_with!("fsck {when} cannot run: {e}"),
    }
}
