//! Locks on ranges of a file's pages: shared for reading, exclusive for writing and writeback.
//!
//! Whoever holds a range exclusively knows that nobody uses the blocks it maps: they may be freed.
//! Fair enough for databases: a waiting writer keeps later readers of its range out.
//!
//! Several ranges can be had at once, all or none of them: who waits for one while he holds another could wait
//! for ever, behind somebody who waits for both.

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

/// A held range, or several; released when dropped.
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
        self.lock_each(&[(first, last)], exclusive, waiting)
    }

    /// As [`lock`](Self::lock), for several ranges at once.
    fn lock_each<W>(
        &self,
        ranges: &[(PageNr, PageNr)],
        exclusive: bool,
        waiting: impl FnOnce() -> W,
    ) -> RangeGuard<'_> {
        let mut state = self.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        let held = |(first, last): &(PageNr, PageNr)| Held {
            first: first.0,
            last: last.0,
            exclusive,
            ticket,
            granted: false,
        };
        state.held.extend(ranges.iter().map(held));
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

impl RangeGuard<'_> {
    /// Lets readers in: from here on it is shared.
    pub(crate) fn share(&self) {
        let mut state = self.lock.state.lock();
        state.held.iter_mut().filter(|h| h.ticket == self.ticket).for_each(|h| h.exclusive = false);
        drop(state);
        self.lock.changed.notify_all();
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

    /// Locks pages, ascending, exclusively, and none between them.
    pub(super) fn lock_each_page<'a>(&self, inode: &'a Inode, pages: &[PageNr]) -> RangeGuard<'a> {
        let mut ranges: Vec<(PageNr, PageNr)> = Vec::new();
        for page in pages {
            match ranges.last_mut() {
                Some((_, last)) if last.0 + 1 == page.0 => *last = *page,
                _ => ranges.push((*page, *page)),
            }
        }
        inode.ranges.lock_each(&ranges, true, || self.stats.time(Stage::Lock))
    }

    /// Locks a whole file, exclusively.
    pub(crate) fn lock_all_pages<'a>(&self, inode: &'a Inode) -> RangeGuard<'a> {
        self.lock_pages(inode, PageNr(0), PageNr(u64::MAX), true)
    }
}

impl State {
    /// Grants the ranges of `ticket` unless an earlier or granted one is in the way of any of them.
    fn grant(&mut self, ticket: u64) -> bool {
        let in_the_way = |me: &Held, h: &Held| {
            h.ticket != ticket
                && (h.granted || h.ticket < ticket)
                && (h.exclusive || me.exclusive)
                && h.first <= me.last
                && me.first <= h.last
        };
        let mine = || self.held.iter().filter(|h| h.ticket == ticket);
        if mine().any(|me| self.held.iter().any(|h| in_the_way(me, h))) {
            return false;
        }
        self.held.iter_mut().filter(|h| h.ticket == ticket).for_each(|h| h.granted = true);
        true
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

#[cfg(test)]
mod tests {
    use super::*;

    fn held(lock: &RangeLock, first: u64, last: u64, exclusive: bool) -> bool {
        // What would have to wait goes away again.
        let mut state = lock.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.held.push(Held { first, last, exclusive, ticket, granted: false });
        let granted = state.grant(ticket);
        state.held.retain(|h| h.ticket != ticket);
        !granted
    }

    #[test]
    fn several_ranges_are_had_at_once_or_not_at_all() {
        let lock = RangeLock::default();
        let pages = [(PageNr(2), PageNr(3)), (PageNr(7), PageNr(7))];
        let guard = lock.lock_each(&pages, true, || ());
        let taken: Vec<u64> = (0..10).filter(|p| held(&lock, *p, *p, false)).collect();
        assert_eq!(taken, [2, 3, 7]);
        assert!(held(&lock, 0, 9, true) && !held(&lock, 4, 6, true));
        guard.share();
        assert!(!held(&lock, 0, 9, false), "readers are let in");
        assert!(held(&lock, 7, 7, true), "writers are not");
        drop(guard);
        assert!(!held(&lock, 0, 9, true));
        // One of them is not free: none is granted.
        let reader = lock.lock(PageNr(7), PageNr(7), false, || ());
        let mut state = lock.state.lock();
        let waits = |first, last| Held { first, last, exclusive: true, ticket: 99, granted: false };
        state.held.extend([waits(2, 3), waits(7, 7)]);
        assert!(!state.grant(99) && state.held.iter().all(|h| h.ticket != 99 || !h.granted));
        drop(state);
        drop(reader);
        let mut state = lock.state.lock();
        assert!(state.grant(99) && state.held.iter().all(|h| h.granted));
    }

    #[test]
    fn who_waits_gets_in_when_the_range_is_shared() {
        let lock = RangeLock::default();
        let guard = lock.lock(PageNr(1), PageNr(5), true, || ());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| drop(lock.lock(PageNr(3), PageNr(3), false, || ())));
            while lock.state.lock().held.len() < 2 {
                std::thread::yield_now();
            }
            guard.share();
            reader.join().unwrap();
        });
        drop(guard);
    }
}
