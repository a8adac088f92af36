//! lseek with SEEK_DATA and SEEK_HOLE, to the page.
//!
//! No lock is held from one page to the next: what moves meanwhile was moving when the call came. A
//! page's bytes move from the journal (patches) to the cache to the map, and each is looked at in
//! this order, so that none is missed on its way.

use crate::api::{FileType, Seek};
use crate::error::{FsError, Result};
use crate::format::PageEntry;
use crate::fs::Inode;
use crate::types::{CHUNK_PAGES, PageNr};
use crate::volume::Volume;

/// Pages looked at at once.
const WINDOW: u64 = 4 * CHUNK_PAGES;

impl Volume {
    /// See [`FsOps::seek`](crate::api::FsOps::seek).
    pub(crate) fn seek_file(&self, inode: &Inode, offset: u64, what: Seek) -> Result<u64> {
        let (kind, size) = {
            let state = inode.state.lock();
            (state.item.kind, state.item.size)
        };
        if kind != FileType::Regular {
            return Err(FsError::INVALID);
        }
        if offset >= size {
            return Err(FsError::NO_OFFSET);
        }
        let page_size = self.page_size();
        let first = page_size.page_of(offset);
        let last = page_size.page_of(size - 1);
        let found = match what {
            Seek::Data => self.next_data(inode, first, last)?.ok_or(FsError::NO_OFFSET)?,
            Seek::Hole => match self.next_hole(inode, first, last)? {
                Some(page) => page,
                None => return Ok(size),
            },
        };
        Ok(page_size.start_of(found).max(offset))
    }

    fn next_data(&self, inode: &Inode, mut from: PageNr, last: PageNr) -> Result<Option<PageNr>> {
        while let Some(page) = self.next_backed(inode, from)?.filter(|page| *page <= last) {
            let data = self.data_pages(inode, page, last)?;
            if let Some(i) = data.iter().position(|data| *data) {
                return Ok(Some(PageNr(page.0 + i as u64)));
            }
            from = PageNr(page.0 + data.len() as u64);
        }
        Ok(None)
    }

    fn next_hole(&self, inode: &Inode, mut from: PageNr, last: PageNr) -> Result<Option<PageNr>> {
        while from <= last {
            let data = self.data_pages(inode, from, last)?;
            if let Some(i) = data.iter().position(|data| !*data) {
                return Ok(Some(PageNr(from.0 + i as u64)));
            }
            from = PageNr(from.0 + data.len() as u64);
        }
        Ok(None)
    }

    /// Which of the pages from `first` on have data; not further than `last`.
    fn data_pages(&self, inode: &Inode, first: PageNr, last: PageNr) -> Result<Vec<bool>> {
        let count = (last.0 - first.0 + 1).min(WINDOW - first.0 % CHUNK_PAGES);
        let end = PageNr(first.0 + count);
        let mut data = vec![false; count as usize];
        {
            let patches = self.patches.lock();
            let mut from = first;
            while let Some(page) = patches.next(inode.ino, from).filter(|page| *page < end) {
                data[(page.0 - first.0) as usize] = true;
                from = PageNr(page.0 + 1);
            }
        }
        for page in inode.unhomed.lock().range(first..end).map(|(page, _)| page) {
            data[(page.0 - first.0) as usize] = true;
        }
        let mut entries = vec![PageEntry::Hole; data.len()];
        self.meta.pages(inode.ino, first, &mut entries)?;
        for (data, entry) in data.iter_mut().zip(&entries) {
            *data |= matches!(entry, PageEntry::Mapped(..));
        }
        Ok(data)
    }
}
