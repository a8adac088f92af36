//! The device trait and its request types.
//!
//! Semantics every implementation keeps, and every user may rely on:
//!
//! * `submit` never waits for the medium; the result is taken with [`Pending::wait`].
//! * Requests in flight at the same time are unordered. Order is made by waiting.
//! * A completed write is *visible* to later reads, but *durable* only when a flush that was
//!   submitted after its completion has completed, or when it was itself a FUA write.
//! * A write that failed leaves its range undefined: old, new, or a mixture per sector.
//! * Offsets and lengths are multiples of [`Capabilities::logical_sector`]; anything else fails
//!   with [`ErrorKind::Misaligned`] and touches nothing.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::AlignedBuf;
use crate::check::Shape;

/// What a device can do. Read once when the device is opened; [`size_bytes`] may grow later
/// (see [`BlockDevice::refresh_size`]).
///
/// [`size_bytes`]: Capabilities::size_bytes
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Usable size in bytes.
    pub size_bytes: u64,
    /// Smallest addressable unit in bytes (512 or 4096).
    pub logical_sector: u32,
    /// Unit below which the device does read-modify-write, in bytes.
    pub physical_sector: u32,
    /// Largest aligned write that a power cut leaves whole, in bytes; at least the logical sector.
    pub atomic_write_unit: u32,
    /// Completed writes may still be lost in a power cut until flushed.
    pub volatile_write_cache: bool,
    /// A FUA write costs the device no flush of everything else: it knows such writes itself, or has no
    /// cache that would have to be flushed.
    pub native_fua: bool,
    /// Discard is supported (a discarded range reads as anything until written).
    pub discard: bool,
    /// Persistent reservations can fence other hosts.
    pub reservations: bool,
    /// I/O bypasses the host's page cache. `false` is flagged to the user: data may be cached
    /// twice, and errors of earlier writes surface only at the flush.
    pub direct: bool,
    /// This handle holds an exclusive lock on the very descriptor used for I/O, so no I/O of an
    /// earlier local owner can still be in flight (rule R2).
    pub exclusive: bool,
    /// Largest request in bytes; longer ones are split by the implementation.
    pub max_transfer: u32,
}

/// Priority class of a request. Implementations may keep a queue per class; order is never implied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoClass {
    /// Journal records and root slots: somebody waits in fsync.
    Log,
    /// Reads and writes somebody waits for.
    Data,
    /// Speculative reads.
    ReadAhead,
    /// Writeback, checkpoints, scrubbing.
    Background,
}

/// One operation. Buffers are owned by the request until it completes.
#[derive(Debug)]
pub enum Op {
    /// Fill the buffers, in order, from `offset`.
    Read {
        /// Byte offset on the device.
        offset: u64,
        /// Destination; total length is the length read.
        bufs: Vec<AlignedBuf>,
    },
    /// Write the buffers, in order, at `offset`.
    Write {
        /// Byte offset on the device.
        offset: u64,
        /// Source; total length is the length written.
        bufs: Vec<AlignedBuf>,
        /// Durable on completion (this write only, not earlier ones).
        fua: bool,
    },
    /// Make every write that completed before this was submitted durable.
    Flush,
    /// The range's content is no longer needed.
    Discard {
        /// Byte offset on the device.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// An operation with its class.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// How urgent it is.
    pub class: IoClass,
}

impl Request {
    /// A read into `bufs`.
    pub fn read(offset: u64, bufs: Vec<AlignedBuf>, class: IoClass) -> Self {
        Self { op: Op::Read { offset, bufs }, class }
    }
    /// A write of `bufs`.
    pub fn write(offset: u64, bufs: Vec<AlignedBuf>, fua: bool, class: IoClass) -> Self {
        Self { op: Op::Write { offset, bufs, fua }, class }
    }
    /// A flush.
    pub fn flush() -> Self {
        Self { op: Op::Flush, class: IoClass::Log }
    }
}

/// Outcome of a request; the buffers come back whatever happened.
#[derive(Debug)]
pub struct Completion {
    /// The request's buffers (empty for flush and discard). Undefined content after a failed read.
    pub bufs: Vec<AlignedBuf>,
    /// All of the request was done, or why not.
    pub result: Result<(), DeviceError>,
}

/// Class of a device error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The medium or the transport failed.
    Io,
    /// The backing store has no room (thin-provisioned device or image file).
    NoSpace,
    /// Fewer bytes were transferred than asked for, without a reason.
    Short,
    /// Offset or length is not a multiple of the sector, or lies beyond the end.
    Misaligned,
    /// The device refuses this operation (read-only, fenced, unsupported).
    Refused,
}

/// A failed request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{op} of {len} bytes at offset {offset} of {device}: {kind:?}{}", os_text(*.errno))]
pub struct DeviceError {
    /// Name of the device as the user knows it.
    pub device: Arc<str>,
    /// "read", "write", "flush", "discard", or "size" (asking for or changing it).
    pub op: &'static str,
    /// Byte offset of the request.
    pub offset: u64,
    /// Length of the request in bytes.
    pub len: u64,
    /// Class of the error.
    pub kind: ErrorKind,
    /// The operating system's errno, 0 if there was none.
    pub errno: i32,
}

fn os_text(errno: i32) -> String {
    if errno == 0 { String::new() } else { format!(" ({})", std::io::Error::from_raw_os_error(errno)) }
}

/// What an engine for batches of requests has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineCounts {
    /// Requests in memory that was registered: see [`BlockDevice::register_memory`].
    pub fixed: u64,
    /// How often a waiter has spun for a result.
    pub spins: u64,
    /// How often not in vain.
    pub spins_hit: u64,
    /// Requests that wait at this moment, because their class has as many in flight as it may.
    pub waiting: u64,
}

/// A block device. All methods may be called from any thread.
pub trait BlockDevice: Send + Sync + fmt::Debug {
    /// Name for messages (a path, "ram", "sim").
    fn name(&self) -> Arc<str>;

    /// What the device can do. Never blocks.
    fn capabilities(&self) -> Capabilities;

    /// Starts `requests`; the order of the result is the order of the requests. Never waits for the medium:
    /// what is too much for the device at once waits its turn.
    fn submit(&self, requests: Vec<Request>) -> Vec<Pending>;

    /// What the engine behind it has done so far; all zero if it has none that counts.
    fn engine_counts(&self) -> EngineCounts {
        EngineCounts::default()
    }

    /// Tells the device of memory that many requests will read into or write from, so that each of them costs
    /// less (registered buffers of io_uring, memory regions of RDMA). `None`: the device has no use for it. Requests
    /// in other memory work as well.
    ///
    /// # Safety
    /// The memory is a shared mapping, not copied on write, and keeps its pages as long as the registration lives: it
    /// has to be dropped before they are unmapped, or given back to the system.
    unsafe fn register_memory(&self, _start: NonNull<u8>, _len: usize) -> Option<Registration> {
        None
    }

    /// Looks at the size again (a grown device or image) and returns the new capabilities.
    fn refresh_size(&self) -> Result<Capabilities, DeviceError> {
        Ok(self.capabilities())
    }

    /// Makes the device at least `size_bytes` large, if that is for this process to do: an image file
    /// gets a hole at its end, as truncate(1) makes it; a simulated device grows. Others must be as large
    /// already ([`ErrorKind::Refused`] if not). The new size is durable with the next flush. May block.
    fn extend(&self, size_bytes: u64) -> Result<Capabilities, DeviceError> {
        let caps = self.refresh_size()?;
        if caps.size_bytes >= size_bytes {
            return Ok(caps);
        }
        Err(Shape::of_size(size_bytes).error(&self.name(), ErrorKind::Refused, 0))
    }

    /// Notes a named moment ("checkpoint begin") in the history that a recording device keeps; all
    /// others ignore it. Never fails, never blocks on the medium.
    fn mark(&self, _name: &str) {}

    /// Submits one request and waits for it. Devices may have a shorter way for that.
    fn execute(&self, request: Request) -> Completion {
        let mut pending = self.submit(vec![request]);
        match pending.pop() {
            Some(p) => p.wait(),
            None => unreachable!("submit returns one pending entry per request"),
        }
    }

    /// Submits requests and waits for all of them; the results are in their order. Devices may have a shorter way
    /// for that.
    fn execute_all(&self, requests: Vec<Request>) -> Vec<Completion> {
        self.submit(requests).into_iter().map(Pending::wait).collect()
    }

    /// Reads into `buf` and waits.
    fn read_at(&self, offset: u64, buf: AlignedBuf, class: IoClass) -> Result<AlignedBuf, DeviceError> {
        let mut c = self.execute(Request::read(offset, vec![buf], class));
        c.result?;
        Ok(c.bufs.pop().expect("a completion returns its request's buffers"))
    }

    /// Writes `buf` and waits; the buffer is dropped.
    fn write_at(&self, offset: u64, buf: AlignedBuf, fua: bool, class: IoClass) -> Result<(), DeviceError> {
        self.execute(Request::write(offset, vec![buf], fua, class)).result
    }

    /// Flushes and waits: every write completed before this call is durable after it.
    fn flush(&self) -> Result<(), DeviceError> {
        self.execute(Request::flush()).result
    }
}

impl<D: BlockDevice + ?Sized> BlockDevice for Arc<D> {
    fn name(&self) -> Arc<str> {
        (**self).name()
    }
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }
    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        (**self).submit(requests)
    }
    fn engine_counts(&self) -> EngineCounts {
        (**self).engine_counts()
    }
    unsafe fn register_memory(&self, start: NonNull<u8>, len: usize) -> Option<Registration> {
        // SAFETY: the caller answers for the memory.
        unsafe { (**self).register_memory(start, len) }
    }
    fn refresh_size(&self) -> Result<Capabilities, DeviceError> {
        (**self).refresh_size()
    }
    fn extend(&self, size_bytes: u64) -> Result<Capabilities, DeviceError> {
        (**self).extend(size_bytes)
    }
    fn mark(&self, name: &str) {
        (**self).mark(name);
    }
    fn execute(&self, request: Request) -> Completion {
        (**self).execute(request)
    }
    fn execute_all(&self, requests: Vec<Request>) -> Vec<Completion> {
        (**self).execute_all(requests)
    }
}

/// Memory that a device knows: see [`BlockDevice::register_memory`]. Dropping it makes the device forget it; requests
/// that are under way are not disturbed.
pub struct Registration(#[expect(dead_code, reason = "to be dropped")] Box<dyn Any + Send + Sync>);

impl Registration {
    /// `handle` ends the registration when it is dropped.
    pub fn new(handle: impl Any + Send + Sync) -> Self {
        Self(Box::new(handle))
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registration")
    }
}

/// A submitted request. Dropping it without waiting leaves the request running, or waiting for its turn; its
/// buffers are freed when it completes, at the latest when the device is dropped.
pub struct Pending(Inner);

enum Inner {
    /// Completed when it was submitted.
    Ready(Box<Completion>),
    /// Completed by another thread.
    Shared(Arc<Slot>),
    /// The waiter drives the completion (for instance reaps a ring).
    Driven(Box<dyn FnOnce() -> Completion + Send>),
}

/// Where a completing thread leaves the result for the waiter.
#[derive(Default)]
pub(crate) struct Slot {
    done: Mutex<Option<Completion>>,
    cond: Condvar,
}

impl Slot {
    /// Hands over the result and wakes the waiter.
    pub(crate) fn complete(&self, completion: Completion) {
        *self.done.lock() = Some(completion);
        self.cond.notify_all();
    }
}

impl Pending {
    /// A request that is already complete.
    pub fn ready(completion: Completion) -> Self {
        Self(Inner::Ready(Box::new(completion)))
    }

    /// A request that another thread completes through the slot.
    pub(crate) fn shared(slot: Arc<Slot>) -> Self {
        Self(Inner::Shared(slot))
    }

    /// A request whose completion is driven by whoever waits for it.
    pub fn driven(wait: impl FnOnce() -> Completion + Send + 'static) -> Self {
        Self(Inner::Driven(Box::new(wait)))
    }

    /// Blocks until the request is complete.
    pub fn wait(self) -> Completion {
        match self.0 {
            Inner::Ready(c) => *c,
            Inner::Driven(f) => f(),
            Inner::Shared(slot) => {
                let mut done = slot.done.lock();
                loop {
                    if let Some(c) = done.take() {
                        return c;
                    }
                    slot.cond.wait(&mut done);
                }
            }
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}
