//! Memory for direct I/O.

/// What direct I/O wants of its memory on every common device.
const ALIGN: usize = 4096;

/// A buffer whose bytes start at a page boundary.
pub struct Buffer {
    memory: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// `length` bytes of some pattern.
    pub fn new(length: usize) -> Self {
        Self { memory: vec![0x5a; length + ALIGN], length }
    }

    /// Its bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        let start = self.memory.as_ptr().align_offset(ALIGN);
        &mut self.memory[start..start + self.length]
    }
}
