//! Timers of calls and stages.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use super::{Call, FileClass, STAGES, SlowSync, Stage, Stats};
use crate::types::Ino;

/// What this thread has spent, for the call it is working on. A call looks at the difference between its
/// beginning and its end.
struct Tally {
    /// Class of the file that the call is about.
    class: Cell<FileClass>,
    stages: [Cell<u64>; STAGES],
    /// Sum of `stages`: what an inner stage has taken is not an outer one's.
    accounted: Cell<u64>,
}

thread_local! {
    static TALLY: Tally = const {
        Tally {
            class: Cell::new(FileClass::Other),
            stages: [const { Cell::new(0) }; STAGES],
            accounted: Cell::new(0),
        }
    };
}

impl Tally {
    fn add(&self, stage: Stage, ns: u64) {
        let cell = &self.stages[stage as usize];
        cell.set(cell.get().wrapping_add(ns));
        self.accounted.set(self.accounted.get().wrapping_add(ns));
    }

    fn stages(&self) -> [u64; STAGES] {
        self.stages.each_ref().map(Cell::get)
    }
}

/// Measures a stage until it is dropped.
#[derive(Debug)]
#[must_use = "a stage ends when its timer is dropped"]
pub(crate) struct Timer<'a> {
    stats: &'a Stats,
    stage: Stage,
    class: FileClass,
    begun: u64,
    accounted: u64,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let elapsed = self.stats.env.monotonic_ns().saturating_sub(self.begun);
        let own = TALLY.with(|t| {
            let own = elapsed.saturating_sub(t.accounted.get().wrapping_sub(self.accounted));
            t.add(self.stage, own);
            own
        });
        self.stats.class(self.class).stages[self.stage as usize].record(own);
    }
}

/// Measures a call until it is dropped.
#[derive(Debug)]
#[must_use = "a call ends when its timer is dropped"]
pub(crate) struct CallTimer<'a> {
    stats: &'a Stats,
    call: Call,
    ino: Ino,
    class: FileClass,
    outer: FileClass,
    /// Of a call that makes something durable: what the thread had spent when it began.
    before: Option<[u64; STAGES]>,
    begun: u64,
}

impl Stats {
    /// A stage begins, of the call that this thread is working on.
    pub(crate) fn time(&self, stage: Stage) -> Timer<'_> {
        self.time_for(stage, TALLY.with(|t| t.class.get()))
    }

    /// A stage begins, for a file of this class.
    pub(crate) fn time_for(&self, stage: Stage, class: FileClass) -> Timer<'_> {
        let accounted = TALLY.with(|t| t.accounted.get());
        Timer { stats: self, stage, class, begun: self.env.monotonic_ns(), accounted }
    }

    /// A call begins that concerns `ino`, of this class. `durable`: it makes something durable, and is
    /// remembered if it is slow.
    pub(crate) fn call(&self, call: Call, ino: Ino, class: FileClass, durable: bool) -> CallTimer<'_> {
        let (outer, before) = TALLY.with(|t| (t.class.replace(class), durable.then(|| t.stages())));
        CallTimer { stats: self, call, ino, class, outer, before, begun: self.env.monotonic_ns() }
    }

    /// Another thread's commit has made this call's changes durable; of the wait for it, at most these
    /// nanoseconds were the writing of the journal and the flush. The rest was waiting in the queue.
    pub(crate) fn rode_along(&self, waited: u64, journal: u64, flush: u64) {
        let flush = flush.min(waited);
        let journal = journal.min(waited - flush);
        let queue = waited - flush - journal;
        let class = TALLY.with(|t| {
            t.add(Stage::Journal, journal);
            t.add(Stage::Flush, flush);
            t.add(Stage::Queue, queue);
            t.class.get()
        });
        if queue > 0 {
            self.class(class).stages[Stage::Queue as usize].record(queue);
        }
    }

    /// What this thread has spent in a stage so far, in nanoseconds: for whoever takes the difference.
    pub(crate) fn spent(&self, stage: Stage) -> u64 {
        TALLY.with(|t| t.stages[stage as usize].get())
    }

    /// Nanoseconds of a clock that only goes forward.
    pub(crate) fn now_ns(&self) -> u64 {
        self.env.monotonic_ns()
    }

    /// A call has returned bytes to its caller.
    pub(crate) fn count_read(&self, class: FileClass, bytes: usize) {
        self.class(class).bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A call has taken bytes from its caller.
    pub(crate) fn count_written(&self, class: FileClass, bytes: usize) {
        self.class(class).bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for CallTimer<'_> {
    fn drop(&mut self) {
        let now = self.stats.env.monotonic_ns();
        let total = now.saturating_sub(self.begun);
        self.stats.class(self.class).calls[self.call as usize].record(total);
        let after = TALLY.with(|t| {
            t.class.set(self.outer);
            self.before.is_some().then(|| t.stages())
        });
        if let (Some(before), Some(after)) = (self.before, after)
            && self.stats.bar.lets_in(total, now)
        {
            let stages = std::array::from_fn(|i| after[i].wrapping_sub(before[i]));
            let (ino, call, class) = (self.ino, self.call, self.class);
            self.stats.remember_slow(SlowSync { ino, call, class, ended_ns: now, total_ns: total, stages });
        }
    }
}
