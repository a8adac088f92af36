//! Lost writes: bytes that were refused when nobody could be told (contract C1).
//!
//! The kernel writes mapped pages long after the program changed them, and forgets them even if the
//! write fails. What was lost is remembered on the inode, and every fsync says so, until the same
//! bytes have been written again or are cut off.

use std::ops::Range;

use crate::api::IoFlags;
use crate::error::{FsError, Result};
use crate::fs::Inode;
use crate::types::Ino;
use crate::volume::Volume;

/// Ranges remembered one by one; beyond that neighbours are joined over the gaps.
const MAX_RANGES: usize = 1024;

/// Disjoint ranges of bytes, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LostBytes(Vec<Range<u64>>);

impl LostBytes {
    /// Nothing is lost.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A write of `range` was refused.
    pub(crate) fn add(&mut self, range: Range<u64>) {
        let mut joined = range;
        self.0.retain(|r| {
            let touches = r.start <= joined.end && joined.start <= r.end;
            if touches {
                joined = joined.start.min(r.start)..joined.end.max(r.end);
            }
            !touches
        });
        let at = self.0.partition_point(|r| r.start < joined.start);
        self.0.insert(at, joined);
        if self.0.len() > MAX_RANGES {
            let second = self.0.remove(1);
            self.0[0].end = second.end;
        }
    }

    /// The bytes of `range` have been replaced, or are gone.
    pub(crate) fn remove(&mut self, range: Range<u64>) {
        let parts = |r: &Range<u64>| {
            [r.start..r.end.min(range.start), r.start.max(range.end)..r.end]
                .into_iter()
                .filter(|p| !p.is_empty())
        };
        self.0 = self.0.iter().flat_map(|r| parts(r).collect::<Vec<_>>()).collect();
    }
}

impl Volume {
    /// A write whose caller is told what became of it.
    pub(crate) fn write_attended(
        &self,
        inode: &Inode,
        offset: u64,
        data: &[u8],
        flags: IoFlags,
    ) -> Result<usize> {
        let written = self.write_file(inode, offset, data, flags)?;
        let mut state = inode.state.lock();
        if !state.lost.is_empty() {
            state.lost.remove(offset..offset + data.len() as u64);
        }
        Ok(written)
    }

    /// See [`FsOps::write_back`](crate::api::FsOps::write_back).
    pub(crate) fn write_unattended(&self, inode: &Inode, offset: u64, data: &[u8]) -> Result<usize> {
        let outcome = self
            .drop_capability(inode)
            .and_then(|()| self.write_attended(inode, offset, data, IoFlags::default()));
        match &outcome {
            // The file is gone, and with it what was to be in it.
            Ok(_) | Err(FsError::Posix(libc::ESTALE)) => {}
            Err(e) => {
                tracing::error!(error = %e, ino = inode.ino.0, offset, len = data.len(), "a write of a mapped page was lost; fsync of the file fails until it is written again");
                inode.state.lock().lost.add(offset..offset.saturating_add(data.len() as u64));
                self.inodes.lost.lock().insert(inode.ino);
            }
        }
        outcome
    }

    /// EIO if any file has lost a write.
    pub(crate) fn check_nothing_lost(&self) -> Result<()> {
        let suspects: Vec<Ino> = self.inodes.lost.lock().iter().copied().collect();
        for ino in suspects {
            // An inode that has lost something stays in memory.
            let inode = self.inodes.get(&self.meta, ino)?;
            let state = inode.state.lock();
            if !state.lost.is_empty() {
                return Err(FsError::LostWrite(ino));
            }
            self.inodes.lost.lock().remove(&ino);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_are_cut() {
        let mut lost = LostBytes::default();
        lost.add(10..20);
        lost.add(30..40);
        lost.add(20..25);
        assert_eq!(lost.0, [10..25, 30..40]);
        lost.remove(15..35);
        assert_eq!(lost.0, [10..15, 35..40]);
        lost.add(0..100);
        assert_eq!(lost.0.first(), Some(&(0..100)));
        lost.remove(0..100);
        assert!(lost.is_empty());
    }

    #[test]
    fn many_ranges_are_bounded_and_nothing_is_forgotten() {
        let mut lost = LostBytes::default();
        for i in (0..5000u64).rev() {
            lost.add(i * 10..i * 10 + 5);
        }
        assert!(lost.0.len() <= MAX_RANGES);
        for i in 0..5000u64 {
            assert!(lost.0.iter().any(|r| r.start <= i * 10 && i * 10 + 5 <= r.end));
        }
    }
}
