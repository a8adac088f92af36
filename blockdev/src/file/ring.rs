//! The io_uring engine.
//!
//! No thread of its own: whoever waits for a request becomes the *leader*, enters the kernel, and
//! completes everybody's requests until its own is done; then it hands the role to another waiter.
//! A lone waiter thus pays no context switch beyond the one in the kernel.
//!
//! One mutex guards the queues' user side and the table of requests in flight; it is never held
//! across a system call.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{Completion, IoClass};

use super::direct::Target;
use super::transfer::{Kind, Step, Transfer};

/// Most requests in flight in one ring; further submitters wait.
const DEPTH: usize = 256;

/// The target's index in the ring's table of registered files.
const FILE: Fixed = Fixed(0);

/// Where a submitter finds its result.
#[derive(Default)]
pub(super) struct Ticket {
    result: Mutex<Option<Completion>>,
    /// Used with the ring's mutex: the result is there, or the waiter has to lead.
    wake: Condvar,
}

impl Ticket {
    fn is_done(&self) -> bool {
        self.result.lock().is_some()
    }
}

/// A request in flight. It owns the buffers and the segments that the kernel works on, and leaves
/// the table only after the kernel has said that it is through.
struct InFlight {
    transfer: Transfer,
    segments: Vec<libc::iovec>,
    ticket: Arc<Ticket>,
}

// SAFETY: the raw pointers in `segments` point into buffers owned by `transfer`, which may be
// used from any thread; they are only ever given to the kernel.
unsafe impl Send for InFlight {}

struct State {
    table: Vec<Option<InFlight>>,
    free: Vec<usize>,
    /// Somebody is in the kernel waiting for completions, or on the way there or back.
    led: bool,
    /// Waiters that are not leading.
    followers: Vec<Arc<Ticket>>,
    /// Submitters that wait for a free entry of the table.
    cramped: usize,
    /// The kernel refuses to go on with this ring; its errno.
    broken: Option<i32>,
}

pub(super) struct Ring {
    ring: IoUring,
    target: Arc<Target>,
    state: Mutex<State>,
    space: Condvar,
}

impl Ring {
    /// Sets up a ring for `target`; fails where the kernel or a sandbox refuses io_uring, or lacks
    /// what we need of it.
    pub(super) fn new(target: Arc<Target>) -> io::Result<Self> {
        // Twice the depth: the kernel gives submission entries back only after a whole batch.
        let ring = IoUring::builder().setup_submit_all().build(2 * DEPTH as u32);
        let ring = match ring {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => IoUring::new(2 * DEPTH as u32)?,
            other => other?,
        };
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Readv::CODE, opcode::Writev::CODE];
        if !needed.into_iter().chain([opcode::Fsync::CODE]).all(|code| probe.is_supported(code)) {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        ring.submitter().register_files(&[target.fd.as_raw_fd()])?;
        let state = State {
            table: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).rev().collect(),
            led: false,
            followers: Vec::new(),
            cramped: 0,
            broken: None,
        };
        Ok(Self { ring, target, state: Mutex::new(state), space: Condvar::new() })
    }

    /// Starts transfers. Blocks only while the table is full.
    pub(super) fn submit(&self, transfers: Vec<Transfer>) -> Vec<Arc<Ticket>> {
        let mut tickets = Vec::with_capacity(transfers.len());
        let mut state = self.state.lock();
        for mut transfer in transfers {
            let ticket = Arc::new(Ticket::default());
            tickets.push(ticket.clone());
            if transfer.is_empty() {
                *ticket.result.lock() = Some(transfer.finish(&self.target.name, Ok(())));
                continue;
            }
            while state.free.is_empty() && state.broken.is_none() {
                state = self.wait_for_space(state);
            }
            let in_flight = InFlight { transfer, segments: Vec::new(), ticket };
            match (state.broken, state.free.pop()) {
                (None, Some(index)) => {
                    state.table[index] = Some(in_flight);
                    state = self.push(state, index);
                }
                // It never reached the kernel, but there is no use in telling the two apart.
                (errno, _) => abandon(in_flight, &self.target, errno.unwrap_or(libc::EIO)),
            }
        }
        drop(state);
        self.enter(0);
        tickets
    }

    /// Waits for the request of `ticket`.
    pub(super) fn wait(&self, ticket: &Arc<Ticket>) -> Completion {
        let mut state = self.state.lock();
        loop {
            if let Some(completion) = ticket.result.lock().take() {
                self.pass_the_lead(&state);
                return completion;
            }
            if state.led {
                state.followers.push(ticket.clone());
                ticket.wake.wait(&mut state);
                state.followers.retain(|f| !Arc::ptr_eq(f, ticket));
            } else {
                state = self.lead(state);
            }
        }
    }

    fn wait_for_space<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.led {
            state.cramped += 1;
            self.space.wait(&mut state);
            state.cramped -= 1;
            return state;
        }
        let state = self.lead(state);
        self.pass_the_lead(&state);
        state
    }

    /// Nobody leads any more: wakes one who still has to wait, so that somebody does.
    fn pass_the_lead(&self, state: &State) {
        if state.led {
            return;
        }
        if let Some(follower) = state.followers.iter().find(|f| !f.is_done()) {
            follower.wake.notify_one();
        } else if state.cramped > 0 {
            self.space.notify_one();
        }
    }

    /// Enters the kernel until something completes, and hands out what did.
    fn lead<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.led = true;
        if !self.has_completions() {
            drop(state);
            self.enter(1);
            state = self.state.lock();
        }
        state = self.reap(state);
        state.led = false;
        state
    }

    fn has_completions(&self) -> bool {
        // SAFETY: only the leader, who is unique, looks at the completion queue.
        !unsafe { self.ring.completion_shared() }.is_empty()
    }

    /// Hands out completions. The caller leads, and holds the lock.
    fn reap<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        // SAFETY: only the leader, who is unique, uses the completion queue, one view at a time.
        let entries: Vec<(u64, i32)> =
            unsafe { self.ring.completion_shared() }.map(|e| (e.user_data(), e.result())).collect();
        let mut again = Vec::new();
        for (index, result) in entries {
            let index = index as usize;
            let Some(entry) = state.table.get_mut(index).and_then(Option::as_mut) else { continue };
            match entry.transfer.on_result(result) {
                Step::Again => again.push(index),
                Step::Over(result) => {
                    let completion = entry.transfer.finish(&self.target.name, result);
                    if let Some(entry) = state.table[index].take() {
                        state.free.push(index);
                        settle(&entry.ticket, completion);
                    }
                }
            }
        }
        if state.cramped > 0 && !state.free.is_empty() {
            self.space.notify_all();
        }
        if !again.is_empty() {
            for index in again {
                state = self.push(state, index);
            }
            drop(state);
            self.enter(0);
            state = self.state.lock();
        }
        state
    }

    /// Puts the next chunk of an entry of the table into the submission queue.
    fn push<'a>(&'a self, mut state: MutexGuard<'a, State>, index: usize) -> MutexGuard<'a, State> {
        loop {
            let Some(entry) = state.table[index].as_mut() else { return state };
            let sqe = build(entry).user_data(index as u64);
            // SAFETY: the mutex makes this the only view of the submission queue. The entry's
            // buffers and segments stay in the table, unmoved, until its completion is reaped.
            let pushed = unsafe { self.ring.submission_shared().push(&sqe) };
            if pushed.is_ok() {
                return state;
            }
            drop(state);
            self.enter(0);
            std::thread::yield_now();
            state = self.state.lock();
        }
    }

    /// Submits what is queued, and waits for `want` completions.
    fn enter(&self, want: usize) {
        loop {
            let queued = {
                let _state = self.state.lock();
                // SAFETY: the mutex makes this the only view of the submission queue.
                unsafe { self.ring.submission_shared() }.len()
            };
            if queued == 0 && want == 0 {
                return;
            }
            match self.ring.submitter().submit_and_wait(want) {
                Ok(_) if want > 0 => return,
                Ok(_) => {}
                Err(e) => match e.raw_os_error().unwrap_or(libc::EIO) {
                    libc::EINTR => {}
                    // Out of memory, or completions have to be taken first: the leader does.
                    libc::EAGAIN | libc::EBUSY if want > 0 => return std::thread::yield_now(),
                    libc::EAGAIN | libc::EBUSY => self.make_room(),
                    errno => return self.break_down(errno),
                },
            }
        }
    }

    /// Takes completions without waiting for one, unless another thread is at it.
    fn make_room(&self) {
        let mut state = self.state.lock();
        if !state.led && self.has_completions() {
            state.led = true;
            let mut state = self.reap(state);
            state.led = false;
            self.pass_the_lead(&state);
        } else {
            drop(state);
            std::thread::yield_now();
        }
    }

    /// The ring is unusable: everybody gets an error, the kernel keeps the buffers.
    fn break_down(&self, errno: i32) {
        tracing::error!(device = %self.target.name, errno, "the I/O ring broke down");
        let mut state = self.state.lock();
        state.broken = Some(errno);
        for entry in state.table.iter_mut().filter_map(Option::take) {
            abandon(entry, &self.target, errno);
        }
        self.space.notify_all();
    }

    fn in_flight(state: &State) -> bool {
        state.table.iter().any(Option::is_some)
    }
}

impl Drop for Ring {
    /// Waits for everything in flight: afterwards the kernel works on none of our buffers, and
    /// holds no reference to the file, so that its lock goes with the descriptor.
    fn drop(&mut self) {
        let mut state = self.state.lock();
        while Self::in_flight(&state) {
            state = self.lead(state);
        }
        drop(state);
        if let Err(error) = self.ring.submitter().unregister_files() {
            tracing::warn!(device = %self.target.name, %error, "the file stays registered with its ring");
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} in flight)", DEPTH - self.state.lock().free.len())
    }
}

fn settle(ticket: &Ticket, completion: Completion) {
    *ticket.result.lock() = Some(completion);
    ticket.wake.notify_one();
}

fn abandon(entry: InFlight, target: &Target, errno: i32) {
    let InFlight { transfer, segments, ticket } = entry;
    std::mem::forget(segments);
    settle(&ticket, transfer.abandon(&target.name, errno));
}

/// The submission entry for the next chunk.
fn build(entry: &mut InFlight) -> squeue::Entry {
    entry.segments = entry.transfer.segments();
    let offset = entry.transfer.offset();
    let priority = priority(entry.transfer.class);
    let flags = if entry.transfer.fua { libc::RWF_DSYNC } else { 0 };
    let sqe = match (entry.transfer.kind, &entry.segments[..]) {
        (Kind::Flush, _) => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        (Kind::Read, [one]) => opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32)
            .offset(offset)
            .ioprio(priority)
            .build(),
        (Kind::Read, many) => {
            opcode::Readv::new(FILE, many.as_ptr(), many.len() as u32).offset(offset).ioprio(priority).build()
        }
        (Kind::Write, [one]) => opcode::Write::new(FILE, one.iov_base.cast(), one.iov_len as u32)
            .offset(offset)
            .ioprio(priority)
            .rw_flags(flags)
            .build(),
        (Kind::Write, many) => opcode::Writev::new(FILE, many.as_ptr(), many.len() as u32)
            .offset(offset)
            .ioprio(priority)
            .rw_flags(flags)
            .build(),
    };
    // Told to try again, the request may as well block, in a worker of the kernel.
    if entry.transfer.is_retry() { sqe.flags(squeue::Flags::ASYNC) } else { sqe }
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
    use super::*;
    use crate::{AlignedBuf, Op};

    /// The submission entry's bytes, as the kernel sees them.
    fn entry_bytes(op: Op, class: IoClass) -> [u8; 64] {
        let transfer = Transfer::new(op, class, 512).unwrap();
        let ticket = Arc::new(Ticket::default());
        let mut in_flight = InFlight { transfer, segments: Vec::new(), ticket };
        let entry = build(&mut in_flight);
        // SAFETY: the entry is 64 bytes of plain numbers (a `repr(C)` io_uring_sqe).
        unsafe { std::mem::transmute::<squeue::Entry, [u8; 64]>(entry) }
    }

    fn u32_at(bytes: &[u8; 64], at: usize) -> u32 {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }

    #[test]
    fn durable_writes_and_flushes_say_so_to_the_kernel() {
        const RW_FLAGS: usize = 28;
        let write = |fua, parts: usize| {
            let bufs = (0..parts).map(|_| AlignedBuf::zeroed(512)).collect();
            u32_at(&entry_bytes(Op::Write { offset: 4096, bufs, fua }, IoClass::Log), RW_FLAGS)
        };
        for parts in [1, 3] {
            assert_eq!(write(true, parts), libc::RWF_DSYNC as u32);
            assert_eq!(write(false, parts), 0);
        }
        let flush = entry_bytes(Op::Flush, IoClass::Log);
        assert_eq!((flush[0], u32_at(&flush, RW_FLAGS)), (opcode::Fsync::CODE, 1), "IORING_FSYNC_DATASYNC");
    }
}
