//! Locks on ranges of a file's pages: shared for reading, exclusive for writing and writeback.
//!
//! Whoever holds a range exclusively knows that nobody uses the blocks it maps: they may be freed.
//! Fair enough for databases: a waiting writer keeps later readers of its range out.

use parking_lot::{Condvar, Mutex};

use crate::fs::Inode;
use crate::stats::Stage;
use crate::types::PageNr;
use crate::volume::Volume;

#[derive(Debug, Clone, Copy)]
struct Held {
    first: u64,
    last: u64,
    exclusive: bool,
    ticket: u64,
    granted: bool,
}

#[derive(Debug, Default)]
struct State {
    held: Vec<Held>,
    next_ticket: u64,
}

/// The ranges of one file.
#[derive(Debug, Default)]
pub(crate) struct RangeLock {
    state: Mutex<State>,
    changed: Condvar,
}

/// A held range; released when dropped.
#[derive(Debug)]
pub(crate) struct RangeGuard<'a> {
    lock: &'a RangeLock,
    ticket: u64,
}

impl RangeLock {
    /// Waits for pages `first..=last`. `waiting` is called if somebody is in the way; what it returns is
    /// dropped when the wait is over.
    pub(crate) fn lock<W>(
        &self,
        first: PageNr,
        last: PageNr,
        exclusive: bool,
        waiting: impl FnOnce() -> W,
    ) -> RangeGuard<'_> {
        let mut state = self.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.held.push(Held { first: first.0, last: last.0, exclusive, ticket, granted: false });
        if !state.grant(ticket) {
            let _waiting = waiting();
            while !state.grant(ticket) {
                self.changed.wait(&mut state);
            }
        }
        RangeGuard { lock: self, ticket }
    }

    /// The whole file, if nobody holds or waits for any of it.
    pub(crate) fn try_lock_all(&self) -> Option<RangeGuard<'_>> {
        let mut state = self.state.lock();
        if !state.held.is_empty() {
            return None;
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.held.push(Held { first: 0, last: u64::MAX, exclusive: true, ticket, granted: true });
        Some(RangeGuard { lock: self, ticket })
    }
}

impl Volume {
    /// Locks pages `first..=last` of a file, exclusively to change them.
    pub(crate) fn lock_pages<'a>(
        &self,
        inode: &'a Inode,
        first: PageNr,
        last: PageNr,
        exclusive: bool,
    ) -> RangeGuard<'a> {
        inode.ranges.lock(first, last, exclusive, || self.stats.time(Stage::Lock))
    }

    /// Locks a whole file, exclusively.
    pub(crate) fn lock_all_pages<'a>(&self, inode: &'a Inode) -> RangeGuard<'a> {
        self.lock_pages(inode, PageNr(0), PageNr(u64::MAX), true)
    }
}

impl State {
    /// Grants the range of `ticket` unless an earlier or granted one is in its way.
    fn grant(&mut self, ticket: u64) -> bool {
        let Some(i) = self.held.iter().position(|h| h.ticket == ticket) else { return true };
        let me = self.held[i];
        let blocked = self.held.iter().any(|h| {
            h.ticket != ticket
                && (h.granted || h.ticket < ticket)
                && (h.exclusive || me.exclusive)
                && h.first <= me.last
                && me.first <= h.last
        });
        self.held[i].granted = !blocked;
        !blocked
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.lock.state.lock();
        state.held.retain(|h| h.ticket != self.ticket);
        let waiters = state.held.iter().any(|h| !h.granted);
        drop(state);
        if waiters {
            self.lock.changed.notify_all();
        }
    }
}
