//! Names, attributes and directories.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use fs_core::Ino;
use fs_core::api::{FsOps, Owner, RenameFlags};
use rustix::fs::{CWD, FileType, Mode, RenameFlags as SysRenameFlags, mknodat, renameat_with};

use crate::fixture::Fixture;
use crate::memfs::Event;

fn errno<T: std::fmt::Debug>(r: std::io::Result<T>) -> i32 {
    r.expect_err("must fail").raw_os_error().expect("comes from the kernel")
}

#[test]
fn every_kind_of_name() {
    let m = Fixture::new();
    fs::write(m.path("file"), b"hello").unwrap();
    fs::create_dir(m.path("dir")).unwrap();
    fs::hard_link(m.path("file"), m.path("dir/link")).unwrap();
    symlink("dir/link", m.path("sym")).unwrap();
    mknodat(CWD, m.path("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let null = rustix::fs::makedev(1, 3);
    mknodat(CWD, m.path("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), null).unwrap();

    assert_eq!(fs::read(m.path("sym")).unwrap(), b"hello");
    assert_eq!(fs::read_link(m.path("sym")).unwrap(), Path::new("dir/link"));
    assert_eq!(fs::metadata(m.path("file")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(m.root()).unwrap().nlink(), 3);
    assert!(fs::metadata(m.path("fifo")).unwrap().file_type().is_fifo());
    let dev = fs::metadata(m.path("null")).unwrap();
    assert!(dev.file_type().is_char_device());
    assert_eq!(dev.rdev(), null);
    File::options().write(true).open(m.path("null")).unwrap().write_all(b"x").unwrap();

    assert_eq!(fs::remove_dir(m.path("dir")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    fs::remove_file(m.path("dir/link")).unwrap();
    fs::remove_dir(m.path("dir")).unwrap();
    assert_eq!(fs::metadata(m.path("file")).unwrap().nlink(), 1);
    let long = "x".repeat(256);
    assert_eq!(errno(fs::write(m.path(&long), b"")), libc::ENAMETOOLONG);
}

#[test]
fn attributes_are_set_and_shown() {
    let m = Fixture::new();
    fs::write(m.path("f"), b"12345").unwrap();
    fs::set_permissions(m.path("f"), Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::chown(m.path("f"), Some(12), Some(34)).unwrap();
    let st = fs::metadata(m.path("f")).unwrap();
    // A change of owner takes the set-user-id bit away.
    assert_eq!((st.mode() & 0o7777, st.uid(), st.gid()), (0o711, 12, 34));

    let f = OpenOptions::new().write(true).open(m.path("f")).unwrap();
    f.set_len(10_000).unwrap();
    assert_eq!(f.metadata().unwrap().len(), 10_000);
    assert_eq!(f.metadata().unwrap().blocks(), 24);
    f.set_len(2).unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"12");

    for t in
        [UNIX_EPOCH + Duration::new(5_000_000_000, 999_999_999), UNIX_EPOCH - Duration::from_millis(1200)]
    {
        f.set_modified(t).unwrap();
        assert_eq!(fs::metadata(m.path("f")).unwrap().modified().unwrap(), t);
    }
}

#[test]
fn times_at_the_end_of_the_scale_do_no_harm() {
    let m = Fixture::new();
    fs::write(m.path("f"), b"").unwrap();
    let path = CString::new(m.path("f").as_os_str().as_bytes()).unwrap();
    for tv_sec in [i64::MIN, i64::MIN + 1, i64::MAX] {
        let t = libc::timespec { tv_sec, tv_nsec: 999_999_999 };
        // SAFETY: the path is a C string and there are two times, as the call wants.
        unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), [t, t].as_ptr(), 0) };
        assert_eq!(fs::metadata(m.path("f")).unwrap().len(), 0);
    }
    // All threads still serve.
    for i in 0..20 {
        fs::write(m.path(&format!("f{i}")), b"x").unwrap();
    }
}

#[test]
fn umask_applies_to_everything_made() {
    let m = Fixture::new();
    let script = "umask 027; cd \"$1\"; : > f; mkdir d; mkfifo p; mkdir -m 777 e";
    assert!(Command::new("sh").args(["-c", script, "sh"]).arg(m.root()).status().unwrap().success());
    let mode = |name| fs::symlink_metadata(m.path(name)).unwrap().mode() & 0o7777;
    assert_eq!([mode("f"), mode("d"), mode("p"), mode("e")], [0o640, 0o750, 0o640, 0o777]);
}

#[test]
fn permissions_are_checked_and_files_belong_to_their_maker() {
    let m = Fixture::new();
    // The directory that was mounted on is closed to others, its mount is open.
    let inside = m.root().to_path_buf();
    fs::write(m.path("secret"), b"s").unwrap();
    fs::set_permissions(m.path("secret"), Permissions::from_mode(0o600)).unwrap();
    let run = |script: &str| {
        let mut c = Command::new("sh");
        c.args(["-c", script]).current_dir(&inside).uid(65534).gid(65534).status().unwrap().success()
    };
    assert!(!run("cat secret 2>/dev/null"));
    assert!(run("echo mine > mine"));
    let st = fs::metadata(m.path("mine")).unwrap();
    assert_eq!((st.uid(), st.gid()), (65534, 65534));
}

#[test]
fn rename_and_its_flags() {
    let m = Fixture::new();
    fs::write(m.path("a"), b"a").unwrap();
    fs::write(m.path("b"), b"b").unwrap();
    let rename = |from: &str, to: &str, flags| renameat_with(CWD, m.path(from), CWD, m.path(to), flags);

    let taken = rename("a", "b", SysRenameFlags::NOREPLACE).unwrap_err();
    assert_eq!(taken, rustix::io::Errno::EXIST);
    rename("a", "b", SysRenameFlags::EXCHANGE).unwrap();
    assert_eq!((fs::read(m.path("a")).unwrap(), fs::read(m.path("b")).unwrap()), (b"b".into(), b"a".into()));
    rename("a", "c", SysRenameFlags::NOREPLACE).unwrap();
    rename("b", "c", SysRenameFlags::empty()).unwrap();
    assert_eq!(fs::read(m.path("c")).unwrap(), b"a");
    assert!(!m.path("a").exists() && !m.path("b").exists());
    rename("c", "d", SysRenameFlags::WHITEOUT).unwrap();

    let asked: Vec<_> = m.fs.take_events().into_iter().filter(|e| matches!(e, Event::Rename(_))).collect();
    let plain = RenameFlags::default();
    // The kernel answers the first one from its cache.
    assert_eq!(
        asked,
        [
            Event::Rename(RenameFlags { exchange: true, ..plain }),
            Event::Rename(RenameFlags { no_replace: true, ..plain }),
            Event::Rename(plain),
            Event::Rename(RenameFlags { whiteout: Some(Owner::default()), ..plain }),
        ]
    );
}

#[test]
fn missing_names_are_remembered_and_forgotten_when_made() {
    let m = Fixture::new();
    for _ in 0..10 {
        assert!(!m.path("absent").exists());
    }
    assert_eq!(m.fs.lookups.load(Ordering::Relaxed), 1);
    fs::write(m.path("absent"), b"here").unwrap();
    assert_eq!(fs::read(m.path("absent")).unwrap(), b"here");
    fs::rename(m.path("absent"), m.path("other")).unwrap();
    assert!(!m.path("absent").exists());
    assert_eq!(fs::read(m.path("other")).unwrap(), b"here");
}

#[test]
fn attributes_are_cached_until_they_change() {
    let m = Fixture::new();
    fs::write(m.path("f"), b"1").unwrap();
    assert_eq!(fs::metadata(m.path("f")).unwrap().len(), 1);
    m.fs.take_events();
    for _ in 0..10 {
        fs::metadata(m.path("f")).unwrap();
    }
    // The kernel tells of the last close when it likes.
    let asked: Vec<_> = m.fs.take_events().into_iter().filter(|e| !matches!(e, Event::Close(_))).collect();
    assert_eq!(asked, []);
    let before = fs::metadata(m.path("f")).unwrap().modified().unwrap();
    fs::write(m.path("f"), b"22").unwrap();
    let st = fs::metadata(m.path("f")).unwrap();
    assert_eq!(st.len(), 2);
    assert!(st.modified().unwrap() > before);
}

#[test]
fn a_big_directory_is_listed_while_it_is_emptied() {
    const FILES: usize = 3000;
    let m = Fixture::new();
    let dir = m.path("big");
    fs::create_dir(&dir).unwrap();
    for i in 0..FILES {
        File::create(dir.join(format!("file-{i:05}"))).unwrap();
    }
    let names =
        |dir: &Path| -> Vec<_> { fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect() };
    let all = names(&dir);
    assert_eq!(all.len(), FILES);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), FILES);

    // Every second name goes away while the rest is being listed.
    let mut seen = BTreeSet::new();
    for (n, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name();
        assert!(seen.insert(name), "listed twice");
        let victim = dir.join(format!("file-{:05}", (2 * n) % FILES));
        if n < FILES / 2 {
            fs::remove_file(victim).unwrap();
        }
    }
    for i in (1..FILES).step_by(2) {
        assert!(seen.contains(std::ffi::OsStr::new(&format!("file-{i:05}"))), "file {i} was not listed");
    }
    assert_eq!(names(&dir).len(), FILES / 2);

    // The idiom of `rm -r`: list and delete until nothing is left.
    for entry in fs::read_dir(&dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn a_long_listing_brings_its_attributes_along() {
    const FILES: u64 = 200;
    let m = Fixture::new();
    // Made behind the kernel's back, so that it knows none of them.
    for i in 0..FILES {
        m.fs.create(Ino::ROOT, format!("f{i}").as_bytes(), 0o644, Owner::new(1, 1)).unwrap();
    }
    let mut uids = fs::read_dir(m.root()).unwrap().map(|e| e.unwrap().metadata().unwrap().uid());
    assert!(uids.by_ref().take(FILES as usize).all(|uid| uid == 1));
    assert_eq!(uids.next(), None);
    assert!(m.fs.lookups.load(Ordering::Relaxed) < FILES / 2, "a lookup for each name");
}

#[test]
fn numbers_of_the_file_system() {
    let m = Fixture::new();
    let s = rustix::fs::statvfs(m.root()).unwrap();
    assert_eq!((s.f_bsize, s.f_frsize, s.f_blocks, s.f_bfree, s.f_bavail), (4096, 4096, 1000, 900, 800));
    assert_eq!((s.f_files, s.f_ffree, s.f_namemax), (70, 60, 255));
}

#[test]
fn what_is_not_offered_is_refused_and_does_no_harm() {
    let m = Fixture::new();
    fs::write(m.path("f"), b"content").unwrap();
    let f = File::open(m.path("f")).unwrap();
    // Answered by the kernel: a file without holes, a copy by reading and writing.
    assert_eq!(rustix::fs::seek(&f, rustix::fs::SeekFrom::Hole(0)).unwrap(), 7);
    assert_eq!(fs::copy(m.path("f"), m.path("g")).unwrap(), 7);
    assert_eq!(fs::read(m.path("g")).unwrap(), b"content");
}
