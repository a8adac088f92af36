//! Images of pages on their way to their places. They are made, checksummed and sent part by part, so that the
//! device works on the first parts while the processor prepares the next.

use blockdev::{AlignedBuf, IoClass, Pending, Request};

use super::map::{Placed, WrittenRun};
use crate::error::Result;
use crate::format::MappedRun;
use crate::types::BLOCK_SIZE;
use crate::volume::{Volume, check_all, wait_all};

/// Bytes of a part: large enough that what a request costs does not count.
const PART: usize = 256 << 10;

/// Images that were sent, but for the last part.
pub(super) struct Sent {
    /// The last part; it is all if there is but one.
    rest: Vec<Request>,
    pending: Vec<Pending>,
}

impl Sent {
    /// Sends the last part, too, and waits for none.
    pub(super) fn submit(mut self, volume: &Volume) -> Vec<Pending> {
        self.pending.extend(volume.device.submit(self.rest));
        self.pending
    }

    /// Sends the last part, too, and waits for all.
    pub(super) fn finish(self, volume: &Volume) -> Result<()> {
        match self.pending.is_empty() {
            true => check_all(volume.device.execute_all(self.rest)),
            false => wait_all(self.submit(volume)),
        }
    }
}

impl Volume {
    /// Sends images, of the pages of `placed` in their order, to their places. Each is whole blocks, fewer than a
    /// page at the end of a file, in memory that nobody else can change. Also returns what will be there.
    pub(super) fn send(
        &self,
        mut images: impl Iterator<Item = AlignedBuf>,
        placed: &[Placed],
        class: IoClass,
        fua: bool,
    ) -> (Sent, Vec<WrittenRun>) {
        let mut sent = Sent { rest: Vec::new(), pending: Vec::new() };
        let mut written = Vec::with_capacity(placed.len());
        let mut bytes = 0;
        for &Placed { page, run: blocks, pages, .. } in placed {
            let mut crcs = Vec::with_capacity(pages as usize);
            let (mut from, mut at, mut last) = (blocks.start, blocks.start, 0);
            let mut bufs = Vec::with_capacity((pages as usize).min(PART / self.page_bytes()));
            for buf in images.by_ref().take(pages as usize) {
                if bytes >= PART {
                    if !bufs.is_empty() {
                        sent.rest.push(Request::write(from.offset(), std::mem::take(&mut bufs), fua, class));
                        from = at;
                    }
                    sent.pending.extend(self.device.submit(std::mem::take(&mut sent.rest)));
                    bytes = 0;
                }
                crcs.push(crc32c::crc32c(&buf));
                bytes += buf.len();
                last = buf.len() / BLOCK_SIZE;
                at = at.plus(last as u64);
                bufs.push(buf);
            }
            sent.rest.push(Request::write(from.offset(), bufs, fua, class));
            let run = MappedRun { start: blocks.start, pages, last_blocks: last as u8, crcs: Some(crcs) };
            written.push(WrittenRun { page, run });
        }
        (sent, written)
    }
}
