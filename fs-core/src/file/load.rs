//! From the device into memory: verified pages.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockdev::{AlignedBuf, IoClass, Request};

use crate::cache::{Claim, Flight, FrameData, FrameRef};
use crate::error::{FsError, Result};
use crate::format::PageEntry;
use crate::fs::Inode;
use crate::mutants::{self, Mutant};
use crate::stats::Stage;
use crate::types::{BLOCK_SIZE, BlockRun, PageNr};
use crate::volume::Volume;

/// Largest single read in bytes.
const MAX_READ: usize = 1 << 20;

/// Mapped pages that follow each other on the device.
struct ReadRun {
    first: usize,
    pages: Vec<(usize, u32)>,
    blocks: BlockRun,
}

impl Volume {
    /// The frames of pages `first..first + count`, from the cache or the device. The caller holds
    /// the range, at least shared. Threads that miss the same page share one read.
    pub(crate) fn load_frames(&self, inode: &Inode, first: PageNr, count: usize) -> Result<Vec<FrameRef>> {
        let mut frames: Vec<Option<FrameRef>> =
            (0..count as u64).map(|i| self.cache.get(inode.ino, PageNr(first.0 + i))).collect();
        let hits = frames.iter().flatten().count() as u64;
        self.counters.cache_hits.fetch_add(hits, Ordering::Relaxed);
        // Again only for pages whose readers have failed.
        while frames.iter().any(Option::is_none) {
            let theirs = self.load_missing(inode, first, &mut frames)?;
            self.counters.cache_waits.fetch_add(theirs.len() as u64, Ordering::Relaxed);
            for (i, flight) in theirs {
                frames[i] = flight.wait();
            }
        }
        Ok(frames.into_iter().flatten().collect())
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
        let mut bufs = self.read_pages(inode, page_of(from), &wanted)?;
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
        let frame = self.load_frames(inode, page, 1)?.pop();
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
        self.note_patched(&mut frame.data.write());
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

    /// Reads the wanted pages from `first` on past the cache. Holes and unwritten pages are zeros.
    pub(crate) fn read_pages(
        &self,
        inode: &Inode,
        first: PageNr,
        wanted: &[bool],
    ) -> Result<Vec<Option<AlignedBuf>>> {
        let mut entries = vec![PageEntry::Hole; wanted.len()];
        self.meta.pages(inode.ino, first, &mut entries)?;
        let runs = self.read_runs(&entries, wanted);
        let requests = runs
            .iter()
            .map(|run| {
                let bufs = run.pages.iter().map(|(blocks, _)| self.buffer_for(blocks * BLOCK_SIZE)).collect();
                Request::read(run.blocks.start.offset(), bufs, IoClass::Data)
            })
            .collect();
        let loading = (!runs.is_empty()).then(|| self.stats.time_for(Stage::Load, inode.usage.class()));
        let pending = self.device.submit(requests);
        let mut out: Vec<Option<AlignedBuf>> = (0..wanted.len()).map(|_| None).collect();
        let mut error = None;
        for (run, pending) in runs.iter().zip(pending) {
            let completion = pending.wait();
            if let Err(e) = completion.result {
                error.get_or_insert(FsError::from(e));
                continue;
            }
            for (i, (buf, (_, crc))) in completion.bufs.into_iter().zip(&run.pages).enumerate() {
                let page = PageNr(first.0 + (run.first + i) as u64);
                match self.verified(inode, page, buf, *crc, run) {
                    Ok(buf) => out[run.first + i] = Some(buf),
                    Err(e) => {
                        error.get_or_insert(e);
                    }
                }
            }
        }
        drop(loading);
        if let Some(e) = error {
            return Err(e);
        }
        for (slot, wanted) in out.iter_mut().zip(wanted) {
            if *wanted && slot.is_none() {
                *slot = Some(self.cache.zeroed_page());
            }
        }
        Ok(out)
    }

    /// To read into: memory of the cache's for a whole page, and any other for the end of a file.
    fn buffer_for(&self, bytes: usize) -> AlignedBuf {
        if bytes == self.page_bytes() { self.cache.page() } else { AlignedBuf::zeroed(bytes) }
    }

    fn verified(
        &self,
        inode: &Inode,
        page: PageNr,
        buf: AlignedBuf,
        crc: u32,
        run: &ReadRun,
    ) -> Result<AlignedBuf> {
        if crc32c::crc32c(&buf) != crc && !mutants::active(Mutant::SkipDataChecksum) {
            self.counters.checksum_errors.fetch_add(1, Ordering::Relaxed);
            let e = FsError::DataChecksum {
                ino: inode.ino,
                offset: self.page_size().start_of(page),
                block: run.blocks.start,
            };
            tracing::error!(error = %e, volume = %self.device.name(), "bad data");
            return Err(e);
        }
        if buf.len() == self.page_bytes() {
            return Ok(buf);
        }
        let mut whole = self.cache.zeroed_page();
        whole[..buf.len()].copy_from_slice(&buf);
        Ok(whole)
    }

    fn read_runs(&self, entries: &[PageEntry], wanted: &[bool]) -> Vec<ReadRun> {
        let mut runs: Vec<ReadRun> = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let PageEntry::Mapped(blocks, crc) = entry else { continue };
            if !wanted[i] {
                continue;
            }
            let page = (usize::from(blocks.len), *crc);
            match runs.last_mut() {
                Some(run)
                    if run.first + run.pages.len() == i
                        && run.blocks.end() == blocks.start
                        && run.blocks.bytes() < MAX_READ =>
                {
                    run.pages.push(page);
                    run.blocks.len += u32::from(blocks.len);
                }
                _ => runs.push(ReadRun { first: i, pages: vec![page], blocks: blocks.run() }),
            }
        }
        runs
    }
}
