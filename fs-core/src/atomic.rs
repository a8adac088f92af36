//! Words that are changed without a lock, so that a model checker can put its own in place.

use std::sync::atomic::{AtomicU64, Ordering};

/// A 64-bit atomic. What is read has been acquired, what is changed is released.
pub(crate) trait AtomicWord {
    fn new(value: u64) -> Self;
    fn load(&self) -> u64;
    fn store(&self, value: u64);
    /// May fail although the value is `old`.
    fn exchange(&self, old: u64, new: u64) -> Result<u64, u64>;
    fn fetch_or(&self, bits: u64) -> u64;
    fn fetch_and(&self, bits: u64) -> u64;
    fn fetch_add(&self, n: u64) -> u64;
    fn fetch_sub(&self, n: u64) -> u64;
    /// What was changed before is seen by whoever sees what is changed after, whatever that is.
    fn fence_release();
    /// Pairs with [`Self::fence_release`]: what was read before has been acquired.
    fn fence_acquire();
}

/// Implements [`AtomicWord`]: one text, so that a model checker tries the very orderings in use.
macro_rules! atomic_word {
    ($atomic:ty, $fence:path) => {
        impl $crate::atomic::AtomicWord for $atomic {
            fn new(value: u64) -> Self {
                <$atomic>::new(value)
            }
            fn load(&self) -> u64 {
                self.load(Ordering::Acquire)
            }
            fn store(&self, value: u64) {
                self.store(value, Ordering::Release);
            }
            fn exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
                self.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire)
            }
            fn fetch_or(&self, bits: u64) -> u64 {
                self.fetch_or(bits, Ordering::AcqRel)
            }
            fn fetch_and(&self, bits: u64) -> u64 {
                self.fetch_and(bits, Ordering::AcqRel)
            }
            fn fetch_add(&self, n: u64) -> u64 {
                self.fetch_add(n, Ordering::AcqRel)
            }
            fn fetch_sub(&self, n: u64) -> u64 {
                self.fetch_sub(n, Ordering::AcqRel)
            }
            fn fence_release() {
                $fence(Ordering::Release);
            }
            fn fence_acquire() {
                $fence(Ordering::Acquire);
            }
        }
    };
}
atomic_word!(AtomicU64, std::sync::atomic::fence);

/// The model checker's.
#[cfg(test)]
mod loom_word {
    use loom::sync::atomic::{AtomicU64, Ordering};

    atomic_word!(AtomicU64, loom::sync::atomic::fence);
}
