//! The file with the index and the frames' identities, which other processes map to find pages by themselves.
//!
//! [`super::layout`] has what is where. What is added to the file gets a region of it for good, and memory for
//! all of that before it is used; where there is none, or no such file, a region is in ordinary memory, and
//! others do not find what would be in it. The file is mapped in segments, each as large as all before it, which
//! keep their addresses. Memory is only behind what has been used.
//!
//! The lock is for regions that are added, and no other is taken under it.

use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::index::Tables;
use super::layout::{self, Header, MAGIC, MOST_SHARDS, Record, ShardHeader, Shared, VERSION};
use super::memfd;

/// Bytes of the smallest segment. Enough for the headers.
const SEGMENT: usize = 1 << 20;
/// Memory is mapped in units of this many bytes.
const UNIT: usize = 4096;
/// Regions begin at multiples of it.
const ALIGN: usize = 64;

const _: () = assert!(SEGMENT > ALIGN + MOST_SHARDS * size_of::<ShardHeader>());

/// An array that lives where others see it, or in ordinary memory.
pub(super) struct Region<T> {
    items: NonNull<[T]>,
    /// Whose memory it is; `None`: its own.
    file: Option<Arc<IndexFile>>,
}

// SAFETY: as Box<[T]>; the file is Send and Sync.
unsafe impl<T: Send> Send for Region<T> {}
// SAFETY: as for Send.
unsafe impl<T: Sync> Sync for Region<T> {}

impl<T> Region<T> {
    /// In ordinary memory.
    pub(super) fn on_heap(items: impl Iterator<Item = T>) -> Self {
        let items: Box<[T]> = items.collect();
        Self { items: NonNull::from(Box::leak(items)), file: None }
    }
}

impl<T> Deref for Region<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: either a box of this region's own, or a part of a file that stays mapped as long as this lives,
        // whose bytes are values of T (see `IndexFile::add`). Others have only shared references, too.
        unsafe { self.items.as_ref() }
    }
}

impl<T> Drop for Region<T> {
    fn drop(&mut self) {
        if self.file.is_none() {
            // SAFETY: leaked from a box in `on_heap`, dropped once.
            drop(unsafe { Box::from_raw(self.items.as_ptr()) });
        }
    }
}

impl<T> fmt::Debug for Region<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} items, shared: {})", self.len(), self.file.is_some())
    }
}

/// See the module.
pub(super) struct IndexFile {
    file: OwnedFd,
    header: NonNull<Header>,
    space: Mutex<Space>,
}

/// What of the file is in use.
#[derive(Default)]
struct Space {
    segments: Vec<Segment>,
    /// Where the next region begins, in bytes, and where the last segment ends.
    next: usize,
    end: usize,
}

/// A part of the file, mapped.
struct Segment {
    start: NonNull<u8>,
    offset: usize,
    len: usize,
}

// SAFETY: what it points to has nothing but atomics, and is mapped as long as this lives.
unsafe impl Send for IndexFile {}
// SAFETY: as for Send; the space is behind a lock.
unsafe impl Sync for IndexFile {}

impl IndexFile {
    /// A file for a cache with so many shards and pages of `page_bytes`. `None`: there is no such memory.
    pub(super) fn create(page_bytes: usize, shards: usize) -> Option<Arc<Self>> {
        assert!(shards <= MOST_SHARDS);
        let made = memfd::create("dbfs-index").and_then(|file| {
            let mut space = Space::default();
            let bytes = size_of::<Header>() + shards * size_of::<ShardHeader>();
            let (_, header) = space.take(&file, bytes)?;
            Ok(Self { file, header: header.cast(), space: Mutex::new(space) })
        });
        match made {
            Ok(made) => {
                made.fill_in(page_bytes, shards);
                Some(Arc::new(made))
            }
            Err(e) => {
                tracing::warn!(error = %e, "no shared memory for the page cache's index: no other process finds \
                                            pages by itself");
                None
            }
        }
    }

    fn header(&self) -> &Header {
        // SAFETY: the first region of the file, which is mapped as long as this lives; any bytes are a header.
        unsafe { self.header.as_ref() }
    }

    fn fill_in(&self, page_bytes: usize, shards: usize) {
        let header = self.header();
        let set = |word: &AtomicU64, value: usize| word.store(value as u64, Ordering::Relaxed);
        set(&header.page_bytes, page_bytes);
        set(&header.shards, shards);
        set(&header.shards_at, size_of::<Header>());
        set(&header.shard_bytes, size_of::<ShardHeader>());
        set(&header.record_bytes, size_of::<Record>());
        set(&header.open, 1);
        header.version.store(VERSION, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
    }

    fn shard(&self, nr: usize) -> &ShardHeader {
        assert!((nr as u64) < self.header().shards.load(Ordering::Relaxed));
        // SAFETY: the headers of all shards are behind that of the file, in the same region.
        unsafe { self.header.add(1).cast::<ShardHeader>().add(nr).as_ref() }
    }

    /// Nobody may use what is in it any more.
    pub(super) fn close(&self) {
        self.header().open.store(0, Ordering::Release);
    }

    /// The file, to be given to another process.
    pub(super) fn read_only(&self) -> rustix::io::Result<OwnedFd> {
        memfd::read_only(&self.file)
    }

    /// Adds an array of zeros to the file. Returns where it is.
    fn add<T: Shared>(self: &Arc<Self>, items: usize) -> rustix::io::Result<(u64, Region<T>)> {
        const { assert!(align_of::<T>() <= ALIGN) };
        let (offset, start) = self.space.lock().take(&self.file, items * size_of::<T>())?;
        // Aligned, zeros, and nobody else's for good: values of T, as it is `Shared`.
        let items = NonNull::slice_from_raw_parts(start.cast::<T>(), items);
        Ok((offset as u64, Region { items, file: Some(self.clone()) }))
    }
}

impl Drop for IndexFile {
    fn drop(&mut self) {
        for segment in &self.space.get_mut().segments {
            // SAFETY: mapped in `Space::add_segment`; regions in it would keep the file.
            let _ = unsafe { rustix::mm::munmap(segment.start.as_ptr().cast(), segment.len) };
        }
    }
}

impl fmt::Debug for IndexFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IndexFile({:?})", self.file)
    }
}

impl Space {
    /// Zeroed bytes that have memory, and where in the file they are.
    fn take(&mut self, file: &OwnedFd, bytes: usize) -> rustix::io::Result<(usize, NonNull<u8>)> {
        if self.next + bytes > self.end {
            self.add_segment(file, bytes)?;
        }
        let segment = self.segments.last().ok_or(Errno::NOMEM)?;
        let at = self.next - segment.offset;
        let from = at / UNIT * UNIT;
        let to = (at + bytes).next_multiple_of(UNIT);
        // SAFETY: within the segment, whose length is a multiple of the unit.
        let backed =
            unsafe { memfd::back(file, (segment.offset + from) as u64, segment.start.add(from), to - from) };
        if !backed {
            return Err(Errno::NOMEM);
        }
        let offset = self.next;
        self.next = (offset + bytes).next_multiple_of(ALIGN);
        // SAFETY: as above.
        Ok((offset, unsafe { segment.start.add(at) }))
    }

    /// Appends a segment with room for `bytes`. What is left of the one before stays unused.
    fn add_segment(&mut self, file: &OwnedFd, bytes: usize) -> rustix::io::Result<()> {
        let len = SEGMENT.max(self.end).max(bytes.next_multiple_of(UNIT));
        let end = self.end + len;
        rustix::fs::ftruncate(file, end as u64)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let mapped = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, self.end as u64)?
        };
        let start = NonNull::new(mapped.cast::<u8>()).ok_or(Errno::NOMEM)?;
        self.segments.push(Segment { start, offset: self.end, len });
        (self.next, self.end) = (self.end, end);
        Ok(())
    }
}

/// Where a shard's tables and frames are put.
#[derive(Clone, Debug)]
pub(super) struct ShardPlace {
    /// `None`: in ordinary memory.
    file: Option<Arc<IndexFile>>,
    nr: usize,
}

impl ShardPlace {
    /// For shard `nr` of a cache with this file, if it has one.
    pub(super) fn new(file: Option<Arc<IndexFile>>, nr: usize) -> Self {
        Self { file, nr }
    }

    /// An array in the file, told in the shard's header, or in ordinary memory.
    fn make<T: Shared + Default>(
        &self,
        items: usize,
        word: impl FnOnce(&ShardHeader) -> &AtomicU64,
    ) -> Region<T> {
        match self.file.as_ref().map(|file| (file, file.add(items))) {
            Some((file, Ok((offset, region)))) => {
                word(file.shard(self.nr)).store(offset, Ordering::Release);
                return region;
            }
            Some((_, Err(e))) => {
                tracing::warn!(error = %e, "no shared memory for a part of the page cache's index");
            }
            None => {}
        }
        Region::on_heap(std::iter::repeat_with(T::default).take(items))
    }

    /// Part `nr` of the shard's frames, all closed.
    pub(super) fn part(&self, nr: usize) -> Region<Record> {
        self.make(layout::part_len(nr), |shard| &shard.parts[nr])
    }
}

impl Tables<AtomicU64> for ShardPlace {
    fn make(&self, nr: usize) -> Region<AtomicU64> {
        self.make(layout::table_len(nr), |shard| &shard.tables[nr])
    }

    fn switched(&self, nr: usize) {
        if let Some(file) = &self.file {
            file.shard(self.nr).current.store(nr as u64 + 1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(file: &Arc<IndexFile>, items: usize) -> (u64, Region<AtomicU64>) {
        file.add(items).unwrap()
    }

    /// Memory of the file in bytes.
    fn used(file: &IndexFile) -> usize {
        rustix::fs::fstat(&file.file).unwrap().st_blocks as usize * 512
    }

    #[test]
    fn regions_are_zeroed_distinct_and_where_they_are_said_to_be() {
        let file = IndexFile::create(16384, 3).unwrap();
        // Also larger than all before.
        let regions: Vec<_> = [1, 64, 100_000, 7, 1 << 20, 200_000].map(|n| words(&file, n)).into();
        for (i, (_, region)) in regions.iter().enumerate() {
            assert!(region.iter().all(|word| word.load(Ordering::Relaxed) == 0));
            region.iter().for_each(|word| word.store(i as u64 + 1, Ordering::Relaxed));
        }
        let copy = std::fs::File::from(file.read_only().unwrap());
        for (i, (offset, region)) in regions.iter().enumerate() {
            assert!(region.iter().all(|word| word.load(Ordering::Relaxed) == i as u64 + 1));
            let mut last = [0; 8];
            let at = offset + (region.len() as u64 - 1) * 8;
            std::os::unix::fs::FileExt::read_exact_at(&copy, &mut last, at).unwrap();
            assert_eq!(u64::from_le_bytes(last), i as u64 + 1);
            assert_eq!((offset % 64, region.as_ptr() as usize % 64), (0, 0));
        }
        // They can outlive the rest.
        drop(file);
        assert_eq!(regions[4].1[77].load(Ordering::Relaxed), 5);
    }

    #[test]
    fn memory_is_only_behind_what_is_used() {
        let file = IndexFile::create(16384, 16).unwrap();
        assert!(used(&file) <= 16384, "{} bytes", used(&file));
        let _region = words(&file, 1 << 20);
        assert!((8 << 20..9 << 20).contains(&used(&file)), "{} bytes", used(&file));
    }

    #[test]
    fn others_cannot_change_or_shrink_it() {
        let file = IndexFile::create(16384, 1).unwrap();
        let copy = file.read_only().unwrap();
        assert_eq!(rustix::io::write(&copy, b"x"), Err(Errno::BADF));
        assert_eq!(rustix::fs::ftruncate(&file.file, 4096), Err(Errno::PERM));
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice, which is never used.
        let mapped =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, protection, MapFlags::SHARED, &copy, 0) };
        assert_eq!(mapped.err(), Some(Errno::ACCESS));
        // Nor open it again to be written, unless they may do everything.
        assert_eq!(rustix::fs::fstat(&copy).unwrap().st_mode & 0o777, 0o400);
    }

    #[test]
    fn without_shared_memory_it_is_ordinary_memory() {
        let place = ShardPlace::new(None, 0);
        assert_eq!(Tables::make(&place, 2).len(), 256);
        assert_eq!(place.part(1).len(), 32);
        place.switched(2);
    }
}
