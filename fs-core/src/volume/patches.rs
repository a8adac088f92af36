//! Bytes that recovery found in the journal and that are not at home: they lie over pages until those
//! are first read.

use std::collections::{BTreeMap, HashMap};

use crate::format::Change;
use crate::types::{Ino, PageNr};

/// Bytes of a page that are in the journal only.
#[derive(Debug)]
pub(crate) struct Patch {
    /// Offset within the page.
    at: usize,
    bytes: PatchBytes,
}

/// Zeros take no memory: a few bytes of the journal may stand for a whole page of them.
#[derive(Debug)]
enum PatchBytes {
    Data(Box<[u8]>),
    Zeros(usize),
}

impl PatchBytes {
    fn len(&self) -> usize {
        match self {
            PatchBytes::Data(data) => data.len(),
            PatchBytes::Zeros(len) => *len,
        }
    }
}

impl Patch {
    /// Puts the bytes over the page.
    pub(crate) fn apply(&self, page: &mut [u8]) {
        let target = &mut page[self.at..self.at + self.bytes.len()];
        match &self.bytes {
            PatchBytes::Data(data) => target.copy_from_slice(data),
            PatchBytes::Zeros(_) => target.fill(0),
        }
    }
}

/// All patches of a page, oldest first.
pub(crate) type PagePatches = Vec<Patch>;

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Patches {
    pages: HashMap<Ino, BTreeMap<PageNr, PagePatches>>,
}

impl Patches {
    /// Notes what a change puts over pages, or takes away.
    pub(crate) fn apply(&mut self, change: &Change, page_bytes: usize) {
        let mut add = |ino: Ino, offset: u64, bytes: PatchBytes| {
            let page = PageNr(offset / page_bytes as u64);
            let at = (offset % page_bytes as u64) as usize;
            let list = self.pages.entry(ino).or_default().entry(page).or_default();
            if at == 0 && bytes.len() == page_bytes {
                list.clear(); // the whole page: what was there before does not matter
            }
            list.push(Patch { at, bytes });
        };
        match change {
            Change::Inline { ino, offset, data } => {
                add(*ino, *offset, PatchBytes::Data(data.as_slice().into()))
            }
            Change::InlineZero { ino, offset, len } => add(*ino, *offset, PatchBytes::Zeros(*len as usize)),
            Change::MapRun { ino, page, run } if run.crcs.is_some() => {
                self.drop_range(*ino, *page, run.pages.into());
            }
            Change::Unmap { ino, page, pages } => self.drop_range(*ino, *page, *pages),
            _ => {}
        }
    }

    fn drop_range(&mut self, ino: Ino, first: PageNr, pages: u64) {
        let Some(map) = self.pages.get_mut(&ino) else { return };
        let end = PageNr(first.0.saturating_add(pages));
        let gone: Vec<PageNr> = map.range(first..end).map(|(p, _)| *p).collect();
        for page in gone {
            map.remove(&page);
        }
        if map.is_empty() {
            self.pages.remove(&ino);
        }
    }

    /// The patches of a page, which stay.
    pub(crate) fn get(&self, ino: Ino, page: PageNr) -> Option<&PagePatches> {
        self.pages.get(&ino)?.get(&page)
    }

    /// The pages that have patches.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ino, PageNr)> + '_ {
        self.pages.iter().flat_map(|(ino, pages)| pages.keys().map(|p| (*ino, *p)))
    }

    /// The first page of the file at or behind `from` that has patches.
    pub(crate) fn next(&self, ino: Ino, from: PageNr) -> Option<PageNr> {
        self.pages.get(&ino)?.range(from..).next().map(|(p, _)| *p)
    }

    /// Forgets the patches of a page.
    pub(crate) fn remove(&mut self, ino: Ino, page: PageNr) -> Option<PagePatches> {
        let map = self.pages.get_mut(&ino)?;
        let out = map.remove(&page);
        if map.is_empty() {
            self.pages.remove(&ino);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_bytes_lie_over_earlier_ones() {
        let mut patches = Patches::default();
        let ino = Ino(20);
        patches.apply(&Change::Inline { ino, offset: 4096 + 10, data: vec![7; 100] }, 4096);
        patches.apply(&Change::InlineZero { ino, offset: 4096 + 50, len: 4046 }, 4096);
        patches.apply(&Change::Inline { ino, offset: 4096 + 60, data: vec![8; 2] }, 4096);
        let mut page = vec![1; 4096];
        patches.get(ino, PageNr(1)).unwrap().iter().for_each(|p| p.apply(&mut page));
        let mut want = vec![0; 4096];
        want[..10].fill(1);
        want[10..50].fill(7);
        want[60..62].fill(8);
        assert_eq!(page, want);
        patches.apply(&Change::InlineZero { ino, offset: 4096, len: 4096 }, 4096);
        assert_eq!(patches.get(ino, PageNr(1)).unwrap().len(), 1, "a whole page hides what was there");
    }
}
