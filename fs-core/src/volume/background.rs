//! Work that nobody waits for: publishing, writeback by age, checkpoints.
//!
//! The host calls [`Volume::run_background`] on threads of its own. In the simulator the test calls
//! the single steps itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Volume;
use crate::alloc::Purpose;
use crate::error::Result;
use crate::types::NODE_BLOCKS;

/// A durable LSN is published at the latest after this (rule R1).
const PUBLISH_WITHIN: Duration = Duration::from_millis(20);
/// Journal bytes that it takes at most to write a page home, in the long run.
const HOMING_BYTES: usize = 256;
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
            || inline > self.options.cache_bytes / 4
    }

    /// Lets an operation that will change metadata start: makes room in the journal first. Called
    /// with no lock held.
    pub(crate) fn admit(&self) -> Result<()> {
        self.check_writable()?;
        for _ in 0..3 {
            let (waiting, memory) = self.meta.pressure();
            if waiting > 2 * self.meta.max_operation() {
                self.commit()?;
            }
            let inline = self.cache.inline_pages();
            let crowded = memory >= self.options.delta_bytes * 2
                || inline * self.page_bytes() > self.options.cache_bytes / 2;
            if !crowded && self.has_room_for_records(inline) && self.has_room_for_nodes() {
                return Ok(());
            }
            self.checkpoint_again()?;
        }
        Ok(())
    }

    /// Whether the journal has room for what is waiting, for the operations that have been let in,
    /// and for a checkpoint, which must write all inline pages home: many pages may have little in
    /// the journal each, but each takes its change of the map then.
    fn has_room_for_records(&self, inline_pages: usize) -> bool {
        let journal = self.commit.journal.lock();
        let homing = (inline_pages * HOMING_BYTES).div_ceil(self.meta.max_operation()) as u64;
        journal.free_segments() >= (journal.segment_count() / 3).max(4) + homing
    }

    /// Whether the next checkpoint will find space for its nodes with much to spare: about one for
    /// every item that changes, and the old ones stay for another checkpoint. On a full volume that
    /// makes many small checkpoints, each of which fits; a large one might not (contract C9).
    fn has_room_for_nodes(&self) -> bool {
        let nodes = self.meta.changed_items() as u64 * 5 / 4;
        nodes * u64::from(NODE_BLOCKS) * 3 <= self.space.alloc.available_blocks(Purpose::Essential)
    }
}
