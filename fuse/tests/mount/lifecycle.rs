//! Mounting, unmounting, and what must not stop the service.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use dbfs_fuse::{MAX_WRITE, MountConfig};

use crate::fixture::{Fixture, GRACE, wait_until};
use crate::memfs::{Event, MemFs};

fn mount_line(m: &Fixture) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let dir = m.root().to_str().unwrap().to_owned();
    table.lines().find(|l| l.split(' ').nth(1) == Some(&dir)).map(str::to_owned)
}

#[test]
fn the_mount_table_tells_what_is_mounted() {
    let mut m = Fixture::with(|c| {
        c.source = "/some/volume".into();
        c.noexec = true;
    });
    let line = mount_line(&m).unwrap();
    let fields: Vec<_> = line.split(' ').collect();
    assert_eq!((fields[0], fields[2]), ("/some/volume", "fuse.dbfs"));
    let options: Vec<_> = fields[3].split(',').collect();
    for wanted in ["rw", "noexec", "default_permissions", "allow_other"] {
        assert!(options.contains(&wanted), "{wanted} is missing in {line}");
    }
    assert!(!options.contains(&"nosuid") && !options.contains(&"nodev"));
    m.stop().unwrap();
    assert_eq!(mount_line(&m), None);
    m.unmounter.unmount(GRACE).unwrap();
}

#[test]
fn what_the_kernel_offers() {
    let m = Fixture::new();
    assert_eq!(m.features.max_write, MAX_WRITE);
    assert!(m.features.kernel_abi >= (7, 31));
    assert_eq!(m.features.direct_handles, m.features.kernel_abi >= (7, 39), "Linux 6.6 has FUSE 7.39");
    assert!(!Fixture::with(|c| c.cached_opens = true).features.direct_handles);
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let m = Fixture::with(|c| c.read_only = true);
    let error = fs::write(m.path("f"), b"").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn a_mount_with_sync_makes_every_write_synchronous() {
    let m = Fixture::with(|c| c.sync = true);
    fs::write(m.path("f"), b"x").unwrap();
    let events = m.fs.take_events();
    let write = events.iter().find_map(|e| match e {
        Event::Write { flags, .. } => Some(*flags),
        _ => None,
    });
    assert!(write.unwrap().dsync);
}

#[test]
fn unmounting_hands_over_mapped_pages_and_closes_what_was_open() {
    let mut m = Fixture::new();
    let f = File::create(m.path("f")).unwrap();
    f.set_len(4096).unwrap();
    drop(f);
    wait_until("everything is closed", || m.fs.counts().1 == 0);
    let f = OpenOptions::new().read(true).write(true).open(m.path("f")).unwrap();
    let ino = f.metadata().unwrap().ino();
    let map = crate::direct::map(&f, 4096, true);
    m.fs.take_events();
    map.write(7, 42);
    // The file is still open: its user is cut off, its content is not lost.
    // All of it is waited for, as the file stays open: enough for a slow machine's kernel to write a page.
    m.stop_within(5 * GRACE).unwrap();
    assert_eq!(mount_line(&m), None);
    assert!(m.fs.take_events().iter().any(|e| matches!(e, Event::Write { ino: i, .. } if i.0 == ino)));
    assert_eq!(m.fs.counts().1, 0);
    let error = f.write_all_at(b"x", 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
}

#[test]
fn an_unmounter_leaves_a_later_mount_alone() {
    let mut first = Fixture::new();
    let dir = first.root().to_path_buf();
    first.stop().unwrap();
    let fs2 = Arc::new(MemFs::new());
    let second = dbfs_fuse::mount(fs2, &dir, &MountConfig::new("second")).unwrap();
    let unmounter = second.unmounter();
    let server = std::thread::spawn(move || second.run());
    first.unmounter.unmount(GRACE).unwrap();
    assert!(mount_line(&first).is_some_and(|l| l.starts_with("second ")));
    unmounter.unmount(GRACE).unwrap();
    server.join().unwrap().unwrap();
}

#[test]
fn a_panic_is_an_io_error_and_the_service_goes_on() {
    let m = Fixture::new();
    let f = File::create(m.path("f")).unwrap();
    m.fs.set_hook(|e| {
        if matches!(e, Event::Fsync { .. }) {
            panic!("as the test wants it");
        }
    });
    // More often than there are threads.
    for _ in 0..10 {
        assert_eq!(f.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
    }
    fs::write(m.path("g"), b"fine").unwrap();
    assert_eq!(fs::read(m.path("g")).unwrap(), b"fine");
}

#[test]
fn unmounting_ends_all_threads_whatever_they_do() {
    for requests in [0, 1, 5, 30, 100] {
        let mut m = Fixture::with(|c| c.threads = 24);
        for i in 0..requests {
            fs::create_dir(m.path(&format!("d{i}"))).unwrap();
        }
        m.stop().unwrap();
    }
}

#[test]
fn all_threads_but_one_may_wait() {
    let m = Fixture::with(|c| c.threads = 12);
    let files: Vec<_> = (0..11).map(|i| File::create(m.path(&format!("f{i}"))).unwrap()).collect();
    (0..50).for_each(|i| fs::create_dir(m.path(&format!("d{i}"))).unwrap());
    let (started, waiting) = mpsc::channel();
    let go_on = Arc::new(AtomicBool::new(false));
    let may = go_on.clone();
    m.fs.set_hook(move |e| {
        if matches!(e, Event::Fsync { .. }) {
            started.send(()).unwrap();
            wait_until("the test lets the fsync go on", || may.load(Ordering::Acquire));
        }
    });
    let slow: Vec<_> = files.into_iter().map(|f| std::thread::spawn(move || f.sync_all())).collect();
    (0..11).for_each(|_| waiting.recv().unwrap());
    (0..50).for_each(|i| fs::remove_dir(m.path(&format!("d{i}"))).unwrap());
    go_on.store(true, Ordering::Release);
    slow.into_iter().for_each(|s| s.join().unwrap().unwrap());
}

#[test]
fn one_slow_request_blocks_no_other() {
    let m = Fixture::new();
    let f = File::create(m.path("slow")).unwrap();
    let (started, waiting) = mpsc::channel();
    let go_on = Arc::new(AtomicBool::new(false));
    let may = go_on.clone();
    m.fs.set_hook(move |e| {
        if matches!(e, Event::Fsync { .. }) {
            started.send(()).unwrap();
            wait_until("the test lets the fsync go on", || may.load(Ordering::Acquire));
        }
    });
    let slow = std::thread::spawn(move || f.sync_all());
    waiting.recv().unwrap();
    for i in 0..20 {
        let mut g = File::create(m.path(&format!("g{i}"))).unwrap();
        g.write_all(b"x").unwrap();
    }
    assert!(!slow.is_finished());
    go_on.store(true, Ordering::Release);
    slow.join().unwrap().unwrap();
}
