//! Synthetic workloads: what databases do to a page cache.

mod tpcc;
mod zipf;

use super::rng::Rng;
use tpcc::Tpcc;
pub use zipf::Zipf;

/// An access to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Number of the file.
    pub file: u64,
    /// Number of the page in it.
    pub page: u64,
    /// It belongs to a scan, and not to the workload's hot set.
    pub scan: bool,
}

/// File of the hot table.
pub const HOT: u64 = 1;
/// File of the table that is scanned.
pub const SCANNED: u64 = 2;

/// Pages of the hot table, in caches.
const HOT_CACHES: usize = 10;

/// Reads of a page by a scan, in a row: 4 KiB at a time from a page of 16 KiB.
const PIECES: usize = 4;

/// The workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Zipf 0.99 over a table ten times the cache.
    Zipf,
    /// The same, and half of the time a scan of a table twice the cache runs beside it, access by access.
    ZipfScans,
    /// The same, and an endless loop over a table of 1.25 times the cache beside it.
    LoopZipf,
    /// The transactions of TPC-C on a database of about four times the cache.
    Tpcc,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Zipf, Self::ZipfScans, Self::LoopZipf, Self::Tpcc];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zipf => "zipf",
            Self::ZipfScans => "zipf+scans",
            Self::LoopZipf => "loop+zipf",
            Self::Tpcc => "tpcc",
        }
    }

    /// Its first `accesses` accesses, for a cache of `frames` frames.
    pub fn accesses(self, frames: usize, accesses: usize, seed: u64) -> Vec<Access> {
        let mut rng = Rng::new(seed);
        if self == Self::Tpcc {
            return Tpcc::new(frames, rng).take(accesses).collect();
        }
        let zipf = Zipf::new(frames * HOT_CACHES, 0.99);
        let mut hot = || Access { file: HOT, page: zipf.draw(&mut rng) as u64, scan: false };
        let scanned = |page: usize| Access { file: SCANNED, page: page as u64, scan: true };
        let table = 2 * frames;
        (0..accesses)
            .map(|i| match self {
                // A scan takes `2 * PIECES * table` accesses, and so does the time until the next one.
                Self::ZipfScans if i % 2 == 1 && i / (2 * PIECES * table) % 2 == 1 => {
                    scanned(i / 2 / PIECES % table)
                }
                Self::LoopZipf if i % 2 == 1 => scanned(i / 2 % (frames + frames / 4)),
                _ => hot(),
            })
            .collect()
    }
}
