//! One read buffer for each serving thread, kept between requests.

use std::cell::RefCell;

/// Alignment of the buffer's start: what a device may ask for that reads straight into it.
const ALIGN: usize = 4096;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` with `len` bytes of undefined (but initialised) content, aligned to 4 KiB.
pub(crate) fn with_buffer<T>(len: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|memory| {
        if memory.len() < len + ALIGN {
            // Not `resize`: the old content need not move.
            *memory = vec![0; len.next_power_of_two() + ALIGN];
        }
        let start = memory.as_ptr().align_offset(ALIGN);
        f(&mut memory[start..start + len])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_as_long_as_asked() {
        for len in [0, 1, 4096, 5000, 1 << 20, 7] {
            with_buffer(len, |b| {
                assert_eq!(b.len(), len);
                assert!(len == 0 || (b.as_ptr() as usize).is_multiple_of(ALIGN));
            });
        }
    }
}
