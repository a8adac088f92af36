//! Which page a frame has, and how many use it: taken and given back without a lock.
//!
//! A frame is *open* while it has a page that may be found, else *closed*. The state is one word:
//!
//! * Whoever looks a page up adds a pin, by compare-and-swap and only to an open frame, and then looks
//!   whether the frame still has the page it was looked up for. Pinned frames keep their page, so what holds
//!   then holds until the pin is given back.
//! * Who evicts closes a frame that has no pins, by one compare-and-swap. A page that is dropped closes its
//!   frame whatever pins it has: nobody finds it any more, and it is used again when the last one is gone.
//! * A page enters a closed frame without pins. Nobody else touches that: so it needs no exchange.
//!
//! Closing and opening are for holders of the shard's lock. `cache/tests/loom_pins.rs` tries the interleavings.

use std::sync::atomic::AtomicU64;

use crate::atomic::AtomicWord;
use crate::types::{Ino, PageNr};

/// Bit of the state: not to be found.
const CLOSED: u64 = 1 << 63;

/// See the module. A model checker puts its own words in place of `W`.
#[derive(Debug)]
pub(super) struct Identity<W = AtomicU64> {
    /// [`CLOSED`], and the number of pins.
    state: W,
    /// Counts closings and openings: odd while it is open. Never goes back.
    version: W,
    ino: W,
    page: W,
}

impl<W: AtomicWord> Default for Identity<W> {
    fn default() -> Self {
        Self { state: W::new(CLOSED), version: W::new(0), ino: W::new(0), page: W::new(0) }
    }
}

impl<W: AtomicWord> Identity<W> {
    /// Pins the frame if it has this page.
    pub(super) fn pin(&self, key: (Ino, PageNr)) -> bool {
        if !self.pin_any() {
            return false;
        }
        let same = self.key() == key;
        if !same {
            self.unpin();
        }
        same
    }

    /// Pins the frame if it has any page.
    pub(super) fn pin_any(&self) -> bool {
        let mut state = self.state.load();
        while state & CLOSED == 0 {
            match self.state.exchange(state, state + 1) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// One more pin. The caller has one.
    pub(super) fn pin_again(&self) {
        self.state.fetch_add(1);
    }

    /// Gives a pin back.
    pub(super) fn unpin(&self) {
        self.state.fetch_sub(1);
    }

    /// Somebody uses it.
    pub(super) fn is_pinned(&self) -> bool {
        self.state.load() & !CLOSED != 0
    }

    /// It can be found.
    pub(super) fn is_open(&self) -> bool {
        self.state.load() & CLOSED == 0
    }

    /// The page it has or had. Certain for holders of a pin or of the shard's lock.
    pub(super) fn key(&self) -> (Ino, PageNr) {
        (Ino(self.ino.load()), PageNr(self.page.load()))
    }

    /// Gives a page to a closed frame without pins; it has one then, the caller's.
    pub(super) fn open(&self, (ino, page): (Ino, PageNr)) {
        self.ino.store(ino.0);
        self.page.store(page.0);
        self.version.fetch_add(1);
        self.state.store(1);
    }

    /// Closes the frame if it is open and nobody uses it.
    pub(super) fn close_unpinned(&self) -> bool {
        let closed = self.state.exchange(0, CLOSED).is_ok();
        if closed {
            self.version.fetch_add(1);
        }
        closed
    }

    /// Closes an open frame; whether nobody uses it.
    pub(super) fn close(&self) -> bool {
        let pins = self.state.fetch_or(CLOSED);
        self.version.fetch_add(1);
        pins == 0
    }

    /// How often it was opened and closed.
    #[cfg(test)]
    pub(super) fn version(&self) -> u64 {
        self.version.load()
    }
}
