//! Whether the leader of a group commit waits a little for others to join.
//!
//! Two threads that sync in turn would else never share a flush: when one's commit ends, the other leads at once,
//! with its own changes only, while the first is just about to bring its next ones. So a leader waits until as
//! many are there as took part in the last commit or came while it ran, for half the time that it took at most
//! (PostgreSQL's advice for its `commit_delay`; ext4's journal waits in a similar way). Who syncs alone never waits.
//!
//! Where those who are expected do not come in time, as they have other things to do in between, leaders stop
//! waiting, and try again now and then.

use std::time::Duration;

use crate::types::Lsn;

/// Longest wait, whatever a commit takes.
const LONGEST: Duration = Duration::from_millis(1);
/// What the mark of [`Gathering::worth`] is if all waits have been worth it.
const ALL: u32 = 256;
/// One in so many waits that are not worth it tries again.
const PROBE: u32 = 32;

/// Who is there. Kept under the lock of the committer's state.
#[derive(Debug)]
pub(super) struct Gathering {
    /// What those want durable who are in a commit or wait for one.
    inside: Vec<Lsn>,
    /// Most of them at the same time since the present commit was begun.
    most: usize,
    /// The same of the commit before.
    expected: usize,
    /// A mean of how many waits have brought those who were expected.
    worth: u32,
    /// Waits that were left out since one was tried.
    left_out: u32,
}

impl Default for Gathering {
    fn default() -> Self {
        Self { inside: Vec::new(), most: 0, expected: 1, worth: ALL, left_out: 0 }
    }
}

impl Gathering {
    /// Somebody wants `target` durable. True: all who are expected are there.
    pub(super) fn join(&mut self, target: Lsn) -> bool {
        self.inside.push(target);
        self.most = self.most.max(self.inside.len());
        self.is_complete()
    }

    /// Somebody who wanted `target` does not wait any more.
    pub(super) fn leave(&mut self, target: Lsn) {
        if let Some(at) = self.inside.iter().position(|t| *t == target) {
            self.inside.swap_remove(at);
        }
    }

    /// All who are expected are there.
    pub(super) fn is_complete(&self) -> bool {
        self.inside.len() >= self.expected
    }

    /// How long a new leader should wait for others, if at all. `took_ns`: the last commit.
    pub(super) fn patience(&mut self, took_ns: u64) -> Option<Duration> {
        if self.is_complete() {
            return None;
        }
        if self.worth < ALL / 2 {
            self.left_out += 1;
            if self.left_out < PROBE {
                return None;
            }
        }
        self.left_out = 0;
        let patience = Duration::from_nanos(took_ns / 2).min(LONGEST);
        (!patience.is_zero()).then_some(patience)
    }

    /// A leader has waited.
    pub(super) fn waited(&mut self) {
        let met = if self.is_complete() { ALL } else { 0 };
        self.worth = self.worth - self.worth / 4 + met / 4;
    }

    /// The leader begins to write.
    pub(super) fn begin(&mut self) {
        self.most = self.inside.len();
    }

    /// The leader is through: everything up to `durable` is.
    pub(super) fn end(&mut self, durable: Lsn) {
        self.expected = self.most.max(1);
        self.inside.retain(|target| *target > durable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: u64 = 100_000;

    /// A commit of `first`, and of `later` ones if they come while the leader waits; `during` come after that. How long
    /// the leader would have waited.
    fn commit(
        g: &mut Gathering,
        lsns: std::ops::Range<u64>,
        later: usize,
        during: &[u64],
    ) -> Option<Duration> {
        let all: Vec<Lsn> = lsns.map(Lsn).collect();
        let (first, rest) = all.split_at(all.len() - later);
        first.iter().for_each(|lsn| _ = g.join(*lsn));
        let patience = g.patience(TOOK);
        if patience.is_some() {
            rest.iter().for_each(|lsn| _ = g.join(*lsn));
            g.waited();
        }
        g.begin();
        during.iter().for_each(|lsn| _ = g.join(Lsn(*lsn)));
        g.end(*all.last().unwrap());
        patience
    }

    #[test]
    fn who_syncs_alone_never_waits() {
        let mut g = Gathering::default();
        assert!((1..100).all(|n| commit(&mut g, n..n + 1, 0, &[]).is_none()));
    }

    #[test]
    fn two_that_take_turns_come_together() {
        let mut g = Gathering::default();
        // The second one comes while the first commit runs, and leads the next one.
        assert_eq!(commit(&mut g, 1..2, 0, &[2]), None);
        g.leave(Lsn(2));
        assert_eq!(commit(&mut g, 2..4, 1, &[]), Some(Duration::from_nanos(TOOK / 2)));
        // From now on both are in each.
        assert_eq!(commit(&mut g, 4..6, 1, &[]), Some(Duration::from_nanos(TOOK / 2)));
        assert_eq!(commit(&mut g, 6..8, 0, &[]), None, "nobody to wait for");
        // One goes: the other waits once.
        assert!(commit(&mut g, 8..9, 0, &[]).is_some());
        assert_eq!(commit(&mut g, 9..10, 0, &[]), None);
    }

    #[test]
    fn those_who_never_come_in_time_are_not_waited_for() {
        let mut g = Gathering::default();
        let mut waits = 0;
        for n in (0..1000).step_by(2) {
            // The other one always comes when the commit has begun, and gives up: it has been made durable otherwise.
            waits += u32::from(commit(&mut g, n..n + 1, 0, &[n + 1]).is_some());
            g.leave(Lsn(n + 1));
        }
        assert!((10..30).contains(&waits), "{waits}");
    }
}
