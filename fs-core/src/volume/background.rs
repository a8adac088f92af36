//! Work that nobody waits for: publishing, writeback by age, checkpoints.
//!
//! The host calls [`Volume::run_background`] on threads of its own. In the simulator the test calls
//! the single steps itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Volume;
use crate::error::Result;

/// A durable LSN is published at the latest after this (rule R1).
const PUBLISH_WITHIN: Duration = Duration::from_millis(20);
/// How often an idle volume looks for work.
const IDLE: Duration = Duration::from_millis(250);

/// Tells background loops to end.
#[derive(Debug, Default)]
pub struct StopFlag(AtomicBool);

impl StopFlag {
    /// Ends the loops; they notice within a quarter of a second.
    pub fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
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
        while !stop.is_set() {
            self.commit.wait_unpublished(IDLE);
            let waiting = self.commit.unpublished();
            if waiting.is_some() || self.commit.failure().is_some() {
                std::thread::sleep(PUBLISH_WITHIN);
            }
            // A busy volume's next record has published it by now.
            let publish = waiting.is_some_and(|lsn| self.commit.published() < lsn);
            self.report(self.background_commit(publish));
        }
    }

    /// Makes checkpoints when they are due.
    pub fn run_checkpointer(&self, stop: &StopFlag) {
        while !stop.is_set() {
            std::thread::sleep(IDLE);
            if self.checkpoint_due() {
                self.report(self.checkpoint());
            }
        }
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
