//! Work that nobody waits for: publishing, writeback by age, checkpoints.
//!
//! The host calls [`Volume::run_background`] on threads of its own. In the simulator the test calls
//! the single steps itself.
//!
//! Each loop sleeps by a [`Bell`], which a commit rings when there is work for it. While nothing happens only the
//! committer looks once a second, so that an idle volume lets the processor sleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Volume;
use crate::error::Result;
use crate::types::Lsn;

/// A durable LSN is published at the latest after this (rule R1).
const PUBLISH_WITHIN: Duration = Duration::from_millis(20);
/// How often a volume that is used looks for work.
const BUSY: Duration = Duration::from_millis(250);
/// How often an idle one does, unless data may not become old.
const IDLE: Duration = Duration::from_secs(1);

/// What a loop sleeps by. Ringing it while nobody sleeps ends the next sleep at once.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
}

impl Bell {
    /// Wakes who sleeps. Never blocks.
    pub(super) fn ring(&self) {
        *self.rung.lock() = true;
        self.ring.notify_one();
    }

    /// Waits until it is rung, or for `timeout` if there is one.
    fn sleep(&self, timeout: Option<Duration>) {
        let mut rung = self.rung.lock();
        match timeout {
            _ if *rung => {}
            Some(timeout) => drop(self.ring.wait_for(&mut rung, timeout)),
            None => self.ring.wait(&mut rung),
        }
        *rung = false;
    }
}

/// The bells of a volume's loops.
#[derive(Debug, Default)]
pub(super) struct Bells {
    pub(super) committer: Arc<Bell>,
    checkpointer: Arc<Bell>,
}

/// Tells background loops to end.
#[derive(Debug, Default)]
pub struct StopFlag {
    set: AtomicBool,
    listening: Mutex<Vec<Arc<Bell>>>,
}

impl StopFlag {
    /// Ends the loops: they do what they are at, and no more.
    pub fn stop(&self) {
        self.set.store(true, Ordering::SeqCst);
        self.listening.lock().iter().for_each(|bell| bell.ring());
    }

    fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    /// Rings this bell when it is set.
    fn wakes(&self, bell: &Arc<Bell>) {
        self.listening.lock().push(bell.clone());
    }
}

impl Volume {
    /// Runs the volume's background work until `stop` is set. Blocks: give it a thread.
    pub fn run_background(&self, stop: &StopFlag) {
        std::thread::scope(|scope| {
            scope.spawn(|| self.run_committer(stop));
            self.run_checkpointer(stop);
        });
    }

    /// Publishes durable LSNs, writes back old dirty pages and commits old changes.
    pub fn run_committer(&self, stop: &StopFlag) {
        stop.wakes(&self.bells.committer);
        // A page that becomes dirty meanwhile is noticed before it is too old.
        let idle = (Duration::from_nanos(self.options.dirty_age_ns) / 2).clamp(BUSY, IDLE);
        let mut seen = Lsn(0);
        while !stop.is_set() {
            let waiting = self.commit.unpublished();
            if waiting.is_some() && self.commit.failure().is_none() {
                std::thread::sleep(PUBLISH_WITHIN);
            }
            // A busy volume's next record has published it by now.
            let publish = waiting.is_some_and(|lsn| self.commit.published() < lsn);
            self.report(self.background_commit(publish));
            let last = self.meta.applied_lsn();
            let used = last != seen || self.cache.dirty_pages() > 0;
            seen = last;
            self.ring_for_checkpoint();
            if self.commit.unpublished().is_none() || self.commit.failure().is_some() {
                self.bells.committer.sleep(Some(if used { BUSY } else { idle }));
            }
        }
    }

    /// Makes checkpoints when they are due.
    pub fn run_checkpointer(&self, stop: &StopFlag) {
        stop.wakes(&self.bells.checkpointer);
        while !stop.is_set() {
            // Whoever commits looks whether one is due.
            self.bells.checkpointer.sleep(None);
            if !stop.is_set() && self.checkpoint_due() {
                self.report(self.checkpoint());
            }
        }
    }

    fn ring_for_checkpoint(&self) {
        if self.checkpoint_due() {
            self.bells.checkpointer.ring();
        }
    }

    /// A commit has ended: rings for what is to be done then.
    pub(super) fn ring_after_commit(&self) {
        if self.commit.unpublished().is_some() {
            self.bells.committer.ring();
        }
        self.ring_for_checkpoint();
    }

    fn report(&self, outcome: Result<()>) {
        if let Err(e) = outcome
            && self.commit.failure().is_none()
        {
            tracing::warn!(error = %e, volume = %self.device.name(), "background work failed; it will be tried again");
        }
    }

    fn background_commit(&self, publish: bool) -> Result<()> {
        if self.commit.failure().is_some() || self.read_only {
            return Ok(());
        }
        self.writeback_old()?;
        if self.meta.applied_lsn() > self.commit.durable() {
            self.commit()?;
        }
        if publish {
            self.publish_durable()?;
        }
        self.reserve_ahead()
    }

    /// A quarter of the journal has been written since the last checkpoint, or the changes take too
    /// much memory.
    pub fn checkpoint_due(&self) -> bool {
        if self.commit.failure().is_some() || self.read_only {
            return false;
        }
        let last = self.commit.journal.lock().segments_since_root();
        let (used, total) = last;
        let inline = self.cache.inline_pages() * self.page_bytes();
        used * 4 >= total
            || self.meta.pressure().1 > self.options.delta_bytes
            || inline > self.cache.capacity() / 4
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_bell_that_was_rung_ends_the_next_sleep_only() {
        let bell = Bell::default();
        bell.ring();
        bell.sleep(None);
        let before = Instant::now();
        bell.sleep(Some(Duration::from_millis(5)));
        assert!(before.elapsed() >= Duration::from_millis(5), "it was rung once");
    }

    #[test]
    fn stopping_wakes_the_sleepers() {
        let (stop, bells) = (StopFlag::default(), Bells::default());
        let all = [&bells.committer, &bells.checkpointer];
        all.iter().for_each(|bell| stop.wakes(bell));
        std::thread::scope(|scope| {
            for bell in all {
                scope.spawn(|| {
                    while !stop.is_set() {
                        bell.sleep(None);
                    }
                });
            }
            stop.stop();
        });
    }
}
