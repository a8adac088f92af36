//! The engine for batches: classes of requests, and memory that it knows.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dbfs_blockdev::{
    AlignedBuf, BlockDevice, BufOwner, Engine, FileDevice, IoClass, OpenOptions, Pending, Registration,
    Request,
};
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use tempfile::TempDir;

const PAGE: usize = 16 << 10;

fn device(engine: Engine, pages: usize) -> (TempDir, FileDevice) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    File::create(&path).unwrap().set_len((pages * PAGE) as u64).unwrap();
    let options = OpenOptions { engine, lock_timeout: Duration::from_secs(60), ..OpenOptions::default() };
    let device = FileDevice::open(&path, &options).unwrap();
    (dir, device)
}

fn pattern(tag: usize) -> Vec<u8> {
    (0..PAGE).map(|i| (tag * 31 + i * 7 + i / 256) as u8).collect()
}

fn wait_all(pending: Vec<Pending>) -> Vec<AlignedBuf> {
    let done = pending.into_iter().map(Pending::wait);
    done.map(|mut done| {
        done.result.unwrap();
        done.bufs.pop().unwrap()
    })
    .collect()
}

/// Thousands of requests that nobody hurries for, and one that somebody waits for.
fn urgent_among_many(engine: Engine) -> usize {
    const MANY: usize = 3000;
    let (_dir, device) = device(engine, MANY + 1);
    let write = |page: usize, class| {
        Request::write((page * PAGE) as u64, vec![AlignedBuf::from_slice(&pattern(page))], false, class)
    };
    let slow = device.submit((0..MANY).map(|page| write(page, IoClass::Background)).collect());
    let urgent = device.submit(vec![write(MANY, IoClass::Log)]);
    wait_all(urgent);
    let waiting = device.engine_counts().waiting as usize;
    wait_all(slow);
    // All of them have been done, too.
    let read = |page| Request::read((page * PAGE) as u64, vec![AlignedBuf::zeroed(PAGE)], IoClass::ReadAhead);
    for (page, buf) in wait_all(device.submit((0..=MANY).map(read).collect())).iter().enumerate() {
        assert!(buf[..] == pattern(page)[..], "page {page}");
    }
    waiting
}

#[test]
fn a_record_does_not_wait_for_a_checkpoint() {
    let waiting = urgent_among_many(Engine::Uring);
    assert!(waiting > 1000, "{waiting}");
}

#[test]
fn threads_do_all_requests_of_all_classes() {
    urgent_among_many(Engine::Pread);
}

/// Shared memory for some pages, as the page cache has it.
struct Memory {
    start: NonNull<u8>,
    pages: usize,
}

// SAFETY: an address range; the tests use each page of it from one thread at a time.
unsafe impl Send for Memory {}
// SAFETY: as for Send.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(pages: usize) -> &'static Self {
        let file = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, (pages * PAGE) as u64).unwrap();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let (any, flags) = (std::ptr::null_mut(), MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { rustix::mm::mmap(any, pages * PAGE, protection, flags, &file, 0) }.unwrap();
        // Never unmapped.
        Box::leak(Box::new(Self { start: NonNull::new(start.cast()).unwrap(), pages }))
    }

    fn page(&'static self, nr: usize) -> AlignedBuf {
        assert!(nr < self.pages);
        // SAFETY: the memory stays mapped for ever; the tests have one buffer of a page at a time.
        unsafe {
            AlignedBuf::owned_by(self.start.add(nr * PAGE), PAGE, std::sync::Arc::new(Nobody), nr as u32)
        }
    }

    fn register(&self, device: &FileDevice) -> Option<Registration> {
        // SAFETY: the memory is shared and mapped for ever; `renew` is called without a registration only.
        unsafe { device.register_memory(self.start, self.pages * PAGE) }
    }

    /// Other pages take the place of those that are there.
    fn renew(&self) {
        // SAFETY: within the mapping; nobody has a buffer of it now.
        unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.pages * PAGE, Advice::LinuxRemove) }
            .unwrap();
    }
}

#[derive(Debug)]
struct Nobody;

impl BufOwner for Nobody {
    fn give_back(&self, _slot: u32) {}
}

/// Writes pages from the memory, and reads them back into it.
fn through(device: &FileDevice, memory: &'static Memory, seed: usize) {
    let requests = |write: bool| -> Vec<Request> {
        let request = |nr| {
            let (mut buf, offset) = (memory.page(nr), (nr * PAGE) as u64);
            match write {
                true => buf.copy_from_slice(&pattern(seed + nr)),
                false => buf.fill(0),
            }
            match write {
                true => Request::write(offset, vec![buf], false, IoClass::Data),
                false => Request::read(offset, vec![buf], IoClass::Data),
            }
        };
        (0..memory.pages).map(request).collect()
    };
    wait_all(device.submit(requests(true)));
    for (nr, buf) in wait_all(device.submit(requests(false))).iter().enumerate() {
        assert!(buf[..] == pattern(seed + nr)[..], "page {nr} of {seed}");
    }
    // It did reach the device.
    let read = device.read_at(0, AlignedBuf::zeroed(PAGE), IoClass::Data).unwrap();
    assert!(read[..] == pattern(seed)[..]);
}

#[test]
fn memory_that_is_registered_is_used_and_can_be_given_back() {
    let (_dir, device) = device(Engine::Uring, 64);
    let memory = Memory::new(64);
    through(&device, memory, 1);
    assert_eq!(device.engine_counts().fixed, 0);
    let Some(registration) = memory.register(&device) else {
        return eprintln!("skipped: the kernel registers no memory");
    };
    through(&device, memory, 2);
    assert_eq!(device.engine_counts().fixed, 128);
    assert!(memory.register(&device).is_none(), "it is known already");
    drop(registration);
    memory.renew();
    through(&device, memory, 3);
    assert_eq!(device.engine_counts().fixed, 128);
    let again = memory.register(&device).unwrap();
    through(&device, memory, 4);
    assert_eq!(device.engine_counts().fixed, 256);
    drop(device);
    drop(again);
}

#[test]
fn registrations_come_and_go_under_load() {
    let (_dir, device) = device(Engine::Uring, 16);
    let (memory, done) = (Memory::new(16), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                drop(memory.register(&device));
            }
        });
        (0..300).for_each(|round| through(&device, memory, round));
        done.store(true, Ordering::Relaxed);
    });
}

/// Asks the device something when it gets a page back, as an owner does that ends a registration then.
#[derive(Debug)]
struct Asking(std::sync::Weak<FileDevice>);

impl BufOwner for Asking {
    fn give_back(&self, _slot: u32) {
        if let Some(device) = self.0.upgrade() {
            device.engine_counts();
        }
    }
}

#[test]
fn buffers_that_nobody_waits_for_go_back_without_a_lock() {
    let (_dir, device) = device(Engine::Uring, 64);
    let (device, memory) = (std::sync::Arc::new(device), Memory::new(64));
    let owner = std::sync::Arc::new(Asking(std::sync::Arc::downgrade(&device)));
    for nr in 0..64 {
        // SAFETY: the memory stays mapped for ever; each page has one buffer.
        let buf =
            unsafe { AlignedBuf::owned_by(memory.start.add(nr * PAGE), PAGE, owner.clone(), nr as u32) };
        drop(device.submit(vec![Request::read((nr * PAGE) as u64, vec![buf], IoClass::ReadAhead)]));
    }
    let read = |nr| Request::read(nr * PAGE as u64, vec![AlignedBuf::zeroed(PAGE)], IoClass::Data);
    wait_all(device.submit((0..64).map(read).collect()));
    // All have gone back when the device has.
    drop(device);
    assert_eq!(std::sync::Arc::strong_count(&owner), 1);
}
