//! Memory for pages: one file of shared memory (memfd), mapped in segments.
//!
//! A page's place in the file is its slot's number times the page size, so that another process can map the file
//! and find it; the file is sealed against shrinking, so that a mapping of it stays good. Segments are added
//! when they are needed, and keep their addresses. Their memory is asked for before it is used: a machine that
//! has none left says so, instead of killing whoever touches it first. Then, and where there is no memfd, pages
//! are in ordinary memory.
//!
//! The device knows a segment that is whole, so that requests in its pages cost less; one that has given memory back
//! is not made known again.
//!
//! The arena has no size of its own: pages that are in use may be more than the cache should have. What comes
//! back beyond the limit goes back to the machine.
//!
//! Its lock is held for a page that comes or goes, not for a hit. Only the device's own are taken under it, for a
//! segment to be made known; no registration ends under it, and no memory goes back.

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, OnceLock, Weak};

use blockdev::{AlignedBuf, BlockDevice, BufOwner, Registration};
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::memfd;

/// Bytes of a segment.
const SEGMENT: usize = 32 << 20;
/// Bytes of a huge page: segments begin at multiples of it.
const HUGE: usize = 2 << 20;
/// Memory is asked for in steps of at least and at most so many bytes, growing with what there is.
const STEPS: (usize, usize) = (256 << 10, 1 << 20);
/// Pages beyond the limit that keep their memory when they are not in use: for those just being read.
const SPARE: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Arena {
    memory: Arc<Memory>,
}

/// What the pages in use keep alive.
#[derive(Debug)]
struct Memory {
    page_bytes: usize,
    state: Mutex<State>,
    /// Reads into the pages and writes from them.
    device: OnceLock<Weak<dyn BlockDevice>>,
}

#[derive(Debug, Default)]
struct State {
    /// Made with the first page. `None` afterwards: it could not be made.
    file: Option<OwnedFd>,
    started: bool,
    segments: Vec<Segment>,
    /// Slots with memory that are not in use.
    ready: Vec<u32>,
    /// Runs of slots without memory, none across a border of segments.
    bare: Vec<Range<u32>>,
    /// Slots with memory, in use or ready.
    backed: usize,
    /// Slots that may have memory without being in use.
    limit: usize,
}

impl Arena {
    /// An empty one for pages of `page_bytes`, a power of two from 4 KiB to 64 KiB. It keeps memory for `pages`.
    pub(super) fn new(page_bytes: usize, pages: usize) -> Self {
        let state = State { limit: limit_for(pages), ..State::default() };
        Self { memory: Arc::new(Memory { page_bytes, state: Mutex::new(state), device: OnceLock::new() }) }
    }

    /// Makes the pages known to a device, as they come. Once.
    pub(super) fn used_by(&self, device: &Arc<dyn BlockDevice>) {
        // The device may go before the pages do.
        let _ = self.memory.device.set(Arc::downgrade(device));
    }

    /// A page with any content, such as that of a page that was here before.
    pub(super) fn page(&self) -> AlignedBuf {
        let memory = &self.memory;
        let Some((slot, start)) = memory.take() else { return AlignedBuf::zeroed(memory.page_bytes) };
        // Another process may still be reading the page that was here before: whoever sees a byte of the next one
        // sees that the frame had been closed.
        fence(Ordering::Release);
        // SAFETY: the slot's bytes are mapped until the memory is dropped, which the buffer as its owner prevents;
        // they are aligned, have been initialised by the kernel, and nobody else has the slot until it is given
        // back.
        unsafe { AlignedBuf::owned_by(start, memory.page_bytes, memory.clone(), slot) }
    }

    /// The number of the slot that a page is in, if it is one of this arena's.
    pub(super) fn slot_of(&self, page: &AlignedBuf) -> Option<u32> {
        let (owner, slot) = page.lent_by()?;
        std::ptr::addr_eq(Arc::as_ptr(owner), Arc::as_ptr(&self.memory)).then_some(slot)
    }

    /// The file, to be given to another process, if there is one.
    pub(super) fn read_only(&self) -> Option<OwnedFd> {
        memfd::read_only(self.memory.state.lock().file()?).ok()
    }

    /// Changes the number of pages that it keeps memory for. What is too much and not in use goes at once.
    pub(super) fn set_limit(&self, pages: usize) {
        let surplus = {
            let mut state = self.memory.state.lock();
            state.limit = limit_for(pages);
            state.take_surplus(self.memory.page_bytes)
        };
        self.memory.let_go(surplus);
    }

    /// Bytes of memory that it has.
    #[cfg(test)]
    fn backed_bytes(&self) -> usize {
        self.memory.state.lock().backed * self.memory.page_bytes
    }
}

fn limit_for(pages: usize) -> usize {
    pages.saturating_add(pages / 8).saturating_add(SPARE)
}

impl BufOwner for Memory {
    fn give_back(&self, slot: u32) {
        let surplus = {
            let mut state = self.state.lock();
            state.ready.push(slot);
            state.take_surplus(self.page_bytes)
        };
        self.let_go(surplus);
    }
}

impl Memory {
    /// A slot with memory, and where it is.
    fn take(&self) -> Option<(u32, NonNull<u8>)> {
        {
            let mut state = self.state.lock();
            if let Some(slot) = state.ready.pop() {
                return Some((slot, state.start_of(slot, self.page_bytes)));
            }
        }
        // Dropped after the lock: this may become the device's last owner.
        let device = self.device.get().and_then(Weak::upgrade);
        let mut state = self.state.lock();
        let slot = state.take(self.page_bytes, device.as_ref())?;
        Some((slot, state.start_of(slot, self.page_bytes)))
    }

    /// Gives back the memory of slots that have been taken out. Without the lock: the end of a registration may be
    /// that of the device, which gives pages back.
    fn let_go(&self, surplus: Option<Surplus>) {
        let Some(Surplus { known, runs }) = surplus else { return };
        // The device must not know pages that are no longer there.
        drop(known);
        for Run { start, slots } in runs {
            let bytes = slots.len() * self.page_bytes;
            // SAFETY: nobody uses these slots, which are neither ready nor bare, and the segment that they are in is
            // mapped as long as this is there; their bytes become zeros.
            let removed = unsafe { rustix::mm::madvise(start.as_ptr().cast(), bytes, Advice::LinuxRemove) };
            let mut state = self.state.lock();
            match removed {
                Ok(()) => state.bare.push(slots),
                // It is no worse than before.
                Err(_) => {
                    state.backed += slots.len();
                    state.ready.extend(slots);
                }
            }
        }
    }
}

/// Slots that are to lose their memory: whoever has this has taken them out of the state.
struct Surplus {
    /// Of the segments that they are in.
    known: Vec<Registration>,
    runs: Vec<Run>,
}

/// Slots in a row, and where they begin.
struct Run {
    start: NonNull<u8>,
    slots: Range<u32>,
}

impl State {
    fn start_of(&self, slot: u32, page_bytes: usize) -> NonNull<u8> {
        let per_segment = SEGMENT / page_bytes;
        self.segments[slot as usize / per_segment].at(slot as usize % per_segment * page_bytes)
    }

    /// A slot with memory.
    fn take(&mut self, page_bytes: usize, device: Option<&Arc<dyn BlockDevice>>) -> Option<u32> {
        if self.ready.is_empty() && !self.back_some(page_bytes, device) {
            return None;
        }
        self.ready.pop()
    }

    /// Asks for memory for some more slots; false: there is none.
    fn back_some(&mut self, page_bytes: usize, device: Option<&Arc<dyn BlockDevice>>) -> bool {
        let Some(mut run) = self.bare.pop().or_else(|| self.add_segment(page_bytes)) else { return false };
        let step = (self.backed * page_bytes / 4).clamp(STEPS.0, STEPS.1) / page_bytes;
        let slots = run.start..run.end.min(run.start + step as u32);
        let bytes = slots.len() * page_bytes;
        let backed = self.back(self.start_of(slots.start, page_bytes), bytes, slots.start, page_bytes);
        if backed {
            run.start = slots.end;
            self.backed += slots.len();
            let segment = &mut self.segments[slots.start as usize / (SEGMENT / page_bytes)];
            segment.gain(bytes, device);
            self.ready.extend(slots.rev());
        }
        if !run.is_empty() {
            self.bare.push(run);
        }
        backed
    }

    fn back(&self, start: NonNull<u8>, bytes: usize, first: u32, page_bytes: usize) -> bool {
        let Some(file) = &self.file else { return false };
        // SAFETY: the bytes are in a segment.
        unsafe { memfd::back(file, u64::from(first) * page_bytes as u64, start, bytes) }
    }

    /// The file, made if it is the first time that it is asked for.
    fn file(&mut self) -> Option<&OwnedFd> {
        if !self.started {
            self.started = true;
            self.file = match memfd::create("dbfs-pages") {
                Ok(file) => Some(file),
                Err(e) => {
                    tracing::warn!(error = %e, "no shared memory for the page cache: it is in ordinary memory");
                    None
                }
            };
        }
        self.file.as_ref()
    }

    /// The slots of a new segment.
    fn add_segment(&mut self, page_bytes: usize) -> Option<Range<u32>> {
        let per_segment = (SEGMENT / page_bytes) as u32;
        let first = u32::try_from(self.segments.len()).ok()?.checked_mul(per_segment)?;
        let end = first.checked_add(per_segment)?;
        let nr = self.segments.len();
        let segment = Segment::new(self.file()?, nr).ok()?;
        self.segments.push(segment);
        Some(first..end)
    }

    /// Takes out what is more than the limit and not in use.
    fn take_surplus(&mut self, page_bytes: usize) -> Option<Surplus> {
        let excess = self.backed.saturating_sub(self.limit).min(self.ready.len());
        if excess == 0 {
            return None;
        }
        let mut slots = self.ready.split_off(self.ready.len() - excess);
        slots.sort_unstable();
        self.backed -= slots.len();
        let per_segment = (SEGMENT / page_bytes) as u32;
        let follows = |a: &u32, b: &u32| a + 1 == *b && !b.is_multiple_of(per_segment);
        let mut surplus = Surplus { known: Vec::new(), runs: Vec::new() };
        for run in slots.chunk_by(follows) {
            let Some(first) = run.first().copied() else { continue };
            let segment = &mut self.segments[(first / per_segment) as usize];
            surplus.known.extend(segment.lose(run.len() * page_bytes));
            let start = segment.at((first % per_segment) as usize * page_bytes);
            surplus.runs.push(Run { start, slots: first..first + run.len() as u32 });
        }
        Some(surplus)
    }
}

/// A part of the file, mapped.
struct Segment {
    /// What was mapped, a huge page more than the segment.
    mapped: NonNull<u8>,
    start: NonNull<u8>,
    /// Bytes with memory.
    backed: usize,
    /// It has given memory back.
    has_lost: bool,
    /// The device knows it. Before `mapped` is unmapped, this is dropped.
    known: Option<Registration>,
}

// SAFETY: a segment is an address range; who uses which bytes of it is the arena's business.
unsafe impl Send for Segment {}

impl Segment {
    /// Appends segment number `nr` to the file.
    fn new(file: &OwnedFd, nr: usize) -> rustix::io::Result<Self> {
        let offset = nr as u64 * SEGMENT as u64;
        rustix::fs::ftruncate(file, offset + SEGMENT as u64)?;
        let len = SEGMENT + HUGE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let mapped = NonNull::new(mapped.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let skip = mapped.as_ptr().align_offset(HUGE);
        // SAFETY: `skip` is less than the huge page that was mapped beyond the segment's length.
        let start = unsafe { mapped.add(skip) };
        let segment = Self { mapped, start, backed: 0, has_lost: false, known: None };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: it replaces a part of the mapping above, which nobody uses.
        unsafe { rustix::mm::mmap(segment.start.as_ptr().cast(), SEGMENT, protection, flags, file, offset)? };
        // Only advice: not every kernel has huge pages for shared memory.
        // SAFETY: the segment is mapped; this changes no byte of it.
        let _ = unsafe { rustix::mm::madvise(segment.start.as_ptr().cast(), SEGMENT, Advice::LinuxHugepage) };
        Ok(segment)
    }

    /// `bytes` more of it have memory. Makes it known to the device when all of it has.
    fn gain(&mut self, bytes: usize, device: Option<&Arc<dyn BlockDevice>>) {
        self.backed += bytes;
        if self.backed == SEGMENT
            && !self.has_lost
            && let Some(device) = device
        {
            // SAFETY: shared memory, mapped until this is dropped, which drops the registration first; before
            // pages are given back whoever does so drops what `lose` has returned.
            self.known = unsafe { device.register_memory(self.start, SEGMENT) };
        }
    }

    /// `bytes` of it are about to be without memory, when what is returned has been dropped.
    fn lose(&mut self, bytes: usize) -> Option<Registration> {
        self.has_lost = true;
        self.backed = self.backed.saturating_sub(bytes);
        self.known.take()
    }

    /// The address of a byte of the segment; `offset` is less than its length.
    fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < SEGMENT);
        // SAFETY: within the mapping.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.known = None;
        // SAFETY: mapped in `new`; no buffer is in it any more, as each of them keeps the memory alive.
        let _ = unsafe { rustix::mm::munmap(self.mapped.as_ptr().cast(), SEGMENT + HUGE) };
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({:?})", self.start)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicUsize;

    use blockdev::{Capabilities, Pending, RamDevice, Request};
    use rustix::fs::SealFlags;

    use super::*;

    const PAGE: usize = 16384;

    /// The slot's bytes as another process would find them.
    fn in_file(arena: &Arena, slot: usize) -> Vec<u8> {
        let state = arena.memory.state.lock();
        let file = std::fs::File::from(state.file.as_ref().unwrap().try_clone().unwrap());
        let mut bytes = vec![0; PAGE];
        file.read_exact_at(&mut bytes, (slot * PAGE) as u64).unwrap();
        bytes
    }

    /// More pages than a segment has: all are different, aligned, and where their number says.
    #[test]
    fn pages_are_distinct_and_in_the_file() {
        let pages = SEGMENT / PAGE + 10;
        let arena = Arena::new(PAGE, pages);
        let mut bufs: Vec<AlignedBuf> = (0..pages).map(|_| arena.page()).collect();
        for (i, buf) in bufs.iter_mut().enumerate() {
            assert_eq!((buf.len(), buf.as_ptr() as usize % AlignedBuf::ALIGN), (PAGE, 0));
            buf.fill(i as u8);
            buf[..8].copy_from_slice(&(i as u64).to_le_bytes());
        }
        for (i, buf) in bufs.iter().enumerate() {
            assert!(buf[..8] == (i as u64).to_le_bytes() && buf[8..].iter().all(|b| *b == i as u8));
        }
        for slot in [0, 1, SEGMENT / PAGE, pages - 1] {
            assert_eq!(in_file(&arena, slot), bufs[slot][..]);
        }
        // They can outlive the arena.
        drop(arena);
        assert!(bufs[1][8..].iter().all(|b| *b == 1));
    }

    #[test]
    fn what_is_too_much_goes_back_to_the_machine() {
        let arena = Arena::new(PAGE, 1000);
        let mut bufs: Vec<AlignedBuf> = (0..1000).map(|_| arena.page()).collect();
        let full = arena.backed_bytes();
        assert!(full >= 1000 * PAGE);
        // In use: it stays.
        arena.set_limit(100);
        assert!(arena.backed_bytes() >= 1000 * PAGE);
        bufs.truncate(10);
        assert_eq!(arena.backed_bytes(), limit_for(100) * PAGE);
        let file = arena.memory.state.lock().file.as_ref().unwrap().try_clone().unwrap();
        let blocks = rustix::fs::fstat(&file).unwrap().st_blocks as usize;
        assert!(blocks * 512 <= limit_for(100) * PAGE, "{blocks} blocks");
        // And can come again.
        arena.set_limit(1000);
        bufs.extend((0..990).map(|_| arena.page()));
        let mut starts: Vec<*const u8> = bufs.iter().map(|buf| buf.as_ptr()).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), 1000);
        bufs.iter_mut().for_each(|buf| buf.fill(1));
        bufs.clear();
        arena.set_limit(0);
        assert_eq!(arena.backed_bytes(), limit_for(0) * PAGE);
    }

    #[test]
    fn the_file_never_shrinks() {
        let arena = Arena::new(PAGE, 1);
        let _page = arena.page();
        let state = arena.memory.state.lock();
        let file = state.file.as_ref().unwrap();
        assert_eq!(rustix::fs::ftruncate(file, 4096), Err(Errno::PERM));
        assert!(rustix::fs::fcntl_get_seals(file).unwrap().contains(SealFlags::SHRINK));
    }

    #[test]
    fn without_shared_memory_pages_are_in_ordinary_memory() {
        let arena = Arena::new(PAGE, 10);
        arena.memory.state.lock().started = true;
        let mut page = arena.page();
        page.fill(3);
        assert_eq!((page.len(), arena.backed_bytes()), (PAGE, 0));
        assert!(arena.slot_of(&page).is_none() && arena.read_only().is_none());
    }

    /// A slot of another cache's arena must not be taken for one of this.
    #[test]
    fn only_its_own_pages_have_slots() {
        let (arena, other) = (Arena::new(PAGE, 10), Arena::new(PAGE, 10));
        let pages = [arena.page(), arena.page()];
        assert_eq!(pages.each_ref().map(|page| arena.slot_of(page)), [Some(0), Some(1)]);
        assert_eq!(pages.each_ref().map(|page| other.slot_of(page)), [None, None]);
        assert_eq!(arena.slot_of(&AlignedBuf::zeroed(PAGE)), None);
    }

    /// A device that counts what it knows.
    #[derive(Debug, Default)]
    struct Knowing(Arc<AtomicUsize>);

    struct Known(Arc<AtomicUsize>);

    impl Drop for Known {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl BlockDevice for Knowing {
        fn name(&self) -> Arc<str> {
            "knowing".into()
        }
        fn capabilities(&self) -> Capabilities {
            RamDevice::new(PAGE as u64, 4096).capabilities()
        }
        fn submit(&self, _requests: Vec<Request>) -> Vec<Pending> {
            Vec::new()
        }
        unsafe fn register_memory(&self, _start: NonNull<u8>, len: usize) -> Option<Registration> {
            assert_eq!(len, SEGMENT);
            self.0.fetch_add(1, Ordering::SeqCst);
            Some(Registration::new(Known(self.0.clone())))
        }
    }

    #[test]
    fn the_device_knows_whole_segments_only() {
        let device = Knowing::default();
        let known = device.0.clone();
        let device: Arc<dyn BlockDevice> = Arc::new(device);
        let known = || known.load(Ordering::SeqCst);
        let per_segment = SEGMENT / PAGE;
        let arena = Arena::new(PAGE, 2 * per_segment);
        arena.used_by(&device);
        let mut bufs: Vec<AlignedBuf> = (0..per_segment / 2).map(|_| arena.page()).collect();
        assert_eq!(known(), 0);
        bufs.extend((0..per_segment).map(|_| arena.page()));
        assert_eq!(known(), 1);
        bufs.extend((0..per_segment).map(|_| arena.page()));
        assert_eq!(known(), 2);
        // What has given memory back is not known any more.
        bufs.truncate(per_segment);
        arena.set_limit(per_segment);
        assert_eq!(known(), 1);
        arena.set_limit(3 * per_segment);
        bufs.extend((0..per_segment).map(|_| arena.page()));
        assert_eq!(known(), 1);
        drop((arena, bufs));
        assert_eq!(known(), 0);
    }
}
