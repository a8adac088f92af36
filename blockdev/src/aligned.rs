//! Owned, aligned I/O buffers.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Memory that buffers are lent from.
pub trait BufOwner: Send + Sync {
    /// The buffer with this number is no longer used. May be called by any thread, also one that completes
    /// requests: it must not wait for long.
    fn give_back(&self, nr: u32);
}

/// A byte buffer aligned to 4096 bytes, as direct I/O needs it.
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
    /// Whose memory it is, and its number there; `None`: its own.
    owner: Option<(Arc<dyn BufOwner>, u32)>,
}

// SAFETY: AlignedBuf has its memory exclusively, like Box<[u8]>; owners are Send and Sync.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access gives only &[u8].
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Alignment of every buffer in bytes.
    pub const ALIGN: usize = 4096;

    /// A zeroed buffer of `len` bytes. `len` may be 0.
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self { ptr: NonNull::dangling(), len, owner: None };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a non-zero size.
        let raw = unsafe { alloc_zeroed(layout) };
        match NonNull::new(raw) {
            Some(ptr) => Self { ptr, len, owner: None },
            None => handle_alloc_error(layout),
        }
    }

    /// A buffer in memory of `owner`, who gets it back when the buffer is dropped.
    ///
    /// # Safety
    /// `ptr` is aligned to [`Self::ALIGN`] and valid for reads and writes of `len` initialised bytes, which
    /// nobody else touches until `owner` is given `nr` back.
    pub unsafe fn owned_by(ptr: NonNull<u8>, len: usize, owner: Arc<dyn BufOwner>, nr: u32) -> Self {
        Self { ptr, len, owner: Some((owner, nr)) }
    }

    /// Whose memory it is, and its number there, if it was made by [`Self::owned_by`].
    pub fn lent_by(&self) -> Option<(&Arc<dyn BufOwner>, u32)> {
        self.owner.as_ref().map(|(owner, nr)| (owner, *nr))
    }

    /// A copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, Self::ALIGN).expect("buffer length fits the address space")
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some((owner, nr)) = self.owner.take() {
            owner.give_back(nr);
        } else if self.len != 0 {
            // SAFETY: allocated in `zeroed` with this very layout, dropped once.
            unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.len)) }
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: ptr is valid for len initialised bytes (or dangling with len 0) while self lives.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref; &mut self makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Clone for AlignedBuf {
    fn clone(&self) -> Self {
        Self::from_slice(self)
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}
