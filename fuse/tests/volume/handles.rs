//! File handles, as NFS servers and backup programs use them.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::fixture::Fixture;

/// Room for any handle of Linux.
const MAX: usize = 128;

#[repr(C, align(8))]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; MAX],
}

fn handle(path: &Path) -> Handle {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut handle = Handle { bytes: MAX as u32, kind: 0, data: [0; MAX] };
    let mut mount_id = 0;
    // SAFETY: the path is a C string, and the handle has the room that it says.
    let done = unsafe {
        libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), (&raw mut handle).cast(), &mut mount_id, 0)
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    handle
}

fn open(mount: &File, handle: &mut Handle) -> io::Result<File> {
    // SAFETY: the handle is one that the kernel has filled in.
    let fd = unsafe {
        libc::open_by_handle_at(mount.as_raw_fd(), std::ptr::from_mut(handle).cast(), libc::O_RDONLY)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// The kernel forgets all inodes that nobody uses.
fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

#[test]
fn handles_outlive_caches_and_mounts() {
    let mut m = Fixture::new();
    m.run("mkdir -p a/b; echo content > a/b/f; ln -s f a/b/l; mkfifo a/p");
    let ino = fs::metadata(m.path("a/b/f")).unwrap().ino();
    let mut file = handle(&m.path("a/b/f"));
    let mut dir = handle(&m.path("a/b"));
    let mut root = handle(m.root());
    for round in 0..3 {
        if round == 1 {
            drop_caches();
        } else if round == 2 {
            m.remount();
        }
        let mount = File::open(m.root()).unwrap();
        let mut text = String::new();
        let mut f = open(&mount, &mut file).unwrap();
        f.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), f.metadata().unwrap().ino()), ("content\n", ino));
        let d = open(&mount, &mut dir).unwrap();
        // The kernel connects the directory with its parents.
        let link = fs::read_link(format!("/proc/self/fd/{}", d.as_raw_fd())).unwrap();
        assert_eq!(link, m.path("a/b"));
        assert_eq!(open(&mount, &mut root).unwrap().metadata().unwrap().ino(), 1);
    }
}

#[test]
fn a_descriptor_that_is_only_a_place() {
    let m = Fixture::new();
    m.run("echo content > f; ln -s f l; chmod 000 f");
    let place = |name: &str| {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        File::from(rustix::fs::open(m.path(name), flags, Mode::empty()).unwrap())
    };
    let (file, link) = (place("f"), place("l"));
    assert_eq!(file.metadata().unwrap().ino(), fs::metadata(m.path("f")).unwrap().ino());
    assert!(link.metadata().unwrap().is_symlink());
    assert!((&file).read(&mut [0; 1]).is_err(), "it is not open");
    let text = fs::read_to_string(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    assert_eq!(text, "content\n");
}

#[test]
fn handles_of_the_deleted_are_stale() {
    let mut m = Fixture::new();
    m.run("echo x > f; mkdir d");
    let (mut file, mut dir) = (handle(&m.path("f")), handle(&m.path("d")));
    m.run("rm f; rmdir d; echo other > g; mkdir e");
    for round in 0..3 {
        match round {
            1 => drop_caches(),
            2 => m.remount(),
            _ => {}
        }
        let mount = File::open(m.root()).unwrap();
        for handle in [&mut file, &mut dir] {
            assert_eq!(open(&mount, handle).unwrap_err().raw_os_error(), Some(libc::ESTALE));
        }
    }
}
