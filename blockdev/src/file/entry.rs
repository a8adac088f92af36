//! A request in the ring, and what the kernel is told of it.

use std::sync::Arc;

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{opcode, squeue};
use parking_lot::{Condvar, Mutex};

use crate::{Completion, IoClass};

use super::direct::Target;
use super::regions::Regions;
use super::transfer::{Kind, Transfer};

/// The target's index in the ring's table of registered files.
const FILE: Fixed = Fixed(0);

/// Where a submitter finds its result.
#[derive(Default)]
pub(super) struct Ticket {
    pub(super) result: Mutex<Option<Completion>>,
    /// Used with the ring's mutex: the result is there, or the waiter has to lead.
    pub(super) wake: Condvar,
}

impl Ticket {
    pub(super) fn is_done(&self) -> bool {
        self.result.lock().is_some()
    }

    /// Hands the result over.
    pub(super) fn settle(&self, completion: Completion) {
        *self.result.lock() = Some(completion);
        self.wake.notify_one();
    }
}

/// A request in flight. It owns the buffers and the segments that the kernel works on, and leaves
/// the table only after the kernel has said that it is through.
pub(super) struct InFlight {
    pub(super) transfer: Transfer,
    segments: Vec<libc::iovec>,
    pub(super) ticket: Arc<Ticket>,
    /// What its class was charged with.
    pub(super) bytes: u64,
    /// The kernel was told where the memory is registered.
    fixed: bool,
    /// It is not any more: the pages are looked up again.
    plain: bool,
}

// SAFETY: the raw pointers in `segments` point into buffers owned by `transfer`, which may be
// used from any thread; they are only ever given to the kernel.
unsafe impl Send for InFlight {}

impl InFlight {
    pub(super) fn new(transfer: Transfer, ticket: Arc<Ticket>, bytes: u64) -> Self {
        Self { transfer, segments: Vec::new(), ticket, bytes, fixed: false, plain: false }
    }

    /// The kernel is told the memory's registered number.
    pub(super) fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// Whether the kernel did not find the memory under the number it was told, because its registration had
    /// ended meanwhile. Then it has to be tried again, without one.
    pub(super) fn lost_its_memory(&mut self, result: i32) -> bool {
        let lost = self.fixed && result == -libc::EFAULT;
        self.plain |= lost;
        lost
    }

    /// The submission entry for the next chunk.
    pub(super) fn build(&mut self, regions: &Regions) -> squeue::Entry {
        self.segments = self.transfer.segments();
        let offset = self.transfer.offset();
        let priority = priority(self.transfer.class);
        let flags = if self.transfer.fua { libc::RWF_DSYNC } else { 0 };
        let registered = match &self.segments[..] {
            [one] if !self.plain => regions.find(one.iov_base.cast(), one.iov_len),
            _ => None,
        };
        self.fixed = registered.is_some();
        let sqe = match (self.transfer.kind, &self.segments[..], registered) {
            (Kind::Flush, ..) => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
            (Kind::Read, [one], Some(index)) => {
                opcode::ReadFixed::new(FILE, one.iov_base.cast(), one.iov_len as u32, index)
                    .offset(offset)
                    .ioprio(priority)
                    .build()
            }
            (Kind::Read, [one], None) => opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32)
                .offset(offset)
                .ioprio(priority)
                .build(),
            (Kind::Read, many, _) => opcode::Readv::new(FILE, many.as_ptr(), many.len() as u32)
                .offset(offset)
                .ioprio(priority)
                .build(),
            (Kind::Write, [one], Some(index)) => {
                opcode::WriteFixed::new(FILE, one.iov_base.cast(), one.iov_len as u32, index)
                    .offset(offset)
                    .ioprio(priority)
                    .rw_flags(flags)
                    .build()
            }
            (Kind::Write, [one], None) => opcode::Write::new(FILE, one.iov_base.cast(), one.iov_len as u32)
                .offset(offset)
                .ioprio(priority)
                .rw_flags(flags)
                .build(),
            (Kind::Write, many, _) => opcode::Writev::new(FILE, many.as_ptr(), many.len() as u32)
                .offset(offset)
                .ioprio(priority)
                .rw_flags(flags)
                .build(),
        };
        // Told to try again, the request may as well block, in a worker of the kernel.
        if self.transfer.is_retry() { sqe.flags(squeue::Flags::ASYNC) } else { sqe }
    }

    /// Ends a request that the kernel may still work on: what it works on is left to it for ever.
    pub(super) fn abandon(self, target: &Target, errno: i32) {
        let Self { transfer, segments, ticket, .. } = self;
        std::mem::forget(segments);
        ticket.settle(transfer.abandon(&target.name, errno));
    }
}

/// The kernel's I/O priority for a class: best effort, the levels around the default.
fn priority(class: IoClass) -> u16 {
    const BEST_EFFORT: u16 = 2 << 13;
    match class {
        IoClass::Log => BEST_EFFORT,
        IoClass::Data => 0,
        IoClass::ReadAhead => BEST_EFFORT | 6,
        IoClass::Background => BEST_EFFORT | 7,
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use super::*;
    use crate::{AlignedBuf, Op};

    const RW_FLAGS: usize = 28;
    const BUF_INDEX: usize = 40;

    /// The submission entry's bytes, as the kernel sees them.
    fn entry_bytes(in_flight: &mut InFlight, regions: &Regions) -> [u8; 64] {
        let entry = in_flight.build(regions);
        // SAFETY: the entry is 64 bytes of plain numbers (a `repr(C)` io_uring_sqe).
        unsafe { std::mem::transmute::<squeue::Entry, [u8; 64]>(entry) }
    }

    fn in_flight(op: Op) -> InFlight {
        InFlight::new(Transfer::new(op, IoClass::Log, 512).unwrap(), Arc::default(), 0)
    }

    fn u32_at(bytes: &[u8; 64], at: usize) -> u32 {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }

    #[test]
    fn durable_writes_and_flushes_say_so_to_the_kernel() {
        let mut regions = Regions::new();
        for parts in [1, 3] {
            for registered in [false, true] {
                for fua in [false, true] {
                    let mut bufs: Vec<_> = (0..parts).map(|_| AlignedBuf::zeroed(512)).collect();
                    let start = NonNull::from(&mut bufs[0][..]).cast();
                    assert!(!registered || regions.add(start, 512, 9));
                    let bytes = entry_bytes(&mut in_flight(Op::Write { offset: 4096, bufs, fua }), &regions);
                    regions.remove(9);
                    let wanted = if fua { libc::RWF_DSYNC as u32 } else { 0 };
                    assert_eq!(u32_at(&bytes, RW_FLAGS), wanted);
                    let code = match (parts, registered) {
                        (1, true) => opcode::WriteFixed::CODE,
                        (1, false) => opcode::Write::CODE,
                        _ => opcode::Writev::CODE,
                    };
                    assert_eq!(bytes[0], code);
                }
            }
        }
        let flush = entry_bytes(&mut in_flight(Op::Flush), &regions);
        assert_eq!((flush[0], u32_at(&flush, RW_FLAGS)), (opcode::Fsync::CODE, 1), "IORING_FSYNC_DATASYNC");
    }

    #[test]
    fn memory_that_is_registered_no_more_is_tried_without() {
        let mut regions = Regions::new();
        let mut buf = AlignedBuf::zeroed(512);
        assert!(regions.add(NonNull::from(&mut buf[..]).cast(), 512, 258));
        let mut read = in_flight(Op::Read { offset: 4096, bufs: vec![buf] });
        let bytes = entry_bytes(&mut read, &regions);
        assert_eq!((bytes[0], bytes[BUF_INDEX], bytes[BUF_INDEX + 1]), (opcode::ReadFixed::CODE, 2, 1));
        assert!(!read.lost_its_memory(512) && !read.lost_its_memory(-libc::EIO));
        assert!(read.lost_its_memory(-libc::EFAULT));
        assert_eq!(entry_bytes(&mut read, &regions)[0], opcode::Read::CODE);
        assert!(!read.lost_its_memory(-libc::EFAULT), "that is an error of its own");
    }
}
