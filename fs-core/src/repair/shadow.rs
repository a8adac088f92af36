//! A device over a device: what is written stays in memory until it is wanted on the real one.
//!
//! The whole repair happens on it. So its result can be checked before anything is written, and the
//! code that reads volumes sees rebuilt nodes without knowing that they are not on the disk.
//!
//! It also sees every read. What the device fails to read looks as lost as what is damaged, and may be
//! all right: so a read that failed is remembered, and the repair is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockdev::{
    AlignedBuf, BlockDevice, Capabilities, Completion, DeviceError, ErrorKind, IoClass, Op, Pending, Request,
};
use parking_lot::Mutex;

use crate::error::FsError;
use crate::types::{BLOCK_SIZE, BlockNr, BlockRun};

/// Failed reads after which the device is left alone: all further reads fail.
const MAX_FAILED: usize = 16;

/// Content of blocks.
type Blocks = BTreeMap<u64, AlignedBuf>;

/// The device. What lies beyond its end is zero: only damage leads there (all that is read is verified).
#[derive(Debug)]
pub(super) struct Shadow {
    inner: Arc<dyn BlockDevice>,
    blocks: Arc<Mutex<Blocks>>,
    /// Reads that the device failed.
    failed: Arc<Mutex<Vec<BlockRun>>>,
}

impl Shadow {
    /// Over `inner`, which is never written.
    pub(super) fn new(inner: Arc<dyn BlockDevice>) -> Self {
        Self { inner, blocks: Arc::default(), failed: Arc::default() }
    }

    /// Fails if the device has failed a read, even if it did not when it was asked again.
    pub(super) fn refuse_unreadable(&self) -> crate::error::Result<()> {
        let mut blocks = self.failed.lock().clone();
        if blocks.is_empty() {
            return Ok(());
        }
        let more = blocks.len() >= MAX_FAILED;
        blocks.sort_unstable_by_key(|run| (run.start, run.len));
        blocks.dedup();
        Err(FsError::Unreadable { device: self.inner.name(), blocks, more })
    }

    /// What was written, in the order of the blocks.
    pub(super) fn take(&self) -> Vec<(BlockNr, AlignedBuf)> {
        std::mem::take(&mut *self.blocks.lock()).into_iter().map(|(n, b)| (BlockNr(n), b)).collect()
    }

    fn write(&self, offset: u64, bufs: &[AlignedBuf]) {
        let mut blocks = self.blocks.lock();
        let bytes = bufs.iter().flat_map(|b| b.chunks_exact(BLOCK_SIZE));
        for (at, bytes) in (offset / BLOCK_SIZE as u64..).zip(bytes) {
            blocks.insert(at, AlignedBuf::from_slice(bytes));
        }
    }

    fn read(&self, offset: u64, bufs: Vec<AlignedBuf>, class: IoClass) -> Pending {
        let (inner, blocks, failed) = (self.inner.clone(), self.blocks.clone(), self.failed.clone());
        let pending = inner.submit(vec![Request::read(offset, bufs, class)]).pop();
        Pending::driven(move || {
            let Some(Completion { mut bufs, mut result }) = pending.map(Pending::wait) else {
                unreachable!("a device answers each request")
            };
            if let Err(first) = result {
                result = block_by_block(inner.as_ref(), offset, &mut bufs, class, &first).map_err(|run| {
                    failed.lock().push(run);
                    first
                });
            }
            lay_over(&blocks.lock(), offset, &mut bufs);
            Completion { bufs, result }
        })
    }

    /// The device has failed so often that it is left alone.
    fn has_given_up(&self) -> bool {
        self.failed.lock().len() >= MAX_FAILED
    }

    fn refuse(&self, offset: u64, bufs: Vec<AlignedBuf>) -> Pending {
        let (device, len) = (self.inner.name(), bufs.iter().map(|b| b.len() as u64).sum());
        let error = DeviceError { device, op: "read", offset, len, kind: ErrorKind::Io, errno: libc::EIO };
        Pending::ready(Completion { bufs, result: Err(error) })
    }
}

/// Reads block by block after `first`. Beyond the end of the device all is zero. If the device has
/// failed: the first block that it fails to read now, or else all of them.
fn block_by_block(
    device: &dyn BlockDevice,
    offset: u64,
    bufs: &mut [AlignedBuf],
    class: IoClass,
    first: &DeviceError,
) -> Result<(), BlockRun> {
    let is_outside = |e: &DeviceError| e.kind == ErrorKind::Misaligned;
    let mut at = offset;
    for chunk in bufs.iter_mut().flat_map(|buf| buf.chunks_mut(BLOCK_SIZE)) {
        match device.read_at(at, AlignedBuf::zeroed(chunk.len()), class) {
            Ok(bytes) => chunk.copy_from_slice(&bytes),
            Err(e) if is_outside(&e) => chunk.fill(0),
            Err(_) => return Err(BlockRun::new(BlockNr(at / BLOCK_SIZE as u64), 1)),
        }
        at = at.saturating_add(chunk.len() as u64);
    }
    if is_outside(first) {
        return Ok(());
    }
    let blocks = (at - offset) / BLOCK_SIZE as u64;
    Err(BlockRun::new(BlockNr(offset / BLOCK_SIZE as u64), blocks as u32))
}

fn lay_over(blocks: &Blocks, offset: u64, bufs: &mut [AlignedBuf]) {
    let mut at = offset / BLOCK_SIZE as u64;
    for buf in bufs {
        let n = (buf.len() / BLOCK_SIZE) as u64;
        for (block, bytes) in blocks.range(at..at + n) {
            let from = (block - at) as usize * BLOCK_SIZE;
            buf[from..from + BLOCK_SIZE].copy_from_slice(bytes);
        }
        at += n;
    }
}

impl BlockDevice for Shadow {
    fn name(&self) -> Arc<str> {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        let run = |request: Request| match request.op {
            Op::Read { offset, bufs } if self.has_given_up() => self.refuse(offset, bufs),
            Op::Read { offset, bufs } => self.read(offset, bufs, request.class),
            Op::Write { offset, bufs, .. } => {
                self.write(offset, &bufs);
                Pending::ready(Completion { bufs, result: Ok(()) })
            }
            Op::Flush | Op::Discard { .. } => Pending::ready(Completion { bufs: Vec::new(), result: Ok(()) }),
        };
        requests.into_iter().map(run).collect()
    }

    fn refresh_size(&self) -> Result<Capabilities, DeviceError> {
        self.inner.refresh_size()
    }
}
