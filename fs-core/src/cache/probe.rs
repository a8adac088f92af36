//! A page cache by itself, to measure what a hit costs.

use blockdev::AlignedBuf;

use super::frame::FrameRef;
use super::pages::PageCache;
use super::policy::PolicyKind;
use crate::types::{Ino, PageNr, PageSize};

const INO: Ino = Ino(17);
/// Shards, as many as a volume has by default.
const SHARDS: usize = 16;

/// A cache that has all pages of one file.
#[derive(Debug)]
pub struct HitProbe {
    cache: PageCache,
    /// They keep the pages from being evicted.
    pins: Vec<FrameRef>,
}

impl HitProbe {
    /// A cache of the default policy with `pages` pages, at least 1.
    pub fn new(page_size: PageSize, pages: u32) -> Self {
        let pages = u64::from(pages.max(1));
        // Shards are filled unevenly.
        let capacity = pages as usize * 2 * page_size.bytes();
        let cache = PageCache::new(page_size, capacity, PolicyKind::default(), SHARDS);
        let page = |nr: u64| {
            let mut buf = AlignedBuf::zeroed(page_size.bytes());
            buf.fill(nr as u8);
            cache.insert(INO, PageNr(nr), buf)
        };
        let pins = (0..pages).map(page).collect();
        Self { cache, pins }
    }

    /// Finds a page and pins it, and gives the pin back. False: there is no such page.
    pub fn pin(&self, page: u64) -> bool {
        self.cache.get(INO, PageNr(page)).is_some()
    }

    /// Copies a page that is found in the cache, as a read does. `to` has the length of a page. False: there
    /// is no such page.
    pub fn copy_out(&self, page: u64, to: &mut [u8]) -> bool {
        let Some(frame) = self.cache.get(INO, PageNr(page)) else { return false };
        to.copy_from_slice(frame.read().bytes());
        true
    }

    /// Lets `f` have the memory that the pages are in, to be copied without asking the cache.
    pub fn with_memory<R>(&self, f: impl FnOnce(&[&[u8]]) -> R) -> R {
        let guards: Vec<_> = self.pins.iter().map(|frame| frame.read()).collect();
        let memory: Vec<&[u8]> = guards.iter().map(|data| data.bytes()).collect();
        f(&memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_the_pages_that_it_has() {
        let probe = HitProbe::new(PageSize::new(4096).unwrap(), 40);
        assert!((0..40).all(|page| probe.pin(page)) && !probe.pin(40));
        let mut copy = vec![0; 4096];
        assert!(probe.copy_out(33, &mut copy) && copy.iter().all(|b| *b == 33));
        assert!(!probe.copy_out(40, &mut copy));
        probe.with_memory(|memory| assert!(memory.len() == 40 && memory[33] == copy));
    }
}
