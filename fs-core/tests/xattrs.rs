//! Extended attributes and access control lists, without a kernel in front.

use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};
use dbfs_fs_core::api::{FileType, FsOps, IoFlags, Owner, SetAttr, XattrFlags};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::fsck::{CheckOptions, check};
use dbfs_fs_core::{FormatOptions, Ino, MountOptions, Volume};

const OWNER: Owner = Owner::new(1, 2);
const ANY: XattrFlags = XattrFlags { create: false, replace: false, clear_setgid: false };
const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

fn new_device() -> Arc<dyn BlockDevice> {
    let device: Arc<dyn BlockDevice> = Arc::new(RamDevice::new(64 << 20, 512));
    Volume::format(device.as_ref(), &FormatOptions::default(), &SystemEnv).unwrap();
    device
}

fn mount(device: &Arc<dyn BlockDevice>) -> Arc<Volume> {
    Volume::mount(device.clone(), MountOptions::default(), Arc::new(SystemEnv)).unwrap()
}

fn clean(device: &Arc<dyn BlockDevice>) -> u64 {
    let report = check(device, &CheckOptions { data: true, progress: None }).unwrap();
    assert!(report.is_clean(), "{:#?}", report.problems);
    report.stats.inodes
}

fn file(v: &Volume, name: &str) -> Ino {
    v.mknod(Ino::ROOT, name.as_bytes(), FileType::Regular, 0o644, 0, OWNER).unwrap().ino
}

fn value(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + seed + i / 251) as u8).collect()
}

fn errno<T: std::fmt::Debug>(result: dbfs_fs_core::Result<T>) -> i32 {
    result.unwrap_err().errno()
}

fn names(v: &Volume, ino: Ino) -> Vec<String> {
    let list = v.listxattr(ino, true).unwrap();
    let mut names: Vec<String> =
        list.split(|b| *b == 0).map(|n| String::from_utf8(n.to_vec()).unwrap()).collect();
    assert_eq!(names.pop().as_deref(), Some(""), "every name ends with a zero byte");
    names.sort();
    names
}

/// A list: (tag, permissions, id).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

#[test]
fn values_of_all_lengths_survive_a_remount() {
    let device = new_device();
    let v = mount(&device);
    let ino = file(&v, "f");
    let lengths = [0, 1, 3_736, 3_737, 3_999, 4_000, 7_700, 7_980, 7_990, 8_000, 30_000, 65_535, 65_536];
    for (i, len) in lengths.into_iter().enumerate() {
        v.setxattr(ino, format!("user.{i}").as_bytes(), &value(len, i), ANY).unwrap();
    }
    let long = [&b"user."[..], &[b'x'; 250]].concat();
    v.setxattr(ino, &long, &value(65_536, 9), ANY).unwrap();
    let look = |v: &Volume| {
        assert_eq!(names(v, ino).len(), lengths.len() + 1);
        for (i, len) in lengths.into_iter().enumerate() {
            assert_eq!(v.getxattr(ino, format!("user.{i}").as_bytes()).unwrap(), value(len, i), "{len}");
        }
        assert_eq!(v.getxattr(ino, &long).unwrap(), value(65_536, 9));
    };
    look(&v);
    v.commit().unwrap();
    look(&mount(&device)); // from the journal
    let v = mount(&device);
    v.shutdown().unwrap();
    clean(&device);
    let v = mount(&device);
    look(&v); // from the tree
    // Longer, shorter, gone.
    for (i, len) in lengths.into_iter().enumerate() {
        let name = format!("user.{i}");
        match i % 3 {
            0 => v.setxattr(ino, name.as_bytes(), &value(65_536 - len, i), ANY).unwrap(),
            1 => v.setxattr(ino, name.as_bytes(), b"", ANY).unwrap(),
            _ => v.removexattr(ino, name.as_bytes()).unwrap(),
        }
    }
    v.shutdown().unwrap();
    clean(&device);
    let v = mount(&device);
    for (i, len) in lengths.into_iter().enumerate() {
        let got = v.getxattr(ino, format!("user.{i}").as_bytes());
        match i % 3 {
            0 => assert_eq!(got.unwrap(), value(65_536 - len, i)),
            1 => assert_eq!(got.unwrap(), b""),
            _ => assert_eq!(errno(got), libc::ENODATA),
        }
    }
}

#[test]
fn the_errors_are_those_of_linux() {
    let device = new_device();
    let v = mount(&device);
    let ino = file(&v, "f");
    let link = v.symlink(Ino::ROOT, b"l", b"t", OWNER).unwrap().ino;
    let create = XattrFlags { create: true, ..ANY };
    let replace = XattrFlags { replace: true, ..ANY };
    assert_eq!(errno(v.setxattr(ino, b"user.a", b"1", replace)), libc::ENODATA);
    v.setxattr(ino, b"user.a", b"1", create).unwrap();
    assert_eq!(errno(v.setxattr(ino, b"user.a", b"2", create)), libc::EEXIST);
    v.setxattr(ino, b"user.a", b"3", replace).unwrap();
    assert_eq!(v.getxattr(ino, b"user.a").unwrap(), b"3");
    assert_eq!(errno(v.getxattr(ino, b"user.b")), libc::ENODATA);
    assert_eq!(errno(v.removexattr(ino, b"user.b")), libc::ENODATA);
    for name in ["foo.bar", "nospace", "system.other", "User.a"] {
        assert_eq!(errno(v.setxattr(ino, name.as_bytes(), b"", ANY)), libc::EOPNOTSUPP, "{name}");
        assert_eq!(errno(v.getxattr(ino, name.as_bytes())), libc::EOPNOTSUPP, "{name}");
    }
    assert_eq!(errno(v.setxattr(ino, b"user.", b"", ANY)), libc::EINVAL);
    let long = [&b"user."[..], &[b'x'; 251]].concat();
    assert_eq!(errno(v.setxattr(ino, &long, b"", ANY)), libc::ERANGE);
    assert_eq!(errno(v.setxattr(ino, b"user.big", &[0; 65_537], ANY)), libc::E2BIG);
    assert_eq!(errno(v.setxattr(link, b"user.a", b"", ANY)), libc::EPERM);
    v.setxattr(link, b"trusted.a", b"x", ANY).unwrap();
    assert_eq!(v.listxattr(link, true).unwrap(), b"trusted.a\0");
    assert_eq!(v.listxattr(link, false).unwrap(), b"");
    assert_eq!(errno(v.setxattr(ino, ACCESS, b"nonsense", ANY)), libc::EINVAL);
    let plain = acl(&[(1, 6, 0), (4, 4, 0), (32, 4, 0)]);
    assert_eq!(errno(v.setxattr(ino, DEFAULT, &plain, ANY)), libc::EACCES);
    assert_eq!(errno(v.setxattr(link, ACCESS, &plain, ANY)), libc::EOPNOTSUPP);
    assert_eq!(errno(v.getxattr(Ino(999), b"user.a")), libc::ESTALE);
}

#[test]
fn the_list_of_names_has_an_end() {
    let device = new_device();
    let v = mount(&device);
    let ino = file(&v, "f");
    let name = |i: usize| [format!("user.{i:04}").as_bytes(), &[b'n'; 246]].concat();
    let most = 65_536 / 256;
    for i in 0..most {
        v.setxattr(ino, &name(i), &[], ANY).unwrap();
    }
    assert_eq!(errno(v.setxattr(ino, &name(most), &[], ANY)), libc::ENOSPC);
    v.setxattr(ino, &name(0), b"replacing is always possible", ANY).unwrap();
    assert_eq!(v.listxattr(ino, true).unwrap().len(), 65_536);
    v.removexattr(ino, &name(7)).unwrap();
    v.setxattr(ino, &name(most), &[], ANY).unwrap();
    v.shutdown().unwrap();
    clean(&device);
}

#[test]
fn they_go_with_their_inode() {
    let device = new_device();
    let v = mount(&device);
    for kind in [FileType::Regular, FileType::Fifo] {
        let ino = v.mknod(Ino::ROOT, b"f", kind, 0o644, 0, OWNER).unwrap().ino;
        for i in 0..200 {
            v.setxattr(ino, format!("trusted.{i}").as_bytes(), &value(i * 100, i), ANY).unwrap();
        }
        v.unlink(Ino::ROOT, b"f").unwrap();
    }
    let dir = v.mkdir(Ino::ROOT, b"d", 0o755, OWNER).unwrap().ino;
    v.setxattr(dir, b"user.d", b"d", ANY).unwrap();
    v.open(dir).unwrap();
    v.rmdir(Ino::ROOT, b"d").unwrap();
    assert_eq!(v.getxattr(dir, b"user.d").unwrap(), b"d", "it is open still");
    v.commit().unwrap();
    clean(&device);
    drop(v); // without closing it: the next mount deletes it
    mount(&device).shutdown().unwrap();
    assert_eq!(clean(&device), 1);
}

#[test]
fn they_change_the_time_of_the_inode_only() {
    let device = new_device();
    let v = mount(&device);
    let ino = file(&v, "f");
    let before = v.getattr(ino).unwrap();
    v.setxattr(ino, b"user.a", b"1", ANY).unwrap();
    let after = v.getattr(ino).unwrap();
    assert!(after.ctime > before.ctime);
    assert_eq!((after.mtime, after.atime, after.perm), (before.mtime, before.atime, before.perm));
    v.removexattr(ino, b"user.a").unwrap();
    assert!(v.getattr(ino).unwrap().ctime > after.ctime);
}

#[test]
fn writing_and_giving_away_take_privileges() {
    let device = new_device();
    let v = mount(&device);
    let ino = file(&v, "f");
    let grant = || {
        v.setxattr(ino, b"security.capability", b"cap", ANY).unwrap();
        v.setxattr(ino, b"user.stays", b"x", ANY).unwrap();
    };
    let gone = |what: &str| {
        assert_eq!(errno(v.getxattr(ino, b"security.capability")), libc::ENODATA, "{what}");
        assert_eq!(v.getxattr(ino, b"user.stays").unwrap(), b"x");
    };
    grant();
    v.write(ino, 0, b"data", IoFlags::default()).unwrap();
    gone("write");
    grant();
    v.setattr(ino, &SetAttr { size: Some(1), ..SetAttr::default() }).unwrap();
    gone("truncate");
    grant();
    v.setattr(ino, &SetAttr { gid: Some(5), ..SetAttr::default() }).unwrap();
    gone("chown");
    grant();
    v.setattr(ino, &SetAttr { perm: Some(0o4711), ..SetAttr::default() }).unwrap();
    assert!(v.getxattr(ino, b"security.capability").is_ok(), "chmod changes no privilege");
    v.setattr(ino, &SetAttr { kill_priv: true, ..SetAttr::default() }).unwrap();
    gone("an explicit request");
    assert_eq!(v.getattr(ino).unwrap().perm, 0o711);
    grant();
    v.shutdown().unwrap();
    let v = mount(&device);
    v.write(ino, 0, b"data", IoFlags { direct: true, ..IoFlags::default() }).unwrap();
    assert_eq!(errno(v.getxattr(ino, b"security.capability")), libc::ENODATA, "after a remount");
}

#[test]
fn an_access_list_and_the_permission_bits_are_one() {
    let device = new_device();
    let v = mount(&device);
    let ino = file(&v, "f");
    let perm = || v.getattr(ino).unwrap().perm;
    // What bits can say is not kept as a list.
    v.setxattr(ino, ACCESS, &acl(&[(1, 7, 0), (4, 5, 0), (32, 1, 0)]), ANY).unwrap();
    assert_eq!((perm(), v.listxattr(ino, true).unwrap()), (0o751, Vec::new()));
    let list = |user, mask, other| acl(&[(1, user, 0), (2, 6, 77), (4, 5, 0), (16, mask, 0), (32, other, 0)]);
    v.setattr(ino, &SetAttr { perm: Some(0o6700), ..SetAttr::default() }).unwrap();
    v.setxattr(ino, ACCESS, &list(6, 6, 0), ANY).unwrap();
    assert_eq!(perm(), 0o6660, "the group's bits are the mask");
    v.setattr(ino, &SetAttr { perm: Some(0o2741), ..SetAttr::default() }).unwrap();
    assert_eq!(v.getxattr(ino, ACCESS).unwrap(), list(7, 4, 1));
    v.setxattr(ino, ACCESS, &list(7, 4, 1), XattrFlags { clear_setgid: true, ..ANY }).unwrap();
    assert_eq!(perm(), 0o741);
    v.removexattr(ino, ACCESS).unwrap();
    assert_eq!((perm(), errno(v.getxattr(ino, ACCESS))), (0o741, libc::ENODATA));
    v.removexattr(ino, ACCESS).unwrap(); // there being none is what was asked for
}

#[test]
fn what_is_made_in_a_directory_inherits_its_default_list() {
    let device = new_device();
    let v = mount(&device);
    let owner = Owner { umask: 0o077, ..OWNER };
    let plain = v.create(Ino::ROOT, b"plain", 0o666, owner).unwrap();
    assert_eq!(plain.perm, 0o600, "without a default list the umask counts");
    let default = acl(&[(1, 7, 0), (2, 7, 77), (4, 7, 0), (16, 7, 0), (32, 1, 0)]);
    v.setxattr(Ino::ROOT, DEFAULT, &default, ANY).unwrap();
    let made = v.create(Ino::ROOT, b"f", 0o664, owner).unwrap();
    assert_eq!(made.perm, 0o660, "with one it does not");
    let access = acl(&[(1, 6, 0), (2, 7, 77), (4, 7, 0), (16, 6, 0), (32, 0, 0)]);
    assert_eq!(v.getxattr(made.ino, ACCESS).unwrap(), access);
    assert_eq!(names(&v, made.ino).len(), 1);
    let dir = v.mkdir(Ino::ROOT, b"d", 0o755, owner).unwrap();
    assert_eq!((dir.perm, v.getxattr(dir.ino, DEFAULT).unwrap()), (0o751, default.clone()));
    let nameless = v.tmpfile(dir.ino, 0o600, owner).unwrap();
    assert_eq!(nameless.perm, 0o600);
    assert!(v.getxattr(nameless.ino, ACCESS).is_ok());
    let link = v.symlink(Ino::ROOT, b"l", b"t", owner).unwrap();
    assert_eq!((link.perm, names(&v, link.ino)), (0o777, Vec::<String>::new()));
    // A list that bits can say leaves only bits.
    v.setxattr(Ino::ROOT, DEFAULT, &acl(&[(1, 7, 0), (4, 5, 0), (32, 0, 0)]), ANY).unwrap();
    let made = v.create(Ino::ROOT, b"g", 0o666, owner).unwrap();
    assert_eq!((made.perm, names(&v, made.ino)), (0o640, Vec::<String>::new()));
    v.shutdown().unwrap();
    clean(&device);
}
