//! Where a file lies: its extents, how scattered they are, and what of it is in memory.

use std::ops::ControlFlow;

use super::Volume;
use crate::api::FileType;
use crate::error::{FsError, Result};
use crate::format::PageEntry;
use crate::stats::FileClass;
use crate::types::{BLOCK_SIZE, BlockRun, CHUNK_PAGES, Ino, PageNr};

/// Bytes of a file that follow each other on the device, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file.
    pub offset: u64,
    /// Where it is.
    pub blocks: BlockRun,
    /// Reserved, and not written yet: reads as zeros.
    pub unwritten: bool,
}

/// What is known of a file beside its extents. Counts of pages are in pages of the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Size in bytes.
    pub size: u64,
    /// Number of extents.
    pub extents: u64,
    /// Extents that begin where the one before ends on the device (what is between them in the file is a
    /// hole, or one of them is unwritten), the first one left out: no seek leads to them.
    pub adjacent: u64,
    /// Bytes that have blocks and were written.
    pub written_bytes: u64,
    /// Bytes that have blocks and were not written.
    pub unwritten_bytes: u64,
    /// Pages with blocks.
    pub mapped_pages: u64,
    /// Those of them that are in memory.
    pub cached_pages: u64,
    /// Pages with bytes that have not reached the device in any form.
    pub dirty_pages: u64,
    /// Pages with bytes that are on the device in the journal only.
    pub journal_only_pages: u64,
    /// Somebody has it open.
    pub opens: u32,
    /// What it is taken for.
    pub class: Option<FileClass>,
}

impl Volume {
    /// Goes through the map of a regular file, in order, and hands each extent to `each` until it breaks.
    /// Reads metadata; takes no lock for long, so what changes meanwhile may be seen or not.
    /// ESTALE: there is no such file; EINVAL: it is not a regular one; ECANCELED: `each` has broken off.
    pub fn explain(&self, ino: Ino, each: &mut dyn FnMut(&Extent) -> ControlFlow<()>) -> Result<Explanation> {
        let inode = self.inodes.get(&self.meta, ino)?;
        let mut found = {
            let state = inode.state.lock();
            if state.deleted {
                return Err(FsError::STALE);
            }
            if state.item.kind != FileType::Regular {
                return Err(FsError::INVALID);
            }
            Explanation { size: state.item.size, opens: state.opens, ..Explanation::default() }
        };
        found.class = Some(inode.usage.class());
        {
            let unhomed = inode.unhomed.lock();
            for frame in unhomed.values() {
                let data = frame.read();
                found.dirty_pages += u64::from(data.dirty.is_some());
                found.journal_only_pages += u64::from(data.inline);
            }
        }
        let patched = self.patches.lock().iter().filter(|(i, _)| *i == ino).count() as u64;
        found.journal_only_pages += patched;
        let mut last: Option<Extent> = None;
        self.each_mapped_page(ino, &mut |page, entry| {
            let Some(blocks) = entry.blocks() else { return ControlFlow::Continue(()) };
            let unwritten = matches!(entry, PageEntry::Unwritten(_));
            let bytes = if unwritten { &mut found.unwritten_bytes } else { &mut found.written_bytes };
            *bytes += u64::from(blocks.len) * BLOCK_SIZE as u64;
            found.mapped_pages += 1;
            found.cached_pages += u64::from(self.cache.contains(ino, page));
            let next = Extent { offset: self.page_size().start_of(page), blocks: blocks.run(), unwritten };
            match &mut last {
                Some(extent) if joins(extent, &next) => extent.blocks.len += next.blocks.len,
                Some(extent) => {
                    let done = std::mem::replace(extent, next);
                    found.extents += 1;
                    found.adjacent += u64::from(done.blocks.end() == next.blocks.start);
                    return each(&done);
                }
                none => *none = Some(next),
            }
            ControlFlow::Continue(())
        })?;
        if let Some(extent) = last {
            found.extents += 1;
            if each(&extent).is_break() {
                return Err(FsError::Posix(libc::ECANCELED));
            }
        }
        Ok(found)
    }

    fn each_mapped_page(
        &self,
        ino: Ino,
        f: &mut dyn FnMut(PageNr, &PageEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut from = PageNr(0);
        while let Some(page) = self.meta.next_mapped(ino, from)? {
            let first = PageNr(page.chunk() * CHUNK_PAGES);
            let mut entries = [PageEntry::Hole; CHUNK_PAGES as usize];
            self.meta.pages(ino, first, &mut entries)?;
            for (i, entry) in entries.iter().enumerate() {
                if f(PageNr(first.0 + i as u64), entry).is_break() {
                    return Err(FsError::Posix(libc::ECANCELED));
                }
            }
            from = PageNr(first.0 + CHUNK_PAGES);
        }
        Ok(())
    }
}

/// `next` goes on where `extent` ends, in the file and on the device. Blocks are counted, not pages: only
/// the last page of a file has fewer than the others.
fn joins(extent: &Extent, next: &Extent) -> bool {
    extent.unwritten == next.unwritten
        && extent.blocks.end() == next.blocks.start
        && extent.offset + extent.blocks.bytes() as u64 == next.offset
        && extent.blocks.len.checked_add(next.blocks.len).is_some()
}
