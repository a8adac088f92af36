//! Reading ahead of scans: pages are asked for before somebody wants them.
//!
//! Nobody waits for these reads, and they hold no lock: the file may change under them. So what they bring is not in
//! the cache, but set aside ([`Prefetched`]) until a reader misses the page. He holds the page's range; he takes
//! what was read only if the page still has the blocks and the checksum that it had when it was asked for, and
//! if the bytes match that checksum. Otherwise he reads it himself. So a read ahead can fail, or come too late,
//! and nothing is wrong.
//!
//! What is set aside is bounded by a part of the cache's size; the oldest goes first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use blockdev::{AlignedBuf, IoClass, Pending};
use parking_lot::Mutex;

use super::runs::{MAX_READ, ReadRun, read_runs};
use crate::error::Result;
use crate::format::PageEntry;
use crate::fs::Inode;
use crate::types::{Ino, PageNr};
use crate::volume::Volume;

/// Largest window of a scan in bytes.
const MAX_WINDOW: usize = 2 << 20;
/// A scan may be ahead by this part of the cache at most, and all of them by [`SHARE_OF_ALL`].
const SHARE_OF_ONE: usize = 32;
const SHARE_OF_ALL: usize = 8;
/// Reads of which something is set aside, at most.
const MOST_BATCHES: usize = 1024;

/// Pages that one request reads.
#[derive(Debug)]
struct Batch {
    run: ReadRun,
    pages: Vec<(PageNr, PageEntry)>,
    read: Mutex<Read>,
}

#[derive(Debug)]
enum Read {
    /// Nobody has wanted any of them yet.
    Pending(Pending),
    /// Those that have not been taken.
    Landed(Vec<Option<AlignedBuf>>),
    Failed,
}

/// A page that was read ahead, or still is.
#[derive(Debug)]
pub(super) struct Ahead {
    batch: Arc<Batch>,
    nth: usize,
}

impl Ahead {
    /// Waits for it. `None`: it could not be read.
    pub(super) fn wait(self) -> Option<AlignedBuf> {
        let mut read = self.batch.read.lock();
        if let Read::Pending(_) = &*read
            && let Read::Pending(pending) = std::mem::replace(&mut *read, Read::Failed)
        {
            let completion = pending.wait();
            if completion.result.is_ok() {
                let bufs = self.batch.run.take(completion.bufs);
                *read = Read::Landed(bufs.map(|(_, buf)| Some(buf)).collect());
            }
        }
        match &mut *read {
            Read::Landed(bufs) => bufs.get_mut(self.nth)?.take(),
            _ => None,
        }
    }
}

/// Pages that were read ahead and that nobody has wanted yet.
#[derive(Debug, Default)]
pub(crate) struct Prefetched {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    pages: HashMap<(Ino, PageNr), (Arc<Batch>, usize)>,
    /// The oldest first; those of which nothing is left go when they are the oldest.
    batches: VecDeque<(Ino, Arc<Batch>)>,
}

impl Prefetched {
    /// The page, if it was read ahead when it was the same as now. It is not set aside any more in any case.
    pub(super) fn take(&self, ino: Ino, page: PageNr, entry: &PageEntry) -> Option<Ahead> {
        let (batch, nth) = self.table.lock().pages.remove(&(ino, page))?;
        (batch.pages[nth].1 == *entry).then_some(Ahead { batch, nth })
    }

    fn contains(&self, ino: Ino, page: PageNr) -> bool {
        self.table.lock().pages.contains_key(&(ino, page))
    }

    /// Sets a read aside. Returns how many pages had to go, so that there are at most `most`.
    fn add(&self, ino: Ino, batch: Batch, most: usize) -> usize {
        let batch = Arc::new(batch);
        let mut table = self.table.lock();
        for (nth, (page, _)) in batch.pages.iter().enumerate() {
            table.pages.insert((ino, *page), (batch.clone(), nth));
        }
        table.batches.push_back((ino, batch));
        table.trim(most)
    }

    /// Leaves at most `most` pages; returns how many had to go.
    fn trim(&self, most: usize) -> usize {
        self.table.lock().trim(most)
    }
}

impl Table {
    fn trim(&mut self, most: usize) -> usize {
        let mut dropped = 0;
        while let Some((ino, oldest)) = self.batches.front() {
            let (ino, oldest) = (*ino, oldest.clone());
            let left = |(page, _): &&(PageNr, PageEntry)| {
                self.pages.get(&(ino, *page)).is_some_and(|(batch, _)| Arc::ptr_eq(batch, &oldest))
            };
            let left: Vec<PageNr> = oldest.pages.iter().filter(left).map(|(page, _)| *page).collect();
            if !left.is_empty() && self.pages.len() <= most && self.batches.len() <= MOST_BATCHES {
                break;
            }
            dropped += left.len();
            left.into_iter().for_each(|page| drop(self.pages.remove(&(ino, page))));
            self.batches.pop_front();
        }
        dropped
    }
}

impl Volume {
    /// Pages that all scans together may be ahead.
    pub(crate) fn most_ahead(&self) -> usize {
        self.cache.capacity() / SHARE_OF_ALL / self.page_bytes()
    }

    /// Forgets what was read ahead, but for `most` pages.
    pub(crate) fn drop_ahead(&self, most: usize) {
        let dropped = self.prefetched.trim(most);
        self.count_pages(&self.counters.ahead_dropped, dropped);
    }

    /// Pages of the file have been read, and some were not in the cache. Asks for those that will be wanted next;
    /// does not wait for them.
    pub(super) fn read_ahead(&self, inode: &Inode, first: PageNr, count: usize) {
        let most = (MAX_WINDOW.min(self.cache.capacity() / SHARE_OF_ONE) / self.page_bytes()) as u64;
        if most < 2 {
            return;
        }
        let ranges = inode.streams.lock().note(first.0, first.0 + count as u64, most);
        if ranges.is_empty() {
            return;
        }
        // What is not stored yet is in memory.
        let end = {
            let state = inode.state.lock();
            self.page_size().pages_for(state.item.size.min(state.disk_size))
        };
        for range in ranges {
            // If the mapping cannot be read, whoever reads the pages will be told.
            let _ = self.ask_for(inode, range.start, range.end.min(end));
        }
    }

    /// Submits reads of the mapped pages `from..to` that are neither cached nor asked for.
    fn ask_for(&self, inode: &Inode, from: u64, to: u64) -> Result<()> {
        let Some(count) = to.checked_sub(from).filter(|n| *n > 0) else { return Ok(()) };
        let mut entries = vec![PageEntry::Hole; count as usize];
        self.meta.pages(inode.ino, PageNr(from), &mut entries)?;
        let page_of = |i: usize| PageNr(from + i as u64);
        let missing = |i| {
            !self.cache.contains(inode.ino, page_of(i)) && !self.prefetched.contains(inode.ino, page_of(i))
        };
        let wanted: Vec<bool> = (0..entries.len()).map(missing).collect();
        let runs = read_runs(&entries, &wanted, MAX_READ);
        let pages: usize = runs.iter().map(|run| run.pages.len()).sum();
        let requests = runs.iter().map(|run| run.request(self, IoClass::ReadAhead)).collect();
        let mut dropped = 0;
        let submitted = self.device.submit(requests);
        for (run, pending) in runs.into_iter().zip(submitted) {
            let pages = run.pages.iter().map(|page| (page_of(page.index), entries[page.index])).collect();
            let batch = Batch { run, pages, read: Mutex::new(Read::Pending(pending)) };
            dropped += self.prefetched.add(inode.ino, batch, self.most_ahead());
        }
        self.count_pages(&self.counters.ahead_pages, pages);
        self.count_pages(&self.counters.ahead_dropped, dropped);
        Ok(())
    }
}
