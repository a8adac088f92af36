//! Image files and block devices.
//!
//! A request submitted alone and waited for at once ([`BlockDevice::execute`], `read_at`, `flush`)
//! is a plain system call of the calling thread: nothing is cheaper (of 16 threads that read or write 16 KiB each on
//! a loop device, 1.25 times as many requests as through a ring that they share). Batches go through io_uring,
//! or, where the host refuses it, through a few threads; either way each class of requests has a queue
//! and a depth of its own.

mod classes;
mod direct;
mod entry;
mod geometry;
mod open;
mod polling;
mod pool;
mod regions;
mod ring;
mod transfer;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use open::OpenError;

use crate::check::{Shape, admit, failed};
use crate::{
    BlockDevice, Capabilities, Completion, DeviceError, EngineCounts, ErrorKind, IoClass, Op, Pending,
    Registration, Request,
};
use direct::Target;
use open::Opened;
use pool::Pool;
use ring::Ring;
use transfer::{MAX_CHUNK, Transfer};

/// How batches of requests reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Engine {
    /// io_uring if the host allows it, threads if not.
    #[default]
    Auto,
    /// io_uring, or fail to open.
    Uring,
    /// Threads with pread and pwrite.
    Pread,
}

/// Whether I/O bypasses the host's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Direct {
    /// If it works; else the page cache is used and `Capabilities::direct` is false.
    #[default]
    Auto,
    /// Fail to open if it does not work.
    Require,
    /// Use the page cache.
    Off,
}

/// How to open a [`FileDevice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Never write.
    pub read_only: bool,
    /// How batches reach the kernel.
    pub engine: Engine,
    /// Whether to bypass the page cache.
    pub direct: Direct,
    /// Lock the descriptor used for I/O: alone for a writer (and `O_EXCL` on a block device),
    /// shared with other readers if `read_only`.
    pub lock: bool,
    /// How long to wait for a lock that somebody else holds.
    pub lock_timeout: Duration,
    /// Who waits for io_uring may spin for some microseconds, where requests have lately come back so soon.
    pub polling: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            engine: Engine::Auto,
            direct: Direct::Auto,
            lock: true,
            lock_timeout: Duration::from_secs(1),
            polling: true,
        }
    }
}

/// An image file or a block device. Dropping it waits for its requests in flight, then gives up
/// the lock (a [`Pending`] that is still waited for keeps both alive).
pub struct FileDevice {
    // First, so that it is dropped first: what is in flight uses the target.
    engine: Batches,
    /// Runs discards, which io_uring does not offer for block devices.
    discards: OnceLock<Pool>,
    target: Arc<Target>,
    capabilities: Capabilities,
    size: AtomicU64,
    read_only: bool,
}

enum Batches {
    Ring(Arc<Ring>),
    Pool(Pool),
}

impl FileDevice {
    /// Opens `path`. Blocks, at most `lock_timeout` longer than opening itself takes.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let Opened { file, geometry, is_block_device, direct, exclusive } = open::open(path, options)?;
        let name: Arc<str> = path.display().to_string().into();
        let target = Arc::new(Target { fd: OwnedFd::from(file), name, is_block_device });
        let engine = start_engine(path, options, &target)?;
        let capabilities = Capabilities {
            size_bytes: geometry.size,
            logical_sector: geometry.logical_sector,
            physical_sector: geometry.physical_sector,
            atomic_write_unit: geometry.logical_sector,
            volatile_write_cache: geometry.volatile_write_cache,
            native_fua: geometry.native_fua,
            discard: geometry.discard,
            reservations: false,
            direct,
            exclusive,
            max_transfer: MAX_CHUNK as u32,
        };
        let (size, read_only) = (AtomicU64::new(geometry.size), options.read_only);
        Ok(Self { engine, discards: OnceLock::new(), target, capabilities, size, read_only })
    }

    /// The engine in use: `Uring` or `Pread`.
    pub fn engine(&self) -> Engine {
        match self.engine {
            Batches::Ring(_) => Engine::Uring,
            Batches::Pool(_) => Engine::Pread,
        }
    }

    fn size_error(&self, size_bytes: u64, errno: rustix::io::Errno) -> DeviceError {
        let errno = errno.raw_os_error();
        Shape::of_size(size_bytes).error(&self.target.name, transfer::kind_of(errno), errno)
    }

    fn admit(&self, op: &Op) -> Result<Shape, DeviceError> {
        let changes = matches!(op, Op::Write { .. } | Op::Discard { .. });
        let admitted = admit(op, &self.capabilities());
        let admitted = match admitted {
            Ok(shape) if changes && self.read_only => Err((shape, ErrorKind::Refused)),
            other => other,
        };
        admitted.map_err(|(shape, kind)| shape.error(&self.target.name, kind, 0))
    }

    fn discard(&self, shape: Shape) -> Pending {
        let target = self.target.clone();
        self.discards.get_or_init(|| Pool::new(pool::ONE_THREAD)).submit(
            IoClass::Background,
            shape.len,
            move || direct::discard(&target, shape),
        )
    }

    /// Transfers for the engine, and an answer for each request: `None` comes from the transfers, in order.
    fn sort_out(&self, requests: Vec<Request>) -> (Vec<Transfer>, Vec<Option<Pending>>) {
        let mut transfers = Vec::with_capacity(requests.len());
        let mut answer = |Request { op, class }| match self.admit(&op) {
            Err(error) => Some(Pending::ready(failed(op, error))),
            Ok(shape) => match Transfer::new(op, class, self.capabilities.logical_sector) {
                Ok(transfer) => {
                    transfers.push(transfer);
                    None
                }
                Err(_discard) => Some(self.discard(shape)),
            },
        };
        let answers = requests.into_iter().map(&mut answer).collect();
        (transfers, answers)
    }

    /// Starts transfers; the results are in their order.
    fn start(&self, transfers: Vec<Transfer>) -> Vec<Pending> {
        match &self.engine {
            Batches::Ring(ring) => {
                let pending = |ticket| {
                    let ring = ring.clone();
                    Pending::driven(move || ring.wait(&ticket))
                };
                ring.submit(transfers).into_iter().map(pending).collect()
            }
            Batches::Pool(pool) => {
                let submit = |transfer: Transfer| {
                    let target = self.target.clone();
                    let (class, bytes) = (transfer.class, transfer.shape.len);
                    pool.submit(class, bytes, move || direct::run(&target, transfer))
                };
                transfers.into_iter().map(submit).collect()
            }
        }
    }
}

fn start_engine(path: &Path, options: &OpenOptions, target: &Arc<Target>) -> Result<Batches, OpenError> {
    let wanted = options.engine;
    if wanted == Engine::Pread {
        return Ok(Batches::Pool(Pool::new(pool::THREADS)));
    }
    match Ring::new(target.clone(), options.polling) {
        Ok(ring) => Ok(Batches::Ring(Arc::new(ring))),
        Err(source) if wanted == Engine::Uring => {
            Err(OpenError::Os { path: path.to_owned(), action: "set up io_uring for", source })
        }
        Err(error) => {
            tracing::info!(path = %path.display(), %error, "no io_uring: using threads");
            Ok(Batches::Pool(Pool::new(pool::THREADS)))
        }
    }
}

impl BlockDevice for FileDevice {
    fn name(&self) -> Arc<str> {
        self.target.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { size_bytes: self.size.load(Ordering::Acquire), ..self.capabilities.clone() }
    }

    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        let (transfers, answers) = self.sort_out(requests);
        let mut started = self.start(transfers).into_iter();
        answers.into_iter().filter_map(|answer| answer.or_else(|| started.next())).collect()
    }

    fn execute(&self, request: Request) -> Completion {
        let Request { op, class } = request;
        match self.admit(&op) {
            Err(error) => failed(op, error),
            Ok(shape) => match Transfer::new(op, class, self.capabilities.logical_sector) {
                Ok(transfer) => direct::run(&self.target, transfer),
                Err(_discard) => direct::discard(&self.target, shape),
            },
        }
    }

    fn execute_all(&self, mut requests: Vec<Request>) -> Vec<Completion> {
        match (&self.engine, requests.len()) {
            (_, 1) => requests.pop().into_iter().map(|request| self.execute(request)).collect(),
            (Batches::Pool(_), _) => self.submit(requests).into_iter().map(Pending::wait).collect(),
            (Batches::Ring(ring), _) => {
                let (transfers, answers) = self.sort_out(requests);
                let mut done = ring.execute(transfers).into_iter();
                let answer = |answer: Option<Pending>| answer.map(Pending::wait).or_else(|| done.next());
                answers.into_iter().filter_map(answer).collect()
            }
        }
    }

    fn engine_counts(&self) -> EngineCounts {
        match &self.engine {
            Batches::Ring(ring) => ring.counts(),
            Batches::Pool(_) => EngineCounts::default(),
        }
    }

    unsafe fn register_memory(&self, start: NonNull<u8>, len: usize) -> Option<Registration> {
        match &self.engine {
            // SAFETY: the caller answers for the memory.
            Batches::Ring(ring) => unsafe { ring.register(start, len) }.map(Registration::new),
            Batches::Pool(_) => None,
        }
    }

    fn refresh_size(&self) -> Result<Capabilities, DeviceError> {
        let size = geometry::size(&self.target.fd, self.capabilities.logical_sector);
        self.size.store(size.map_err(|e| self.size_error(0, e))?, Ordering::Release);
        Ok(self.capabilities())
    }

    fn extend(&self, size_bytes: u64) -> Result<Capabilities, DeviceError> {
        let caps = self.refresh_size()?;
        if caps.size_bytes >= size_bytes {
            return Ok(caps);
        }
        if self.target.is_block_device || self.read_only {
            return Err(Shape::of_size(size_bytes).error(&self.target.name, ErrorKind::Refused, 0));
        }
        let extended = rustix::fs::ftruncate(&self.target.fd, size_bytes);
        extended.map_err(|e| self.size_error(size_bytes, e))?;
        self.refresh_size()
    }
}

impl fmt::Debug for FileDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileDevice({}, {:?})", self.target.name, self.engine())
    }
}
