//! Making a range of a file zeros: whole pages become holes, or get unwritten blocks; parts of pages
//! are zeroed in the cache and go the way of any buffered overwrite (read, verified, written to new
//! blocks).

use super::map::{Near, free_changes, freed_blocks};
use super::room::{Room, Until, is_full};
use crate::alloc::Purpose;
use crate::cache::FrameRef;
use crate::error::{FsError, Result};
use crate::format::{Change, MappedRun, PageEntry};
use crate::fs::Inode;
use crate::types::PageNr;
use crate::volume::Volume;

/// Pages done in one step.
const STEP: u64 = 1024;

/// The same if each needs new blocks before its old ones come back.
const STEP_WITH_SPACE: u64 = 64;

/// What becomes of the space of zeroed pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    /// It is free; the pages are holes.
    Free,
    /// The pages have unwritten blocks. Not the same ones: what is mapped is not overwritten.
    Keep,
}

/// Bytes of a page that are to become zeros.
struct Part<'a> {
    page: PageNr,
    frame: FrameRef,
    from: usize,
    to: usize,
    /// Space for the way home; `None`: there is none for users.
    room: Option<Room<'a>>,
}

/// What is to be done in one step.
#[derive(Default)]
struct Plan {
    /// Consecutive whole pages: first, last.
    whole: Vec<(PageNr, PageNr)>,
    /// Pages of which a part stays: page, from, to.
    parts: Vec<(PageNr, usize, usize)>,
}

impl Plan {
    fn add_whole(&mut self, page: PageNr) {
        match self.whole.last_mut() {
            Some((_, hi)) if hi.0 + 1 == page.0 => *hi = page,
            _ => self.whole.push((page, page)),
        }
    }

    /// Leaves out the whole pages of which `wanted` says no.
    fn keep_pages(&mut self, wanted: impl Fn(PageNr) -> bool) {
        let pages = std::mem::take(&mut self.whole);
        let pages = pages.into_iter().flat_map(|(lo, hi)| (lo.0..=hi.0).map(PageNr));
        pages.filter(|page| wanted(*page)).for_each(|page| self.add_whole(page));
    }
}

impl Volume {
    /// Makes `[from, to)` zeros, step by step: each is atomic.
    pub(super) fn zero_range(&self, inode: &Inode, (from, to): (u64, u64), space: Space) -> Result<()> {
        let page_size = self.page_size();
        let last = page_size.page_of(to - 1);
        let mut next = page_size.page_of(from);
        self.check_writable()?;
        let step = if space == Space::Keep { STEP_WITH_SPACE } else { STEP };
        while let Some(page) = self.next_backed(inode, next)?.filter(|page| *page <= last) {
            let pages = (page, PageNr(last.0.min(page.0 + step - 1)));
            match self.with_room_at_last(|| self.zero_step(inode, pages, (from, to), space)) {
                // What is mapped becomes zero on a volume without a free block, too (contract C9).
                Err(e) if is_full(&e) && space == Space::Keep => {
                    self.zero_step(inode, pages, (from, to), Space::Free)?;
                }
                outcome => outcome?,
            }
            next = PageNr(pages.1.0 + 1);
        }
        let mut state = inode.state.lock();
        if state.deleted {
            return Err(FsError::STALE);
        }
        state.lost.remove(from..to);
        state.touch_content(self.env.now());
        drop(state);
        self.inodes.mark_dirty(inode.ino, self.env.monotonic_ns());
        Ok(())
    }

    /// First page at or behind `from` that may have blocks, or bytes that are not at home.
    pub(super) fn next_backed(&self, inode: &Inode, from: PageNr) -> Result<Option<PageNr>> {
        // In the order in which a page's bytes move from one to the next.
        let patched = self.patches.lock().next(inode.ino, from);
        let unhomed = inode.unhomed.lock().range(from..).next().map(|(page, _)| *page);
        let mapped = self.meta.next_mapped(inode.ino, from)?;
        Ok([patched, unhomed, mapped].into_iter().flatten().min())
    }

    fn zero_step(
        &self,
        inode: &Inode,
        (first, last): (PageNr, PageNr),
        (from, to): (u64, u64),
        space: Space,
    ) -> Result<()> {
        let (_admitted, _range) = self.lock_for_change(inode, first, last, || {
            self.admit_cost(self.cost_of_pages(last.0 - first.0 + 1))
        })?;
        let (size, disk_size, deleted) = {
            let state = inode.state.lock();
            (state.item.size, state.disk_size, state.deleted)
        };
        if deleted {
            return Err(FsError::STALE);
        }
        let mut plan = self.plan_step((first, last), (from, to), (size, disk_size));
        let mut entries = vec![PageEntry::Hole; (last.0 - first.0 + 1) as usize];
        self.meta.pages(inode.ino, first, &mut entries)?;
        // All that can fail comes before the first change in memory.
        let parts = plan
            .parts
            .iter()
            .filter(|(page, ..)| self.has_bytes(inode, *page, &entries[(page.0 - first.0) as usize]))
            .map(|&part| self.part(inode, part, size))
            .collect::<Result<Vec<_>>>()?;
        if space == Space::Keep {
            plan.keep_pages(|page| self.has_bytes(inode, page, &entries[(page.0 - first.0) as usize]));
        }
        self.replace_whole(inode, &plan, (first, &entries), space)?;
        // Only now: a checkpoint that no longer finds inline bytes of a page finds the page unmapped.
        for (lo, hi) in plan.whole {
            self.drop_frames(inode, lo, hi);
        }
        self.zero_parts(inode, parts);
        Ok(())
    }

    /// Frees what the whole pages of a step have. With [`Space::Keep`] they get unwritten blocks, which
    /// may come out of the reserve, for what they replace comes back (contract C9).
    fn replace_whole(
        &self,
        inode: &Inode,
        plan: &Plan,
        (first, entries): (PageNr, &[PageEntry]),
        space: Space,
    ) -> Result<()> {
        let mut changes = Vec::new();
        let mut pages = Vec::new();
        for (lo, hi) in &plan.whole {
            changes.push(Change::Unmap { ino: inode.ino, page: *lo, pages: hi.0 - lo.0 + 1 });
            changes.extend(free_changes(&entries[(lo.0 - first.0) as usize..=(hi.0 - first.0) as usize]));
            pages.extend((lo.0..=hi.0).map(|page| (PageNr(page), self.page_blocks())));
        }
        if changes.is_empty() {
            return Ok(());
        }
        let freed = freed_blocks(&changes);
        if space == Space::Free {
            return self.apply_to_file(inode, changes, -freed, |_| false).map(drop);
        }
        let blocks = pages.len() as u64 * u64::from(self.page_blocks());
        let mut hold = self.space.alloc.hold(blocks, Purpose::Overwrite)?;
        let placed = self.place_pages(&pages, Near::behind(None), &mut hold, true)?;
        changes.extend(placed.iter().map(|p| {
            let last_blocks = self.page_blocks() as u8;
            let run = MappedRun { start: p.run.start, pages: p.pages, last_blocks, crcs: None };
            Change::MapRun { ino: inode.ino, page: p.page, run }
        }));
        let applied = self.apply_to_file(inode, changes, blocks as i64 - freed, |_| false);
        if applied.is_err() {
            self.take_back(&placed, &mut hold);
        }
        applied.map(drop)
    }

    /// Sorts the pages of a step. A page whose bytes behind the range are all behind the end of the
    /// file is whole, but not if the stored size waits for it to be written.
    fn plan_step(
        &self,
        (first, last): (PageNr, PageNr),
        (from, to): (u64, u64),
        (size, disk_size): (u64, u64),
    ) -> Plan {
        let page_bytes = self.page_bytes() as u64;
        let unstored_end = (size > disk_size).then(|| self.page_size().page_of(size - 1));
        let mut plan = Plan::default();
        for page in (first.0..=last.0).map(PageNr) {
            let start = self.page_size().start_of(page);
            let end = start + page_bytes;
            let to_end = to >= end || (to >= size && start < size);
            if from <= start && to_end && unstored_end != Some(page) {
                plan.add_whole(page);
            } else if start < size {
                let (lo, hi) = (from.max(start), to.min(end).min(size));
                if lo < hi {
                    plan.parts.push((page, (lo - start) as usize, (hi - start) as usize));
                }
            }
        }
        plan
    }

    /// Reads the page and holds space for it. What has blocks is not refused on a full volume.
    fn part(&self, inode: &Inode, (page, from, to): (PageNr, usize, usize), size: u64) -> Result<Part<'_>> {
        let frame = self.load_frame(inode, page)?;
        let room = match self.hold_pages(inode, page, page, size, Until::Dirty) {
            Err(e) if is_full(&e) => None,
            room => Some(room?),
        };
        Ok(Part { page, frame, from, to, room })
    }

    /// Whether the page may have bytes that are not zero.
    fn has_bytes(&self, inode: &Inode, page: PageNr, entry: &PageEntry) -> bool {
        matches!(entry, PageEntry::Mapped(..))
            || self.patches.lock().get(inode.ino, page).is_some()
            || inode.unhomed.lock().contains_key(&page)
    }

    /// Zeros bytes in the cache. The caller holds the pages exclusively.
    fn zero_parts(&self, inode: &Inode, parts: Vec<Part<'_>>) {
        if parts.is_empty() {
            return;
        }
        let now = self.env.monotonic_ns();
        for part in parts {
            let mut data = part.frame.write();
            data.bytes_mut()[part.from..part.to].fill(0);
            self.mark_dirty(&mut data, part.from, part.to, now);
            match part.room {
                Some(mut room) => room.settle_in(0, &mut data),
                None => self.hold_way_home(&mut data),
            }
            drop(data);
            inode.unhomed.lock().insert(part.page, part.frame);
        }
        self.inodes.mark_dirty(inode.ino, now);
    }
}
