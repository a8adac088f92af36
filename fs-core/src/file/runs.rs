//! Which requests read which pages.
//!
//! Pages that are near each other on the device are read by one request, in whatever order they are there, and
//! together with what is between them, if that is little: replaced pages stay near their neighbours, but not in
//! their order.

use std::ops::Range;

use blockdev::{AlignedBuf, Completion, IoClass, Request};

use crate::error::{FsError, Result};
use crate::format::PageEntry;
use crate::types::{BLOCK_SIZE, BlockNr, BlockRun};
use crate::volume::Volume;

/// Largest single read in blocks.
pub(super) const MAX_READ: u32 = 256;

/// What somebody waits for is read in so many parts, unless they were smaller than that (in blocks): he verifies and
/// copies the first one while the others are still under way.
const PARTS: u32 = 4;
const SMALLEST_PART: u32 = 64;

/// The largest single read, in blocks, of somebody who waits for so many blocks.
pub(super) fn part_of(blocks: u32) -> u32 {
    (blocks / PARTS).clamp(SMALLEST_PART, MAX_READ)
}

/// A gap is read, too, if it has at most so many blocks (the time of a small request is that of reading about so
/// many), and one more for this many blocks of pages before it in the request.
const GAP: u32 = 4;
const PAGES_PER_GAP: u32 = 8;

/// A mapped page that is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Its place in the list of entries.
    pub(super) index: usize,
    /// Where it is.
    pub(super) blocks: BlockRun,
    /// Its checksum.
    pub(super) crc: u32,
}

/// Pages that one request reads, ascending by where they are.
#[derive(Debug)]
pub(super) struct ReadRun {
    pub(super) pages: Vec<Wanted>,
    blocks: BlockRun,
    /// Blocks of pages.
    useful: u32,
}

impl ReadRun {
    fn new(page: Wanted) -> Self {
        Self { pages: vec![page], blocks: page.blocks, useful: page.blocks.len }
    }

    /// Adds the next page, if it should be read together with the others, in at most `most` blocks.
    fn takes(&mut self, page: Wanted, most: u32) -> bool {
        let end = self.blocks.end();
        // Two pages in the same blocks would be corruption, which the checksums tell.
        let Some(gap) = page.blocks.start.0.checked_sub(end.0) else { return false };
        let bearable = gap == 0 || gap <= u64::from(GAP + self.useful / PAGES_PER_GAP);
        let long = u64::from(self.blocks.len) + gap + u64::from(page.blocks.len) > u64::from(most);
        if !bearable || long {
            return false;
        }
        self.blocks.len += gap as u32 + page.blocks.len;
        self.useful += page.blocks.len;
        self.pages.push(page);
        true
    }

    /// Whether blocks between its pages are read, too.
    pub(super) fn has_gaps(&self) -> bool {
        self.useful < self.blocks.len
    }

    /// Its pages, each by itself.
    pub(super) fn split(&self) -> Vec<ReadRun> {
        self.pages.iter().copied().map(ReadRun::new).collect()
    }

    /// The request, with memory from `volume`.
    pub(super) fn request(&self, volume: &Volume, class: IoClass) -> Request {
        let mut bufs = Vec::with_capacity(self.pages.len());
        let mut at = self.blocks.start;
        for page in &self.pages {
            bufs.extend(volume.buffers_for(at..page.blocks.start));
            bufs.push(volume.buffer_for(page.blocks.bytes()));
            at = page.blocks.end();
        }
        Request::read(self.blocks.start.offset(), bufs, class)
    }

    /// The pages' own buffers of those that the request has brought.
    pub(super) fn take(&self, bufs: Vec<AlignedBuf>) -> impl Iterator<Item = (Wanted, AlignedBuf)> {
        let mut at = self.blocks.start;
        let mut pages = self.pages.iter().copied().peekable();
        bufs.into_iter().filter_map(move |buf| {
            let start = at;
            at = at.plus((buf.len() / BLOCK_SIZE) as u64);
            let page = pages.next_if(|page| page.blocks.start == start)?;
            Some((page, buf))
        })
    }
}

/// The requests, of at most `most` blocks, that bring the wanted ones of the pages with these entries, as far
/// as they are mapped.
pub(super) fn read_runs(entries: &[PageEntry], wanted: &[bool], most: u32) -> Vec<ReadRun> {
    let mapped = |(index, entry): (usize, &PageEntry)| match entry {
        PageEntry::Mapped(blocks, crc) if wanted[index] => {
            Some(Wanted { index, blocks: blocks.run(), crc: *crc })
        }
        _ => None,
    };
    let mut pages: Vec<Wanted> = entries.iter().enumerate().filter_map(mapped).collect();
    pages.sort_by_key(|page| page.blocks.start);
    let mut runs: Vec<ReadRun> = Vec::new();
    for page in pages {
        if !runs.last_mut().is_some_and(|run| run.takes(page, most)) {
            runs.push(ReadRun::new(page));
        }
    }
    runs
}

impl Volume {
    /// Memory for what is between pages.
    fn buffers_for(&self, gap: Range<BlockNr>) -> impl Iterator<Item = AlignedBuf> {
        let mut left = (gap.end.0 - gap.start.0) as usize * BLOCK_SIZE;
        std::iter::from_fn(move || {
            let n = left.min(self.page_bytes());
            left -= n;
            (n > 0).then(|| self.buffer_for(n))
        })
    }

    /// Reads what `runs` name. What has arrived goes to `arrived` while the rest is still under way. A run that
    /// cannot be read, and has gaps, is read page by page: the fault may be in the gaps. Returns the first error.
    pub(super) fn read_all(
        &self,
        runs: &[ReadRun],
        arrived: &mut dyn FnMut(Wanted, AlignedBuf) -> Result<()>,
    ) -> Result<()> {
        let mut requests: Vec<Request> = runs.iter().map(|run| run.request(self, IoClass::Data)).collect();
        let mut land = |run: &ReadRun, completion: Completion| match completion.result {
            Ok(()) => run.take(completion.bufs).try_for_each(|(page, buf)| arrived(page, buf)),
            Err(_) if run.has_gaps() => self.read_all(&run.split(), arrived),
            Err(e) => Err(FsError::from(e)),
        };
        // One request alone needs no queue.
        if let ([run], Some(request)) = (runs, requests.pop_if(|_| runs.len() == 1)) {
            return land(run, self.device.execute(request));
        }
        let mut outcome = Ok(());
        for (run, pending) in runs.iter().zip(self.device.submit(requests)) {
            let read = land(run, pending.wait());
            outcome = outcome.and(read);
        }
        outcome
    }
}
