//! Reading, writing and making durable, through the page cache.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use fs_core::Ino;
use fs_core::api::IoFlags;

use crate::fixture::{Fixture, wait_until};
use crate::memfs::Event;

fn writes(events: &[Event]) -> Vec<(u64, usize, IoFlags)> {
    events
        .iter()
        .filter_map(|e| match e {
            Event::Write { offset, len, flags, .. } => Some((*offset, *len, *flags)),
            _ => None,
        })
        .collect()
}

fn ino(f: &File) -> Ino {
    Ino(f.metadata().unwrap().ino())
}

#[test]
fn data_survives_reopening_and_the_cache_is_kept() {
    let m = Fixture::new();
    let data: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
    fs::write(m.path("f"), &data).unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), data);
    m.fs.take_events();
    assert_eq!(fs::read(m.path("f")).unwrap(), data);
    let reads = m.fs.take_events().iter().filter(|e| matches!(e, Event::Read { .. })).count();
    assert_eq!(reads, 0, "the kernel's pages were dropped at open");

    let mut f = OpenOptions::new().read(true).append(true).open(m.path("f")).unwrap();
    f.write_all(b"tail").unwrap();
    f.seek(SeekFrom::End(-4)).unwrap();
    let mut tail = String::new();
    f.read_to_string(&mut tail).unwrap();
    assert_eq!(tail, "tail");
}

#[test]
fn writes_do_not_wait_in_the_kernel() {
    let m = Fixture::new();
    let f = File::create(m.path("f")).unwrap();
    m.fs.take_events();
    f.write_all_at(&[1; 3 * 65536], 0).unwrap();
    let total: usize = writes(&m.fs.take_events()).iter().map(|w| w.1).sum();
    assert_eq!(total, 3 * 65536);
}

#[test]
fn synchronous_writes_are_told_apart() {
    let m = Fixture::new();
    let open = |flags| {
        let mut o = OpenOptions::new();
        o.create(true).truncate(false).write(true).custom_flags(flags).open(m.path("f")).unwrap()
    };
    let none = IoFlags::default();
    for (flags, wanted) in [
        (0, none),
        (libc::O_DSYNC, IoFlags { dsync: true, ..none }),
        (libc::O_SYNC, IoFlags { dsync: true, sync: true, ..none }),
        (libc::O_DIRECT, IoFlags { direct: true, ..none }),
        (libc::O_DIRECT | libc::O_DSYNC, IoFlags { direct: true, dsync: true, ..none }),
        (libc::O_DIRECT | libc::O_SYNC, IoFlags { direct: true, dsync: true, sync: true, ..none }),
    ] {
        let f = open(flags);
        m.fs.take_events();
        f.write_all_at(&[1; 4096], 0).unwrap();
        assert_eq!(writes(&m.fs.take_events()), [(0, 4096, wanted)], "open flags {flags:#o}");
    }
}

#[test]
fn single_synchronous_writes_are_told_apart() {
    let m = Fixture::new();
    let none = IoFlags::default();
    for (open_flags, direct) in [(0, false), (libc::O_DIRECT, true)] {
        let mut o = OpenOptions::new();
        let f =
            o.create(true).truncate(false).write(true).custom_flags(open_flags).open(m.path("f")).unwrap();
        for (rwf, wanted) in [
            (libc::RWF_DSYNC, IoFlags { direct, dsync: true, ..none }),
            (libc::RWF_SYNC, IoFlags { direct, dsync: true, sync: true, ..none }),
            (0, IoFlags { direct, ..none }),
        ] {
            m.fs.take_events();
            let data = [3u8; 4096];
            let iov = IoSlice::new(&data);
            // SAFETY: an IoSlice is an iovec, it outlives the call, and there is one.
            let n = unsafe { libc::pwritev2(f.as_raw_fd(), std::ptr::from_ref(&iov).cast(), 1, 0, rwf) };
            assert_eq!(n, 4096);
            assert_eq!(writes(&m.fs.take_events()), [(0, 4096, wanted)]);
        }
    }
}

#[test]
fn fsync_and_fdatasync_arrive_also_for_directories() {
    let m = Fixture::new();
    let f = File::create(m.path("f")).unwrap();
    let d = File::open(m.root()).unwrap();
    m.fs.take_events();
    f.sync_all().unwrap();
    f.sync_data().unwrap();
    d.sync_all().unwrap();
    let fsyncs: Vec<_> =
        m.fs.take_events().into_iter().filter(|e| matches!(e, Event::Fsync { .. })).collect();
    let file = ino(&f);
    assert_eq!(
        fsyncs,
        [
            Event::Fsync { ino: file, datasync: false },
            Event::Fsync { ino: file, datasync: true },
            Event::Fsync { ino: Ino::ROOT, datasync: false },
        ]
    );
}

#[test]
fn fallocate_modes() {
    let m = Fixture::new();
    let f = File::create(m.path("f")).unwrap();
    let fallocate = |mode, offset, len| {
        // SAFETY: plain numbers and an open file.
        match unsafe { libc::fallocate(f.as_raw_fd(), mode, offset, len) } {
            0 => 0,
            _ => std::io::Error::last_os_error().raw_os_error().unwrap(),
        }
    };
    assert_eq!(fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, 1 << 20), 0);
    assert_eq!(f.metadata().unwrap().len(), 0);
    assert_eq!(fallocate(0, 0, 1 << 16), 0);
    assert_eq!(f.metadata().unwrap().len(), 1 << 16);
    assert_eq!(fallocate(libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096), libc::EOPNOTSUPP);
    // And it is still asked for what it can do.
    assert_eq!(fallocate(0, 0, 1 << 17), 0);
    assert_eq!(f.metadata().unwrap().len(), 1 << 17);
}

#[test]
fn opening_for_truncation() {
    let m = Fixture::new();
    fs::write(m.path("f"), b"long content").unwrap();
    let f = OpenOptions::new().read(true).write(true).truncate(true).open(m.path("f")).unwrap();
    assert_eq!(f.metadata().unwrap().len(), 0);
    f.write_all_at(b"new", 0).unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"new");
}

#[test]
fn an_unlinked_file_lives_until_its_last_close() {
    let m = Fixture::new();
    let mut f = File::create_new(m.path("f")).unwrap();
    let g = File::open(m.path("f")).unwrap();
    let (inodes, opens) = m.fs.counts();
    assert_eq!(opens, 2);
    fs::remove_file(m.path("f")).unwrap();
    f.write_all(b"still here").unwrap();
    let mut buf = [0; 10];
    g.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"still here");
    assert_eq!(g.metadata().unwrap().nlink(), 0);
    drop(f);
    wait_until("one close", || m.fs.counts() == (inodes, 1));
    drop(g);
    wait_until("the inode is gone", || m.fs.counts() == (inodes - 1, 0));
}

#[test]
fn each_open_is_counted_once() {
    let m = Fixture::new();
    let f = File::create(m.path("f")).unwrap();
    let twin = f.try_clone().unwrap();
    drop(f);
    let again: Vec<_> = (0..3).map(|_| File::open(m.path("f")).unwrap()).collect();
    let dir = fs::read_dir(m.root()).unwrap();
    assert_eq!(m.fs.counts().1, 5);
    drop((twin, again, dir));
    wait_until("everything is closed", || m.fs.counts().1 == 0);
}

#[test]
fn a_writer_without_privilege_clears_set_user_id() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    for flags in ["", "oflag=direct"] {
        let m = Fixture::new();
        fs::write(m.path("f"), vec![0; 4096]).unwrap();
        fs::set_permissions(m.path("f"), fs::Permissions::from_mode(0o6777)).unwrap();
        assert_eq!(fs::metadata(m.path("f")).unwrap().mode() & 0o7777, 0o6777);
        let mut dd = std::process::Command::new("dd");
        dd.args(["if=/dev/zero", "of=f", "bs=4096", "count=1", "conv=notrunc", "status=none"]);
        dd.args(flags.split_whitespace()).current_dir(m.root()).uid(65534).gid(65534);
        assert!(dd.status().unwrap().success());
        // The kernel goes by what it believes when it runs a program; it only asks if it knows that
        // it does not know.
        assert!(std::process::Command::new(m.path("f")).status().is_err(), "zeros are no program");
        let (path, dont_ask) = (m.path("f"), rustix::fs::AtFlags::STATX_DONT_SYNC);
        let st = rustix::fs::statx(rustix::fs::CWD, &path, dont_ask, rustix::fs::StatxFlags::MODE).unwrap();
        assert_eq!(st.stx_mode & 0o7777, 0o777, "dd {flags}");
        assert_eq!(fs::metadata(m.path("f")).unwrap().mode() & 0o7777, 0o777, "dd {flags}");
    }
}
