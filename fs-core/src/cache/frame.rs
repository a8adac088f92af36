//! Frames: where cached pages are. They are made once, never move, and are used again for other pages.
//!
//! A frame has two halves with the same number: a [`Record`], which other processes may read, and a [`Frame`], with
//! what is only this process's business.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use blockdev::AlignedBuf;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::identity::Identity;
use super::index_file::{Region, ShardPlace};
use super::layout::{Key, PARTS, Record, locate, part_len};
use super::policy::{FrameNr, TouchCount};
use crate::alloc::Hold;
use crate::types::BlockRun;
use crate::volume::Flight;

/// Content and state of a frame.
#[derive(Debug)]
#[repr(C)] // so that the page's address is next to the lock
pub(crate) struct FrameData {
    /// The page; bytes beyond the end of the file are zero. Changed through [`FrameWrite::bytes_mut`] only.
    buf: AlignedBuf,
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
    /// The sync that has its dirty bytes in flight. Its record has been applied.
    pub(crate) sync: Option<Arc<Flight>>,
}

impl FrameData {
    /// A clean page.
    fn clean(buf: AlignedBuf) -> Self {
        Self { buf, dirty: None, inline: false, since_ns: 0, place: None, covered: 0, hold: None, sync: None }
    }

    /// The page.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf
    }
}

/// A frame's half that nobody else sees.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Frame {
    data: RwLock<FrameData>,
}

impl Default for Frame {
    fn default() -> Self {
        Self { data: RwLock::new(FrameData::clean(AlignedBuf::zeroed(0))) }
    }
}

/// A page that comes into a frame.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) buf: AlignedBuf,
    /// The slot of the arena that the buffer is.
    pub(super) slot: Option<u32>,
    /// Its bytes are not the page's yet, as it is about to be overwritten: no other process may find them before.
    pub(super) veiled: bool,
}

/// Both halves of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameAt<'a> {
    pub(super) record: &'a Record,
    frame: &'a Frame,
}

impl FrameAt<'_> {
    fn pinned(self) -> FrameRef {
        FrameRef { record: NonNull::from(self.record), frame: NonNull::from(self.frame) }
    }

    /// Gives a page to a frame that nobody uses, and pins it. The caller holds the shard's lock.
    pub(super) fn fill(self, key: Key, page: Incoming) -> FrameRef {
        *self.frame.data.write() = FrameData::clean(page.buf);
        self.record.identity.open(key, page.slot, page.veiled);
        self.pinned()
    }

    /// Gives back what belonged to its page. It is closed and has no pins; the caller holds the shard's lock.
    pub(super) fn vacate(self) {
        *self.frame.data.write() = FrameData::clean(AlignedBuf::zeroed(0));
    }

    /// All of its page is on the device, in its place.
    pub(super) fn is_at_home(self) -> bool {
        let data = self.frame.data.read();
        data.dirty.is_none() && !data.inline && data.place.is_none()
    }

    /// Pins it if it has this page.
    pub(super) fn pin(self, key: Key) -> Option<FrameRef> {
        self.record.identity.pin(key).then(|| self.pinned())
    }
}

/// A pinned frame: it keeps its page until this is dropped. Cloning and dropping take no lock.
pub(crate) struct FrameRef {
    record: NonNull<Record>,
    frame: NonNull<Frame>,
}

// SAFETY: a FrameRef gives only shared references, and Record and Frame are Sync; dropping it changes an atomic.
unsafe impl Send for FrameRef {}
// SAFETY: as for Send.
unsafe impl Sync for FrameRef {}

impl FrameRef {
    fn record(&self) -> &Record {
        // SAFETY: made from a frame of a `FrameTable`, which never moves its frames, and which does not free
        // any that are pinned, as this one is.
        unsafe { self.record.as_ref() }
    }

    fn identity(&self) -> &Identity {
        &self.record().identity
    }

    /// Uses of its page.
    pub(super) fn touches(&self) -> &TouchCount {
        &self.record().touches
    }

    fn frame(&self) -> &Frame {
        // SAFETY: as for the other half.
        unsafe { self.frame.as_ref() }
    }

    /// Its page and what is known of it.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, FrameData> {
        self.frame().data.read()
    }

    /// Its page and what is known of it, to be changed.
    pub(crate) fn write(&self) -> FrameWrite<'_> {
        FrameWrite { data: self.frame().data.write(), identity: self.identity(), changes: false }
    }

    /// Whether both are the same frame.
    #[cfg(test)]
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.frame == other.frame && self.record == other.record
    }
}

impl Clone for FrameRef {
    fn clone(&self) -> Self {
        self.identity().pin_again();
        Self { ..*self }
    }
}

impl Drop for FrameRef {
    fn drop(&mut self) {
        self.identity().unpin();
    }
}

impl fmt::Debug for FrameRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameRef").field("identity", self.identity()).field("frame", self.frame()).finish()
    }
}

/// A frame's content, locked. The only way to the page's bytes: so other processes are always told that these change.
#[derive(Debug)]
pub(crate) struct FrameWrite<'a> {
    data: RwLockWriteGuard<'a, FrameData>,
    identity: &'a Identity,
    changes: bool,
}

impl FrameWrite<'_> {
    /// The page, to be changed. Until the lock is given back no other process reads it.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        if !self.changes {
            self.changes = true;
            self.identity.begin_change();
        }
        &mut self.data.buf
    }
}

impl Deref for FrameWrite<'_> {
    type Target = FrameData;

    fn deref(&self) -> &FrameData {
        &self.data
    }
}

impl DerefMut for FrameWrite<'_> {
    fn deref_mut(&mut self) -> &mut FrameData {
        &mut self.data
    }
}

impl Drop for FrameWrite<'_> {
    fn drop(&mut self) {
        // Before the lock is given back, which happens after this.
        if self.changes {
            self.identity.end_change();
        }
    }
}

/// A part of a table: both halves of the frames.
#[derive(Debug)]
struct Part {
    records: Region<Record>,
    frames: Box<[Frame]>,
}

impl Part {
    /// The frame at this place, which [`locate`] has told for this part.
    fn frame(&self, at: usize) -> FrameAt<'_> {
        debug_assert!(at < self.records.len() && at < self.frames.len());
        // SAFETY: both halves are of the length of the part, and `locate` gives places in it, whatever the number.
        unsafe { FrameAt { record: self.records.get_unchecked(at), frame: self.frames.get_unchecked(at) } }
    }
}

/// All frames of a shard, by number. Only grows; read without a lock.
#[derive(Debug)]
pub(super) struct FrameTable {
    parts: [OnceLock<Part>; PARTS],
    place: ShardPlace,
}

impl FrameTable {
    /// An empty one.
    pub(super) fn new(place: ShardPlace) -> Self {
        Self { parts: std::array::from_fn(|_| OnceLock::new()), place }
    }

    /// The frame, if there is one of that number.
    pub(super) fn get(&self, nr: FrameNr) -> Option<FrameAt<'_>> {
        let (part, at) = locate(nr.0);
        Some(self.parts[part].get()?.frame(at))
    }

    /// The frame, made if it is the first time that it is asked for.
    pub(super) fn entry(&self, nr: FrameNr) -> FrameAt<'_> {
        let (part, at) = locate(nr.0);
        let make = || Part {
            records: self.place.part(part),
            frames: std::iter::repeat_with(Frame::default).take(part_len(part)).collect(),
        };
        self.parts[part].get_or_init(make).frame(at)
    }
}

impl Drop for FrameTable {
    fn drop(&mut self) {
        for part in &mut self.parts {
            // Somebody holds a frame for longer than there is a cache: rather leak the memory than pull it
            // away. (The inodes go before the cache does.)
            if let Some(part) = part.take()
                && part.records.iter().any(|record| record.identity.is_pinned())
            {
                std::mem::forget(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::index_file::IndexFile;
    use super::*;
    use crate::types::{Ino, PageNr};

    /// Without a file, and with one.
    fn tables() -> [FrameTable; 2] {
        let file = IndexFile::create(4096, 2);
        assert!(file.is_some());
        [None, file].map(|file| FrameTable::new(ShardPlace::new(file, 1)))
    }

    fn page(bytes: &[u8]) -> Incoming {
        Incoming { buf: AlignedBuf::from_slice(bytes), slot: None, veiled: false }
    }

    #[test]
    fn frames_are_distinct_and_stay_in_place() {
        for table in tables() {
            assert!(table.get(FrameNr(0)).is_none());
            let numbers = [0, 1, 15, 16, 17, 47, 48, 1000, 1 << 16];
            let key = |nr: u32| (Ino(u64::from(nr) + 1), PageNr(7));
            let pins: Vec<FrameRef> =
                numbers.iter().map(|nr| table.entry(FrameNr(*nr)).fill(key(*nr), page(b""))).collect();
            for (nr, pin) in numbers.iter().zip(&pins) {
                let frame = table.get(FrameNr(*nr)).unwrap();
                assert!(frame.pin(key(*nr)).unwrap().is(pin));
                assert_eq!(frame.record.identity.key(), key(*nr));
            }
            assert_eq!(locate(u32::MAX).0, PARTS - 1);
        }
    }

    #[test]
    fn a_pinned_frame_outlives_its_table() {
        for table in tables() {
            let pin = table.entry(FrameNr(3)).fill((Ino(5), PageNr(6)), page(b"page"));
            drop(table);
            assert_eq!(pin.read().bytes(), b"page");
            pin.write().bytes_mut()[0] = b'c';
            assert_eq!(pin.clone().read().bytes(), b"cage");
        }
    }
}
