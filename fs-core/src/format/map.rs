//! Map items: where the 64 pages of a chunk are.
//!
//! Two encodings, whichever is smaller: *runs* (extents, cut at the chunk's border) for regions
//! written in sequence, and the *dense page map* (14 bytes a page) for regions overwritten at
//! random.

use super::bytes::{Reader, Writer};
use crate::types::{BlockNr, BlockRun, CHUNK_PAGES, Lsn};

const N: usize = CHUNK_PAGES as usize;
const RUNS: u8 = 1;
const DENSE: u8 = 2;
const ADDR_MASK: u64 = (1 << 44) - 1;
const DENSE_MAPPED: u64 = 1 << 44;
const DENSE_UNWRITTEN: u64 = 1 << 45;
const DENSE_BYTES: usize = 2 + 8 + N * 14;

/// What is known of one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageEntry {
    /// No blocks; reads as zeros.
    #[default]
    Hole,
    /// Blocks are allocated, nothing is written; reads as zeros.
    Unwritten(PageBlocks),
    /// Data.
    Mapped(PageBlocks, u32),
}

/// The blocks of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBlocks {
    /// First block.
    pub start: BlockNr,
    /// Number of blocks: fewer than the page has only at the end of a file.
    pub len: u8,
    /// LSN of the record that mapped it.
    pub birth: Lsn,
}

impl PageBlocks {
    /// As a run.
    pub fn run(&self) -> BlockRun {
        BlockRun::new(self.start, self.len.into())
    }
}

impl PageEntry {
    /// The blocks, if there are any.
    pub fn blocks(&self) -> Option<&PageBlocks> {
        match self {
            PageEntry::Hole => None,
            PageEntry::Unwritten(b) | PageEntry::Mapped(b, _) => Some(b),
        }
    }
}

/// The 64 pages of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// One entry a page.
    pub pages: [PageEntry; N],
}

impl Default for Chunk {
    fn default() -> Self {
        Self { pages: [PageEntry::Hole; N] }
    }
}

/// Pages that one run of the encoding covers.
struct Run {
    first: usize,
    pages: usize,
}

impl Chunk {
    /// All holes.
    pub fn is_empty(&self) -> bool {
        self.pages.iter().all(|p| *p == PageEntry::Hole)
    }

    /// Encodes the chunk for pages of `page_blocks` blocks; `None` if it is all holes.
    pub fn encode(&self, page_blocks: u32) -> Option<Vec<u8>> {
        if self.is_empty() {
            return None;
        }
        let runs = self.runs(page_blocks);
        let mapped = self.pages.iter().filter(|p| matches!(p, PageEntry::Mapped(..))).count();
        if 2 + runs.len() * 20 + mapped * 4 > DENSE_BYTES
            && let Some(dense) = self.encode_dense(page_blocks)
        {
            return Some(dense);
        }
        Some(self.encode_runs(&runs))
    }

    fn runs(&self, page_blocks: u32) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (i, page) in self.pages.iter().enumerate() {
            if *page == PageEntry::Hole {
                continue;
            }
            match runs.last_mut() {
                Some(run)
                    if run.first + run.pages == i && continues(&self.pages[i - 1], page, page_blocks) =>
                {
                    run.pages += 1;
                }
                _ => runs.push(Run { first: i, pages: 1 }),
            }
        }
        runs
    }

    fn encode_runs(&self, runs: &[Run]) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 + runs.len() * 20 + N * 4);
        out.put_u8(RUNS);
        out.put_u8(runs.len() as u8);
        for run in runs {
            let pages = &self.pages[run.first..run.first + run.pages];
            let (Some(head), Some(tail)) =
                (pages.first().and_then(PageEntry::blocks), pages.last().and_then(PageEntry::blocks))
            else {
                continue;
            };
            out.put_u8(run.first as u8);
            out.put_u8(run.pages as u8);
            out.put_u8(u8::from(matches!(pages[0], PageEntry::Mapped(..))));
            out.put_u8(tail.len);
            out.put_u8(0); // encoding of the data: plain
            out.put_u8(0); // flags; 1 = shared, reserved
            out.put_u48(head.start.0);
            out.put_u64(head.birth.0);
            for page in pages {
                if let PageEntry::Mapped(_, crc) = page {
                    out.put_u32(*crc);
                }
            }
        }
        out
    }

    /// The dense form, unless a page is short or the births are too far apart.
    fn encode_dense(&self, page_blocks: u32) -> Option<Vec<u8>> {
        let base = self.pages.iter().filter_map(PageEntry::blocks).map(|b| b.birth).min()?;
        let mut out = Vec::with_capacity(DENSE_BYTES);
        out.put_u8(DENSE);
        out.put_u8(0);
        out.put_u64(base.0);
        for page in &self.pages {
            let (blocks, crc, flag) = match page {
                PageEntry::Hole => {
                    out.extend_from_slice(&[0; 14]);
                    continue;
                }
                PageEntry::Unwritten(b) => (b, 0, DENSE_UNWRITTEN),
                PageEntry::Mapped(b, crc) => (b, *crc, DENSE_MAPPED),
            };
            if u32::from(blocks.len) != page_blocks {
                return None;
            }
            out.put_u48(blocks.start.0 | flag);
            out.put_u32(crc);
            out.put_u32(u32::try_from(blocks.birth.0 - base.0).ok()?);
        }
        Some(out)
    }

    /// Decodes a map item; `None` if malformed.
    pub fn decode(bytes: &[u8], page_blocks: u32) -> Option<Self> {
        let mut r = Reader::new(bytes);
        let chunk = match r.u8()? {
            RUNS => Self::decode_runs(&mut r, page_blocks)?,
            DENSE => Self::decode_dense(&mut r, page_blocks)?,
            _ => return None,
        };
        r.is_empty().then_some(chunk)
    }

    fn decode_runs(r: &mut Reader<'_>, page_blocks: u32) -> Option<Self> {
        let mut chunk = Chunk::default();
        let count = r.u8()?;
        let mut next = 0;
        for _ in 0..count {
            let (first, pages, mapped, last_blocks) =
                (usize::from(r.u8()?), usize::from(r.u8()?), r.u8()?, r.u8()?);
            let (encoding, flags) = (r.u8()?, r.u8()?);
            let (start, birth) = (r.u48()?, Lsn(r.u64()?));
            let sane = first >= next
                && pages > 0
                && first + pages <= N
                && mapped <= 1
                && (1..=page_blocks).contains(&last_blocks.into())
                && encoding == 0
                && flags == 0
                && in_range(start, (pages as u64 - 1) * u64::from(page_blocks) + u64::from(last_blocks));
            if !sane {
                return None;
            }
            next = first + pages;
            for i in 0..pages {
                let len = if i + 1 == pages { last_blocks } else { page_blocks as u8 };
                let start = BlockNr(start + i as u64 * u64::from(page_blocks));
                let blocks = PageBlocks { start, len, birth };
                chunk.pages[first + i] = match mapped {
                    1 => PageEntry::Mapped(blocks, r.u32()?),
                    _ => PageEntry::Unwritten(blocks),
                };
            }
        }
        Some(chunk)
    }

    fn decode_dense(r: &mut Reader<'_>, page_blocks: u32) -> Option<Self> {
        let mut chunk = Chunk::default();
        r.u8()?;
        let base = r.u64()?;
        for page in &mut chunk.pages {
            let (addr, crc, delta) = (r.u48()?, r.u32()?, r.u32()?);
            let blocks = PageBlocks {
                start: BlockNr(addr & ADDR_MASK),
                len: page_blocks as u8,
                birth: Lsn(base.checked_add(delta.into())?),
            };
            *page = match addr & !ADDR_MASK {
                0 if addr == 0 => PageEntry::Hole,
                _ if !in_range(blocks.start.0, page_blocks.into()) => return None,
                DENSE_MAPPED => PageEntry::Mapped(blocks, crc),
                DENSE_UNWRITTEN => PageEntry::Unwritten(blocks),
                _ => return None,
            };
        }
        Some(chunk)
    }
}

/// `blocks` blocks from `start` on can be on a volume.
fn in_range(start: u64, blocks: u64) -> bool {
    start > 0 && start + blocks <= 1 << 44
}

/// `next` can share a run with `prev`, its predecessor.
fn continues(prev: &PageEntry, next: &PageEntry, page_blocks: u32) -> bool {
    let same_kind = matches!(
        (prev, next),
        (PageEntry::Mapped(..), PageEntry::Mapped(..)) | (PageEntry::Unwritten(_), PageEntry::Unwritten(_))
    );
    match (prev.blocks(), next.blocks()) {
        (Some(a), Some(b)) if same_kind => {
            u32::from(a.len) == page_blocks && a.run().end() == b.start && a.birth == b.birth
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(start: u64, len: u8, birth: u64, crc: u32) -> PageEntry {
        PageEntry::Mapped(PageBlocks { start: BlockNr(start), len, birth: Lsn(birth) }, crc)
    }

    #[test]
    fn sequential_chunk_is_one_run() {
        let mut chunk = Chunk::default();
        for i in 0..64 {
            chunk.pages[i] = mapped(1000 + 4 * i as u64, 4, 7, i as u32);
        }
        let bytes = chunk.encode(4).unwrap();
        assert_eq!(bytes.len(), 2 + 20 + 64 * 4);
        assert_eq!(Chunk::decode(&bytes, 4), Some(chunk));
    }

    #[test]
    fn scattered_chunk_is_dense() {
        let mut chunk = Chunk::default();
        for i in 0..64 {
            chunk.pages[i] = mapped(1000 + 8 * i as u64, 4, 7 + i as u64, i as u32);
        }
        chunk.pages[5] = PageEntry::Hole;
        chunk.pages[6] = PageEntry::Unwritten(PageBlocks { start: BlockNr(9), len: 4, birth: Lsn(70_000) });
        let bytes = chunk.encode(4).unwrap();
        assert_eq!(bytes.len(), DENSE_BYTES);
        assert_eq!(Chunk::decode(&bytes, 4), Some(chunk));
    }

    #[test]
    fn short_last_page_survives() {
        let mut chunk = Chunk::default();
        chunk.pages[0] = mapped(1000, 4, 7, 1);
        chunk.pages[1] = mapped(1004, 1, 7, 2);
        let bytes = chunk.encode(4).unwrap();
        assert_eq!(Chunk::decode(&bytes, 4), Some(chunk));
    }

    /// Found by fuzzing: the two encodings disagreed about where a volume ends.
    #[test]
    fn the_end_of_the_largest_volume() {
        for (i, fits) in [(4, true), (3, false)] {
            let page = mapped((1 << 44) - i, 4, 5, 6);
            let mut chunk = Chunk::default();
            chunk.pages[9] = page;
            let runs = chunk.encode_runs(&chunk.runs(4));
            let dense = chunk.encode_dense(4).unwrap();
            let want = fits.then_some(chunk);
            assert_eq!((Chunk::decode(&runs, 4), Chunk::decode(&dense, 4)), (want.clone(), want));
        }
    }

    #[test]
    fn hostile_bytes_never_panic() {
        let mut chunk = Chunk::default();
        for i in 0..64 {
            chunk.pages[i] = mapped(1000 + 8 * i as u64, 4, 7, i as u32);
        }
        let bytes = chunk.encode(4).unwrap();
        for i in 0..bytes.len() {
            for bit in 0..8 {
                let mut b = bytes.clone();
                b[i] ^= 1 << bit;
                let _ = Chunk::decode(&b, 4);
            }
            let _ = Chunk::decode(&bytes[..i], 4);
        }
    }
}
