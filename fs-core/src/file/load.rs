//! From the device into memory: verified pages.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockdev::AlignedBuf;

use super::runs::{Wanted, part_of, read_runs};
use crate::cache::{Claim, Flight, FrameData, FrameRef};
use crate::error::{FsError, Result};
use crate::format::PageEntry;
use crate::fs::Inode;
use crate::mutants::{self, Mutant};
use crate::stats::Stage;
use crate::types::PageNr;
use crate::volume::Volume;

impl Volume {
    /// The frames of pages `first..first + count`, from the cache or the device. The caller holds
    /// the range, at least shared. Threads that miss the same page share one read. Also, whether any of them
    /// was not in the cache.
    pub(crate) fn load_frames(
        &self,
        inode: &Inode,
        first: PageNr,
        count: usize,
    ) -> Result<(Vec<FrameRef>, bool)> {
        let mut frames: Vec<Option<FrameRef>> =
            (0..count as u64).map(|i| self.cache.get(inode.ino, PageNr(first.0 + i))).collect();
        let hits = frames.iter().flatten().count() as u64;
        self.counters.cache_hits.fetch_add(hits, Ordering::Relaxed);
        let missed = hits < count as u64;
        // Again only for pages whose readers have failed.
        while frames.iter().any(Option::is_none) {
            let theirs = self.load_missing(inode, first, &mut frames)?;
            self.counters.cache_waits.fetch_add(theirs.len() as u64, Ordering::Relaxed);
            for (i, flight) in theirs {
                frames[i] = flight.wait();
            }
        }
        Ok((frames.into_iter().flatten().collect(), missed))
    }

    /// Reads the missing frames of pages `first..`, but for those that others are just reading: returns
    /// these with their places.
    fn load_missing(
        &self,
        inode: &Inode,
        first: PageNr,
        frames: &mut [Option<FrameRef>],
    ) -> Result<Vec<(usize, Arc<Flight>)>> {
        let page_of = |i: usize| PageNr(first.0 + i as u64);
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        for i in (0..frames.len()).filter(|i| frames[*i].is_none()).collect::<Vec<_>>() {
            match self.flights.claim(inode.ino, page_of(i)) {
                Claim::Theirs(flight) => theirs.push((i, flight)),
                // It may have landed since it was looked for.
                Claim::Mine(landing) => match self.cache.get(inode.ino, page_of(i)) {
                    Some(frame) => {
                        landing.land(frame.clone());
                        frames[i] = Some(frame);
                    }
                    None => mine.push((i, landing)),
                },
            }
        }
        let (Some((from, _)), Some((to, _))) = (mine.first(), mine.last()) else { return Ok(theirs) };
        let (from, to) = (*from, *to);
        let mut wanted = vec![false; to - from + 1];
        mine.iter().for_each(|(i, _)| wanted[i - from] = true);
        let mut bufs = self.read_or_take(inode, page_of(from), wanted)?;
        self.counters.cache_misses.fetch_add(mine.len() as u64, Ordering::Relaxed);
        for (i, landing) in mine {
            let buf = bufs[i - from].take();
            let buf = buf.ok_or_else(|| FsError::Volume("a page vanished while it was read".into()))?;
            let frame = self.adopt(inode, page_of(i), buf);
            landing.land(frame.clone());
            frames[i] = Some(frame);
        }
        Ok(theirs)
    }

    /// One frame; see [`load_frames`](Self::load_frames).
    pub(crate) fn load_frame(&self, inode: &Inode, page: PageNr) -> Result<FrameRef> {
        let frame = self.load_frames(inode, page, 1)?.0.pop();
        frame.ok_or_else(|| FsError::Volume("a page vanished while it was loaded".into()))
    }

    /// Makes a page that was read a frame of the cache, with the bytes that recovery found in the
    /// journal put over it.
    fn adopt(&self, inode: &Inode, page: PageNr, mut buf: AlignedBuf) -> FrameRef {
        let mut patches = self.patches.lock();
        let Some(list) = patches.get(inode.ino, page) else {
            return self.cache.insert(inode.ino, page, buf);
        };
        list.iter().for_each(|patch| patch.apply(&mut buf));
        let frame = self.cache.insert(inode.ino, page, buf);
        self.note_patched(&mut frame.write());
        inode.unhomed.lock().insert(page, frame.clone());
        self.inodes.mark_dirty(inode.ino, self.env.monotonic_ns());
        patches.remove(inode.ino, page);
        frame
    }

    /// The bytes that recovery found in the journal for a page are in its frame now. The space for the
    /// page's way home was held since the mount.
    pub(crate) fn note_patched(&self, data: &mut FrameData) {
        self.cache.set_inline(data, true);
        data.hold = self.space.take_patched(self.page_blocks().into());
    }

    /// Reads the wanted pages from `first` on past the cache, and gives `took` each with its index, in any order.
    /// Holes and unwritten pages are zeros.
    pub(crate) fn read_pages(
        &self,
        inode: &Inode,
        first: PageNr,
        wanted: &[bool],
        took: &mut dyn FnMut(usize, AlignedBuf),
    ) -> Result<()> {
        let mut entries = vec![PageEntry::Hole; wanted.len()];
        self.meta.pages(inode.ino, first, &mut entries)?;
        self.read_entries(inode, first, &entries, wanted, took)
    }

    /// Reads the wanted pages from `first` on, but for those that have been read ahead. Holes and unwritten pages are
    /// zeros.
    fn read_or_take(
        &self,
        inode: &Inode,
        first: PageNr,
        mut wanted: Vec<bool>,
    ) -> Result<Vec<Option<AlignedBuf>>> {
        let mut entries = vec![PageEntry::Hole; wanted.len()];
        self.meta.pages(inode.ino, first, &mut entries)?;
        let mut taken = Vec::new();
        for (i, wanted) in wanted.iter_mut().enumerate().filter(|(_, wanted)| **wanted) {
            let page = PageNr(first.0 + i as u64);
            if let Some(ahead) = self.prefetched.take(inode.ino, page, &entries[i]) {
                taken.push((i, ahead));
                *wanted = false;
            }
        }
        let mut out: Vec<Option<AlignedBuf>> = (0..wanted.len()).map(|_| None).collect();
        self.read_entries(inode, first, &entries, &wanted, &mut |i, page| out[i] = Some(page))?;
        if taken.is_empty() {
            return Ok(out);
        }
        let loading = self.stats.time_for(Stage::Load, inode.usage.class());
        let (mut used, mut failed) = (0, vec![false; wanted.len()]);
        for (i, ahead) in taken {
            let matches = |buf: &AlignedBuf| match &entries[i] {
                PageEntry::Mapped(_, crc) => crc32c::crc32c(buf) == *crc,
                _ => false,
            };
            out[i] = ahead.wait().filter(matches).map(|buf| self.whole_page(buf));
            failed[i] = out[i].is_none();
            used += usize::from(!failed[i]);
        }
        drop(loading);
        self.count_pages(&self.counters.ahead_used, used);
        if failed.contains(&true) {
            // Their blocks were used for something else when they were read, or the device has failed. Now nobody
            // can change them.
            self.read_entries(inode, first, &entries, &failed, &mut |i, page| out[i] = Some(page))?;
        }
        Ok(out)
    }

    /// Reads the wanted ones of the pages from `first` on that have these entries, and gives `took` each with its
    /// index.
    fn read_entries(
        &self,
        inode: &Inode,
        first: PageNr,
        entries: &[PageEntry],
        wanted: &[bool],
        took: &mut dyn FnMut(usize, AlignedBuf),
    ) -> Result<()> {
        let most = part_of(wanted.len() as u32 * self.page_blocks());
        let runs = read_runs(entries, wanted, most);
        if !runs.is_empty() {
            let _loading = self.stats.time_for(Stage::Load, inode.usage.class());
            self.read_all(&runs, &mut |page, buf| {
                let nr = PageNr(first.0 + page.index as u64);
                took(page.index, self.verified(inode, nr, buf, &page)?);
                Ok(())
            })?;
        }
        let unmapped = |i: &usize| wanted[*i] && !matches!(entries[*i], PageEntry::Mapped(..));
        (0..wanted.len()).filter(unmapped).for_each(|i| took(i, self.cache.zeroed_page()));
        Ok(())
    }

    /// For what is read or written, with any content: memory of the cache's for a whole page, which the device knows,
    /// and other memory for the end of a file.
    pub(super) fn buffer_for(&self, bytes: usize) -> AlignedBuf {
        if bytes == self.page_bytes() { self.cache.page() } else { AlignedBuf::zeroed(bytes) }
    }

    fn verified(&self, inode: &Inode, page: PageNr, buf: AlignedBuf, wanted: &Wanted) -> Result<AlignedBuf> {
        if crc32c::crc32c(&buf) != wanted.crc && !mutants::active(Mutant::SkipDataChecksum) {
            self.counters.checksum_errors.fetch_add(1, Ordering::Relaxed);
            let e = FsError::DataChecksum {
                ino: inode.ino,
                offset: self.page_size().start_of(page),
                block: wanted.blocks.start,
            };
            tracing::error!(error = %e, volume = %self.device.name(), "bad data");
            return Err(e);
        }
        Ok(self.whole_page(buf))
    }

    /// The page, with zeros behind the blocks that it has.
    fn whole_page(&self, buf: AlignedBuf) -> AlignedBuf {
        if buf.len() == self.page_bytes() {
            return buf;
        }
        let mut whole = self.cache.zeroed_page();
        whole[..buf.len()].copy_from_slice(&buf);
        whole
    }
}
