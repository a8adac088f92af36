//! A device that counts what is asked of it.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use blockdev::{
    BlockDevice, Capabilities, Completion, DeviceError, EngineCounts, Op, Pending, Registration, Request,
};
use fs_core::stats::{Histogram, HistogramValues};

/// Kinds of requests, with their names.
pub const KINDS: [&str; 4] = ["read", "write", "flush", "discard"];

/// One kind of requests.
#[derive(Debug, Default)]
struct Kind {
    /// Nanoseconds from submission until somebody took the result.
    latency: Histogram,
    bytes: AtomicU64,
    errors: AtomicU64,
}

/// What a device has been asked for.
#[derive(Debug, Default)]
pub struct DeviceStats {
    kinds: [Kind; KINDS.len()],
    in_flight: AtomicI64,
}

/// A reading of one kind.
#[derive(Clone, Debug)]
pub struct KindValues {
    /// Its name.
    pub name: &'static str,
    /// Nanoseconds from submission until somebody took the result.
    pub latency: HistogramValues,
    /// Bytes.
    pub bytes: u64,
    /// Failed requests.
    pub errors: u64,
}

impl DeviceStats {
    /// Reads all kinds.
    pub fn read(&self) -> Vec<KindValues> {
        let read = |(name, kind): (&&'static str, &Kind)| KindValues {
            name,
            latency: kind.latency.read(),
            bytes: kind.bytes.load(Ordering::Relaxed),
            errors: kind.errors.load(Ordering::Relaxed),
        };
        KINDS.iter().zip(&self.kinds).map(read).collect()
    }

    /// Requests whose result nobody has taken yet.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed).max(0) as u64
    }
}

/// Hands everything on to `inner`.
#[derive(Debug)]
pub struct Metered<D> {
    inner: D,
    stats: Arc<DeviceStats>,
}

impl<D: BlockDevice> Metered<D> {
    /// Counts from now on.
    pub fn new(inner: D) -> Self {
        Self { inner, stats: Arc::default() }
    }

    /// The counters.
    pub fn stats(&self) -> Arc<DeviceStats> {
        self.stats.clone()
    }
}

/// A request under way. If nobody waits for it, it ends here.
struct Running {
    stats: Arc<DeviceStats>,
    kind: usize,
    bytes: u64,
    begun: Instant,
}

impl Running {
    fn new(stats: &Arc<DeviceStats>, op: &Op) -> Self {
        let len = |bufs: &[blockdev::AlignedBuf]| bufs.iter().map(|b| b.len() as u64).sum();
        let (kind, bytes) = match op {
            Op::Read { bufs, .. } => (0, len(bufs)),
            Op::Write { bufs, .. } => (1, len(bufs)),
            Op::Flush => (2, 0),
            Op::Discard { len, .. } => (3, *len),
        };
        stats.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { stats: stats.clone(), kind, bytes, begun: Instant::now() }
    }

    fn end(&self, completion: &Completion) {
        let kind = &self.stats.kinds[self.kind];
        kind.latency.record(self.begun.elapsed().as_nanos() as u64);
        match completion.result {
            Ok(()) => kind.bytes.fetch_add(self.bytes, Ordering::Relaxed),
            Err(_) => kind.errors.fetch_add(1, Ordering::Relaxed),
        };
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stats.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<D: BlockDevice> BlockDevice for Metered<D> {
    fn name(&self) -> Arc<str> {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        let running: Vec<Running> = requests.iter().map(|r| Running::new(&self.stats, &r.op)).collect();
        let pending = self.inner.submit(requests);
        let wait = |(running, pending): (Running, Pending)| {
            Pending::driven(move || {
                let completion = pending.wait();
                running.end(&completion);
                completion
            })
        };
        running.into_iter().zip(pending).map(wait).collect()
    }

    fn engine_counts(&self) -> EngineCounts {
        self.inner.engine_counts()
    }

    unsafe fn register_memory(&self, start: NonNull<u8>, len: usize) -> Option<Registration> {
        // SAFETY: the caller answers for the memory.
        unsafe { self.inner.register_memory(start, len) }
    }

    fn refresh_size(&self) -> Result<Capabilities, DeviceError> {
        self.inner.refresh_size()
    }

    fn extend(&self, size_bytes: u64) -> Result<Capabilities, DeviceError> {
        self.inner.extend(size_bytes)
    }

    fn mark(&self, name: &str) {
        self.inner.mark(name);
    }

    fn execute(&self, request: Request) -> Completion {
        let running = Running::new(&self.stats, &request.op);
        let completion = self.inner.execute(request);
        running.end(&completion);
        completion
    }

    fn execute_all(&self, requests: Vec<Request>) -> Vec<Completion> {
        let running: Vec<Running> = requests.iter().map(|r| Running::new(&self.stats, &r.op)).collect();
        let done = self.inner.execute_all(requests);
        running.into_iter().zip(&done).for_each(|(running, completion)| running.end(completion));
        done
    }
}

#[cfg(test)]
mod tests {
    use blockdev::{AlignedBuf, IoClass, RamDevice};

    use super::*;

    #[test]
    fn what_is_asked_is_counted() {
        let device = Metered::new(RamDevice::new(1 << 20, 512));
        device.write_at(0, AlignedBuf::zeroed(8192), false, IoClass::Data).unwrap();
        device.read_at(0, AlignedBuf::zeroed(4096), IoClass::Data).unwrap();
        assert!(device.read_at(1 << 20, AlignedBuf::zeroed(4096), IoClass::Data).is_err());
        device.flush().unwrap();
        let pending = device.submit(vec![Request::flush(), Request::flush()]);
        assert_eq!(device.stats().in_flight(), 2);
        let mut pending = pending.into_iter();
        pending.next().unwrap().wait().result.unwrap();
        drop(pending); // nobody waits for the other
        let read = device.stats().read();
        let counts: Vec<_> = read.iter().map(|k| (k.name, k.latency.count(), k.bytes, k.errors)).collect();
        assert_eq!(
            counts,
            [("read", 2, 4096, 1), ("write", 1, 8192, 0), ("flush", 2, 0, 0), ("discard", 0, 0, 0)]
        );
        assert_eq!(device.stats().in_flight(), 0);
    }
}
