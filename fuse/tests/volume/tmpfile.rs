//! Files that are made without a name.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::fixture::{Fixture, NOBODY};

fn nameless(dir: &Path, more: i32) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE | more)
        .mode(0o640)
        .open(dir)
        .unwrap()
}

/// Gives an open file a name, as open(2) shows.
fn link(f: &File, to: &Path) -> io::Result<()> {
    let from = CString::new(format!("/proc/self/fd/{}", f.as_raw_fd())).unwrap();
    let to = CString::new(to.as_os_str().as_bytes()).unwrap();
    // SAFETY: both are C strings.
    let done = unsafe {
        libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn written_read_named_and_found_again() {
    let mut m = Fixture::new();
    let mut f = nameless(m.root(), 0);
    f.write_all(&[7; 100_000]).unwrap();
    let st = f.metadata().unwrap();
    assert_eq!((st.nlink(), st.len(), st.mode() & 0o777), (0, 100_000, 0o640));
    assert_eq!(fs::read_dir(m.root()).unwrap().count(), 0);
    f.rewind().unwrap();
    let mut bytes = Vec::new();
    f.read_to_end(&mut bytes).unwrap();
    assert!(bytes == [7; 100_000]);
    link(&f, &m.path("named")).unwrap();
    assert_eq!(f.metadata().unwrap().nlink(), 1);
    assert_eq!(link(&f, &m.path("named")).unwrap_err().raw_os_error(), Some(libc::EEXIST));
    drop(f);
    m.remount();
    assert!(fs::read(m.path("named")).unwrap() == [7; 100_000]);
}

#[test]
fn without_a_name_it_goes() {
    let mut m = Fixture::new();
    for i in 0..50u8 {
        nameless(m.root(), 0).write_all(&[i; 10_000]).unwrap();
    }
    // Not to be named, and so it never is.
    let f = nameless(m.root(), libc::O_EXCL);
    assert_eq!(link(&f, &m.path("named")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    drop(f);
    // Nor is what has lost its name.
    let f = File::create(m.path("f")).unwrap();
    fs::remove_file(m.path("f")).unwrap();
    assert_eq!(link(&f, &m.path("f")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    drop(f);
    m.remount(); // which finds no orphan
}

#[test]
fn permissions_and_direct_io() {
    let m = Fixture::new();
    m.run("mkdir closed; chmod 755 closed");
    let script = "perl -e 'use Fcntl; sysopen(F, $ARGV[0], 020200000 | O_RDWR, 0600) or exit 1'";
    assert!(!m.try_as(NOBODY, &[NOBODY], &format!("{script} closed")).status.success());
    m.run_as(NOBODY, &[NOBODY], &format!("{script} ."));
    let f = nameless(m.root(), libc::O_DIRECT);
    let mut buf = vec![0u8; 8192];
    let at = buf.as_ptr().align_offset(4096);
    buf[at..at + 4096].fill(9);
    rustix::io::pwrite(&f, &buf[at..at + 4096], 0).unwrap();
    assert_eq!(f.metadata().unwrap().len(), 4096);
}
