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
//!
//! # Readers that cannot pin
//!
//! Another process that maps these words read-only looks at them ([`Identity::look`]), copies the bytes, and
//! looks whether all is as before ([`Identity::is_still`]). So two words count what makes bytes change, and
//! never go back:
//!
//! * `version` counts closings and openings: no other page's bytes come into a slot before its frame was closed.
//! * `content` is odd while the bytes of an open frame are being changed, or must not be seen yet. It is counted
//!   up before the first byte is changed and after the last one, by the frame's write guard.
//!
//! Each is changed, then there is a release fence, then the bytes. Who reads a changed byte and has an acquire
//! fence behind that sees the word changed, too. `cache/tests/loom_shared.rs` tries the interleavings.

use std::sync::atomic::AtomicU64;

use crate::atomic::AtomicWord;
use crate::types::{Ino, PageNr};

/// Bit of the state: can be found. The other bits are the number of pins.
const OPEN: u64 = 1 << 63;

/// See the module. A model checker puts its own words in place of `W`. All zeros: closed, no pins.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Identity<W = AtomicU64> {
    /// [`OPEN`], and the number of pins.
    state: W,
    /// Counts closings and openings: odd while it is open. Never goes back.
    version: W,
    ino: W,
    page: W,
    /// Counts changes of the bytes: odd while they are not to be read. Never goes back.
    content: W,
    /// Number of the arena's slot that has the bytes, and 1; 0: they are in ordinary memory.
    slot: W,
}

/// What somebody who cannot pin a frame has seen of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    version: u64,
    content: u64,
    slot: u64,
}

impl Seen {
    /// The slot that has the bytes, if they are in the arena.
    pub(super) fn slot(&self) -> Option<u64> {
        self.slot.checked_sub(1)
    }
}

/// What there is to be seen of a frame.
#[derive(Debug)]
pub(super) enum Look {
    /// It does not have the page.
    Other,
    /// It has the page, whose bytes are just being changed.
    Busy,
    /// It has the page.
    Found(Seen),
}

impl<W: AtomicWord> Default for Identity<W> {
    fn default() -> Self {
        let zero = || W::new(0);
        Self { state: zero(), version: zero(), ino: zero(), page: zero(), content: zero(), slot: zero() }
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
        while state & OPEN != 0 {
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
        self.state.load() & !OPEN != 0
    }

    /// It can be found.
    pub(super) fn is_open(&self) -> bool {
        self.state.load() & OPEN != 0
    }

    /// The page it has or had. Certain for holders of a pin or of the shard's lock.
    pub(super) fn key(&self) -> (Ino, PageNr) {
        (Ino(self.ino.load()), PageNr(self.page.load()))
    }

    /// Gives a page to a closed frame without pins; it has one then, the caller's. The bytes are in `slot` of the
    /// arena. `veiled`: who cannot pin is not to see them before they have been changed.
    pub(super) fn open(&self, (ino, page): (Ino, PageNr), slot: Option<u32>, veiled: bool) {
        self.ino.store(ino.0);
        self.page.store(page.0);
        self.slot.store(slot.map_or(0, |slot| u64::from(slot) + 1));
        let content = self.content.load();
        if (content % 2 == 1) != veiled {
            self.content.store(content + 1);
        }
        self.version.fetch_add(1);
        self.state.store(OPEN | 1);
    }

    /// Closes the frame if it is open and nobody uses it.
    pub(super) fn close_unpinned(&self) -> bool {
        let closed = self.state.exchange(OPEN, 0).is_ok();
        if closed {
            self.version.fetch_add(1);
        }
        closed
    }

    /// Closes an open frame; whether nobody uses it.
    pub(super) fn close(&self) -> bool {
        let pins = self.state.fetch_and(!OPEN) & !OPEN;
        self.version.fetch_add(1);
        pins == 0
    }

    /// The bytes are going to change. The caller holds the lock of the frame's content, as until
    /// [`Self::end_change`].
    pub(super) fn begin_change(&self) {
        self.content.store(self.content.load() | 1);
        W::fence_release();
    }

    /// The bytes have been changed.
    pub(super) fn end_change(&self) {
        self.content.store(self.content.load() + 1);
    }

    /// What can be seen without a pin.
    pub(super) fn look(&self, (ino, page): (Ino, PageNr)) -> Look {
        let (version, content) = (self.version.load(), self.content.load());
        if version.is_multiple_of(2) || self.ino.load() != ino.0 || self.page.load() != page.0 {
            return Look::Other;
        }
        match content.is_multiple_of(2) {
            true => Look::Found(Seen { version, content, slot: self.slot.load() }),
            false => Look::Busy,
        }
    }

    /// The frame has been all the time what was seen of it, and its bytes the same: what was read of
    /// them meanwhile is the page.
    pub(super) fn is_still(&self, seen: &Seen) -> bool {
        W::fence_acquire();
        self.version.load() == seen.version && self.content.load() == seen.content
    }

    /// How often it was opened and closed.
    #[cfg(test)]
    pub(super) fn version(&self) -> u64 {
        self.version.load()
    }
}
