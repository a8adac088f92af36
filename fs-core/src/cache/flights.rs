//! Pages that are being read: threads that miss the same page share one read.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::FrameRef;
use crate::types::{Ino, PageNr};

/// The read of one page.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    outcome: Mutex<Outcome>,
    over: Condvar,
}

#[derive(Clone, Debug, Default)]
enum Outcome {
    #[default]
    Open,
    Landed(FrameRef),
    Failed,
}

impl Flight {
    /// Waits until it is over. `None`: it failed, and whoever wants the page has to try it himself.
    pub(crate) fn wait(&self) -> Option<FrameRef> {
        let mut outcome = self.outcome.lock();
        loop {
            match &*outcome {
                Outcome::Open => self.over.wait(&mut outcome),
                Outcome::Landed(frame) => return Some(frame.clone()),
                Outcome::Failed => return None,
            }
        }
    }
}

/// Who reads a page.
#[derive(Debug)]
pub(crate) enum Claim<'a> {
    /// The caller.
    Mine(Landing<'a>),
    /// Somebody else. Wait for it only when all the caller's own flights are over: then no two can wait for
    /// each other.
    Theirs(Arc<Flight>),
}

/// The duty to end a flight: dropped without a frame, it has failed.
#[derive(Debug)]
pub(crate) struct Landing<'a> {
    flights: &'a Flights,
    key: (Ino, PageNr),
    flight: Arc<Flight>,
}

impl Landing<'_> {
    /// The page is in the cache, in this frame. The caller still holds the page's range, as all have to
    /// who wait: so the frame is as good for them.
    pub(crate) fn land(self, frame: FrameRef) {
        *self.flight.outcome.lock() = Outcome::Landed(frame);
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.flights.table.lock().remove(&self.key);
        let mut outcome = self.flight.outcome.lock();
        if matches!(*outcome, Outcome::Open) {
            *outcome = Outcome::Failed;
        }
        self.flight.over.notify_all();
    }
}

/// All reads of pages into the cache.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    table: Mutex<HashMap<(Ino, PageNr), Arc<Flight>>>,
}

impl Flights {
    /// Makes the caller the one who reads the page, unless somebody does already.
    pub(crate) fn claim(&self, ino: Ino, page: PageNr) -> Claim<'_> {
        let key = (ino, page);
        let mut table = self.table.lock();
        if let Some(flight) = table.get(&key) {
            return Claim::Theirs(flight.clone());
        }
        let flight = Arc::new(Flight::default());
        table.insert(key, flight.clone());
        Claim::Mine(Landing { flights: self, key, flight })
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::Incoming;
    use super::super::index_file::ShardPlace;
    use super::super::policy::PolicyKind;
    use super::super::shard::Shard;
    use super::*;

    const PAGE: (Ino, PageNr) = (Ino(17), PageNr(3));

    fn mine(flights: &Flights) -> Landing<'_> {
        match flights.claim(PAGE.0, PAGE.1) {
            Claim::Mine(landing) => landing,
            Claim::Theirs(_) => panic!("nobody reads it"),
        }
    }

    fn theirs(flights: &Flights) -> Arc<Flight> {
        match flights.claim(PAGE.0, PAGE.1) {
            Claim::Mine(_) => panic!("somebody reads it"),
            Claim::Theirs(flight) => flight,
        }
    }

    #[test]
    fn who_waits_gets_the_frame_and_the_next_one_reads_again() {
        let flights = Flights::default();
        let landing = mine(&flights);
        let flight = theirs(&flights);
        let shard = Shard::new(PolicyKind::default(), 16, ShardPlace::new(None, 0));
        let buf = blockdev::AlignedBuf::zeroed(4096);
        let frame = shard.insert(PAGE, 1, Incoming { buf, slot: None, veiled: false });
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| flight.wait());
            landing.land(frame.clone());
            let found = waiter.join().unwrap().unwrap();
            assert!(found.is(&frame));
        });
        drop(mine(&flights));
        assert!(flights.table.lock().is_empty());
    }

    #[test]
    fn a_failed_read_wakes_those_who_wait() {
        let flights = Flights::default();
        let landing = mine(&flights);
        let flight = theirs(&flights);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| flight.wait());
            drop(landing);
            assert!(waiter.join().unwrap().is_none());
        });
        drop(mine(&flights));
    }
}
