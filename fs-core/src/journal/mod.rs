//! The journal: checksummed records in segments that belong to one epoch.
//!
//! Segments are used in a ring. A record starts at a block, never crosses the end of its segment,
//! and names the checksum of the record before it, so that old bytes of the ring can never be taken
//! for new ones.

mod scan;
mod sums;
mod writer;

pub(crate) use scan::{ScanEnd, scan_part};
pub(crate) use writer::JournalWriter;
