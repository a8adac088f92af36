//! Growing a mounted volume, while it is used.
//!
//! 1. The device is found to be large enough, or made so (image files).
//! 2. A copy of the superblock is written to what will be the volume's last block, and flushed.
//! 3. Two checkpoints give both root slots of the epoch the new size.
//! 4. The allocator gets the new blocks.
//!
//! No record may name a block behind the end that a root slot says, or recovery would take it for
//! damage. So nothing is allocated there before *both* slots have the new size: recovery can start from
//! the older one (rule R7). Until then nothing of the old volume has changed, and a power cut leaves the
//! old size or the new one.
//!
//! The copy of the superblock is written outside of the groups that the epoch has reserved. A late
//! write of it could hit what a later epoch has put there (rule R2): only the lock on the device
//! excludes that, so there is no growing without it.
//!
//! Nobody waits for it but other checkpoints.

use std::sync::atomic::Ordering;

use blockdev::{DeviceError, ErrorKind, IoClass};

use super::Volume;
use super::checkpoint::Checkpointer;
use crate::alloc::Geometry;
use crate::error::{FsError, Result};
use crate::format::RootSlot;
use crate::mutants::{self, Mutant};
use crate::types::{BLOCK_SIZE, BlockNr};

/// A volume has fewer blocks than this: block numbers of the page map have 44 bits.
const MAX_TOTAL: u64 = 1 << 44;

/// How large a volume is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrowTo {
    /// As large as its device (or image file).
    Device,
    /// So many bytes.
    Size(u64),
    /// So many bytes more than it has.
    By(u64),
}

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Size in bytes before.
    pub old_bytes: u64,
    /// Size in bytes now.
    pub new_bytes: u64,
}

impl Volume {
    /// Makes the volume larger. What is no whole block is left out; if that leaves nothing, nothing is
    /// done. An image file is extended (sparsely, as truncate does); other devices must have the size.
    /// The new space can be used when this returns.
    ///
    /// Blocks for two checkpoints; everything else goes on. After an error the volume has its old size,
    /// or gets the new one with the next checkpoint. Errors: EROFS (read-only or stopped), those of the
    /// device, and with a text: smaller than the volume is, larger than a volume can be, larger than
    /// the device, or the volume is mounted without the lock on its device.
    pub fn grow(&self, to: GrowTo) -> Result<Grown> {
        let mut state = self.checkpointer.lock();
        self.check_writable()?;
        let old = self.total_blocks();
        let new = self.new_total(to, old, state.total_blocks)?;
        if new > old {
            self.device.mark("grow begin");
            let outcome = self.grow_locked(&mut state, new);
            self.device.mark("grow end");
            outcome?;
        }
        let bytes = |blocks| blocks * BLOCK_SIZE as u64;
        Ok(Grown { old_bytes: bytes(old), new_bytes: bytes(new) })
    }

    /// The blocks that the volume shall have. The device has as many then.
    fn new_total(&self, to: GrowTo, old: u64, least: u64) -> Result<u64> {
        let device = self.device.refresh_size()?.size_bytes;
        let bytes = match to {
            GrowTo::Device => device,
            GrowTo::Size(bytes) => bytes,
            GrowTo::By(more) => (old * BLOCK_SIZE as u64).saturating_add(more),
        };
        let new = bytes / BLOCK_SIZE as u64;
        if new < least {
            let size = least * BLOCK_SIZE as u64;
            return Err(FsError::Volume(match to {
                GrowTo::Device => format!(
                    "{} has {device} bytes, the volume on it {size}: the device is truncated",
                    self.device.name()
                ),
                _ => format!("the volume has {size} bytes; it can only grow, not shrink to {bytes}"),
            }));
        }
        if new == old {
            return Ok(new);
        }
        if !self.device.capabilities().exclusive {
            return Err(FsError::Volume(format!(
                "{} is mounted without the lock on the device: it cannot grow",
                self.device.name()
            )));
        }
        let geometry = Geometry { total_blocks: new, ..self.space.alloc.geometry() };
        if new >= MAX_TOTAL || geometry.validate().is_err() {
            return Err(FsError::Volume(format!("a volume made as this one cannot grow to {bytes} bytes")));
        }
        let wanted = new * BLOCK_SIZE as u64;
        if wanted > device {
            self.device.extend(wanted).map_err(|e| cannot_extend(&e, device, wanted))?;
        }
        Ok(new)
    }

    fn grow_locked(&self, state: &mut Checkpointer, new: u64) -> Result<()> {
        if new > state.total_blocks {
            let copy = BlockNr(new - 1);
            let buf = self.superblock.encode(copy);
            self.device.write_at(copy.offset(), buf, false, IoClass::Background)?;
            self.flush_or_stop()?;
            state.total_blocks = new;
        }
        // Twice: the older of the two root slots has to have the new size, too.
        for _ in 0..2 {
            if let Err(e) = self.checkpoint_now(state) {
                // If one slot has the new size already, the next checkpoint goes on with it.
                state.total_blocks = state.slot.total_blocks;
                return Err(e);
            }
        }
        Ok(())
    }

    /// The root slots `older` and `newer` are durable: what both of them know of may be used.
    pub(super) fn use_grown_space(&self, older: &RootSlot, newer: &RootSlot) {
        let both = if mutants::active(Mutant::UseSpaceOfOneRoot) {
            newer.total_blocks
        } else {
            older.total_blocks.min(newer.total_blocks)
        };
        if both <= self.total_blocks() {
            return;
        }
        self.counters.grows.fetch_add(1, Ordering::Relaxed);
        // It has the space; what may have failed is to keep some of it for a take-over.
        if let Err(e) = self.space.alloc.grow(both - 1) {
            tracing::warn!(error = %e, "no room for a take-over can be set aside in the volume that has grown");
        }
    }
}

fn cannot_extend(error: &DeviceError, has: u64, wanted: u64) -> FsError {
    match (error.kind, error.errno) {
        (ErrorKind::Refused, 0) => FsError::Volume(format!(
            "{} has {has} bytes and is no image file: make it larger first, {wanted} bytes are needed",
            error.device
        )),
        _ => error.clone().into(),
    }
}
