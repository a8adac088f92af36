//! Direct I/O, mappings, and both at once; on direct handles and on cached ones.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use fs_core::Ino;
use fs_core::api::IoFlags;

use crate::fixture::Fixture;
use crate::memfs::Event;

/// Some pages of a file in memory.
pub struct Map {
    start: *mut u8,
    len: usize,
}

// SAFETY: the memory belongs to the map, and all access is volatile.
unsafe impl Send for Map {}

pub fn map(f: &File, len: usize, shared: bool) -> Map {
    let flags = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, f.as_raw_fd(), 0) };
    assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    Map { start: start.cast(), len }
}

impl Map {
    pub fn write(&self, at: usize, byte: u8) {
        assert!(at < self.len);
        // SAFETY: inside the mapping.
        unsafe { self.start.add(at).write_volatile(byte) }
    }
    pub fn read(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: inside the mapping.
        unsafe { self.start.add(at).read_volatile() }
    }
    fn sync(&self) {
        // SAFETY: the whole mapping.
        assert_eq!(unsafe { libc::msync(self.start.cast(), self.len, libc::MS_SYNC) }, 0);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nobody has a pointer into the mapping any more.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// Page-aligned bytes.
pub struct Pages(Map);

impl Pages {
    pub fn new(len: usize, fill: u8) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let mut pages = Self(Map { start: start.cast(), len });
        pages.bytes().fill(fill);
        pages
    }
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is initialised memory that only this object knows.
        unsafe { std::slice::from_raw_parts_mut(self.0.start, self.0.len) }
    }
}

fn open_direct(m: &Fixture, name: &str) -> File {
    let mut o = OpenOptions::new();
    o.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT);
    o.open(m.path(name)).unwrap()
}

/// Runs `test` on direct handles and on cached ones.
fn on_both(test: impl Fn(Fixture)) {
    test(Fixture::new());
    test(Fixture::with(|c| c.cached_opens = true));
}

#[test]
fn a_write_of_one_mebibyte_is_one_request() {
    on_both(|m| {
        let f = open_direct(&m, "f");
        let ino = Ino(f.metadata().unwrap().ino());
        let mut data = Pages::new(1 << 20, 9);
        for offset in [0, 0, 1 << 20] {
            m.fs.take_events();
            assert_eq!(f.write_at(data.bytes(), offset).unwrap(), 1 << 20);
            let flags = IoFlags { direct: true, ..IoFlags::default() };
            let events: Vec<_> =
                m.fs.take_events().into_iter().filter(|e| matches!(e, Event::Write { .. })).collect();
            assert_eq!(events, [Event::Write { ino, offset, len: 1 << 20, flags }]);
        }
        m.fs.take_events();
        assert_eq!(f.read_at(data.bytes(), 0).unwrap(), 1 << 20);
        let reads: Vec<_> =
            m.fs.take_events().into_iter().filter(|e| matches!(e, Event::Read { .. })).collect();
        let flags = IoFlags { direct: true, ..IoFlags::default() };
        assert_eq!(reads, [Event::Read { ino, offset: 0, len: 1 << 20, flags }]);
    });
}

#[test]
fn a_mapping_sees_direct_writes_and_the_other_way_round() {
    on_both(|m| {
        fs::write(m.path("f"), vec![1; 8192]).unwrap();
        let f = open_direct(&m, "f");
        let shared = map(&f, 8192, true);
        assert_eq!(shared.read(4096), 1);
        let mut page = Pages::new(4096, 2);
        f.write_all_at(page.bytes(), 4096).unwrap();
        assert_eq!((shared.read(0), shared.read(4096)), (1, 2));

        shared.write(100, 77);
        f.read_exact_at(page.bytes(), 0).unwrap();
        assert_eq!((page.bytes()[99], page.bytes()[100]), (1, 77));

        // The same through another handle that is not direct.
        let cached = File::open(m.path("f")).unwrap();
        let mut buf = [0; 1];
        cached.read_exact_at(&mut buf, 100).unwrap();
        assert_eq!(buf, [77]);
        let mut page = Pages::new(4096, 3);
        f.write_all_at(page.bytes(), 0).unwrap();
        cached.read_exact_at(&mut buf, 100).unwrap();
        assert_eq!((buf, shared.read(100)), ([3], 3));
        cached.read_exact_at(&mut page.bytes()[..10], 4096).unwrap();
        assert_eq!(page.bytes()[..10], [2; 10]);
    });
}

#[test]
fn mapped_pages_come_back_as_plain_writes() {
    on_both(|m| {
        fs::write(m.path("f"), vec![0; 8192]).unwrap();
        let mut o = OpenOptions::new();
        let f =
            o.read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(m.path("f")).unwrap();
        let shared = map(&f, 8192, true);
        // The kernel may write the page at any time.
        m.fs.take_events();
        shared.write(5000, 5);
        shared.sync();
        let events = m.fs.take_events();
        let writes: Vec<_> = events
            .iter()
            .filter_map(|e| match e {
                Event::Write { offset, flags, .. } => Some((*offset, *flags)),
                _ => None,
            })
            .collect();
        assert_eq!(writes, [(4096, IoFlags::default())]);
        assert!(events.iter().any(|e| matches!(e, Event::Fsync { .. })), "msync makes durable: {events:?}");
        assert_eq!(fs::read(m.path("f")).unwrap()[5000], 5);
    });
}

#[test]
fn a_private_mapping_keeps_its_changes_to_itself() {
    on_both(|m| {
        fs::write(m.path("f"), vec![1; 4096]).unwrap();
        let f = open_direct(&m, "f");
        let private = map(&f, 4096, false);
        private.write(0, 9);
        assert_eq!((private.read(0), private.read(1)), (9, 1));
        let mut page = Pages::new(4096, 0);
        f.read_exact_at(page.bytes(), 0).unwrap();
        assert_eq!(page.bytes()[0], 1);
    });
}

#[test]
fn page_cache_fills_are_not_direct_reads() {
    on_both(|m| {
        fs::write(m.path("other"), b"").unwrap();
        let f = open_direct(&m, "f");
        let mut page = Pages::new(4096, 1);
        f.write_all_at(page.bytes(), 0).unwrap();
        m.fs.take_events();
        assert_eq!(map(&f, 4096, true).read(0), 1);
        let direct =
            m.fs.take_events().iter().any(|e| matches!(e, Event::Read { flags, .. } if flags.direct));
        assert!(!direct);
    });
}

/// A page that is faulted in while a direct write to it is under way holds the old content; it must
/// not be seen after the write has returned.
#[test]
fn a_page_cached_during_a_direct_write_is_not_seen_after_it() {
    on_both(|m| {
        fs::write(m.path("f"), vec![1; 4096]).unwrap();
        let f = open_direct(&m, "f");
        let cached = File::open(m.path("f")).unwrap();
        let (write_begun, begun) = mpsc::channel();
        let page_read = Arc::new(AtomicBool::new(false));
        let seen = page_read.clone();
        m.fs.set_hook(move |e| {
            if matches!(e, Event::Write { .. }) {
                write_begun.send(()).unwrap();
                crate::fixture::wait_until("the page is read", || seen.load(Ordering::Acquire));
            }
        });
        let writer = std::thread::spawn(move || {
            let mut page = Pages::new(4096, 2);
            f.write_all_at(page.bytes(), 0).unwrap();
        });
        begun.recv().unwrap();
        let mut buf = [0; 1];
        cached.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [1]);
        page_read.store(true, Ordering::Release);
        writer.join().unwrap();
        cached.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [2], "the kernel serves a page from before the write");
    });
}

#[test]
fn direct_writes_to_one_file_run_side_by_side() {
    let m = Fixture::new();
    if !m.features.direct_handles {
        // Cached handles take turns; that is the stated limit of older kernels.
        assert!(m.features.kernel_abi < (7, 39));
        return;
    }
    let f = Arc::new(open_direct(&m, "f"));
    f.write_all_at(Pages::new(1 << 16, 1).bytes(), 0).unwrap();
    let both = Arc::new(std::sync::Barrier::new(2));
    m.fs.set_hook(move |e| {
        if matches!(e, Event::Write { .. }) {
            // Passes only when two writes are in the file system at once.
            both.wait();
        }
    });
    let writers: Vec<_> = [0, 4096]
        .map(|offset| {
            let f = f.clone();
            std::thread::spawn(move || f.write_all_at(Pages::new(4096, 2).bytes(), offset).unwrap())
        })
        .into();
    for w in writers {
        w.join().unwrap();
    }
}
