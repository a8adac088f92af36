//! Frames: where cached pages are. They are made once, never move, and are used again for other pages.

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::OnceLock;

use blockdev::AlignedBuf;
use parking_lot::RwLock;

use super::identity::Identity;
use super::policy::{FrameNr, TouchCount};
use crate::alloc::Hold;
use crate::types::{BlockRun, Ino, PageNr};

/// Content and state of a frame.
#[derive(Debug)]
pub(crate) struct FrameData {
    /// The page; bytes beyond the end of the file are zero.
    pub(crate) buf: AlignedBuf,
    /// Bytes (from, to) that have not reached the device in any form.
    pub(crate) dirty: Option<(usize, usize)>,
    /// Bytes of the page are in the journal only. Set by [`super::PageCache::set_inline`].
    pub(crate) inline: bool,
    /// When it became dirty (monotonic ns).
    pub(crate) since_ns: u64,
    /// New blocks for the page, taken when it became dirty or inline (contract C9). Owned by the frame:
    /// see [`crate::volume::Volume::settle_frame`].
    pub(crate) place: Option<BlockRun>,
    /// Blocks that the page is known to have, in the file or as its place, while it is dirty or inline.
    pub(crate) covered: u32,
    /// Space for the blocks that an inline page without a place will need.
    pub(crate) hold: Option<Hold>,
}

impl FrameData {
    /// A clean page.
    fn clean(buf: AlignedBuf) -> Self {
        Self { buf, dirty: None, inline: false, since_ns: 0, place: None, covered: 0, hold: None }
    }
}

/// A frame. In a cache line of its own: pins of one do not disturb the others.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Frame {
    pub(super) identity: Identity,
    /// How often its page was found.
    pub(super) touches: TouchCount,
    /// The content of its page.
    pub(crate) data: RwLock<FrameData>,
}

impl Default for Frame {
    fn default() -> Self {
        let data = RwLock::new(FrameData::clean(AlignedBuf::zeroed(0)));
        Self { identity: Identity::default(), touches: TouchCount::default(), data }
    }
}

impl Frame {
    /// Gives a page to a frame that nobody uses, and pins it. The caller holds the shard's lock.
    pub(super) fn fill(&self, key: (Ino, PageNr), buf: AlignedBuf) -> FrameRef {
        *self.data.write() = FrameData::clean(buf);
        self.identity.open(key);
        FrameRef(NonNull::from(self))
    }

    /// Gives back what belonged to its page. It is closed and has no pins; the caller holds the shard's lock.
    pub(super) fn vacate(&self) {
        *self.data.write() = FrameData::clean(AlignedBuf::zeroed(0));
    }

    /// All of its page is on the device, in its place.
    pub(super) fn is_at_home(&self) -> bool {
        let data = self.data.read();
        data.dirty.is_none() && !data.inline && data.place.is_none()
    }

    /// Pins it if it has this page.
    pub(super) fn pin(&self, key: (Ino, PageNr)) -> Option<FrameRef> {
        self.identity.pin(key).then(|| FrameRef(NonNull::from(self)))
    }
}

/// A pinned frame: it keeps its page until this is dropped. Cloning and dropping take no lock.
pub(crate) struct FrameRef(NonNull<Frame>);

// SAFETY: a FrameRef gives only &Frame, and Frame is Sync; dropping it changes an atomic.
unsafe impl Send for FrameRef {}
// SAFETY: as for Send.
unsafe impl Sync for FrameRef {}

impl Deref for FrameRef {
    type Target = Frame;

    fn deref(&self) -> &Frame {
        // SAFETY: made from a frame of a `FrameTable`, which never moves its frames, and which does not free
        // any that are pinned, as this one is.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for FrameRef {
    fn clone(&self) -> Self {
        self.identity.pin_again();
        Self(self.0)
    }
}

impl Drop for FrameRef {
    fn drop(&mut self) {
        self.identity.unpin();
    }
}

impl fmt::Debug for FrameRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Frames of the smallest part of a table.
const LEAST: u64 = 16;
/// Each part is twice as large as the one before: enough for all numbers.
const PARTS: usize = 29;

/// All frames of a shard, by number. Only grows; read without a lock.
#[derive(Debug)]
pub(super) struct FrameTable {
    parts: [OnceLock<Box<[Frame]>>; PARTS],
}

impl FrameTable {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self { parts: std::array::from_fn(|_| OnceLock::new()) }
    }

    fn locate(nr: FrameNr) -> (usize, usize) {
        let nth = u64::from(nr.0) + LEAST;
        let part = (nth / LEAST).ilog2();
        (part as usize, (nth - (LEAST << part)) as usize)
    }

    /// The frame, if there is one of that number.
    pub(super) fn get(&self, nr: FrameNr) -> Option<&Frame> {
        let (part, at) = Self::locate(nr);
        self.parts[part].get()?.get(at)
    }

    /// The frame, made if it is the first time that it is asked for.
    pub(super) fn entry(&self, nr: FrameNr) -> &Frame {
        let (part, at) = Self::locate(nr);
        let make = || std::iter::repeat_with(Frame::default).take((LEAST as usize) << part).collect();
        &self.parts[part].get_or_init(make)[at]
    }
}

impl Drop for FrameTable {
    fn drop(&mut self) {
        for part in &mut self.parts {
            // Somebody holds a frame for longer than there is a cache: rather leak the memory than pull it
            // away. (The inodes go before the cache does.)
            if let Some(frames) = part.take()
                && frames.iter().any(|frame| frame.identity.is_pinned())
            {
                std::mem::forget(frames);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_distinct_and_stay_in_place() {
        let table = FrameTable::new();
        assert!(table.get(FrameNr(0)).is_none());
        let numbers = [0, 1, 15, 16, 17, 47, 48, 1000, 1 << 16];
        let key = |nr: u32| (Ino(u64::from(nr) + 1), PageNr(7));
        let pins: Vec<FrameRef> = numbers
            .iter()
            .map(|nr| table.entry(FrameNr(*nr)).fill(key(*nr), AlignedBuf::zeroed(0)))
            .collect();
        for (nr, pin) in numbers.iter().zip(&pins) {
            let frame = table.get(FrameNr(*nr)).unwrap();
            assert!(std::ptr::eq(frame, &**pin));
            assert_eq!(frame.identity.key(), key(*nr));
        }
        assert_eq!(FrameTable::locate(FrameNr(u32::MAX)).0, PARTS - 1);
    }

    #[test]
    fn a_pinned_frame_outlives_its_table() {
        let table = FrameTable::new();
        let pin = table.entry(FrameNr(3)).fill((Ino(5), PageNr(6)), AlignedBuf::from_slice(b"page"));
        drop(table);
        assert_eq!(&pin.data.read().buf[..], b"page");
    }
}
