//! A device in memory, for tests and for volumes that need not outlive the process.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::check::{admit, failed};
use crate::sparse::SparseMem;
use crate::{BlockDevice, Capabilities, Completion, DeviceError, Op, Pending, Request};

/// A sparse in-memory device: only what was written takes memory, so a size of many TiB is free.
/// Clones share the memory. Every request is complete when `submit` returns.
#[derive(Clone)]
pub struct RamDevice {
    shared: Arc<Shared>,
}

struct Shared {
    name: Arc<str>,
    size: AtomicU64,
    sector: u32,
    mem: RwLock<SparseMem>,
}

impl RamDevice {
    /// A zeroed device of `size` bytes with logical sectors of `sector` bytes (512 or 4096).
    pub fn new(size: u64, sector: u32) -> Self {
        Self::with_mem(size, sector, SparseMem::default())
    }

    pub(crate) fn with_mem(size: u64, sector: u32, mem: SparseMem) -> Self {
        let (name, size) = ("ram".into(), AtomicU64::new(size));
        Self { shared: Arc::new(Shared { name, size, sector, mem: RwLock::new(mem) }) }
    }

    /// Makes the device larger (never smaller); seen by users at their next `refresh_size`.
    pub fn grow(&self, size: u64) {
        self.shared.size.fetch_max(size, Ordering::AcqRel);
    }

    /// Bytes of memory the device's content takes.
    pub fn allocated(&self) -> u64 {
        self.shared.mem.read().allocated()
    }

    /// A new device that starts with this one's content, sharing pages until either is written.
    pub fn snapshot(&self) -> Self {
        let size = self.shared.size.load(Ordering::Acquire);
        Self::with_mem(size, self.shared.sector, self.shared.mem.read().clone())
    }

    fn run(&self, mut op: Op) -> Completion {
        if let Err((shape, kind)) = admit(&op, &self.capabilities()) {
            return failed(op, shape.error(&self.shared.name, kind, 0));
        }
        match &mut op {
            Op::Read { offset, bufs } => {
                let mem = self.shared.mem.read();
                let mut at = *offset;
                for buf in bufs {
                    mem.read(at, buf);
                    at += buf.len() as u64;
                }
            }
            Op::Write { offset, bufs, .. } => {
                let mut mem = self.shared.mem.write();
                let mut at = *offset;
                for buf in bufs {
                    mem.write(at, buf);
                    at += buf.len() as u64;
                }
            }
            Op::Flush => {}
            Op::Discard { offset, len } => self.shared.mem.write().zero(*offset, *len),
        }
        Completion { bufs: crate::check::into_bufs(op), result: Ok(()) }
    }
}

impl BlockDevice for RamDevice {
    fn name(&self) -> Arc<str> {
        self.shared.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            size_bytes: self.shared.size.load(Ordering::Acquire),
            logical_sector: self.shared.sector,
            physical_sector: self.shared.sector,
            atomic_write_unit: self.shared.sector,
            volatile_write_cache: false,
            native_fua: true,
            discard: true,
            reservations: false,
            direct: true,
            // Nobody outside the process can reach the memory, and nothing is ever in flight.
            exclusive: true,
            max_transfer: 1 << 30,
        }
    }

    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        requests.into_iter().map(|r| Pending::ready(self.run(r.op))).collect()
    }

    fn extend(&self, size_bytes: u64) -> Result<Capabilities, DeviceError> {
        self.grow(size_bytes);
        Ok(self.capabilities())
    }
}

impl fmt::Debug for RamDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RamDevice({} bytes)", self.shared.size.load(Ordering::Relaxed))
    }
}
