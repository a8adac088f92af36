//! A device over a device: what is written stays in memory until it is wanted on the real one.
//!
//! The whole repair happens on it. So its result can be checked before anything is written, and the
//! code that reads volumes sees rebuilt nodes without knowing that they are not on the disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockdev::{
    AlignedBuf, BlockDevice, Capabilities, Completion, DeviceError, IoClass, Op, Pending, Request,
};
use parking_lot::Mutex;

use crate::types::{BLOCK_SIZE, BlockNr};

/// Content of blocks.
type Blocks = BTreeMap<u64, AlignedBuf>;

/// The device. Reads that fail are tried again block by block; what cannot be read then is zero, so
/// that one bad sector costs no more than what was in it (all that is read is verified).
#[derive(Debug)]
pub(super) struct Shadow {
    inner: Arc<dyn BlockDevice>,
    blocks: Arc<Mutex<Blocks>>,
}

impl Shadow {
    /// Over `inner`, which is never written.
    pub(super) fn new(inner: Arc<dyn BlockDevice>) -> Self {
        Self { inner, blocks: Arc::default() }
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
        let (inner, blocks) = (self.inner.clone(), self.blocks.clone());
        let lens: Vec<usize> = bufs.iter().map(|b| b.len()).collect();
        let submitted = inner.submit(vec![Request::read(offset, bufs, class)]).pop();
        Pending::driven(move || {
            let completion = submitted.map(Pending::wait);
            let mut bufs = match completion {
                Some(Completion { bufs, result: Ok(()) }) => bufs,
                _ => patiently(inner.as_ref(), offset, &lens, class),
            };
            lay_over(&blocks.lock(), offset, &mut bufs);
            Completion { bufs, result: Ok(()) }
        })
    }
}

/// Reads block by block; what cannot be read is zero.
fn patiently(device: &dyn BlockDevice, offset: u64, lens: &[usize], class: IoClass) -> Vec<AlignedBuf> {
    let mut at = offset;
    let mut bufs = Vec::new();
    for len in lens {
        let mut buf = AlignedBuf::zeroed(*len);
        for chunk in buf.chunks_mut(BLOCK_SIZE) {
            if let Ok(bytes) = device.read_at(at, AlignedBuf::zeroed(chunk.len()), class) {
                chunk.copy_from_slice(&bytes);
            }
            at += chunk.len() as u64;
        }
        bufs.push(buf);
    }
    bufs
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
