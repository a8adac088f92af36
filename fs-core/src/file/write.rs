//! Writing: which way a write goes, and the buffered way.

use super::room::{Room, Until, is_full};
use crate::api::{FileType, IoFlags};
use crate::cache::{FrameData, FrameRef};
use crate::error::{FsError, Result};
use crate::fs::Inode;
use crate::mutants::{self, Mutant};
use crate::stats::Stage;
use crate::types::PageNr;
use crate::volume::{Cost, Volume};

/// Largest file in bytes: what fits 63 bits, as Linux limits it.
const MAX_SIZE: u64 = i64::MAX as u64;

/// Largest write in one atomic step, in bytes (contract C2).
const MAX_ATOMIC: usize = 1 << 20;

impl Volume {
    /// See [`FsOps::write`](crate::api::FsOps::write).
    pub(crate) fn write_file(
        &self,
        inode: &Inode,
        offset: u64,
        data: &[u8],
        flags: IoFlags,
    ) -> Result<usize> {
        match inode.kind() {
            FileType::Regular => {}
            FileType::Directory => return Err(FsError::IS_DIR),
            _ => return Err(FsError::INVALID),
        }
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > MAX_SIZE) {
            return Err(FsError::TOO_BIG);
        }
        if data.is_empty() {
            return Ok(0);
        }
        self.check_writable()?;
        let small_sync = flags.dsync && !flags.direct && data.len() <= self.inline_limit();
        let mut done = 0;
        let mut durable = false;
        if small_sync {
            durable = self.write_small_sync(inode, offset, data, flags)?;
            done = data.len();
        }
        while done < data.len() {
            let at = offset + done as u64;
            // Cut at page borders only, so that every piece is whole pages where the write is.
            let most = match mutants::active(Mutant::SplitDirectWrite) {
                true => self.page_bytes(),
                false => MAX_ATOMIC,
            };
            let room = most - (at % self.page_bytes() as u64) as usize;
            let piece = &data[done..data.len().min(done + room)];
            // One commit for all the pieces.
            let alone = piece.len() == data.len();
            let piece_flags = IoFlags { dsync: flags.dsync && alone, sync: flags.sync && alone, ..flags };
            let outcome = if flags.direct || flags.dsync {
                self.write_through(inode, at, piece, piece_flags)
            } else {
                self.write_buffered(inode, at, piece, flags).map(|()| false)
            };
            match outcome {
                // As write(2): what fits is written.
                Err(e) if done > 0 && is_full(&e) => break,
                outcome => durable = outcome?,
            }
            if mutants::active(Mutant::SplitDirectWrite) {
                self.commit()?;
            }
            done += piece.len();
        }
        if durable {
            return Ok(done);
        }
        if flags.dsync && !mutants::active(Mutant::IgnoreDsync) {
            self.sync_range(inode, offset, done, !flags.sync)?;
        } else {
            self.bound_unflushed()?;
        }
        Ok(done)
    }

    fn write_buffered(&self, inode: &Inode, offset: u64, data: &[u8], flags: IoFlags) -> Result<()> {
        self.throttle_dirty(inode)?;
        let page_size = self.page_size();
        let first = page_size.page_of(offset);
        let last = page_size.page_of(offset + data.len() as u64 - 1);
        self.with_room(|| {
            let (_admitted, _range) = self
                .lock_for_change(inode, first, last, || flags.kill_priv.then(|| self.admit()).transpose())?;
            let size = inode.state.lock().item.size.max(offset + data.len() as u64);
            let room = self.hold_pages(inode, first, last, size, Until::Dirty)?;
            self.fill_frames(inode, offset, data, flags, room)
        })
    }

    /// A small synchronous write: its bytes go into the cache and into the open batch in one step, so
    /// that no commit can carry only a part of them (contract C2). True: they are durable already.
    fn write_small_sync(&self, inode: &Inode, offset: u64, data: &[u8], flags: IoFlags) -> Result<bool> {
        self.throttle_dirty(inode)?;
        let page_size = self.page_size();
        let first = page_size.page_of(offset);
        let last = page_size.page_of(offset + data.len() as u64 - 1);
        let pages = last.0 - first.0 + 1;
        let admitted = self.admit_cost(Cost::inline(pages, self.inline_limit()))?;
        if let Some(_no_homing) = self.homing.try_read() {
            let _range = self.lock_pages(inode, first, last, true);
            let dirty = self.dirty_pages_in(inode, first, last) * self.page_bytes();
            let fits = dirty + data.len() <= self.inline_limit();
            if fits && !self.tail_in_the_way(inode, last) {
                let size = inode.state.lock().item.size.max(offset + data.len() as u64);
                match self.hold_pages(inode, first, last, size, Until::Home) {
                    Ok(room) => {
                        self.fill_frames(inode, offset, data, flags, room)?;
                        self.inline_frames(inode, first, last, pages as usize)?;
                        return Ok(false);
                    }
                    Err(e) if is_full(&e) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        // A checkpoint is just sending inline data home, or more of the pages is dirty than should
        // go into the journal, or there is no space to be held until they get home, or a truncation
        // still has to free what was there.
        drop(admitted);
        self.write_through(inode, offset, data, flags)
    }

    /// Puts the bytes into the cache. The caller holds the pages exclusively.
    fn fill_frames(
        &self,
        inode: &Inode,
        offset: u64,
        data: &[u8],
        flags: IoFlags,
        mut room: Room<'_>,
    ) -> Result<()> {
        let page_size = self.page_size();
        let first = page_size.page_of(offset);
        let last = page_size.page_of(offset + data.len() as u64 - 1);
        let (size, deleted) = {
            let state = inode.state.lock();
            (state.item.size, state.deleted)
        };
        if deleted {
            return Err(FsError::STALE);
        }
        // What must be read comes first: a failed read must leave neither half of the write nor an
        // empty page in the cache.
        let loaded = (first.0..=last.0)
            .map(|p| self.frame_to_keep(inode, PageNr(p), offset, data.len(), size))
            .collect::<Result<Vec<_>>>()?;
        let frames: Vec<FrameRef> = (first.0..=last.0)
            .zip(loaded)
            .map(|(p, frame)| frame.unwrap_or_else(|| self.fresh_frame(inode, PageNr(p))))
            .collect();
        let now_ns = self.env.monotonic_ns();
        for (i, frame) in frames.iter().enumerate() {
            let page = PageNr(first.0 + i as u64);
            let start = page_size.start_of(page);
            let from = offset.max(start);
            let to = (offset + data.len() as u64).min(start + page_size.bytes() as u64);
            let mut d = frame.write();
            let (lo, hi) = ((from - start) as usize, (to - start) as usize);
            d.bytes_mut()[lo..hi].copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            self.mark_dirty(&mut d, lo, hi, now_ns);
            room.settle_in(i, &mut d);
        }
        {
            let mut unhomed = inode.unhomed.lock();
            for (i, frame) in frames.into_iter().enumerate() {
                unhomed.insert(PageNr(first.0 + i as u64), frame);
            }
        }
        let now = self.env.now();
        let mut state = inode.state.lock();
        state.item.size = state.item.size.max(offset + data.len() as u64);
        state.touch_content(now);
        let perm = without_priv(state.item.perm);
        if flags.kill_priv && perm != state.item.perm {
            // Not lazily: the new content must never be seen with the old privilege.
            state.item.perm = perm;
            let change = state.put(inode.ino);
            self.meta.apply(vec![change], 0)?;
        }
        drop(state);
        self.inodes.mark_dirty(inode.ino, now_ns);
        Ok(())
    }

    /// The frame a write goes to, if it is cached or old bytes of the page survive; `None`: it takes
    /// a fresh one.
    fn frame_to_keep(
        &self,
        inode: &Inode,
        page: PageNr,
        offset: u64,
        len: usize,
        size: u64,
    ) -> Result<Option<FrameRef>> {
        let start = self.page_size().start_of(page);
        let end = start + self.page_bytes() as u64;
        let covers_old_bytes = offset <= start && (offset + len as u64 >= end.min(size));
        let fresh = start >= size || covers_old_bytes;
        if fresh {
            return Ok(self.cache.get(inode.ino, page));
        }
        self.load_frame(inode, page).map(Some)
    }

    /// An empty frame for a page of which no old byte survives.
    fn fresh_frame(&self, inode: &Inode, page: PageNr) -> FrameRef {
        let frame = self.cache.insert_blank(inode.ino, page);
        // Bytes that recovery found in the journal for this page are overwritten in memory. Until
        // the new ones are at home the journal has the only durable copy: as inline as before. A
        // checkpoint finds the page in one place or the other at any moment.
        let mut patches = self.patches.lock();
        if patches.get(inode.ino, page).is_some() {
            self.note_patched(&mut frame.write());
            inode.unhomed.lock().insert(page, frame.clone());
            self.inodes.mark_dirty(inode.ino, self.env.monotonic_ns());
            patches.remove(inode.ino, page);
        }
        frame
    }

    /// Extends the dirty range of a frame.
    pub(super) fn mark_dirty(&self, data: &mut FrameData, lo: usize, hi: usize, now_ns: u64) {
        match &mut data.dirty {
            Some((from, to)) => (*from, *to) = ((*from).min(lo), (*to).max(hi)),
            dirty @ None => {
                *dirty = Some((lo, hi));
                data.since_ns = now_ns;
                self.cache.note_dirty();
            }
        }
    }

    /// Makes a writer help when too much is dirty.
    fn throttle_dirty(&self, inode: &Inode) -> Result<()> {
        if self.cache.dirty_bytes() < self.options.dirty_bytes {
            return Ok(());
        }
        let _queued = self.stats.time(Stage::Queue);
        self.writeback_inode(inode, usize::MAX)?;
        if self.cache.dirty_bytes() >= self.options.dirty_bytes / 2 {
            self.writeback_some(self.cache.dirty_pages() / 2)?;
        }
        Ok(())
    }

    /// Largest synchronous write that goes into the journal.
    pub(crate) fn inline_limit(&self) -> usize {
        self.options.inline_max.min(self.meta.max_operation() / 3)
    }
}

/// Permission bits after a write by somebody unprivileged: no setuid, and no setgid where the file
/// is executable by its group.
pub(crate) fn without_priv(perm: u32) -> u32 {
    let perm = perm & !0o4000;
    if perm & 0o010 != 0 { perm & !0o2000 } else { perm }
}
