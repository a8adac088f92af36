//! A simulated device that remembers everything that was done to it.
//!
//! Its single source of truth is a log of [`Event`]s. From it, [`SimDevice::image_at`] builds the
//! images that a power cut at any moment could have left: what was durable is there, of the rest
//! any subset, possibly torn. Faults are injected with [`SimDevice::inject`]; a second handle and
//! [`SimDevice::hold_writes_after`] model an old owner whose writes land after a take-over.
//!
//! Requests run when they are submitted, one at a time, so a single-threaded run follows from its
//! seed alone. A *promise* however is made only when the submitter waits: a write whose
//! [`Pending`] was not waited for before a flush was submitted is not covered by that flush, and
//! one that is never waited for is never durable. This is what a real device guarantees, and a
//! missing wait shows as lost data after a cut.

mod event;
mod fault;
mod image;
mod medium;

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

pub use crate::powercut::{CutOptions, Survivors};
pub use crate::rng::Rng;
pub use event::{Discarded, Event, EventKind, Outcome, POISON};
pub use fault::{Effect, Fault, Leaves, OpKind};

use crate::sparse::SparseMem;
use crate::{BlockDevice, Capabilities, DeviceError, Op, Pending, RamDevice, Request};
use medium::{Access, HandleState, Medium, Ran};

/// What a simulated device looks like.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Name for messages.
    pub name: Arc<str>,
    /// Size in bytes.
    pub size: u64,
    /// Logical sector in bytes.
    pub logical_sector: u32,
    /// Physical sector in bytes.
    pub physical_sector: u32,
    /// Aligned writes within one such unit are never torn, in bytes; at least the logical sector.
    pub atomic_write_unit: u32,
    /// Whether a completed write may be lost until it is flushed.
    pub volatile_write_cache: bool,
    /// Whether FUA writes are said to be cheap. They are durable on completion in any case.
    pub native_fua: bool,
    /// What discarded bytes read as.
    pub discarded: Discarded,
    /// Run the requests of one batch in an order chosen by seed. The results stay in order.
    pub shuffle: bool,
    /// Every choice follows from it.
    pub seed: u64,
}

impl SimOptions {
    /// A nasty device of `size` bytes: 512-byte sectors, volatile cache, shuffled batches.
    pub fn new(size: u64, seed: u64) -> Self {
        Self {
            name: "sim".into(),
            size,
            logical_sector: 512,
            physical_sector: 4096,
            atomic_write_unit: 512,
            volatile_write_cache: true,
            native_fua: false,
            discarded: Discarded::Mixed,
            shuffle: true,
            seed,
        }
    }
}

/// How many requests of each kind reached the medium (refused and held ones are not counted).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads.
    pub reads: u64,
    /// Writes, FUA or not.
    pub writes: u64,
    /// FUA writes.
    pub fua_writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Bytes asked for by reads.
    pub bytes_read: u64,
    /// Bytes of writes.
    pub bytes_written: u64,
}

/// A handle on a simulated medium. Clones are the same handle; [`SimDevice::handle`] makes another
/// one, as another process opening the device would.
#[derive(Clone)]
pub struct SimDevice {
    medium: Arc<Mutex<Medium>>,
    handle: u32,
}

impl SimDevice {
    /// A zeroed device with the options' defaults.
    pub fn new(size: u64, seed: u64) -> Self {
        Self::with_options(SimOptions::new(size, seed))
    }

    /// A zeroed device.
    pub fn with_options(options: SimOptions) -> Self {
        Self::with_mem(options, SparseMem::default())
    }

    fn with_mem(options: SimOptions, mem: SparseMem) -> Self {
        let mut medium = Medium::new(options, mem);
        medium.handles.push(HandleState { exclusive: true, ..HandleState::default() });
        Self { medium: Arc::new(Mutex::new(medium)), handle: 0 }
    }

    /// Another handle on the same medium. An exclusive one first lets every held write of earlier
    /// exclusive handles land, because that is what taking the lock on the descriptor proves (R2).
    pub fn handle(&self, exclusive: bool) -> Self {
        let mut medium = self.medium.lock();
        if exclusive {
            let owners = (0..medium.handles.len()).filter(|h| medium.handles[*h].exclusive);
            for owner in owners.collect::<Vec<_>>() {
                let held = std::mem::take(&mut medium.handles[owner].held);
                held.into_iter().for_each(|op| medium.land(owner as u32, op));
            }
        }
        let handle = medium.handles.len() as u32;
        medium.handles.push(HandleState { exclusive, ..HandleState::default() });
        Self { medium: self.medium.clone(), handle }
    }

    /// Length of the log: the sequence number that the next event will get, and the `cut` that
    /// stands for this moment.
    pub fn seq(&self) -> u64 {
        self.medium.lock().seq()
    }

    /// Notes a number in the log.
    pub fn mark_number(&self, number: u64) {
        self.note(EventKind::Mark(number));
    }

    fn note(&self, kind: EventKind) {
        let mut medium = self.medium.lock();
        let now = medium.seq();
        medium.log(now, self.handle, kind);
    }

    /// The whole log (the data is shared, not copied).
    pub fn events(&self) -> Vec<Event> {
        self.events_since(0)
    }

    /// The log from `seq` on.
    pub fn events_since(&self, seq: u64) -> Vec<Event> {
        let medium = self.medium.lock();
        medium.events.get(seq as usize..).unwrap_or_default().to_vec()
    }

    /// Requests so far, over all handles.
    pub fn counters(&self) -> Counters {
        self.medium.lock().counters
    }

    /// An image that a power cut could have left when the log was `cut` events long (a longer cut
    /// means now). Costs about as much as the writes since the last flush before it.
    pub fn image_at(&self, cut: u64, options: &CutOptions) -> Image {
        let medium = self.medium.lock();
        Image { mem: medium.image_at(cut, options), options: medium.options.clone() }
    }

    /// What the device reads as now, without any cut.
    pub fn current(&self) -> Image {
        let medium = self.medium.lock();
        Image { mem: medium.mem.clone(), options: medium.options.clone() }
    }

    /// Adds a fault. Several may be pending; the oldest that is ripe hits.
    pub fn inject(&self, fault: Fault) {
        self.medium.lock().faults.inject(fault);
    }

    /// Removes all faults that have not hit, or hit for ever.
    pub fn clear_faults(&self) {
        self.medium.lock().faults.clear();
    }

    /// Number of faults that may still hit.
    pub fn pending_faults(&self) -> usize {
        self.medium.lock().faults.pending()
    }

    /// Flips bits of the byte at `offset` on the medium, for good.
    pub fn rot(&self, offset: u64, mask: u8) {
        self.medium.lock().rot(offset, mask);
    }

    /// Makes the device larger (never smaller); seen by users at their next `refresh_size`.
    pub fn grow(&self, size: u64) {
        let mut medium = self.medium.lock();
        medium.options.size = medium.options.size.max(size);
    }

    /// After `n` more writes, flushes and discards on this handle, its later writes and discards
    /// stay in flight: the caller gets an error, as if it had been killed, and they land when
    /// [`SimDevice::release_late`] is called, on top of whatever was written since. Reads and
    /// flushes fail from then on too.
    pub fn hold_writes_after(&self, n: u64) {
        self.medium.lock().handles[self.handle as usize].access = Access::HoldAfter(n);
    }

    /// Number of writes and discards of this handle that are still in flight.
    pub fn held(&self) -> usize {
        self.medium.lock().handles[self.handle as usize].held.len()
    }

    /// Lands up to `n` of this handle's held requests, in an order chosen by seed. Returns how
    /// many landed.
    pub fn release_late(&self, n: usize) -> usize {
        let mut medium = self.medium.lock();
        let mut rng = medium.rng();
        let held = &mut medium.handles[self.handle as usize].held;
        rng.shuffle(held);
        let n = n.min(held.len());
        let landing: Vec<Op> = held.drain(..n).collect();
        landing.into_iter().for_each(|op| medium.land(self.handle, op));
        n
    }

    /// Fences this handle, as preempt-and-abort does: what is held is dropped, every request from
    /// now on is refused.
    pub fn fence(&self) {
        let mut medium = self.medium.lock();
        let state = &mut medium.handles[self.handle as usize];
        state.held.clear();
        state.access = Access::Fenced;
    }

    fn run_batch(&self, requests: Vec<Request>) -> Vec<Ran> {
        let mut medium = self.medium.lock();
        let submitted_at = medium.seq();
        let mut order: Vec<usize> = (0..requests.len()).collect();
        if medium.options.shuffle && order.len() > 1 {
            medium.rng().shuffle(&mut order);
        }
        let mut ops: Vec<Option<Op>> = requests.into_iter().map(|r| Some(r.op)).collect();
        let mut done: Vec<Option<Ran>> = ops.iter().map(|_| None).collect();
        for i in order {
            let op = ops[i].take().expect("a permutation visits each request once");
            done[i] = Some(medium.run(submitted_at, self.handle, op));
        }
        done.into_iter().flatten().collect()
    }
}

impl BlockDevice for SimDevice {
    fn name(&self) -> Arc<str> {
        self.medium.lock().options.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        self.medium.lock().capabilities(self.handle)
    }

    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        let promise = |ran: Ran| match ran.event {
            None => Pending::ready(ran.completion),
            Some(seq) => {
                let medium = self.medium.clone();
                Pending::driven(move || {
                    medium.lock().ack(seq);
                    ran.completion
                })
            }
        };
        self.run_batch(requests).into_iter().map(promise).collect()
    }

    fn extend(&self, size_bytes: u64) -> Result<Capabilities, DeviceError> {
        self.grow(size_bytes);
        Ok(self.capabilities())
    }

    fn mark(&self, name: &str) {
        self.note(EventKind::Name(name.into()));
    }
}

impl fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let medium = self.medium.lock();
        write!(f, "SimDevice(handle {}, {} bytes, seq {})", self.handle, medium.options.size, medium.seq())
    }
}

/// The content of a device at some moment; shares memory with the medium it comes from.
#[derive(Clone)]
pub struct Image {
    mem: SparseMem,
    options: SimOptions,
}

impl Image {
    /// A plain device with this content.
    pub fn into_ram(self) -> RamDevice {
        RamDevice::with_mem(self.options.size, self.options.logical_sector, self.mem)
    }

    /// A simulated device with this content, the same geometry and a new, empty log, to cut again.
    pub fn into_sim(self, seed: u64) -> SimDevice {
        SimDevice::with_mem(SimOptions { seed, ..self.options }, self.mem)
    }

    /// Bytes at `offset` (zeroes beyond the end).
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.mem.read(offset, &mut out);
        out
    }

    /// Writes the image to `file`, sparse; the file gets the device's size.
    pub fn save(&self, file: &File) -> io::Result<()> {
        self.mem.save(file, self.options.size)
    }

    /// Reads an image from a file; the size becomes the file's, the other properties are given.
    pub fn load(file: &File, options: SimOptions) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let mem = SparseMem::load(file, size)?;
        Ok(Self { mem, options: SimOptions { size, ..options } })
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} bytes, {} allocated)", self.options.size, self.mem.allocated())
    }
}
