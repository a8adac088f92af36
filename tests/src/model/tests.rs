//! The model itself, checked against what POSIX and Linux say.

use fs_core::api::SetTime;

use super::*;
use crate::clock::Clock;

const ROOT: Ino = Ino::ROOT;
const OWNER: Owner = Owner::new(10, 20);
const PLAIN: RenameFlags = RenameFlags { no_replace: false, exchange: false, whiteout: None };
const SWAP: RenameFlags = RenameFlags { no_replace: false, exchange: true, whiteout: None };
const KEEP: RenameFlags = RenameFlags { no_replace: true, exchange: false, whiteout: None };

fn fs() -> ModelFs {
    let clock = Arc::new(Clock::new(0));
    ModelFs::new(State::empty(clock.now()), clock)
}

fn file(fs: &ModelFs, name: &str) -> Ino {
    fs.mknod(ROOT, name.as_bytes(), FileType::Regular, 0o644, 0, OWNER).unwrap().ino
}

fn dir(fs: &ModelFs, parent: Ino, name: &str) -> Ino {
    fs.mkdir(parent, name.as_bytes(), 0o755, OWNER).unwrap().ino
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> i32 {
    result.unwrap_err().errno()
}

#[test]
fn names_have_limits() {
    let fs = fs();
    let long = [b'x'; 256];
    assert_eq!(errno(fs.lookup(ROOT, &long)), libc::ENAMETOOLONG);
    assert_eq!(errno(fs.mkdir(ROOT, &long, 0o755, OWNER)), libc::ENAMETOOLONG);
    assert!(fs.mkdir(ROOT, &long[..255], 0o755, OWNER).is_ok());
    let f = file(&fs, "f");
    assert_eq!(errno(fs.lookup(f, b"x")), libc::ENOTDIR);
    assert_eq!(errno(fs.getattr(Ino(999))), libc::ESTALE);
}

#[test]
fn directories_count_their_links() {
    let fs = fs();
    let a = dir(&fs, ROOT, "a");
    let b = dir(&fs, a, "b");
    assert_eq!(fs.getattr(ROOT).unwrap().nlink, 3);
    assert_eq!(fs.getattr(a).unwrap().nlink, 3);
    assert_eq!(errno(fs.rmdir(ROOT, b"a")), libc::ENOTEMPTY);
    assert_eq!(errno(fs.unlink(ROOT, b"a")), libc::EISDIR);
    fs.rename(a, b"b", ROOT, b"b", PLAIN).unwrap();
    assert_eq!(fs.getattr(a).unwrap().nlink, 2);
    assert_eq!(fs.getattr(ROOT).unwrap().nlink, 4);
    fs.rmdir(ROOT, b"b").unwrap();
    assert_eq!(errno(fs.getattr(b)), libc::ESTALE);
    assert_eq!(fs.getattr(ROOT).unwrap().nlink, 3);
}

#[test]
fn rename_refuses_what_linux_refuses() {
    let fs = fs();
    let a = dir(&fs, ROOT, "a");
    let b = dir(&fs, a, "b");
    file(&fs, "f");
    assert_eq!(errno(fs.rename(ROOT, b"a", b, b"x", PLAIN)), libc::EINVAL);
    assert_eq!(errno(fs.rename(ROOT, b"a", a, b"b", PLAIN)), libc::EINVAL);
    assert_eq!(errno(fs.rename(a, b"b", ROOT, b"a", PLAIN)), libc::ENOTEMPTY);
    assert_eq!(errno(fs.rename(a, b"b", ROOT, b"a", SWAP)), libc::EINVAL);
    assert_eq!(errno(fs.rename(ROOT, b"f", ROOT, b"a", PLAIN)), libc::EISDIR);
    assert_eq!(errno(fs.rename(ROOT, b"a", ROOT, b"f", PLAIN)), libc::ENOTDIR);
    assert_eq!(errno(fs.rename(ROOT, b"f", ROOT, b"a", KEEP)), libc::EEXIST);
    assert_eq!(errno(fs.rename(ROOT, b"f", ROOT, b"f", KEEP)), libc::EEXIST);
    assert_eq!(errno(fs.rename(ROOT, b"x", ROOT, b"a", PLAIN)), libc::ENOENT);
    assert_eq!(errno(fs.rename(ROOT, b"f", ROOT, b"x", SWAP)), libc::ENOENT);
    let both = RenameFlags { no_replace: true, exchange: true, whiteout: None };
    assert_eq!(errno(fs.rename(ROOT, b"f", ROOT, b"x", both)), libc::EINVAL);
}

#[test]
fn rename_onto_the_same_inode_does_nothing() {
    let fs = fs();
    let f = file(&fs, "f");
    fs.link(f, ROOT, b"g").unwrap();
    fs.clock.advance(5);
    fs.rename(ROOT, b"f", ROOT, b"g", PLAIN).unwrap();
    assert!(fs.lookup(ROOT, b"f").is_ok() && fs.lookup(ROOT, b"g").is_ok());
    let attr = fs.getattr(f).unwrap();
    assert_eq!((attr.nlink, attr.ctime), (2, attr.btime));
}

#[test]
fn exchange_swaps_a_file_and_a_directory() {
    let fs = fs();
    let a = dir(&fs, ROOT, "a");
    let sub = dir(&fs, a, "sub");
    let f = file(&fs, "f");
    fs.rename(ROOT, b"f", a, b"sub", SWAP).unwrap();
    assert_eq!(fs.lookup(a, b"sub").unwrap().ino, f);
    assert_eq!(fs.lookup(ROOT, b"f").unwrap().ino, sub);
    assert_eq!((fs.getattr(ROOT).unwrap().nlink, fs.getattr(a).unwrap().nlink), (4, 2));
    let mut parent = None;
    let mut see = |e: &DirEntry| {
        if e.name == b".." {
            parent = Some(e.ino);
        }
        true
    };
    fs.readdir(sub, 0, &mut see).unwrap();
    assert_eq!(parent, Some(ROOT));
}

#[test]
fn rename_replaces_and_the_open_target_lives_on() {
    let fs = fs();
    let f = file(&fs, "f");
    let g = file(&fs, "g");
    fs.open(g).unwrap();
    fs.write(g, 0, b"old", IoFlags::default()).unwrap();
    fs.rename(ROOT, b"f", ROOT, b"g", PLAIN).unwrap();
    assert_eq!(fs.lookup(ROOT, b"g").unwrap().ino, f);
    assert_eq!(fs.getattr(g).unwrap().nlink, 0);
    let mut buf = [0; 8];
    assert_eq!(fs.read(g, 0, &mut buf, IoFlags::default()).unwrap(), 3);
    assert_eq!(errno(fs.link(g, ROOT, b"back")), libc::ENOENT);
    fs.close(g);
    assert_eq!(errno(fs.getattr(g)), libc::ESTALE);
}

#[test]
fn links_are_counted() {
    let fs = fs();
    let f = file(&fs, "f");
    let d = dir(&fs, ROOT, "d");
    assert_eq!(fs.link(f, d, b"g").unwrap().nlink, 2);
    assert_eq!(errno(fs.link(f, d, b"g")), libc::EEXIST);
    assert_eq!(errno(fs.link(d, ROOT, b"x")), libc::EPERM);
    fs.unlink(ROOT, b"f").unwrap();
    assert_eq!(fs.getattr(f).unwrap().nlink, 1);
    fs.unlink(d, b"g").unwrap();
    assert_eq!(errno(fs.getattr(f)), libc::ESTALE);
}

#[test]
fn setgid_directories_pass_on_their_group() {
    let fs = fs();
    let d = fs.mkdir(ROOT, b"d", 0o2755, Owner::new(0, 77)).unwrap().ino;
    let sub = fs.mkdir(d, b"sub", 0o700, OWNER).unwrap();
    assert_eq!((sub.gid, sub.perm, sub.uid), (77, 0o2700, 10));
    let f = fs.create(d, b"f", 0o600, OWNER).unwrap();
    assert_eq!((f.gid, f.perm), (77, 0o600));
}

#[test]
fn privileges_are_dropped() {
    let fs = fs();
    let f = file(&fs, "f");
    let chmod = |perm| fs.setattr(f, &SetAttr { perm: Some(perm), ..SetAttr::default() }).unwrap();
    chmod(0o6755);
    fs.write(f, 0, b"x", IoFlags::default()).unwrap();
    assert_eq!(fs.getattr(f).unwrap().perm, 0o6755);
    fs.write(f, 0, b"x", IoFlags { kill_priv: true, ..IoFlags::default() }).unwrap();
    assert_eq!(fs.getattr(f).unwrap().perm, 0o755);
    chmod(0o6745);
    let chown = fs.setattr(f, &SetAttr { uid: Some(5), ..SetAttr::default() }).unwrap();
    assert_eq!(chown.perm, 0o2745);
}

#[test]
fn sizes_and_holes() {
    let fs = fs();
    let f = file(&fs, "f");
    fs.write(f, 10_000, b"end", IoFlags::default()).unwrap();
    let size = |size| fs.setattr(f, &SetAttr { size: Some(size), ..SetAttr::default() });
    assert_eq!(size(10_001).unwrap().size, 10_001);
    assert_eq!(size(10_005).unwrap().size, 10_005);
    let mut buf = [9; 6];
    assert_eq!(fs.read(f, 10_000, &mut buf, IoFlags::default()).unwrap(), 5);
    assert_eq!(buf, [b'e', 0, 0, 0, 0, 9]);
    fs.fallocate(f, Fallocate::KeepSize, 0, 50_000).unwrap();
    assert_eq!(fs.getattr(f).unwrap().size, 10_005);
    fs.fallocate(f, Fallocate::Allocate, 0, 50_000).unwrap();
    assert_eq!(fs.getattr(f).unwrap().size, 50_000);
    assert_eq!(errno(fs.fallocate(f, Fallocate::Allocate, 0, 0)), libc::EINVAL);
    assert_eq!(errno(size(MAX_FILE_SIZE + 1)), libc::EFBIG);
    assert_eq!(errno(fs.write(ROOT, 0, b"x", IoFlags::default())), libc::EISDIR);
}

#[test]
fn times_follow_changes() {
    let fs = fs();
    let f = file(&fs, "f");
    let born = fs.getattr(f).unwrap();
    fs.clock.advance(7);
    fs.link(f, ROOT, b"g").unwrap();
    let linked = fs.getattr(f).unwrap();
    assert!(linked.ctime > born.ctime && linked.mtime == born.mtime);
    assert_eq!(fs.getattr(ROOT).unwrap().mtime, linked.ctime);
    fs.clock.advance(7);
    fs.write(f, 0, b"x", IoFlags::default()).unwrap();
    let written = fs.getattr(f).unwrap();
    assert!(written.mtime > linked.mtime && written.mtime == written.ctime);
    let at = Timestamp { secs: -5, nanos: 3 };
    let set = SetAttr { mtime: Some(SetTime::At(at)), ..SetAttr::default() };
    assert_eq!(fs.setattr(f, &set).unwrap().mtime, at);
}

#[test]
fn a_listing_can_be_cut_and_continued() {
    let fs = fs();
    for i in 0..10 {
        file(&fs, &format!("f{i}"));
    }
    let mut seen = Vec::new();
    let mut cookie = 0;
    loop {
        let before = seen.len();
        let (mut batch, from) = (0, cookie);
        let mut emit = |e: &DirEntry| {
            batch += 1;
            if batch > 3 {
                return false;
            }
            cookie = e.next_cookie;
            seen.push(e.name.clone());
            true
        };
        fs.readdir(ROOT, from, &mut emit).unwrap();
        if seen.len() == before {
            break;
        }
    }
    assert_eq!(seen.len(), 12);
    assert_eq!(seen[0], b".");
}
