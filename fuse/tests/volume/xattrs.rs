//! Extended attributes through the kernel.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, lgetxattr, listxattr, lsetxattr, removexattr, setxattr};
use rustix::io::Errno;

use crate::fixture::{Fixture, NOBODY};

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut buf = vec![0; 70_000];
    let n = getxattr(path, name, &mut buf[..])?;
    buf.truncate(n);
    Ok(buf)
}

/// Lengths of an attribute's value and of the list, asked for without room for them.
fn lengths(path: &Path, name: &CStr) -> (isize, isize) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: path and name are C strings, and there is no buffer to be written to.
    unsafe {
        let value = libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0);
        (value, libc::listxattr(path.as_ptr(), std::ptr::null_mut(), 0))
    }
}

fn list(path: &Path) -> Vec<String> {
    let mut buf = vec![0; 70_000];
    let n = listxattr(path, &mut buf[..]).unwrap();
    let mut names: Vec<String> = buf[..n]
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(|n| String::from_utf8_lossy(n).into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn values_lists_and_their_sizes() {
    let mut m = Fixture::new();
    let f = m.path("f");
    fs::write(&f, b"content").unwrap();
    let big: Vec<u8> = (0..65_536u32).map(|i| ((i * 7) >> 3) as u8).collect();
    setxattr(&f, "user.small", b"value", XattrFlags::CREATE).unwrap();
    setxattr(&f, "user.big", &big, XattrFlags::empty()).unwrap();
    setxattr(&f, "trusted.t", b"", XattrFlags::empty()).unwrap();
    assert_eq!(setxattr(&f, "user.small", b"x", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(setxattr(&f, "user.none", b"x", XattrFlags::REPLACE), Err(Errno::NODATA));
    assert_eq!(get(&f, "user.none"), Err(Errno::NODATA));
    assert_eq!(get(&f, "nospace.x"), Err(Errno::OPNOTSUPP));
    // How much is there; too little room; just enough.
    assert_eq!(lengths(&f, c"user.small"), (5, 11 + 9 + 10));
    assert_eq!(getxattr(&f, "user.small", &mut [0u8; 4][..]), Err(Errno::RANGE));
    assert_eq!(getxattr(&f, "user.small", &mut [0u8; 5][..]), Ok(5));
    assert_eq!(listxattr(&f, &mut [0u8; 12][..]), Err(Errno::RANGE));
    for _ in 0..2 {
        assert_eq!(list(&f), ["trusted.t", "user.big", "user.small"]);
        assert_eq!(get(&f, "user.big").unwrap(), big);
        assert_eq!(get(&f, "trusted.t").unwrap(), b"");
        m.remount();
    }
    removexattr(&f, "user.big").unwrap();
    assert_eq!(removexattr(&f, "user.big"), Err(Errno::NODATA));
    assert_eq!(fs::read(&f).unwrap(), b"content");
}

#[test]
fn who_may_what() {
    let m = Fixture::new();
    let f = m.path("f");
    fs::write(&f, b"content").unwrap();
    setxattr(&f, "trusted.t", b"secret", XattrFlags::empty()).unwrap();
    setxattr(&f, "user.u", b"open", XattrFlags::empty()).unwrap();
    let seen = m.run_as(NOBODY, &[NOBODY], "getfattr -m - f");
    assert!(seen.contains("user.u") && !seen.contains("trusted.t"), "{seen}");
    for refused in ["setfattr -n user.x -v 1 f", "setfattr -n trusted.x -v 1 f", "getfattr -n trusted.t f"] {
        assert!(!m.try_as(NOBODY, &[NOBODY], refused).status.success(), "{refused}");
    }
    m.run_as(NOBODY, &[NOBODY], "echo mine > mine; setfattr -n user.x -v 1 mine; getfattr -n user.x mine");
    m.run_as(NOBODY, &[NOBODY], "mkdir d; setfattr -n user.x -v 1 d");
    // Only regular files and directories have attributes of users.
    std::os::unix::fs::symlink("f", m.path("l")).unwrap();
    m.run("mkfifo p");
    assert_eq!(lsetxattr(m.path("l"), "user.x", b"", XattrFlags::empty()), Err(Errno::PERM));
    assert_eq!(setxattr(m.path("p"), "user.x", b"", XattrFlags::empty()), Err(Errno::PERM));
    lsetxattr(m.path("l"), "trusted.x", b"of the link", XattrFlags::empty()).unwrap();
    assert_eq!(lgetxattr(m.path("l"), "trusted.x", &mut [0u8; 20][..]), Ok(11));
    assert_eq!(get(&f, "trusted.x"), Err(Errno::NODATA));
}

#[test]
fn archives_carry_them() {
    let m = Fixture::new();
    m.run(
        "mkdir src; echo x > src/f; setfattr -n user.a -v 1 src/f; setfattr -n user.b -v 2 src; \
         cp -a src copy; test \"$(getfattr --only-values -n user.a copy/f)\" = 1; \
         tar --xattrs -cf t.tar src; mkdir out; tar --xattrs --xattrs-include='*' -xf t.tar -C out; \
         test \"$(getfattr --only-values -n user.b out/src)\" = 2",
    );
}
