//! One request on its way through a file descriptor, whoever drives it.
//!
//! The kernel may transfer less than asked for, take only so many segments, or ask to try again.
//! A [`Transfer`] keeps count, so that the engines only carry results to it.

use std::mem;

use crate::check::Shape;
use crate::{AlignedBuf, Completion, ErrorKind, IoClass, Op};

/// Most segments of one system call (`IOV_MAX`).
const MAX_SEGMENTS: usize = 1024;

/// Most bytes of one system call; below the kernel's limit of 2 GiB less a page.
pub(super) const MAX_CHUNK: u64 = 1 << 30;

/// How often the kernel may say "try again" without progress before the request fails.
const MAX_RETRIES: u32 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
}

/// What to do after a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Issue the next chunk, or the same one again.
    Again,
    /// The request is over.
    Over(Result<(), (ErrorKind, i32)>),
}

#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) shape: Shape,
    pub(super) kind: Kind,
    pub(super) fua: bool,
    pub(super) class: IoClass,
    bufs: Vec<AlignedBuf>,
    sector: u64,
    done: u64,
    retries: u32,
}

impl Transfer {
    /// Takes over a request that was admitted; discards are not transfers and come back.
    pub(super) fn new(op: Op, class: IoClass, sector: u32) -> Result<Self, Op> {
        let shape = Shape::of(&op);
        let (kind, bufs, fua) = match op {
            Op::Read { bufs, .. } => (Kind::Read, bufs, false),
            Op::Write { bufs, fua, .. } => (Kind::Write, bufs, fua),
            Op::Flush => (Kind::Flush, Vec::new(), false),
            Op::Discard { .. } => return Err(op),
        };
        Ok(Self { shape, kind, fua, class, bufs, sector: u64::from(sector), done: 0, retries: 0 })
    }

    /// Nothing to transfer and nothing to flush.
    pub(super) fn is_empty(&self) -> bool {
        self.kind != Kind::Flush && self.shape.len == 0
    }

    /// The last result said "try again": the next attempt may block.
    pub(super) fn is_retry(&self) -> bool {
        self.retries > 0
    }

    /// Byte offset of the next chunk.
    pub(super) fn offset(&self) -> u64 {
        self.shape.offset + self.done
    }

    /// Segments of the next chunk. They point into the transfer's buffers: whoever hands them to
    /// the kernel keeps the transfer, and its buffers untouched, until the result is there.
    pub(super) fn segments(&mut self) -> Vec<libc::iovec> {
        let mut skip = self.done;
        let mut room = MAX_CHUNK;
        let mut segments = Vec::with_capacity(self.bufs.len().min(MAX_SEGMENTS));
        for buf in &mut self.bufs {
            let len = buf.len() as u64;
            let (from, n) = (skip.min(len), len.saturating_sub(skip).min(room));
            skip -= from;
            if n > 0 {
                let part = &mut buf[from as usize..(from + n) as usize];
                segments.push(libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
                room -= n;
            }
            if room == 0 || segments.len() == MAX_SEGMENTS {
                break;
            }
        }
        segments
    }

    /// Takes a result as the kernel gives it: bytes transferred, or a negative errno.
    pub(super) fn on_result(&mut self, result: i32) -> Step {
        let Ok(bytes) = u64::try_from(result) else {
            return self.on_error(result.saturating_neg());
        };
        if self.kind == Kind::Flush {
            return Step::Over(Ok(()));
        }
        let before = self.done;
        let reached = (before + bytes).min(self.shape.len);
        if reached == self.shape.len {
            return Step::Over(Ok(()));
        }
        // Direct I/O can only go on at a sector; part of one is done again.
        self.done = reached - reached % self.sector;
        if self.done == before {
            return Step::Over(Err((ErrorKind::Short, 0)));
        }
        self.retries = 0;
        Step::Again
    }

    fn on_error(&mut self, errno: i32) -> Step {
        // ECANCELED: the thread that submitted it has exited, and its queued work with it.
        let transient = matches!(errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED);
        if transient && self.retries < MAX_RETRIES {
            self.retries += 1;
            return Step::Again;
        }
        Step::Over(Err((kind_of(errno), errno)))
    }

    /// The completion of a transfer that is over.
    pub(super) fn finish(
        &mut self,
        device: &std::sync::Arc<str>,
        result: Result<(), (ErrorKind, i32)>,
    ) -> Completion {
        let result = result.map_err(|(kind, errno)| self.shape.error(device, kind, errno));
        Completion { bufs: mem::take(&mut self.bufs), result }
    }

    /// The completion of a transfer that the kernel may still work on: its buffers are left to it
    /// for ever, the submitter gets fresh ones.
    pub(super) fn abandon(mut self, device: &std::sync::Arc<str>, errno: i32) -> Completion {
        let lost = mem::take(&mut self.bufs);
        let bufs = lost.iter().map(|b| AlignedBuf::zeroed(b.len())).collect();
        mem::forget(lost);
        Completion { bufs, result: Err(self.shape.error(device, ErrorKind::Io, errno)) }
    }
}

/// Class of an errno of the kernel's block and file layers.
pub(super) fn kind_of(errno: i32) -> ErrorKind {
    match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => ErrorKind::NoSpace,
        // EBADE is how a reservation conflict shows.
        libc::EBADE | libc::EROFS | libc::EPERM | libc::EACCES | libc::EBADF | libc::EOPNOTSUPP => {
            ErrorKind::Refused
        }
        _ => ErrorKind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(lens: &[usize]) -> Transfer {
        let bufs = lens.iter().map(|len| AlignedBuf::zeroed(*len)).collect();
        Transfer::new(Op::Read { offset: 8192, bufs }, IoClass::Data, 512).unwrap()
    }

    fn lens(t: &mut Transfer) -> Vec<usize> {
        t.segments().iter().map(|s| s.iov_len).collect()
    }

    #[test]
    fn short_results_go_on_at_the_last_whole_sector() {
        let mut t = transfer(&[4096, 0, 8192]);
        assert_eq!((t.offset(), lens(&mut t)), (8192, vec![4096, 8192]));
        assert_eq!(t.on_result(4096 + 700), Step::Again);
        assert_eq!((t.offset(), lens(&mut t)), (8192 + 4608, vec![7680]));
        assert_eq!(t.on_result(7680), Step::Over(Ok(())));
    }

    #[test]
    fn no_progress_is_a_short_transfer() {
        let mut t = transfer(&[4096]);
        assert_eq!(t.on_result(1024), Step::Again);
        assert_eq!(t.on_result(511), Step::Over(Err((ErrorKind::Short, 0))));
        assert_eq!(transfer(&[4096]).on_result(0), Step::Over(Err((ErrorKind::Short, 0))));
    }

    #[test]
    fn many_segments_are_cut() {
        let mut t = transfer(&[512; 1500]);
        assert_eq!(lens(&mut t).len(), 1024);
        assert_eq!(t.on_result(1024 * 512), Step::Again);
        assert_eq!(lens(&mut t).len(), 476);
    }

    #[test]
    fn transient_errors_are_tried_again_but_not_for_ever() {
        let mut t = transfer(&[4096]);
        for _ in 0..MAX_RETRIES {
            assert_eq!(t.on_result(-libc::EAGAIN), Step::Again);
            assert!(t.is_retry());
        }
        assert_eq!(t.on_result(-libc::EAGAIN), Step::Over(Err((ErrorKind::Io, libc::EAGAIN))));
        let mut t = transfer(&[4096]);
        assert_eq!(t.on_result(-libc::EINTR), Step::Again);
        assert_eq!(t.on_result(-libc::ENOSPC), Step::Over(Err((ErrorKind::NoSpace, libc::ENOSPC))));
        assert_eq!(t.on_result(i32::MIN), Step::Over(Err((ErrorKind::Io, i32::MAX))));
    }

    #[test]
    fn an_abandoned_transfer_gives_buffers_of_the_same_size() {
        let done = transfer(&[512, 4096]).abandon(&"x".into(), libc::EBADF);
        assert_eq!(done.bufs.iter().map(|b| b.len()).collect::<Vec<_>>(), [512, 4096]);
        assert!(done.result.is_err());
    }
}
