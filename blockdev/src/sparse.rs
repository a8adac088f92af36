//! Sparse, copy-on-write bytes: what the RAM device and every simulated image are made of.
//!
//! Two levels of shared nodes (pages of 4 KiB in regions of 1 MiB): a clone costs one counter per
//! region, and a write after a clone copies one region table and the pages it touches.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

pub(crate) const PAGE: usize = 4096;
const PAGES_PER_REGION: usize = 256;

type Page = Arc<[u8; PAGE]>;

#[derive(Clone)]
struct Region {
    pages: [Option<Page>; PAGES_PER_REGION],
    used: usize,
}

impl Region {
    fn empty() -> Self {
        Self { pages: [const { None }; PAGES_PER_REGION], used: 0 }
    }
}

/// An endless array of bytes, zero where nothing was written.
#[derive(Clone, Default)]
pub(crate) struct SparseMem {
    regions: BTreeMap<u64, Arc<Region>>,
}

/// Splits a byte range at page boundaries: (page number, range in the page, range in the whole).
fn by_page(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let start = (at % PAGE as u64) as usize;
        let n = (PAGE - start).min(len - done);
        let item = (at / PAGE as u64, start..start + n, done..done + n);
        done += n;
        Some(item)
    })
}

fn split(page: u64) -> (u64, usize) {
    (page / PAGES_PER_REGION as u64, (page % PAGES_PER_REGION as u64) as usize)
}

impl SparseMem {
    fn page(&self, page: u64) -> Option<&[u8; PAGE]> {
        let (region, slot) = split(page);
        self.regions.get(&region)?.pages[slot].as_deref()
    }

    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) {
        for (page, inner, outer) in by_page(offset, out.len()) {
            match self.page(page) {
                Some(bytes) => out[outer].copy_from_slice(&bytes[inner]),
                None => out[outer].fill(0),
            }
        }
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, inner, outer) in by_page(offset, data.len()) {
            let bytes = &data[outer];
            match <&[u8; PAGE]>::try_from(bytes) {
                Ok(whole) => *self.slot(page) = Some(Arc::new(*whole)),
                Err(_) => self.page_mut(page)[inner].copy_from_slice(bytes),
            }
        }
    }

    /// The slot of a page that is about to hold data.
    fn slot(&mut self, page: u64) -> &mut Option<Page> {
        let (region, slot) = split(page);
        let region = Arc::make_mut(self.regions.entry(region).or_insert_with(|| Arc::new(Region::empty())));
        if region.pages[slot].is_none() {
            region.used += 1;
        }
        &mut region.pages[slot]
    }

    fn page_mut(&mut self, page: u64) -> &mut [u8; PAGE] {
        Arc::make_mut(self.slot(page).get_or_insert_with(|| Arc::new([0; PAGE])))
    }

    /// Zeroes a range; whole pages give their memory back.
    pub(crate) fn zero(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        for page in self.pages_in(offset..end) {
            let start = page * PAGE as u64;
            let from = offset.max(start) - start;
            let to = end.min(start + PAGE as u64) - start;
            if from == 0 && to == PAGE as u64 {
                self.remove(page);
            } else {
                self.page_mut(page)[from as usize..to as usize].fill(0);
            }
        }
    }

    fn remove(&mut self, page: u64) {
        let (number, slot) = split(page);
        let Some(region) = self.regions.get_mut(&number) else { return };
        let region = Arc::make_mut(region);
        if region.pages[slot].take().is_some() {
            region.used -= 1;
        }
        if region.used == 0 {
            self.regions.remove(&number);
        }
    }

    /// Numbers of the pages that hold data and overlap `range` (bytes), ascending.
    pub(crate) fn pages_in(&self, range: Range<u64>) -> Vec<u64> {
        if range.is_empty() {
            return Vec::new();
        }
        let first = range.start / PAGE as u64;
        let last = (range.end - 1) / PAGE as u64;
        let regions = self.regions.range(split(first).0..=split(last).0);
        let pages = regions.flat_map(|(number, region)| {
            let base = number * PAGES_PER_REGION as u64;
            region.pages.iter().enumerate().filter(|(_, p)| p.is_some()).map(move |(i, _)| base + i as u64)
        });
        pages.filter(|page| (first..=last).contains(page)).collect()
    }

    /// Bytes of memory held by pages (shared ones counted too).
    pub(crate) fn allocated(&self) -> u64 {
        self.regions.values().map(|r| (r.used * PAGE) as u64).sum()
    }

    /// Writes the first `size` bytes to `file`, leaving holes where nothing was written.
    pub(crate) fn save(&self, file: &File, size: u64) -> io::Result<()> {
        file.set_len(0)?;
        file.set_len(size)?;
        for page in self.pages_in(0..size) {
            let offset = page * PAGE as u64;
            let len = (size - offset).min(PAGE as u64) as usize;
            if let Some(bytes) = self.page(page) {
                file.write_all_at(&bytes[..len], offset)?;
            }
        }
        Ok(())
    }

    /// Reads all of `file`, skipping what is zero.
    pub(crate) fn load(file: &File, size: u64) -> io::Result<Self> {
        let mut mem = Self::default();
        let mut buf = vec![0; PAGE * PAGES_PER_REGION];
        let mut offset = next_data(file, 0);
        while offset < size {
            let len = (size - offset).min(buf.len() as u64) as usize;
            file.read_exact_at(&mut buf[..len], offset)?;
            for (_, _, outer) in by_page(offset, len) {
                let at = offset + outer.start as u64;
                let bytes = &buf[outer];
                if bytes.iter().any(|b| *b != 0) {
                    mem.write(at, bytes);
                }
            }
            offset = next_data(file, offset + len as u64);
        }
        Ok(mem)
    }
}

/// Where the next data of a file begins, rounded down to a page: a sparse image of terabytes must
/// not be read hole by hole. A file system that cannot tell has data everywhere.
fn next_data(file: &File, offset: u64) -> u64 {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(at) => (at - at % PAGE as u64).max(offset),
        Err(rustix::io::Errno::NXIO) => u64::MAX,
        Err(_) => offset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written_across_pages_and_regions() {
        let mut mem = SparseMem::default();
        let data: Vec<u8> = (0..3 * PAGE).map(|i| (i % 251) as u8).collect();
        let offset = (PAGES_PER_REGION * PAGE) as u64 - 5000;
        mem.write(offset, &data);
        let mut out = vec![1; data.len() + 1024];
        mem.read(offset - 512, &mut out);
        assert!(out[..512].iter().all(|b| *b == 0));
        assert_eq!(&out[512..512 + data.len()], &data[..]);
        assert!(out[512 + data.len()..].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_clone_does_not_see_later_writes() {
        let mut mem = SparseMem::default();
        mem.write(0, &[1; 8192]);
        let old = mem.clone();
        mem.write(512, &[2; 512]);
        mem.zero(4096, 4096);
        let mut out = [0; 8192];
        old.read(0, &mut out);
        assert_eq!(out, [1; 8192]);
        mem.read(0, &mut out);
        assert_eq!((out[511], out[512], out[1024], out[4096]), (1, 2, 1, 0));
    }

    #[test]
    fn zeroing_frees_whole_pages_and_far_ranges_cost_nothing() {
        let mut mem = SparseMem::default();
        mem.write(1 << 39, &[7; 16384]);
        assert_eq!(mem.allocated(), 16384);
        mem.zero((1 << 39) + 2048, 8192);
        assert_eq!(mem.allocated(), 12288);
        mem.zero(0, 1 << 40);
        assert_eq!(mem.allocated(), 0);
        assert!(mem.regions.is_empty());
    }

    #[test]
    fn saved_and_loaded_images_are_equal() {
        let mut mem = SparseMem::default();
        mem.write(8192, &[3; 4096]);
        mem.write(3 << 20, &[4; 512]);
        let file = tempfile::tempfile().unwrap();
        mem.save(&file, 4 << 20).unwrap();
        let back = SparseMem::load(&file, 4 << 20).unwrap();
        let (mut a, mut b) = (vec![0; 4 << 20], vec![1; 4 << 20]);
        mem.read(0, &mut a);
        back.read(0, &mut b);
        assert_eq!(a, b);
        assert_eq!(back.allocated(), 8192);
    }
}
