//! Memory that is registered with the ring: the kernel knows its pages, and need not look them up and pin them
//! for each request.
//!
//! Registered memory keeps the pages it had when it was registered. Whoever takes pages out of a mapping and puts
//! others in (`MADV_REMOVE`) has to end the registration first.

use std::ptr::NonNull;

/// Regions that a ring can have.
pub(super) const MOST: usize = 4096;

/// A region: addresses from `start` to `end`, registered under `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    start: usize,
    end: usize,
    index: u16,
}

/// The regions of a ring, to look addresses up.
#[derive(Debug)]
pub(super) struct Regions {
    /// In order of their addresses; none overlap.
    list: Vec<Region>,
    free: Vec<u16>,
}

impl Regions {
    /// None.
    pub(super) fn new() -> Self {
        Self { list: Vec::new(), free: (0..MOST as u16).rev().collect() }
    }

    /// A number for a region to come.
    pub(super) fn take_index(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// The number is free again.
    pub(super) fn free_index(&mut self, index: u16) {
        self.free.push(index);
    }

    /// The kernel knows this memory under `index`. False: it overlaps with another region, and is not used.
    pub(super) fn add(&mut self, start: NonNull<u8>, len: usize, index: u16) -> bool {
        let start = start.as_ptr() as usize;
        let Some(end) = start.checked_add(len) else { return false };
        let at = self.list.partition_point(|region| region.end <= start);
        if self.list.get(at).is_some_and(|region| region.start < end) {
            return false;
        }
        self.list.insert(at, Region { start, end, index });
        true
    }

    /// Its memory is not found any more.
    pub(super) fn remove(&mut self, index: u16) {
        self.list.retain(|region| region.index != index);
    }

    /// The region that has all of these bytes.
    pub(super) fn find(&self, start: *const u8, len: usize) -> Option<u16> {
        let start = start as usize;
        let at = self.list.partition_point(|region| region.end <= start);
        let region = self.list.get(at)?;
        (region.start <= start && start.checked_add(len)? <= region.end).then_some(region.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: usize) -> NonNull<u8> {
        NonNull::new(std::ptr::without_provenance_mut(address)).unwrap()
    }

    fn find(regions: &Regions, address: usize, len: usize) -> Option<u16> {
        regions.find(at(address).as_ptr(), len)
    }

    #[test]
    fn memory_is_found_if_all_of_it_is_in_one_region() {
        let mut regions = Regions::new();
        for (start, index) in [(0x3000, 7), (0x1000, 5), (0x4000, 6)] {
            assert!(regions.add(at(start), 0x1000, index));
        }
        assert_eq!(find(&regions, 0x1000, 0x1000), Some(5));
        assert_eq!(find(&regions, 0x1fff, 1), Some(5));
        assert_eq!(find(&regions, 0x1fff, 2), None);
        assert_eq!(find(&regions, 0x2000, 16), None);
        assert_eq!(find(&regions, 0xfff, 16), None);
        assert_eq!(find(&regions, 0x3800, 0x1000), None, "in two");
        assert_eq!(find(&regions, 0x4ff0, 16), Some(6));
        assert_eq!(find(&regions, 0x5000, 1), None);
        assert_eq!(find(&regions, 0x4ff0, usize::MAX), None);
        assert!(!regions.add(at(0x2000), 0x1001, 8), "it overlaps");
        assert!(!regions.add(at(0x1800), 0x10, 8), "it overlaps");
        regions.remove(5);
        assert_eq!(find(&regions, 0x1000, 16), None);
        assert!(regions.add(at(0x2000), 0x1000, 8));
    }

    #[test]
    fn numbers_are_used_again() {
        let mut regions = Regions::new();
        let all: Vec<u16> = std::iter::from_fn(|| regions.take_index()).collect();
        assert_eq!(all.len(), MOST);
        regions.free_index(3);
        assert_eq!((regions.take_index(), regions.take_index()), (Some(3), None));
    }
}
