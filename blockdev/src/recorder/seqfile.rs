//! The current sequence number, shared with other processes through a mapped file of 8 bytes.

use std::fs::File;
use std::io;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const LEN: usize = size_of::<AtomicU64>();

/// The sequence number of a [`Recorder`](super::Recorder), as another process (or thread) sees it:
/// the number of the next record. What was acknowledged before a call of [`SeqFile::get`] lies
/// below the number returned; what is submitted after it, at or above. The file holds the number
/// as 8 little-endian bytes, so that any program can also just read it.
#[derive(Debug)]
pub struct SeqFile {
    ptr: NonNull<AtomicU64>,
}

// SAFETY: the mapping belongs to this value, and is only accessed as an atomic.
unsafe impl Send for SeqFile {}
// SAFETY: as above.
unsafe impl Sync for SeqFile {}

impl SeqFile {
    /// Maps the file of a recorder (see [`Recorder::seq_file`](super::Recorder::seq_file)) for
    /// reading.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::map(&File::open(path)?, ProtFlags::READ)
    }

    /// Makes the file if there is none; keeps the number if there is one.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let options = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        options.set_len(LEN as u64)?;
        Self::map(&options, ProtFlags::READ | ProtFlags::WRITE)
    }

    fn map(file: &File, prot: ProtFlags) -> io::Result<Self> {
        if file.metadata()?.len() < LEN as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a sequence number file"));
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no other memory.
        let raw = unsafe { mmap(ptr::null_mut(), LEN, prot, MapFlags::SHARED, file, 0) }?;
        let ptr = NonNull::new(raw.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { ptr })
    }

    fn cell(&self) -> &AtomicU64 {
        // SAFETY: the mapping is page-aligned, at least 8 bytes long, and lives as long as self.
        // Nobody shortens the file, which would be the only way to make the access fail.
        unsafe { self.ptr.as_ref() }
    }

    /// The current sequence number.
    pub fn get(&self) -> u64 {
        u64::from_le(self.cell().load(Ordering::Acquire))
    }

    pub(super) fn set(&self, seq: u64) {
        self.cell().store(seq.to_le(), Ordering::Release);
    }
}

impl Drop for SeqFile {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; no reference to it outlives self.
        if let Err(error) = unsafe { munmap(self.ptr.as_ptr().cast(), LEN) } {
            tracing::warn!(%error, "cannot unmap the sequence number");
        }
    }
}
