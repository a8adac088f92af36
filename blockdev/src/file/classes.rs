//! Queues by class of request, with a depth for each: what is urgent does not wait behind what is not.
//!
//! A class has requests in flight up to its own limits, and a queue for the others. So a checkpoint that writes
//! thousands of nodes, or a scan that reads far ahead, has a bounded share of the device's queue, whatever it
//! asks for, and a journal record finds room at once. The limits of the unhurried classes are in bytes, too:
//! what the device is busy with when an urgent request arrives is what that one waits for.
//!
//! No class starves: each has room of its own.

use std::collections::VecDeque;

use crate::IoClass;

/// What a class may have in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) requests: usize,
    /// One request may be in flight whatever its length.
    pub(super) bytes: u64,
}

/// All classes, the most urgent one first.
const BY_URGENCY: [IoClass; CLASSES] = [IoClass::Log, IoClass::Data, IoClass::ReadAhead, IoClass::Background];

const CLASSES: usize = 4;

/// Enough for the device to be busy, and little enough not to be felt: 4 MiB are 2 ms of a device of 2 GB/s.
pub(super) const LIMITS: [Limit; CLASSES] = [
    Limit { requests: 32, bytes: u64::MAX },
    Limit { requests: 128, bytes: u64::MAX },
    Limit { requests: 48, bytes: 8 << 20 },
    Limit { requests: 48, bytes: 4 << 20 },
];

/// Requests that all classes together may have in flight.
pub(super) fn depth(limits: &[Limit; CLASSES]) -> usize {
    limits.iter().map(|limit| limit.requests).sum()
}

fn rank(class: IoClass) -> usize {
    match class {
        IoClass::Log => 0,
        IoClass::Data => 1,
        IoClass::ReadAhead => 2,
        IoClass::Background => 3,
    }
}

/// Requests of one class.
#[derive(Debug)]
struct Queue<T> {
    waiting: VecDeque<(u64, T)>,
    requests: usize,
    bytes: u64,
}

impl<T> Queue<T> {
    fn has_room(&self, limit: Limit, bytes: u64) -> bool {
        let fits = self.bytes.checked_add(bytes).is_some_and(|sum| sum <= limit.bytes);
        self.requests < limit.requests && (fits || self.requests == 0)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Classes<T> {
    limits: [Limit; CLASSES],
    queues: [Queue<T>; CLASSES],
}

impl<T> Classes<T> {
    /// Nothing waits, nothing is in flight.
    pub(super) fn new(limits: [Limit; CLASSES]) -> Self {
        let empty = |_| Queue { waiting: VecDeque::new(), requests: 0, bytes: 0 };
        Self { limits, queues: std::array::from_fn(empty) }
    }

    /// A request of `bytes` waits for its turn.
    pub(super) fn push(&mut self, class: IoClass, bytes: u64, item: T) {
        self.queues[rank(class)].waiting.push_back((bytes, item));
    }

    /// The most urgent request whose class has room, with its class and bytes. It is in flight from now on,
    /// until [`over`](Self::over) is called with these.
    pub(super) fn next(&mut self) -> Option<(IoClass, u64, T)> {
        for class in BY_URGENCY {
            let (queue, limit) = (&mut self.queues[rank(class)], self.limits[rank(class)]);
            if let Some((bytes, _)) = queue.waiting.front()
                && queue.has_room(limit, *bytes)
                && let Some((bytes, item)) = queue.waiting.pop_front()
            {
                queue.requests += 1;
                queue.bytes = queue.bytes.saturating_add(bytes);
                return Some((class, bytes, item));
            }
        }
        None
    }

    /// A request that was in flight is over.
    pub(super) fn over(&mut self, class: IoClass, bytes: u64) {
        let queue = &mut self.queues[rank(class)];
        queue.requests = queue.requests.saturating_sub(1);
        queue.bytes = queue.bytes.saturating_sub(bytes);
    }

    /// Takes everything that waits, whether there is room or not.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.queues.iter_mut().flat_map(|queue| queue.waiting.drain(..)).map(|(_, item)| item)
    }

    /// Nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.queues.iter().all(|queue| queue.waiting.is_empty())
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.queues.iter().map(|queue| queue.waiting.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all<T>(classes: &mut Classes<T>) -> Vec<T> {
        std::iter::from_fn(|| classes.next()).map(|(_, _, item)| item).collect()
    }

    #[test]
    fn a_record_overtakes_whatever_waits() {
        let mut classes = Classes::new(LIMITS);
        (0..1000).for_each(|n| classes.push(IoClass::Background, 16 << 10, n));
        (1000..1100).for_each(|n| classes.push(IoClass::ReadAhead, 16 << 10, n));
        let background = LIMITS[3].requests;
        let first = all(&mut classes);
        assert_eq!(first[..2], [1000, 1001], "read-ahead goes first");
        assert_eq!(first.len(), LIMITS[2].requests + background);
        classes.push(IoClass::Log, 4096, 5000);
        classes.push(IoClass::Data, 4096, 4000);
        assert_eq!(all(&mut classes), [5000, 4000], "the others are full, and that is not felt");
        classes.over(IoClass::Background, 16 << 10);
        assert_eq!(all(&mut classes), [background], "in the order in which they came");
        assert_eq!(classes.waiting(), 1000 - background - 1 + 100 - LIMITS[2].requests);
        assert_eq!(classes.drain().count(), 1000 - background - 1 + 100 - LIMITS[2].requests);
        assert!(classes.is_idle());
    }

    #[test]
    fn large_requests_are_few() {
        let mut classes = Classes::new(LIMITS);
        (0..20).for_each(|n| classes.push(IoClass::Background, 1 << 20, n));
        assert_eq!(all(&mut classes), [0, 1, 2, 3]);
        classes.over(IoClass::Background, 1 << 20);
        assert_eq!(all(&mut classes), [4]);
        // Larger than the limit: alone.
        let mut classes = Classes::new(LIMITS);
        classes.push(IoClass::Background, u64::MAX, 0);
        classes.push(IoClass::Background, 1, 1);
        assert_eq!(all(&mut classes), [0]);
        classes.over(IoClass::Background, u64::MAX);
        assert_eq!(all(&mut classes), [1]);
    }

    #[test]
    fn all_of_a_class_come_to_their_turn() {
        let mut classes = Classes::new(LIMITS);
        for n in 0..500 {
            classes.push(BY_URGENCY[n % CLASSES], 1 << 20, n);
        }
        let mut seen = Vec::new();
        while let Some((class, bytes, n)) = classes.next() {
            seen.push(n);
            classes.over(class, bytes);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..500).collect::<Vec<_>>());
    }
}
