//! Reading all data back against its checksums.

use blockdev::{AlignedBuf, BlockDevice, IoClass, Pending, Request};

use super::report::{Findings, ProblemKind};
use super::{Stats, text};
use crate::error::FsError;
use crate::types::{BLOCK_SIZE, BlockRun, Ino, PageNr};

/// Blocks read in one request at most.
const MAX_RUN: u32 = 256;

/// Requests that are in flight at once.
const IN_FLIGHT: usize = 8;

/// A page to verify.
#[derive(Clone, Copy, Debug)]
struct Page {
    ino: Ino,
    page: PageNr,
    run: BlockRun,
    crc: u32,
}

/// Gathers neighbouring pages into large reads.
pub(crate) struct DataChecker<'a> {
    device: &'a dyn BlockDevice,
    page_bytes: u64,
    /// Pages whose blocks follow each other; not yet asked for.
    open: Vec<Page>,
    reads: Vec<(Vec<Page>, Pending)>,
    /// Pages that are not what their checksum says, as far as they have not been taken.
    bad: Vec<(Ino, PageNr)>,
}

impl<'a> DataChecker<'a> {
    pub(crate) fn new(device: &'a dyn BlockDevice, page_bytes: usize) -> Self {
        Self { device, page_bytes: page_bytes as u64, open: Vec::new(), reads: Vec::new(), bad: Vec::new() }
    }

    /// A page whose blocks lie on the device.
    pub(crate) fn add(
        &mut self,
        ino: Ino,
        page: PageNr,
        run: BlockRun,
        crc: u32,
        findings: &mut Findings,
        stats: &mut Stats,
    ) {
        let fits = match (self.open.first(), self.open.last()) {
            (Some(first), Some(last)) => {
                last.run.end() == run.start && run.end().0 - first.run.start.0 <= u64::from(MAX_RUN)
            }
            _ => true,
        };
        if !fits {
            self.submit(findings, stats);
        }
        self.open.push(Page { ino, page, run, crc });
    }

    fn submit(&mut self, findings: &mut Findings, stats: &mut Stats) {
        let pages = std::mem::take(&mut self.open);
        let Some(first) = pages.first() else { return };
        let bufs = pages.iter().map(|p| AlignedBuf::zeroed(p.run.bytes())).collect();
        let request = Request::read(first.run.start.offset(), bufs, IoClass::Background);
        let pending = self.device.submit(vec![request]);
        self.reads.extend(pending.into_iter().map(|p| (pages.clone(), p)));
        if self.reads.len() >= IN_FLIGHT {
            self.drain(findings, stats);
        }
    }

    /// Verifies all that was added.
    pub(crate) fn flush(&mut self, findings: &mut Findings, stats: &mut Stats) {
        self.submit(findings, stats);
        self.drain(findings, stats);
    }

    /// The pages found bad since this was last called.
    pub(crate) fn take_bad(&mut self) -> Vec<(Ino, PageNr)> {
        std::mem::take(&mut self.bad)
    }

    fn drain(&mut self, findings: &mut Findings, stats: &mut Stats) {
        for (pages, pending) in std::mem::take(&mut self.reads) {
            let completion = pending.wait();
            if completion.result.is_err() {
                // One bad sector must not hide the state of its neighbours.
                pages.iter().for_each(|p| self.read_one(p, findings, stats));
                continue;
            }
            for (page, buf) in pages.iter().zip(&completion.bufs) {
                self.verify(page, buf, findings, stats);
            }
        }
    }

    fn read_one(&mut self, page: &Page, findings: &mut Findings, stats: &mut Stats) {
        let buf = AlignedBuf::zeroed(page.run.bytes());
        match self.device.read_at(page.run.start.offset(), buf, IoClass::Background) {
            Ok(buf) => self.verify(page, &buf, findings, stats),
            Err(e) => {
                self.bad.push((page.ino, page.page));
                let at = page.page.0.saturating_mul(self.page_bytes);
                findings.add(ProblemKind::Device, Some(page.ino), Some(page.run.start), || {
                    format!("the page at offset {at} cannot be read: {}", text(&FsError::from(e)))
                });
            }
        }
    }

    fn verify(&mut self, page: &Page, buf: &[u8], findings: &mut Findings, stats: &mut Stats) {
        stats.verified_pages += 1;
        debug_assert_eq!(buf.len() % BLOCK_SIZE, 0);
        let found = crc32c::crc32c(buf);
        if found != page.crc {
            self.bad.push((page.ino, page.page));
            let at = page.page.0.saturating_mul(self.page_bytes);
            findings.add(ProblemKind::DataChecksum, Some(page.ino), Some(page.run.start), || {
                format!(
                    "the page at offset {at} (block {}) has checksum {found:08x}, it should be {:08x}",
                    page.run.start, page.crc
                )
            });
        }
    }
}
