//! Group commit: from applied changes to acknowledged ones.
//!
//! Whoever needs an LSN durable calls [`Volume::commit`]. One caller becomes the leader, takes all
//! batches, writes their records, flushes once, and wakes the others; what is applied meanwhile goes
//! with the next leader. The flush is submitted after every write it must cover has completed: the
//! records, and the data that flies with them; other data is written before its mapping is applied
//! (rules R4 and R7).
//!
//! A failed journal write or flush ends the epoch (rule R6): nothing is acknowledged any more, and
//! nothing is written, until the volume is mounted again. Data that fails in flight is superseded in
//! the same lead: see [`super::flight`].
//!
//! Lock order: `CommitState` before `JournalWriter`; neither is held while waiting for the device
//! except the writer by the one leader.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use blockdev::{Completion, IoClass, Pending, Request};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Volume;
use super::flight::Flight;
use super::gathering::Gathering;
use super::meta::Batch;
use crate::error::{FsError, Result};
use crate::format::record::RECORD_HEADER;
use crate::journal::JournalWriter;
use crate::mutants::{self, Mutant};
use crate::stats::{Stage, Stats};
use crate::types::Lsn;

/// Unflushed data that forces a commit, in bytes (rule R4).
const MAX_UNFLUSHED: u64 = 64 << 20;

/// Freed blocks that make a commit worth while: until one (and the next) they cannot be used again, and who replaces
/// blocks has to go further and further away. 16 MiB.
const MAX_FREED: u64 = 4096;

#[derive(Debug, Default)]
struct CommitState {
    /// Covered by a completed flush.
    durable: Lsn,
    /// Highest durable LSN that a flushed record or slot carries (rule R1).
    published: Lsn,
    /// Last durable record with changes.
    changes: Lsn,
    leader: bool,
    /// Nanoseconds that the last commit took for its records and for its flush.
    took: (u64, u64),
    /// Who is in a commit or waits for one.
    gathering: Gathering,
    /// Calls that somebody else's commit has made durable.
    riders: u64,
    failed: Option<String>,
}

/// The commit machinery of a volume.
#[derive(Debug)]
pub(crate) struct Committer {
    state: Mutex<CommitState>,
    changed: Condvar,
    /// All whom a leader waits for are there.
    gathered: Condvar,
    pub(super) journal: Mutex<JournalWriter>,
}

impl Committer {
    /// Starts behind `durable`, which the claimed root slot carries.
    pub(super) fn new(journal: JournalWriter, durable: Lsn) -> Self {
        let state = CommitState { durable, published: durable, ..CommitState::default() };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            gathered: Condvar::new(),
            journal: Mutex::new(journal),
        }
    }

    /// Everything up to here is durable.
    pub(crate) fn durable(&self) -> Lsn {
        self.state.lock().durable
    }

    /// The device holds a durable LSN up to here.
    pub(crate) fn published(&self) -> Lsn {
        self.state.lock().published
    }

    /// The last durable record with changes, if nothing on the device says that it is durable. Until
    /// then recovery counts it only as long as its data is good, and what it freed is not used again.
    pub(super) fn unpublished(&self) -> Option<Lsn> {
        let state = self.state.lock();
        (state.published < state.changes).then_some(state.changes)
    }

    /// Why the epoch ended, if it has.
    pub(crate) fn failure(&self) -> Option<String> {
        self.state.lock().failed.clone()
    }

    /// Ends the epoch (rule R6). The first reason is kept.
    pub(crate) fn fail(&self, reason: &str) {
        let mut state = self.state.lock();
        if state.failed.is_none() {
            tracing::error!(reason, "the volume stops: it stays read-only until it is mounted again");
            state.failed = Some(reason.to_owned());
        }
        self.changed.notify_all();
    }

    /// Calls that somebody else's commit has made durable.
    pub(super) fn riders(&self) -> u64 {
        self.state.lock().riders
    }

    /// Takes the leader's role, or waits until `target` is durable; true: lead.
    fn lead_or_wait(&self, target: Lsn, stats: &Stats) -> Result<bool> {
        let mut state = self.state.lock();
        if state.durable >= target && state.failed.is_none() {
            return Ok(false);
        }
        if state.gathering.join(target) {
            self.gathered.notify_one();
        }
        let outcome = self.wait_for_role(&mut state, target, stats);
        if !matches!(outcome, Ok(true)) {
            state.gathering.leave(target);
        }
        outcome
    }

    fn wait_for_role(
        &self,
        state: &mut MutexGuard<'_, CommitState>,
        target: Lsn,
        stats: &Stats,
    ) -> Result<bool> {
        let mut since = None;
        let waited = |since: Option<u64>| since.map(|since| stats.now_ns().saturating_sub(since));
        loop {
            if let Some(reason) = &state.failed {
                return Err(FsError::CommitFailed(reason.clone()));
            }
            if state.durable >= target {
                if let Some(waited) = waited(since) {
                    state.riders += 1;
                    stats.rode_along(waited, state.took.0, state.took.1);
                }
                return Ok(false);
            }
            if !state.leader {
                state.leader = true;
                self.gather(state);
                if let Some(waited) = waited(since) {
                    stats.rode_along(waited, 0, 0);
                }
                return Ok(true);
            }
            since.get_or_insert_with(|| stats.now_ns());
            self.changed.wait(state);
        }
    }

    /// Waits for those who are about to join the leader, if that is worth it.
    fn gather(&self, state: &mut MutexGuard<'_, CommitState>) {
        let took = state.took.0 + state.took.1;
        if let Some(patience) = state.gathering.patience(took) {
            let deadline = Instant::now() + patience;
            while !state.gathering.is_complete() && !self.gathered.wait_until(state, deadline).timed_out() {}
            state.gathering.waited();
        }
        state.gathering.begin();
    }

    fn finish_lead(&self, outcome: &Result<Written>) {
        let mut state = self.state.lock();
        state.leader = false;
        match outcome {
            Ok(w) => {
                state.durable = state.durable.max(w.durable);
                state.published = state.published.max(w.published);
                state.changes = state.changes.max(w.changes);
                state.took = w.took;
                state.gathering.end(w.durable);
            }
            Err(e) => {
                let _ = state.failed.get_or_insert_with(|| e.to_string());
            }
        }
        self.changed.notify_all();
    }

    /// A flushed root slot carries this durable LSN.
    pub(super) fn slot_published(&self, lsn: Lsn) {
        let mut state = self.state.lock();
        state.published = state.published.max(lsn);
    }
}

/// What a leader achieved.
struct Written {
    durable: Lsn,
    published: Lsn,
    /// Last record with changes.
    changes: Lsn,
    /// See [`CommitState::took`].
    took: (u64, u64),
}

impl Volume {
    /// Makes everything up to record `target` durable. Blocks for one journal write and flush, or
    /// for somebody else's.
    pub(crate) fn commit_to(&self, target: Lsn) -> Result<()> {
        while self.commit.lead_or_wait(target, &self.stats)? {
            self.lead(false)?;
        }
        Ok(())
    }

    /// Makes everything applied so far durable.
    pub fn commit(&self) -> Result<()> {
        self.commit_to(self.meta.applied_lsn())
    }

    /// Puts the durable LSN on the device, so that what was freed before it can be used again
    /// (rule R1). Does nothing if it is there already.
    pub fn publish_durable(&self) -> Result<()> {
        let durable = self.commit.durable();
        if self.commit.published() >= durable {
            return Ok(());
        }
        // A later record would carry it; an empty one does as well.
        let target = self.meta.applied_lsn();
        if target > durable {
            return self.commit_to(target);
        }
        self.write_record_after(durable)
    }

    /// Writes and flushes an empty record.
    pub(super) fn write_empty_record(&self) -> Result<()> {
        self.commit()?;
        self.write_record_after(self.commit.durable())
    }

    fn write_record_after(&self, durable: Lsn) -> Result<()> {
        if self.commit.lead_or_wait(durable.next(), &self.stats)? {
            self.lead(true)?;
        }
        Ok(())
    }

    fn lead(&self, force_empty: bool) -> Result<()> {
        let outcome = self.write_batches(force_empty);
        if let Err(e) = &outcome {
            self.commit.fail(&e.to_string());
        }
        self.commit.finish_lead(&outcome);
        self.ring_after_commit();
        let written = outcome.map_err(|e| FsError::CommitFailed(e.to_string()))?;
        self.publish_frees(written.published);
        Ok(())
    }

    /// Writes and flushes everything that is ready. If data fails that is in flight with its record, it goes
    /// on until the record that supersedes that one is durable, and the device says so: until then
    /// recovery would end at the one whose data is bad (rule R6).
    fn write_batches(&self, mut force_empty: bool) -> Result<Written> {
        let before = (self.stats.spent(Stage::Journal), self.stats.spent(Stage::Flush));
        let mut carried = self.commit.durable();
        let mut changes = Lsn(0);
        let mut superseding = Lsn(0);
        let mut unflushed = false;
        loop {
            self.freed.store(0, Ordering::Relaxed);
            let batches = self.meta.take_batches(force_empty);
            // Data written from here on belongs to a later batch; a flush for it now is harmless.
            unflushed |= self.unflushed.swap(0, Ordering::SeqCst) > 0;
            let (last, lost) = self.write_records(&batches, carried, unflushed)?;
            changes = batches.iter().rfind(|b| !b.changes.is_empty()).map_or(changes, |b| b.lsn);
            if !lost.is_empty() {
                (force_empty, unflushed) = (false, true);
                superseding = self.supersede(&lost)?;
                continue;
            }
            if superseding <= carried || mutants::active(Mutant::AckBeforePublish) {
                let spent = |stage, before| self.stats.spent(stage).wrapping_sub(before);
                let took = (spent(Stage::Journal, before.0), spent(Stage::Flush, before.1));
                return Ok(Written { durable: last, published: carried, changes, took });
            }
            (force_empty, unflushed, carried) = (true, false, last);
        }
    }

    /// Writes the records of batches and waits for them and for the data that flies with them; then flushes,
    /// unless data was lost, which it returns. Also returns the LSN of the last record.
    fn write_records(&self, batches: &[Batch], carried: Lsn, unflushed: bool) -> Result<(Lsn, Lost)> {
        let writing = self.stats.time(Stage::Journal);
        let mut journal = self.commit.journal.lock();
        let records = batches
            .iter()
            .map(|batch| self.place_record(&mut journal, batch, carried))
            .collect::<Result<Vec<_>>>()?;
        let last = journal.last_lsn();
        drop(journal);
        let mut flights = batches.iter().flat_map(|b| &b.flights).peekable();
        let flying = flights.peek().is_some();
        let flush = !mutants::active(Mutant::NoFlushOnCommit);
        let unflushed = unflushed && !mutants::active(Mutant::FuaOverUnflushed);
        let fua_is_cheap = self.device.capabilities().native_fua;
        let fua = fua_is_cheap && records.len() == 1 && !unflushed && flights.all(|f| f.is_fua()) && flush;
        let requests: Vec<Request> = records
            .into_iter()
            .map(|(addr, buf)| Request::write(addr.offset(), vec![buf], fua, IoClass::Log))
            .collect();
        if mutants::active(Mutant::FlushBeforeRecord) {
            self.device.flush()?;
        }
        let written = check_all(self.device.execute_all(requests));
        if mutants::active(Mutant::FlushBeforeData) {
            self.device.flush()?;
        }
        drop(writing);
        // Also if the records have failed: the pages are let go then.
        let landing = flying.then(|| self.stats.time(Stage::Data));
        let lost = land(batches);
        drop(landing);
        if !mutants::active(Mutant::IgnoreRecordFailure) {
            written?;
        }
        let early = [Mutant::FlushBeforeRecord, Mutant::FlushBeforeData].into_iter().any(mutants::active);
        if lost.is_empty() && flush && !fua && !early {
            let flushing = self.stats.time(Stage::Flush);
            let flushed = self.device.flush();
            drop(flushing);
            if !mutants::active(Mutant::IgnoreFlushFailure) {
                flushed?;
            }
        }
        self.count_commit(batches);
        Ok((last, lost))
    }

    fn place_record(
        &self,
        journal: &mut JournalWriter,
        batch: &Batch,
        durable: Lsn,
    ) -> Result<(crate::types::BlockNr, blockdev::AlignedBuf)> {
        let mut payload = Vec::with_capacity(4096);
        for change in &batch.changes {
            change.encode(&mut payload);
        }
        let carried = if mutants::active(Mutant::DurableLsnTooHigh) { batch.lsn } else { durable };
        let placed = journal
            .place(&payload, batch.changes.len() as u32, carried, batch.inodes)
            .map_err(|_| FsError::Volume("the journal is full: checkpoints do not keep up".into()))?;
        if journal.last_lsn() != batch.lsn {
            return Err(FsError::Volume(format!(
                "journal out of step: batch {} became record {}",
                batch.lsn,
                journal.last_lsn()
            )));
        }
        let bytes = placed.buf.len() as u64;
        let padding = bytes - (RECORD_HEADER + payload.len()) as u64;
        self.counters.journal_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.counters.journal_padding_bytes.fetch_add(padding, Ordering::Relaxed);
        Ok((placed.addr, placed.buf))
    }

    fn count_commit(&self, batches: &[Batch]) {
        let c = &self.counters;
        c.commits.fetch_add(1, Ordering::Relaxed);
        c.records.fetch_add(batches.len() as u64, Ordering::Relaxed);
        for batch in batches {
            if batch.distinct_files() > 1 {
                c.group_commits.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Accounts for data that was written and not flushed; flushes when there is too much of it.
    pub(crate) fn note_unflushed(&self, bytes: u64) {
        self.unflushed.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Frees have been applied that count with the next commit.
    pub(crate) fn note_freed(&self, blocks: u64) {
        self.freed.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Commits if too much data is unflushed (rule R4), or too much freed. Called with no lock held.
    pub(crate) fn bound_unflushed(&self) -> Result<()> {
        if self.freed.load(Ordering::Relaxed) >= MAX_FREED {
            return self.commit();
        }
        if self.unflushed.load(Ordering::SeqCst) < MAX_UNFLUSHED
            || mutants::active(Mutant::UnboundedUnflushed)
        {
            return Ok(());
        }
        if self.meta.applied_lsn() > self.commit.durable() {
            return self.commit();
        }
        // Only a leader may count data as flushed: another one would leave out the flush that the
        // data still needs.
        self.write_empty_record()
    }
}

/// Flights that have failed, each with the LSN of its record.
type Lost = Vec<(Lsn, Arc<Flight>)>;

/// Waits for the data that flies with the batches; returns what is lost of it.
fn land(batches: &[Batch]) -> Lost {
    if mutants::active(Mutant::AckBeforeData) {
        return Vec::new();
    }
    let flights = batches.iter().flat_map(|b| b.flights.iter().map(|flight| (b.lsn, flight)));
    flights.filter(|(_, flight)| flight.land().is_err()).map(|(lsn, flight)| (lsn, flight.clone())).collect()
}

/// Waits for all; the first error, if any, after all have completed.
pub(crate) fn wait_all(pending: Vec<Pending>) -> Result<()> {
    check_all(pending.into_iter().map(Pending::wait).collect())
}

/// The first error of completed requests, if any.
pub(crate) fn check_all(done: Vec<Completion>) -> Result<()> {
    done.into_iter().try_for_each(|completion| Ok(completion.result?))
}

impl Batch {
    /// Files whose data this batch carries, counted up to two.
    fn distinct_files(&self) -> usize {
        use crate::format::Change;
        let mut files = self.changes.iter().filter_map(|c| match c {
            Change::MapRun { ino, .. } | Change::Inline { ino, .. } => Some(*ino),
            _ => None,
        });
        let Some(first) = files.next() else { return 0 };
        if files.any(|f| f != first) { 2 } else { 1 }
    }
}
