//! A vector that only grows, in segments that never move, and is read without a lock.

use std::sync::OnceLock;

/// Entries in a segment.
const SEGMENT: u64 = 256;
/// Bucket `b` holds 2^b segments, so 25 buckets hold 2^32 entries.
const BUCKETS: usize = 25;

type Segment<T> = OnceLock<Box<[T]>>;

const _: () = assert!(Segmented::<u8>::CAPACITY >= super::geometry::MAX_GROUPS);

/// A table whose segments come into being when they are first touched: an entry that nobody has
/// used costs a fraction of a byte.
pub(super) struct Segmented<T> {
    buckets: [OnceLock<Box<[Segment<T>]>>; BUCKETS],
}

impl<T: Default> Segmented<T> {
    /// Entries that fit.
    pub const CAPACITY: u64 = ((1 << BUCKETS) - 1) * SEGMENT;

    pub fn new() -> Self {
        Self { buckets: std::array::from_fn(|_| OnceLock::new()) }
    }

    /// The entry, if its segment has been touched before.
    pub fn get(&self, index: u64) -> Option<&T> {
        let (bucket, segment, entry) = locate(index);
        self.buckets.get(bucket)?.get()?.get(segment)?.get()?.get(entry)
    }

    /// The entry, made on first use.
    ///
    /// # Panics
    /// If `index` is not below [`Self::CAPACITY`]; volumes are checked to have fewer groups.
    pub fn entry(&self, index: u64) -> &T {
        let (bucket, segment, entry) = locate(index);
        let segments = self.buckets[bucket].get_or_init(|| defaults(1 << bucket));
        &segments[segment].get_or_init(|| defaults(SEGMENT as usize))[entry]
    }
}

fn defaults<T: Default>(len: usize) -> Box<[T]> {
    std::iter::repeat_with(T::default).take(len).collect()
}

fn locate(index: u64) -> (usize, usize, usize) {
    let nth = index / SEGMENT + 1;
    let bucket = nth.ilog2();
    (bucket as usize, (nth - (1 << bucket)) as usize, (index % SEGMENT) as usize)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn entries_are_distinct_and_stay_in_place() {
        let table = Segmented::<AtomicU64>::new();
        let indexes = [0, 1, 255, 256, 257, 767, 768, 100_000, 8 << 20, (1 << 32) - 1];
        let first = table.entry(0) as *const AtomicU64;
        for (n, &index) in indexes.iter().enumerate() {
            table.entry(index).store(n as u64 + 1, Ordering::Relaxed);
        }
        for (n, &index) in indexes.iter().enumerate() {
            assert_eq!(table.get(index).unwrap().load(Ordering::Relaxed), n as u64 + 1);
        }
        assert_eq!(table.entry(0) as *const AtomicU64, first);
    }

    #[test]
    fn untouched_segments_do_not_exist() {
        let table = Segmented::<AtomicU64>::new();
        table.entry(300);
        assert!(table.get(511).is_some());
        assert!(table.get(0).is_none());
        assert!(table.get(512).is_none());
        assert!(table.get(1 << 40).is_none());
    }

    #[test]
    fn locate_covers_every_index_once() {
        let mut last = (0, 0, usize::MAX);
        for index in 0..SEGMENT * 40 {
            let at = locate(index);
            assert_ne!(at, last);
            assert!(at.1 < 1 << at.0);
            assert!((at.0, at.1) >= (last.0, last.1) || index == 0);
            last = at;
        }
    }
}
