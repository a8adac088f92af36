//! Another process finds pages of a mounted volume in its cache by itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use blockdev::RamDevice;
use dbfs_fs_core::api::{FsOps, IoFlags, Owner, SetAttr};
use dbfs_fs_core::cache::{Lookup, SharedCache, SharedReader};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::{FormatOptions, Ino, MountOptions, PageNr, Volume};
use rustix::io::{FdFlags, fcntl_setfd};

const PAGE: usize = 16384;
const BUFFERED: IoFlags = IoFlags { direct: false, dsync: false, sync: false, kill_priv: false };
/// The numbers of the descriptors that the child has been given.
const FILES: &str = "DBFS_TEST_SHARED_FILES";

/// The other process: is told pages by their file and number, and tells the first byte of each, or that it did
/// not find it.
#[test]
#[ignore = "run by the other tests as a child"]
fn reading_child() {
    let Ok(files) = std::env::var(FILES) else { return };
    let files: Vec<i32> = files.split(' ').map(|nr| nr.parse().unwrap()).collect();
    // SAFETY: the parent has left these descriptors open for this process, which has no other use for them.
    let [index, pages] = [files[0], files[1]].map(|nr| unsafe { OwnedFd::from_raw_fd(nr) });
    let reader = SharedReader::open(SharedCache { index, pages }).unwrap();
    let mut bytes = vec![0; reader.page_bytes()];
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (ino, page) = line.split_once(' ').unwrap();
        let (ino, page) = (Ino(ino.parse().unwrap()), PageNr(page.parse().unwrap()));
        match reader.read(ino, page, 0, &mut bytes) {
            Lookup::Hit if bytes.iter().all(|b| *b == bytes[0]) => println!("\nanswer {}", bytes[0]),
            Lookup::Hit => println!("\nanswer torn"),
            Lookup::Miss => println!("\nanswer none"),
        }
    }
}

struct Other {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Other {
    fn start(files: &SharedCache) -> Self {
        for file in [&files.index, &files.pages] {
            fcntl_setfd(file, FdFlags::empty()).unwrap();
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "reading_child", "--ignored", "--nocapture"])
            .env(FILES, format!("{} {}", files.index.as_raw_fd(), files.pages.as_raw_fd()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, to, from }
    }

    /// The byte that the page is full of, if the other process finds it.
    fn find(&mut self, ino: Ino, page: u64) -> Option<u8> {
        writeln!(self.to.as_mut().unwrap(), "{ino} {page}").unwrap();
        let mut lines = self.from.by_ref().lines().map_while(Result::ok);
        let answer = lines.find_map(|line| line.strip_prefix("answer ").map(str::to_owned));
        match answer.expect("it answers").as_str() {
            "none" => None,
            "torn" => panic!("page {page} has bytes of others"),
            byte => Some(byte.parse().unwrap()),
        }
    }

    fn end(mut self) {
        drop(self.to.take());
        assert!(self.child.wait().unwrap().success());
    }
}

fn mounted(options: MountOptions) -> Arc<Volume> {
    let device = RamDevice::new(256 << 20, 512);
    Volume::format(&device, &FormatOptions::default(), &SystemEnv).unwrap();
    Volume::mount(Arc::new(device), options, Arc::new(SystemEnv)).unwrap()
}

fn file(volume: &Volume, name: &[u8]) -> Ino {
    volume.create(Ino::ROOT, name, 0o644, Owner::new(0, 0)).unwrap().ino
}

fn write(volume: &Volume, ino: Ino, page: u64, byte: u8, flags: IoFlags) {
    volume.write(ino, page * PAGE as u64, &[byte; PAGE], flags).unwrap();
}

#[test]
fn another_process_finds_pages_by_itself() {
    let volume = mounted(MountOptions { cache_bytes: 2000 * PAGE, ..MountOptions::default() });
    let mut other = Other::start(&volume.shared_cache().unwrap());
    let ino = file(&volume, b"file");
    // The index grows while it is used by the other one.
    for page in 0..1200 {
        assert_eq!(other.find(ino, page), None);
        write(&volume, ino, page, page as u8, BUFFERED);
        assert_eq!(other.find(ino, page), Some(page as u8));
    }
    assert!((0..1200).all(|page| other.find(ino, page) == Some(page as u8)));
    assert_eq!(other.find(Ino(ino.0 + 1), 0), None);
    // What is on its way to the device or there is the same page; and so are its next bytes.
    volume.fsync(ino, false).unwrap();
    assert_eq!(other.find(ino, 3), Some(3));
    write(&volume, ino, 3, 77, BUFFERED);
    assert_eq!(other.find(ino, 3), Some(77));
    write(&volume, ino, 3, 78, IoFlags { dsync: true, ..BUFFERED });
    assert_ne!(other.find(ino, 3), Some(77), "another write has come back since");
    // Past the cache: what is there is old.
    write(&volume, ino, 4, 79, IoFlags { direct: true, ..BUFFERED });
    assert_eq!(other.find(ino, 4), None);
    let mut bytes = vec![0; PAGE];
    volume.read(ino, 4 * PAGE as u64, &mut bytes, BUFFERED).unwrap();
    assert_eq!(other.find(ino, 4), Some(79));
    // Cut off.
    let cut = SetAttr { size: Some(1000 * PAGE as u64), ..SetAttr::default() };
    volume.setattr(ino, &cut).unwrap();
    assert!((1000..1200).all(|page| other.find(ino, page).is_none()));
    assert_eq!(other.find(ino, 999), Some(999u64 as u8));
    // A small cache finds few, and what it finds is right.
    volume.fsync(ino, false).unwrap();
    volume.set_cache_bytes(300 * PAGE);
    let found = (5..1000).filter(|page| match other.find(ino, *page) {
        Some(byte) => byte == *page as u8 || panic!("page {page} is full of {byte}"),
        None => false,
    });
    let found = found.count();
    assert!((100..=300).contains(&found), "{found} pages");
    volume.set_cache_bytes(2000 * PAGE);
    let whole: Vec<u64> = (5..1000).collect();
    for page in &whole {
        volume.read(ino, page * PAGE as u64, &mut bytes, BUFFERED).unwrap();
    }
    assert!(whole.iter().all(|page| other.find(ino, *page) == Some(*page as u8)));
    // The volume may be somebody else's next.
    volume.shutdown().unwrap();
    assert!(whole.iter().all(|page| other.find(ino, *page).is_none()));
    other.end();
}

/// Descriptors that were given away stay good for nothing when the volume is gone, and do no harm.
#[test]
fn files_of_a_volume_that_is_gone_have_no_pages() {
    let volume = mounted(MountOptions::default());
    let ino = file(&volume, b"file");
    write(&volume, ino, 0, 9, BUFFERED);
    let [mut early, mut late] = [(); 2].map(|()| Other::start(&volume.shared_cache().unwrap()));
    assert_eq!((early.find(ino, 0), late.find(ino, 0)), (Some(9), Some(9)));
    drop(volume);
    assert_eq!((early.find(ino, 0), late.find(ino, 0)), (None, None));
    early.end();
    late.end();
}
