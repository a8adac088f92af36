//! The slowest recent syncs: few of them, each with where its time went.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Call, FileClass, STAGES, Stage, Stats};
use crate::types::Ino;

/// How many are remembered.
const REMEMBERED: usize = 32;
/// For how long, in nanoseconds: ten minutes.
const RECENT: u64 = 600 * 1_000_000_000;

/// A call that made something durable, and took long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowSync {
    /// The file.
    pub ino: Ino,
    /// fsync, or a synchronous write.
    pub call: Call,
    /// What the file was taken for.
    pub class: FileClass,
    /// When it ended (monotonic ns).
    pub(crate) ended_ns: u64,
    /// How long it took, in nanoseconds.
    pub total_ns: u64,
    pub(crate) stages: [u64; STAGES],
}

impl SlowSync {
    /// Nanoseconds spent in a stage.
    pub fn stage(&self, stage: Stage) -> u64 {
        self.stages[stage as usize]
    }

    /// Nanoseconds spent in no stage: computing, or waiting for a processor.
    pub fn elsewhere_ns(&self) -> u64 {
        self.total_ns.saturating_sub(self.stages.iter().sum())
    }

    /// The stage that took most of the time; `None`: none took as much as was spent in no stage.
    pub fn culprit(&self) -> Option<Stage> {
        let stage = Stage::ALL.into_iter().max_by_key(|s| self.stage(*s))?;
        (self.stage(stage) > self.elsewhere_ns()).then_some(stage)
    }
}

/// Keeps those out that are not among the slowest, without a lock.
#[derive(Debug, Default)]
pub(super) struct Bar {
    /// What a sync has to exceed.
    ns: AtomicU64,
    /// When one of those that set the bar is no longer recent.
    until: AtomicU64,
}

impl Bar {
    pub(super) fn lets_in(&self, total: u64, now: u64) -> bool {
        total > self.ns.load(Ordering::Relaxed) || now >= self.until.load(Ordering::Relaxed)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct SlowRing {
    syncs: [Option<SlowSync>; REMEMBERED],
}

impl Default for SlowRing {
    fn default() -> Self {
        Self { syncs: [None; REMEMBERED] }
    }
}

fn is_recent(sync: &SlowSync, now: u64) -> bool {
    now.saturating_sub(sync.ended_ns) < RECENT
}

impl SlowRing {
    /// Takes the place of one that is not recent, or of the fastest. Returns what the next one has to
    /// exceed, and until when.
    fn add(&mut self, sync: SlowSync) -> (u64, u64) {
        let now = sync.ended_ns;
        for old in &mut self.syncs {
            *old = old.filter(|s| is_recent(s, now));
        }
        let fastest = self.syncs.iter_mut().min_by_key(|s| s.map_or(0, |s| s.total_ns));
        if let Some(place) = fastest
            && place.is_none_or(|s| s.total_ns < sync.total_ns)
        {
            *place = Some(sync);
        }
        let bar = self.syncs.iter().map(|s| s.map_or(0, |s| s.total_ns)).min().unwrap_or(0);
        let until = self.syncs.iter().flatten().map(|s| s.ended_ns.saturating_add(RECENT)).min();
        (bar, until.unwrap_or(0))
    }
}

impl Stats {
    pub(super) fn remember_slow(&self, sync: SlowSync) {
        let (bar, until) = self.slow.lock().add(sync);
        self.bar.ns.store(bar, Ordering::Relaxed);
        self.bar.until.store(until, Ordering::Relaxed);
    }

    /// The slowest of the last ten minutes, the slowest first, each with how many nanoseconds ago it
    /// ended.
    pub(crate) fn slowest(&self) -> Vec<(SlowSync, u64)> {
        let now = self.now_ns();
        let syncs = self.slow.lock().syncs;
        let mut list: Vec<SlowSync> = syncs.into_iter().flatten().filter(|s| is_recent(s, now)).collect();
        list.sort_by_key(|s| std::cmp::Reverse(s.total_ns));
        list.into_iter().map(|s| (s, now.saturating_sub(s.ended_ns))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sync(total_ns: u64, ended_ns: u64) -> SlowSync {
        let (call, class) = (Call::Fsync, FileClass::Log);
        SlowSync { ino: Ino(total_ns), call, class, ended_ns, total_ns, stages: [0; STAGES] }
    }

    fn kept(ring: &SlowRing) -> Vec<u64> {
        let mut all: Vec<u64> = ring.syncs.iter().flatten().map(|s| s.total_ns).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn the_slowest_stay() {
        let mut ring = SlowRing::default();
        let mut bar = 0;
        for i in 0..1000u64 {
            bar = ring.add(sync(1 + i * 7919 % 1000, i)).0;
        }
        assert_eq!(kept(&ring), (969..=1000).collect::<Vec<_>>());
        assert_eq!(bar, 969);
    }

    #[test]
    fn the_old_make_way() {
        let mut ring = SlowRing::default();
        for i in 0..REMEMBERED as u64 {
            ring.add(sync(1_000_000 + i, 1));
        }
        let (bar, until) = ring.add(sync(5, 2));
        assert_eq!((bar, until), (1_000_000, RECENT + 1));
        let (bar, _) = ring.add(sync(5, until));
        assert_eq!((kept(&ring), bar), (vec![5], 0));
    }

    #[test]
    fn the_stage_that_took_most_is_named() {
        let mut s = sync(100, 1);
        s.stages[Stage::Flush as usize] = 60;
        s.stages[Stage::Queue as usize] = 30;
        assert_eq!((s.culprit(), s.elsewhere_ns()), (Some(Stage::Flush), 10));
        s.total_ns = 200;
        assert_eq!(s.culprit(), None);
    }
}
