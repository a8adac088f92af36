//! Changing the size of a file, reserving space, and freeing what a file had.

use super::map::{free_changes, freed_blocks};
use crate::api::{Fallocate, FileType};
use crate::error::{FsError, Result};
use crate::format::{Change, ItemKind, Key, MappedRun, PageEntry};
use crate::fs::Inode;
use crate::mutants::{self, Mutant};
use crate::types::{CHUNK_PAGES, PageNr};
use crate::volume::Volume;

/// Pages looked at in one step of freeing.
const FREE_STEP: usize = 1024;

/// Runs freed in one step at most, so that the changes fit a journal record.
pub(crate) const FREE_RUNS: usize = 1000;

/// What an orphan item says: finish this.
pub(crate) const ORPHAN_DELETE: u8 = 1;
/// See [`ORPHAN_DELETE`].
pub(crate) const ORPHAN_TRUNCATE: u8 = 2;

impl Volume {
    /// Sets the size; `update` makes other changes of the inode that belong to the same step.
    pub(crate) fn resize(
        &self,
        inode: &Inode,
        size: u64,
        update: impl FnOnce(&mut crate::fs::InodeState),
    ) -> Result<()> {
        if size > i64::MAX as u64 {
            return Err(FsError::TOO_BIG);
        }
        // Zeros of the last page go into the journal; see `home_inline`.
        let no_homing = self.homing.read();
        let _range = inode.ranges.lock_all();
        let (old, deleted) = {
            let state = inode.state.lock();
            (state.item.size, state.deleted)
        };
        if deleted {
            return Err(FsError::STALE);
        }
        let mut changes = Vec::new();
        if size < old {
            if !mutants::active(Mutant::KeepTruncatedTail) {
                changes = self.zero_tail(inode, size)?;
            }
            let first = PageNr(self.page_size().pages_for(size));
            self.drop_frames(inode, first, PageNr(u64::MAX));
        }
        {
            let now = self.env.now();
            let mut state = inode.state.lock();
            state.item.size = size;
            state.disk_size = size;
            if size != old {
                state.touch_content(now);
            }
            update(&mut state);
            changes.push(state.put(inode.ino));
            if size < old && state.item.nlink > 0 {
                // A file without a name is an orphan already, and stays one.
                changes.push(Change::PutItem { key: orphan_key(inode), value: vec![ORPHAN_TRUNCATE] });
            }
            self.meta.apply(changes, 0)?;
        }
        drop(no_homing);
        if size < old {
            self.free_behind(inode, PageNr(self.page_size().pages_for(size)))?;
        }
        Ok(())
    }

    /// Zeros what follows byte `size` in its page, in the cache and, as inline data, on the device:
    /// bytes beyond the end are always zero, so growing the file later shows no old ones.
    fn zero_tail(&self, inode: &Inode, size: u64) -> Result<Vec<Change>> {
        let page = self.page_size().page_of(size);
        let at = (size - self.page_size().start_of(page)) as usize;
        let mut entry = [PageEntry::Hole];
        self.meta.pages(inode.ino, page, &mut entry)?;
        let patched = self.patches.lock().get(inode.ino, page).is_some();
        let cached = inode.unhomed.lock().contains_key(&page);
        if at == 0 || (!matches!(entry[0], PageEntry::Mapped(..)) && !patched && !cached) {
            return Ok(Vec::new());
        }
        let frame = self.load_frame(inode, page)?;
        let mut data = frame.data.write();
        data.buf[at..].fill(0);
        data.dirty = match data.dirty {
            Some((from, to)) if from < at => Some((from, to.min(at))),
            Some(_) => {
                self.cache.note_clean();
                None
            }
            None => None,
        };
        self.cache.set_inline(&mut data, true);
        self.hold_way_home(&mut data);
        drop(data);
        inode.unhomed.lock().insert(page, frame);
        self.inodes.mark_dirty(inode.ino, self.env.monotonic_ns());
        let len = (self.page_bytes() - at) as u32;
        Ok(vec![Change::InlineZero { ino: inode.ino, offset: size, len }])
    }

    /// Unmaps and frees everything from page `first` on, in steps that each fit a record, and takes
    /// the file off the list of unfinished truncations. The caller holds the whole file.
    pub(crate) fn free_behind(&self, inode: &Inode, first: PageNr) -> Result<()> {
        let mut from = first;
        loop {
            let (mut changes, next) = self.free_step(inode, first, from)?;
            let grown = -freed_blocks(&changes);
            {
                let mut state = inode.state.lock();
                if grown != 0 {
                    state.item.blocks = state.item.blocks.saturating_add_signed(grown);
                    changes.push(state.put(inode.ino));
                }
                if next.is_none() && state.item.nlink > 0 {
                    changes.push(Change::DelItem { key: orphan_key(inode) });
                }
                self.apply_changes(changes, 0)?;
            }
            match next {
                Some(page) => from = page,
                None => return Ok(()),
            }
            self.relieve()?;
        }
    }

    /// Changes that free some of what lies behind `from`, and where to go on.
    pub(crate) fn free_step(
        &self,
        inode: &Inode,
        first: PageNr,
        mut from: PageNr,
    ) -> Result<(Vec<Change>, Option<PageNr>)> {
        let mut changes: Vec<Change> = Vec::new();
        let start = from;
        while changes.len() < FREE_RUNS {
            let Some(page) = self.meta.next_mapped(inode.ino, from)? else {
                if !changes.is_empty() || start == first {
                    let pages = u64::MAX / 4 - start.0;
                    changes.insert(0, Change::Unmap { ino: inode.ino, page: start, pages });
                }
                return Ok((changes, None));
            };
            let count = FREE_STEP.min((CHUNK_PAGES * (page.chunk() + 16) - page.0) as usize);
            let mut entries = vec![PageEntry::Hole; count];
            self.meta.pages(inode.ino, page, &mut entries)?;
            changes.extend(free_changes(&entries));
            from = PageNr(page.0 + count as u64);
        }
        changes.insert(0, Change::Unmap { ino: inode.ino, page: start, pages: from.0 - start.0 });
        Ok((changes, Some(from)))
    }

    /// Between the steps of a long operation: lets the journal catch up, if it must. Unlike `admit`
    /// it never makes a checkpoint, for the caller holds locks that come after the checkpoint's.
    fn relieve(&self) -> Result<()> {
        if self.meta.pressure().0 > 2 * self.meta.max_operation() {
            self.commit()?;
        }
        Ok(())
    }

    /// See [`FsOps::fallocate`](crate::api::FsOps::fallocate).
    pub(crate) fn allocate_file(&self, inode: &Inode, mode: Fallocate, offset: u64, len: u64) -> Result<()> {
        match inode.kind() {
            FileType::Regular => {}
            FileType::Directory => return Err(FsError::IS_DIR),
            FileType::Fifo => return Err(FsError::Posix(libc::ESPIPE)),
            _ => return Err(FsError::Posix(libc::ENODEV)),
        }
        let end = offset.checked_add(len).filter(|end| *end <= i64::MAX as u64).ok_or(FsError::TOO_BIG)?;
        if len == 0 {
            return Err(FsError::INVALID);
        }
        self.check_fallocate_room(len)?;
        let page_size = self.page_size();
        let mut page = page_size.page_of(offset);
        let last = page_size.page_of(end - 1);
        while page <= last {
            let n = (last.0 - page.0 + 1).min(FREE_STEP as u64);
            self.with_room(|| {
                let _admitted = self.admit_cost(self.cost_of_pages(n))?;
                self.reserve_pages(inode, page, n as usize)
            })?;
            page = PageNr(page.0 + n);
        }
        let _admitted = self.admit()?;
        let _range = inode.ranges.lock_all();
        let now = self.env.now();
        let mut state = inode.state.lock();
        if state.deleted {
            return Err(FsError::STALE);
        }
        state.touch_content(now);
        if mode == Fallocate::Allocate && state.item.size < end {
            state.item.size = end;
            state.disk_size = end;
            let change = state.put(inode.ino);
            self.meta.apply(vec![change], 0)?;
        }
        drop(state);
        self.inodes.mark_dirty(inode.ino, self.env.monotonic_ns());
        Ok(())
    }

    /// Refuses early what certainly does not fit, instead of filling the volume first.
    fn check_fallocate_room(&self, len: u64) -> Result<()> {
        let blocks = len / crate::types::BLOCK_SIZE as u64;
        let total = self.superblock.total_blocks;
        if blocks > total { Err(FsError::NO_SPACE) } else { Ok(()) }
    }

    /// Gives the holes among `count` pages unwritten blocks.
    fn reserve_pages(&self, inode: &Inode, first: PageNr, count: usize) -> Result<()> {
        let last = PageNr(first.0 + count as u64 - 1);
        let _range = inode.ranges.lock(first, last, true);
        if inode.state.lock().deleted {
            return Err(FsError::STALE);
        }
        let mut entries = vec![PageEntry::Hole; count];
        self.meta.pages(inode.ino, first, &mut entries)?;
        let holes: Vec<_> = entries
            .iter()
            .enumerate()
            .filter(|(_, e)| **e == PageEntry::Hole)
            .map(|(i, _)| (PageNr(first.0 + i as u64), self.page_blocks()))
            .collect();
        if holes.is_empty() {
            return Ok(());
        }
        let goal = self.goal_near(inode, first)?;
        let blocks = holes.len() as u64 * u64::from(self.page_blocks());
        let mut hold = self.space.alloc.hold(blocks, crate::alloc::Purpose::User)?;
        let placed = self.place_pages(&holes, goal, &mut hold, false)?;
        let mut grown = 0;
        let changes = placed
            .iter()
            .map(|p| {
                grown += i64::from(p.run.len);
                let last_blocks = self.page_blocks() as u8;
                let run = MappedRun { start: p.run.start, pages: p.pages, last_blocks, crcs: None };
                Change::MapRun { ino: inode.ino, page: p.page, run }
            })
            .collect();
        let applied = self.apply_to_file(inode, changes, grown, |_| false);
        if applied.is_err() {
            self.take_back(&placed, &mut hold);
        }
        applied.map(drop)
    }
}

/// Key of the orphan item of an inode.
pub(crate) fn orphan_key(inode: &Inode) -> Key {
    Key::new(crate::types::Ino::SYSTEM, ItemKind::Orphan, inode.ino.0)
}
