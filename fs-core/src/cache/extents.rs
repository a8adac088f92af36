//! A growing file of shared memory, mapped read-only.
//!
//! In extents, each twice as large as the one before, which are mapped when something in them is asked for and
//! stay where they are: so what has been found in the file stays good while the file grows, with no lock.
//! Nothing in the file is believed: who asks for what is not in it gets nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::SealFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::layout::Shared;

/// Bytes of the first extent. Nothing aligned to its size, up to 64 KiB, is across a border.
const FIRST: u64 = 32 << 20;
/// Enough for all offsets of files.
const EXTENTS: usize = 39;

/// See the module.
#[derive(Debug)]
pub(super) struct Extents {
    file: OwnedFd,
    /// Bytes that the file is known to have. It never shrinks.
    len: AtomicU64,
    extents: [OnceLock<Extent>; EXTENTS],
}

impl Extents {
    /// The file must be sealed against shrinking: else who reads it could be killed for that.
    pub(super) fn new(file: OwnedFd) -> io::Result<Self> {
        if !rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file may shrink"));
        }
        let len = AtomicU64::new(len_of(&file)?);
        Ok(Self { file, len, extents: std::array::from_fn(|_| OnceLock::new()) })
    }

    /// What is at `offset`, if that is in the file, and aligned.
    pub(super) fn get<T: Shared>(&self, offset: u64) -> Option<&T> {
        if !offset.is_multiple_of(align_of::<T>() as u64) {
            return None;
        }
        let at = self.bytes(offset, size_of::<T>())?.cast::<T>();
        // SAFETY: mapped as long as this lives, aligned, as mappings are to pages, and any bytes are a T. Others
        // change it, which is what atomics are for.
        Some(unsafe { at.as_ref() })
    }

    /// Where the bytes from `offset` on are, if they are in the file. They may change at any time.
    pub(super) fn bytes(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len as u64)?;
        if end > self.len.load(Ordering::Relaxed) {
            let now = len_of(&self.file).ok()?;
            self.len.fetch_max(now, Ordering::Relaxed);
            if end > now {
                return None;
            }
        }
        let nr = (offset / FIRST + 1).ilog2();
        let (start, extent_len) = (((1 << nr) - 1) * FIRST, FIRST << nr);
        if end > start + extent_len {
            return None;
        }
        let extent = self.extent(nr as usize, start, extent_len)?;
        // SAFETY: within the extent.
        Some(unsafe { extent.start.add((offset - start) as usize) })
    }

    fn extent(&self, nr: usize, offset: u64, len: u64) -> Option<&Extent> {
        let slot = self.extents.get(nr)?;
        if slot.get().is_none() {
            let extent = Extent::map(&self.file, offset, usize::try_from(len).ok()?).ok()?;
            // Somebody else may have been faster.
            drop(slot.set(extent));
        }
        slot.get()
    }
}

fn len_of(file: &OwnedFd) -> io::Result<u64> {
    u64::try_from(rustix::fs::fstat(file)?.st_size).map_err(io::Error::other)
}

/// A part of the file, mapped. It may end behind the file's end: what the file grows by is in it then.
#[derive(Debug)]
struct Extent {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address range that nobody changes through this.
unsafe impl Send for Extent {}
// SAFETY: as for Send.
unsafe impl Sync for Extent {}

impl Extent {
    fn map(file: &OwnedFd, offset: u64, len: usize) -> rustix::io::Result<Self> {
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, offset)?
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or(rustix::io::Errno::NOMEM)?;
        let extent = Self { start, len };
        // Other people's pages are not for core dumps. Only advice.
        // SAFETY: the range was just mapped; this changes no byte of it.
        let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, Advice::LinuxDontDump) };
        Ok(extent)
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`; what was found in it does not outlive its owner.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::memfd;
    use super::*;

    fn file(len: u64) -> (std::fs::File, Extents) {
        let file = memfd::create("test").unwrap();
        rustix::fs::ftruncate(&file, len).unwrap();
        let extents = Extents::new(memfd::read_only(&file).unwrap()).unwrap();
        (file.into(), extents)
    }

    fn word(extents: &Extents, offset: u64) -> Option<u64> {
        Some(extents.get::<AtomicU64>(offset)?.load(Ordering::Relaxed))
    }

    #[test]
    fn it_grows_with_the_file() {
        let (file, extents) = file(4096);
        let end = FIRST * 7 + 4096;
        let offsets = [0, 4088, 4096, FIRST - 8, FIRST, FIRST * 3 - 8, FIRST * 3, FIRST * 7, end - 8];
        assert_eq!(offsets.map(|at| word(&extents, at).is_some()).iter().filter(|found| **found).count(), 2);
        rustix::fs::ftruncate(&file, end).unwrap();
        for offset in offsets {
            file.write_all_at(&(offset + 1).to_le_bytes(), offset).unwrap();
            assert_eq!(word(&extents, offset), Some(offset + 1));
        }
        assert_eq!(word(&extents, end), None);
    }

    #[test]
    fn what_is_not_in_the_file_is_not_found() {
        let (_file, extents) = file(FIRST * 2);
        for (offset, len) in [
            (0, FIRST + 1),
            (FIRST - 4, 8),
            (FIRST * 2 - 7, 8),
            (FIRST * 2, 1),
            (u64::MAX, 1),
            (u64::MAX - 7, 8),
            (1 << 63, 8),
            (i64::MAX as u64 - 7, 8),
        ] {
            assert!(extents.bytes(offset, len as usize).is_none(), "{offset} {len}");
        }
        assert!(word(&extents, 4).is_none(), "not aligned");
        assert!(extents.bytes(FIRST - 4, 4).is_some());
    }

    #[test]
    fn a_file_that_may_shrink_is_refused() {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(Extents::new(file).is_err());
    }
}
