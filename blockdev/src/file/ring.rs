//! The io_uring engine.
//!
//! No thread of its own: whoever waits for a request becomes the *leader*, enters the kernel, and
//! completes everybody's requests until its own is done; then it hands the role to another waiter.
//! A lone waiter thus pays no context switch beyond the one in the kernel.
//!
//! Requests wait by class for their turn ([`super::classes`]); who submits never waits for it. Whenever one is
//! over, the next ones go to the kernel.
//!
//! One mutex guards the queues' user side, the table of requests in flight and what waits; it is never held
//! across a system call, nor while buffers are dropped: their owner may have a lock of its own, under which it
//! registers memory or ends that. That lock comes before this one.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use io_uring::{IoUring, Probe, opcode};
use parking_lot::{Mutex, MutexGuard};

use crate::{Completion, EngineCounts};

use super::classes::{Classes, LIMITS, depth};
use super::direct::Target;
use super::entry::{InFlight, Ticket};
use super::polling::Poller;
use super::regions::{self, Regions};
use super::transfer::{Step, Transfer};

struct State {
    table: Vec<Option<InFlight>>,
    free: Vec<usize>,
    /// What waits for its turn, and how many of each class do not.
    classes: Classes<(Transfer, Arc<Ticket>)>,
    regions: Regions,
    /// Somebody is in the kernel waiting for completions, or on the way there or back.
    led: bool,
    /// Waiters that are not leading.
    followers: Vec<Arc<Ticket>>,
    /// The kernel refuses to go on with this ring; its errno.
    broken: Option<i32>,
}

pub(super) struct Ring {
    ring: IoUring,
    target: Arc<Target>,
    state: Mutex<State>,
    poller: Poller,
    /// Requests in memory that was registered.
    fixed: AtomicU64,
    /// The kernel takes registrations of memory.
    registers: bool,
}

/// Memory that a ring knows. It ends when this is dropped, or with the ring.
#[derive(Debug)]
pub(super) struct Registration {
    ring: Weak<Ring>,
    index: u16,
}

impl Ring {
    /// Sets up a ring for `target`; fails where the kernel or a sandbox refuses io_uring, or lacks
    /// what we need of it. `polling`: waiters may spin.
    pub(super) fn new(target: Arc<Target>, polling: bool) -> io::Result<Self> {
        let depth = depth(&LIMITS);
        // Twice the depth: the kernel gives submission entries back only after a whole batch.
        let ring = IoUring::builder().setup_submit_all().build(2 * depth as u32);
        let ring = match ring {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => IoUring::new(2 * depth as u32)?,
            other => other?,
        };
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Readv::CODE, opcode::Writev::CODE];
        if !needed.into_iter().chain([opcode::Fsync::CODE]).all(|code| probe.is_supported(code)) {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        ring.submitter().register_files(&[target.fd.as_raw_fd()])?;
        // Linux before 5.19 has no table that can be filled later.
        let registers = ring.submitter().register_buffers_sparse(regions::MOST as u32).is_ok();
        let state = State {
            table: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            classes: Classes::new(LIMITS),
            regions: Regions::new(),
            led: false,
            followers: Vec::new(),
            broken: None,
        };
        let (state, poller, fixed) = (Mutex::new(state), Poller::new(polling), AtomicU64::new(0));
        Ok(Self { ring, target, state, poller, fixed, registers })
    }

    /// Starts transfers, or queues them behind others of their class. Never waits for the device.
    pub(super) fn submit(&self, transfers: Vec<Transfer>) -> Vec<Arc<Ticket>> {
        let tickets = self.queue(transfers);
        self.enter(0);
        tickets
    }

    /// Runs transfers and waits for all of them.
    pub(super) fn execute(&self, transfers: Vec<Transfer>) -> Vec<Completion> {
        // Who waits submits what is queued: both are one system call.
        let tickets = self.queue(transfers);
        tickets.iter().map(|ticket| self.wait(ticket)).collect()
    }

    /// Puts as many transfers as their classes may have into the submission queue.
    fn queue(&self, transfers: Vec<Transfer>) -> Vec<Arc<Ticket>> {
        let mut tickets = Vec::with_capacity(transfers.len());
        let mut state = self.state.lock();
        for mut transfer in transfers {
            let ticket = Arc::new(Ticket::default());
            tickets.push(ticket.clone());
            if transfer.is_empty() {
                ticket.settle(transfer.finish(&self.target.name, Ok(())));
            } else if let Some(errno) = state.broken {
                ticket.settle(transfer.abandon(&self.target.name, errno));
            } else {
                let (class, bytes) = (transfer.class, transfer.shape.len);
                state.classes.push(class, bytes, (transfer, ticket));
            }
        }
        // Results that nobody waits for make room.
        if !state.led && self.has_completions() {
            state.led = true;
            state = self.reap(state);
            state.led = false;
            self.pass_the_lead(&state);
        }
        drop(self.dispatch(state));
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
            if state.led && self.has_queued() {
                // The leader may be asleep in the kernel, and know nothing of it.
                drop(state);
                self.enter(0);
                state = self.state.lock();
            } else if state.led {
                state.followers.push(ticket.clone());
                ticket.wake.wait(&mut state);
                state.followers.retain(|f| !Arc::ptr_eq(f, ticket));
            } else {
                state = self.lead(state);
            }
        }
    }

    /// Nobody leads any more: wakes one who still has to wait, so that somebody does.
    fn pass_the_lead(&self, state: &State) {
        if !state.led
            && let Some(follower) = state.followers.iter().find(|f| !f.is_done())
        {
            follower.wake.notify_one();
        }
    }

    /// Spins or enters the kernel until something completes, and hands out what did.
    fn lead<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.led = true;
        if !self.has_completions() {
            drop(state);
            self.sleep_or_spin();
            state = self.state.lock();
        }
        state = self.reap(state);
        state.led = false;
        state
    }

    /// Submits what is queued, and waits until something completes.
    fn sleep_or_spin(&self) {
        if self.poller.is_worth_it() {
            self.enter(0);
            if self.poller.spin(|| self.has_completions()) {
                return;
            }
        }
        self.enter(1);
    }

    fn has_completions(&self) -> bool {
        // SAFETY: only the leader, who is unique, looks at the completion queue.
        !unsafe { self.ring.completion_shared() }.is_empty()
    }

    /// Hands out completions, and starts what waited for them. The caller leads, and holds the lock.
    fn reap<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        // SAFETY: only the leader, who is unique, uses the completion queue, one view at a time.
        let entries: Vec<(u64, i32)> =
            unsafe { self.ring.completion_shared() }.map(|e| (e.user_data(), e.result())).collect();
        let (mut again, mut done) = (Vec::new(), Vec::new());
        for (index, result) in entries {
            let index = index as usize;
            let Some(entry) = state.table.get_mut(index).and_then(Option::as_mut) else { continue };
            if entry.lost_its_memory(result) {
                again.push(index);
                continue;
            }
            match entry.transfer.on_result(result) {
                Step::Again => again.push(index),
                Step::Over(result) => {
                    let completion = entry.transfer.finish(&self.target.name, result);
                    if let Some(entry) = state.table[index].take() {
                        state.free.push(index);
                        state.classes.over(entry.transfer.class, entry.bytes);
                        entry.ticket.settle(completion);
                        done.push(entry);
                    }
                }
            }
        }
        for index in again {
            state = self.push(state, index);
        }
        state = self.dispatch(state);
        // What nobody waits for is dropped with its buffers, whose owner may have a lock under which it calls us.
        MutexGuard::unlocked(&mut state, || drop(done));
        if self.has_queued() {
            drop(state);
            self.enter(0);
            state = self.state.lock();
        }
        state
    }

    /// Takes what may go to the kernel out of its queues and puts it into the submission queue.
    fn dispatch<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        // The limits of all classes together are the table's size: with a request there is a place for it.
        while let Some(index) = state.free.pop() {
            let Some((_, bytes, (transfer, ticket))) = state.classes.next() else {
                state.free.push(index);
                break;
            };
            state.table[index] = Some(InFlight::new(transfer, ticket, bytes));
            state = self.push(state, index);
        }
        state
    }

    /// Puts the next chunk of an entry of the table into the submission queue.
    fn push<'a>(&'a self, mut state: MutexGuard<'a, State>, index: usize) -> MutexGuard<'a, State> {
        loop {
            let State { table, regions, .. } = &mut *state;
            let Some(entry) = table[index].as_mut() else { return state };
            let sqe = entry.build(regions).user_data(index as u64);
            let fixed = u64::from(entry.is_fixed());
            // SAFETY: the mutex makes this the only view of the submission queue. The entry's
            // buffers and segments stay in the table, unmoved, until its completion is reaped.
            let pushed = unsafe { self.ring.submission_shared().push(&sqe) };
            if pushed.is_ok() {
                self.fixed.fetch_add(fixed, Ordering::Relaxed);
                return state;
            }
            drop(state);
            self.enter(0);
            std::thread::yield_now();
            state = self.state.lock();
        }
    }

    /// Something is in the submission queue. The caller holds the lock.
    fn has_queued(&self) -> bool {
        // SAFETY: the mutex makes this the only view of the submission queue.
        !unsafe { self.ring.submission_shared() }.is_empty()
    }

    /// Submits what is queued, and waits for `want` completions.
    fn enter(&self, want: usize) {
        loop {
            let queued = {
                let _state = self.state.lock();
                self.has_queued()
            };
            if !queued && want == 0 {
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
            entry.abandon(&self.target, errno);
        }
        let waiting: Vec<_> = state.classes.drain().collect();
        for (transfer, ticket) in waiting {
            ticket.settle(transfer.abandon(&self.target.name, errno));
        }
    }

    fn is_busy(state: &State) -> bool {
        state.table.iter().any(Option::is_some) || !state.classes.is_idle()
    }

    /// Makes memory known to the kernel: requests in it cost less. `None`: it does not take more, or none.
    ///
    /// # Safety
    /// The memory is shared (not copied on write), mapped, and keeps its pages as long as the registration
    /// lives.
    pub(super) unsafe fn register(self: &Arc<Self>, start: NonNull<u8>, len: usize) -> Option<Registration> {
        if !self.registers {
            return None;
        }
        let index = self.state.lock().regions.take_index()?;
        if let Err(error) = self.tell_kernel(index, start.as_ptr(), len) {
            tracing::debug!(device = %self.target.name, %error, len, "memory is not registered for I/O");
            self.state.lock().regions.free_index(index);
            return None;
        }
        let registration = Registration { ring: Arc::downgrade(self), index };
        let added = self.state.lock().regions.add(start, len, index);
        // Otherwise the registration ends here.
        added.then_some(registration)
    }

    /// Puts memory into the kernel's table, or with a length of 0 takes it out.
    fn tell_kernel(&self, index: u16, start: *mut u8, len: usize) -> io::Result<()> {
        let memory = libc::iovec { iov_base: start.cast(), iov_len: len };
        // SAFETY: the kernel checks the addresses, and keeps the pages behind them. Who registers answers for
        // their being the memory's as long as anybody looks there.
        unsafe { self.ring.submitter().register_buffers_update(u32::from(index), &[memory], None) }
    }

    /// What the engine has done so far.
    pub(super) fn counts(&self) -> EngineCounts {
        let (spins, spins_hit) = self.poller.counts();
        let waiting = self.state.lock().classes.waiting() as u64;
        EngineCounts { fixed: self.fixed.load(Ordering::Relaxed), spins, spins_hit, waiting }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(ring) = self.ring.upgrade() else { return };
        // First, so that no request is told of it any more. One that has been finds it gone, and is tried again
        // without; one that is in flight keeps the pages.
        ring.state.lock().regions.remove(self.index);
        match ring.tell_kernel(self.index, std::ptr::null_mut(), 0) {
            Ok(()) => ring.state.lock().regions.free_index(self.index),
            // The number is not used again; the pages stay until the ring goes.
            Err(error) => {
                tracing::warn!(device = %ring.target.name, %error, "memory stays registered for I/O")
            }
        }
    }
}

impl Drop for Ring {
    /// Waits for everything in flight: afterwards the kernel works on none of our buffers, and
    /// holds no reference to the file, so that its lock goes with the descriptor.
    fn drop(&mut self) {
        let mut state = self.state.lock();
        while Self::is_busy(&state) {
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
        let state = self.state.lock();
        let flying = state.table.iter().flatten().count();
        write!(f, "Ring({flying} in flight, {} waiting)", state.classes.waiting())
    }
}
