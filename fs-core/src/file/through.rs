//! Direct and large synchronous writes: straight to new blocks, mapped in one step (contract C2).

use blockdev::{AlignedBuf, IoClass};

use super::map::Near;
use super::room::is_full;
use super::write::without_priv;
use crate::api::IoFlags;
use crate::error::{FsError, Result};
use crate::format::PageEntry;
use crate::fs::Inode;
use crate::mutants::{self, Mutant};
use crate::types::{BLOCK_SIZE, BlockNr, Ino, PageNr};
use crate::volume::Volume;

/// A write.
struct Write<'a> {
    offset: u64,
    data: &'a [u8],
    /// Sizes of the file before and after it.
    size: u64,
    new_size: u64,
}

impl Write<'_> {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
}

impl Volume {
    /// Writes up to 1 MiB at `offset` as one atomic change, past the cache. True: what `flags` say of
    /// durability has been done; otherwise it is left to the caller.
    pub(crate) fn write_through(
        &self,
        inode: &Inode,
        offset: u64,
        data: &[u8],
        flags: IoFlags,
    ) -> Result<bool> {
        match self.with_room(|| self.try_write_through(inode, offset, data, flags)) {
            Err(e) if is_full(&e) => {}
            outcome => return outcome,
        }
        let end = offset + data.len() as u64;
        let (first, last) = (self.page_size().page_of(offset), self.page_size().page_of(end - 1));
        let size = inode.state.lock().item.size.max(end);
        if !self.only_overwrites(inode, first, last, size)? {
            return Err(FsError::NO_SPACE);
        }
        self.with_room_at_last(|| self.try_write_through(inode, offset, data, flags))
    }

    fn try_write_through(&self, inode: &Inode, offset: u64, data: &[u8], flags: IoFlags) -> Result<bool> {
        let page_size = self.page_size();
        let end = offset + data.len() as u64;
        let (first, last) = (page_size.page_of(offset), page_size.page_of(end - 1));
        let pages = last.0 - first.0 + 1;
        let cost = self.cost_of_pages(pages);
        let cost = if flags.dsync { cost.or_back(pages) } else { cost };
        let (_admitted, range) = self.lock_for_change(inode, first, last, || self.admit_cost(cost))?;
        let (size, deleted) = {
            let state = inode.state.lock();
            (state.item.size, state.deleted)
        };
        if deleted {
            return Err(FsError::STALE);
        }
        let new_size = size.max(end);
        let write = Write { offset, data, size, new_size };
        let mut head = self.what_stays(inode, first, &write)?;
        let mut tail = if last == first { None } else { self.what_stays(inode, last, &write)? };
        let lens: Vec<_> =
            (first.0..=last.0).map(|p| (PageNr(p), self.blocks_needed(PageNr(p), new_size))).collect();
        let images = lens.iter().map(|(page, _)| {
            let stays = if *page == first { head.take() } else { tail.take_if(|_| *page == last) };
            self.image(*page, stays, &write)
        });
        let around = self.entries_around(inode, first, lens.len())?;
        let (goal, entries) = (around[0].blocks().map(|b| b.run().end()), &around[1..=lens.len()]);
        let before = match flags.dsync && !mutants::active(Mutant::IgnoreDsync) {
            true => self.may_fly(inode, &lens, entries, end, flags)?,
            false => None,
        };
        let (mut hold, comes_back) = self.hold_for_images(inode, &lens, entries)?;
        let old = |page: PageNr| self.beside(&around[(page.0 - first.0) as usize..]);
        let placed = self.place_pages(&lens, Near { goal, old: &old }, &mut hold, comes_back)?;
        if let Some(before) = before {
            let outcome =
                self.write_in_flight(inode, (images, &placed, &before), &mut hold, flags.sync, range);
            self.inodes.mark_dirty(inode.ino, self.env.monotonic_ns());
            outcome?;
            self.count_pages(&self.counters.direct_pages, pages as usize);
            return Ok(true);
        }
        let now = self.env.now();
        // The last page's image may hold bytes behind this write that were only in the cache until
        // now: they are on the device with it.
        let covered = new_size.min(page_size.start_of(last) + page_size.bytes() as u64);
        self.write_and_map(inode, images, &placed, IoClass::Data, &mut hold, |state| {
            state.item.size = state.item.size.max(end);
            let grows = state.disk_size < covered;
            state.disk_size = state.disk_size.max(covered);
            let perm = if flags.kill_priv { without_priv(state.item.perm) } else { state.item.perm };
            let stripped = perm != state.item.perm;
            state.item.perm = perm;
            state.touch_content(now);
            grows || stripped
        })?;
        if !mutants::active(Mutant::KeepSupersededFrames) {
            self.drop_frames(inode, first, last);
        }
        self.inodes.mark_dirty(inode.ino, self.env.monotonic_ns());
        self.count_pages(&self.counters.direct_pages, pages as usize);
        Ok(false)
    }

    /// Memory for the image of a page of which the write leaves something, with what is there now.
    fn what_stays(&self, inode: &Inode, page: PageNr, write: &Write<'_>) -> Result<Option<AlignedBuf>> {
        let start = self.page_size().start_of(page);
        let page_end = start + self.page_bytes() as u64;
        let old = write.size.min(page_end).saturating_sub(start) as usize;
        if old == 0 || (write.offset <= start && write.end() >= start + old as u64) {
            return Ok(None);
        }
        let frame = self.load_frame(inode, page)?;
        let mut buf = self.buffer_for(self.blocks_needed(page, write.new_size) as usize * BLOCK_SIZE);
        buf[old..].fill(0); // it may have another page's bytes
        buf[..old].copy_from_slice(&frame.read().bytes()[..old]);
        Ok(Some(buf))
    }

    /// The new content of a page: the write's bytes over what stays.
    fn image(&self, page: PageNr, stays: Option<AlignedBuf>, write: &Write<'_>) -> AlignedBuf {
        let Write { offset, data, .. } = *write;
        let start = self.page_size().start_of(page);
        let (from, to) = (offset.max(start), write.end().min(start + self.page_bytes() as u64));
        let mut buf = stays.unwrap_or_else(|| {
            let mut buf = self.buffer_for(self.blocks_needed(page, write.new_size) as usize * BLOCK_SIZE);
            if (to - from) as usize != buf.len() {
                buf.fill(0); // it may have another page's bytes
            }
            buf
        });
        buf[(from - start) as usize..(to - start) as usize]
            .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
        buf
    }

    /// Where new blocks for `page` should go: behind those of the page before it.
    pub(crate) fn goal_near(&self, inode: &Inode, page: PageNr) -> Result<Option<BlockNr>> {
        let before = PageNr(page.0.saturating_sub(1));
        let mut entry = [PageEntry::Hole];
        self.meta.pages(inode.ino, before, &mut entry)?;
        Ok(entry[0].blocks().map(|b| b.run().end()))
    }

    /// Forgets cached pages whose content has been superseded. The caller holds them exclusively.
    pub(crate) fn drop_frames(&self, inode: &Inode, first: PageNr, last: PageNr) {
        let mut unhomed = inode.unhomed.lock();
        let gone: Vec<PageNr> = unhomed.range(first..=last).map(|(p, _)| *p).collect();
        for page in gone {
            if let Some(frame) = unhomed.remove(&page) {
                self.settle_frame(&mut frame.write());
            }
        }
        drop(unhomed);
        if last.0 - first.0 < 1024 {
            for page in first.0..=last.0 {
                self.cache.remove(inode.ino, PageNr(page));
                self.drop_patch(inode, PageNr(page));
            }
        } else {
            self.cache.remove_from(inode.ino, first);
            let here = |(ino, p): &(Ino, PageNr)| *ino == inode.ino && *p >= first && *p <= last;
            let gone: Vec<PageNr> = self.patches.lock().iter().filter(here).map(|(_, p)| p).collect();
            gone.into_iter().for_each(|page| self.drop_patch(inode, page));
        }
    }

    /// Forgets what recovery found in the journal for a page, and the space for its way home.
    fn drop_patch(&self, inode: &Inode, page: PageNr) {
        if self.patches.lock().remove(inode.ino, page).is_some() {
            drop(self.space.take_patched(self.page_blocks().into()));
        }
    }
}
