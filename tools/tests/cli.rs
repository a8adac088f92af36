//! The `dbfs` command from outside: what it does, what it says, how it exits.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;

mod common;

use common::{Loop, Volume, is_mounted, signal};

#[test]
fn an_image_is_made_sparse_and_never_by_accident() {
    let v = Volume::new();
    v.fails(&["mkfs", "IMAGE"], 1, &["does not exist", "--size"]);
    assert!(!v.image().exists());
    v.fails(&["mkfs", "--size", "1M", "IMAGE"], 1, &["too small"]);
    v.fails(&["mkfs", "--size", "63M", "IMAGE"], 1, &["too small"]);
    assert!(!v.image().exists(), "what was created for nothing is removed");
    let text = v.ok(&["mkfs", "--size", "1T", "--page-size", "8K", "--label", "big", "IMAGE"]);
    assert!(text.contains("1 TiB") && text.contains("8 KiB"), "{text}");
    let meta = fs::metadata(v.image()).unwrap();
    assert_eq!(meta.len(), 1 << 40);
    assert!(meta.blocks() * 512 < 1 << 30);
    v.fails(&["mkfs", "IMAGE"], 1, &["dbfs", "--force"]);
    v.fails(&["mkfs", "--force", "--size", "2T", "IMAGE"], 1, &["1 TiB", "--size"]);
    v.ok(&["mkfs", "--force", "IMAGE"]);
}

#[test]
fn a_file_system_is_not_overwritten() {
    let v = Volume::new();
    let file = File::create(v.image()).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"XFSB", 0).unwrap();
    v.fails(&["mkfs", "IMAGE"], 1, &["XFS", "--force"]);
    let mut start = [0; 4];
    File::open(v.image()).unwrap().read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"XFSB");
    v.ok(&["mkfs", "--force", "IMAGE"]);
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    v.ok(&["umount", "MNT"]);
}

#[test]
fn a_mounted_volume_is_left_alone_by_others() {
    let v = Volume::made();
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    fs::write(v.mnt().join("f"), b"precious").unwrap();
    v.fails(&["mkfs", "IMAGE"], 1, &["in use", "dbfs"]);
    v.fails(&["mkfs", "--force", "IMAGE"], 1, &["locked"]);
    assert_eq!(fs::read(v.mnt().join("f")).unwrap(), b"precious");
    v.ok(&["umount", "MNT"]);
}

#[test]
fn what_was_written_is_there_after_umount_and_mount() {
    let v = Volume::made();
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    let data: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    fs::write(v.mnt().join("f"), &data).unwrap();
    fs::create_dir(v.mnt().join("d")).unwrap();
    v.ok(&["umount", "MNT"]);
    assert!(!is_mounted(&v.mnt()));
    // Nobody writes to the volume any more, and all of it is there: a copy is as good.
    fs::copy(v.image(), v.image().with_extension("copy")).unwrap();
    fs::rename(v.image().with_extension("copy"), v.image()).unwrap();
    v.ok(&["mount", "-o", "LOG", "-o", "ro", "IMAGE", "MNT"]);
    assert_eq!(fs::read(v.mnt().join("f")).unwrap(), data);
    assert!(v.mnt().join("d").is_dir());
    let refused = fs::write(v.mnt().join("g"), b"").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    v.ok(&["umount", "MNT"]);
}

#[test]
fn sigterm_and_sigint_end_the_mount_cleanly() {
    let v = Volume::made();
    for (i, name) in ["-TERM", "-INT"].into_iter().enumerate() {
        let mut daemon = v.foreground();
        fs::write(v.mnt().join(format!("f{i}")), name).unwrap();
        signal(&daemon, name);
        assert_eq!(daemon.wait().unwrap().code(), Some(0), "{}", v.log());
        assert!(!is_mounted(&v.mnt()));
    }
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    assert_eq!(fs::read(v.mnt().join("f1")).unwrap(), b"-INT");
    v.ok(&["umount", "MNT"]);
}

#[test]
fn after_kill_9_the_dead_mount_makes_way() {
    let v = Volume::made();
    let mut daemon = v.foreground();
    let f = File::create(v.mnt().join("synced")).unwrap();
    f.write_all_at(b"kept", 0).unwrap();
    f.sync_all().unwrap();
    drop(f);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(is_mounted(&v.mnt()));
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    assert_eq!(fs::read(v.mnt().join("synced")).unwrap(), b"kept");
    v.ok(&["umount", "MNT"]);
    assert!(!is_mounted(&v.mnt()));
    // And umount by itself takes a dead mount away, but does not claim that all is well.
    let mut daemon = v.foreground();
    let f = File::create(v.mnt().join("later")).unwrap();
    f.sync_all().unwrap();
    drop(f);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    v.fails(&["umount", "MNT"], 32, &["did not end cleanly"]);
    assert!(!is_mounted(&v.mnt()));
}

#[test]
fn a_busy_mount_is_not_taken_from_its_users_unless_forced() {
    let v = Volume::made();
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    let f = OpenOptions::new().create(true).truncate(false).write(true).open(v.mnt().join("f")).unwrap();
    v.fails(&["umount", "MNT"], 32, &["in use", "--force"]);
    f.write_all_at(b"x", 0).unwrap();
    v.ok(&["umount", "--force", "MNT"]);
    assert!(f.write_all_at(b"y", 0).is_err());
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    assert_eq!(fs::read(v.mnt().join("f")).unwrap(), b"x");
    v.ok(&["umount", "MNT"]);
}

#[test]
fn a_daemon_keeps_nothing_open_that_its_user_had() {
    let v = Volume::made();
    let held = v.dir.path().join("held");
    fs::write(&held, b"").unwrap();
    let (program, image, mnt) = (env!("CARGO_BIN_EXE_dbfs"), v.image(), v.mnt());
    let line = format!(
        "exec 7<{0} 123>>{0}; {program} mount {1} {2}",
        held.display(),
        image.display(),
        mnt.display()
    );
    // In a shell that closes these before: the daemon's own pipe may get their numbers.
    for line in [line.clone(), format!("exec 0<&-; {line}")] {
        assert!(Command::new("bash").args(["-ec", &line]).status().unwrap().success());
        let status: serde_json::Value = serde_json::from_str(&v.ok(&["status", "--json", "MNT"])).unwrap();
        let descriptors = fs::read_dir(format!("/proc/{}/fd", status["pid"])).unwrap();
        let open: Vec<_> = descriptors.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).collect();
        assert!(open.contains(&image.canonicalize().unwrap()) && !open.contains(&held), "{open:?}");
        v.ok(&["umount", "MNT"]);
    }
}

#[test]
fn errors_reach_the_user_of_a_daemon() {
    let v = Volume::new();
    v.fails(&["mount", "IMAGE", "MNT"], 32, &["volume.img", "cannot find"]);
    File::create(v.image()).unwrap().set_len(64 << 20).unwrap();
    v.fails(&["mount", "IMAGE", "MNT"], 32, &["volume.img", "not a dbfs volume"]);
    v.fails(&["mount", "IMAGE", "IMAGE"], 32, &["not a directory"]);
    v.fails(&["mount", "IMAGE", "nowhere"], 32, &["nowhere"]);
    v.fails(&["mount", "-o", "ro,frobnicate", "IMAGE", "MNT"], 1, &["frobnicate"]);
    v.fails(&["mount", "IMAGE"], 1, &["DIR"]);
    v.fails(&["umount", "MNT"], 32, &["no dbfs volume is mounted"]);
    v.fails(&["mkfs", "--page-size", "5K", "IMAGE"], 1, &["5K", "16K"]);
    v.fails(&["frob"], 2, &["frob"]);
    assert!(!is_mounted(&v.mnt()));
}

#[test]
fn recording_and_other_options() {
    let v = Volume::made();
    let log = v.dir.path().join("recorded");
    let options = format!("record={},engine=pread,cache=8M,threads=2,commit=0.1,cached_opens", log.display());
    v.ok(&["mount", "-o", "LOG", "-o", &options, "IMAGE", "MNT"]);
    let before = fs::metadata(&log).unwrap().len();
    let f = File::create(v.mnt().join("f")).unwrap();
    f.write_all_at(&[7; 100_000], 0).unwrap();
    f.sync_all().unwrap();
    assert!(fs::metadata(&log).unwrap().len() >= before + 100_000);
    drop(f);
    v.ok(&["umount", "MNT"]);
}

#[test]
fn fsck_tells_good_from_bad() {
    let v = Volume::made();
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    fs::write(v.mnt().join("f"), vec![0xa5; 200_000]).unwrap();
    v.ok(&["umount", "MNT"]);
    assert!(v.ok(&["fsck", "-n", "IMAGE"]).contains("clean"));
    assert!(v.ok(&["fsck", "-n", "--data", "IMAGE"]).contains("pages of data verified"));
    let json = v.ok(&["fsck", "-n", "--json", "IMAGE"]);
    assert!(json.starts_with('{') && json.contains("\"problems\": []"), "{json}");

    // A byte of the file's data rots.
    let image = OpenOptions::new().read(true).write(true).open(v.image()).unwrap();
    let bytes = fs::read(v.image()).unwrap();
    let at = bytes.windows(4096).step_by(4096).position(|b| b.iter().all(|&b| b == 0xa5)).unwrap() * 4096;
    image.write_all_at(&[0], at as u64 + 100).unwrap();
    v.ok(&["fsck", "-n", "IMAGE"]);
    v.fails(&["fsck", "-n", "--data", "IMAGE"], 4, &["/f", "PROBLEM"]);
    let (code, json) = v.run(&["fsck", "-n", "--data", "--json", "IMAGE"]);
    assert!(code == 4 && json.contains("data-checksum"), "{json}");
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    let error = fs::read(v.mnt().join("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(v.log().contains("checksum"), "{}", v.log());
    v.ok(&["umount", "MNT"]);
}

#[test]
fn fsck_says_why_it_cannot_check() {
    let v = Volume::new();
    v.fails(&["fsck", "-n", "IMAGE"], 8, &["volume.img"]);
    File::create(v.image()).unwrap().set_len(64 << 20).unwrap();
    v.fails(&["fsck", "-n", "IMAGE"], 8, &["volume.img", "not a dbfs volume"]);
    v.fails(&["fsck", "-n", "-y", "IMAGE"], 16, &["-y"]);
    v.fails(&["fsck", "-n"], 16, &["VOLUME"]);
}

#[test]
fn a_crashed_volume_is_mounted_read_only_without_a_change() {
    let v = Volume::made();
    let mut daemon = v.foreground();
    let f = File::create(v.mnt().join("synced")).unwrap();
    f.write_all_at(b"kept", 0).unwrap();
    f.sync_all().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    drop(f);
    let before = fs::read(v.image()).unwrap();
    v.ok(&["mount", "-o", "LOG", "-o", "ro", "IMAGE", "MNT"]);
    assert_eq!(fs::read(v.mnt().join("synced")).unwrap(), b"kept");
    v.ok(&["umount", "MNT"]);
    assert!(fs::read(v.image()).unwrap() == before, "a read-only mount wrote to the volume");
}

#[test]
fn block_devices_with_small_and_large_sectors() {
    for sector in ["512", "4096"] {
        let v = Volume::new();
        File::create(v.image()).unwrap().set_len(100 << 20).unwrap();
        let device = Loop::new(&v.image(), sector);
        let dev = device.0.as_str();
        // What the kernel does when it mounts something.
        let claim = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(dev).unwrap();
        v.fails(&["mkfs", dev], 1, &[dev, "in use"]);
        v.ok(&["mkfs", "--force", dev]);
        drop(claim);
        v.fails(&["mkfs", dev], 1, &["dbfs", "--force"]);
        v.fails(&["mkfs", "--size", "64M", dev], 1, &["--size"]);
        v.ok(&["mkfs", "--force", "--page-size", "4K", dev]);
        v.ok(&["mount", "-o", "LOG", dev, "MNT"]);
        fs::write(v.mnt().join("f"), vec![3; 100_000]).unwrap();
        v.fails(&["mkfs", "--force", dev], 1, &["locked"]);
        v.ok(&["umount", "MNT"]);
        assert!(v.ok(&["fsck", "-n", "--data", dev]).contains("clean"));
        v.ok(&["mount", "-o", "LOG", dev, "MNT"]);
        assert_eq!(fs::read(v.mnt().join("f")).unwrap(), vec![3; 100_000]);
        v.ok(&["umount", "MNT"]);
    }
}

#[test]
fn looking_into_a_volume() {
    let v = Volume::new();
    v.ok(&["mkfs", "--size", "64M", "--page-size", "8K", "--label", "orders", "IMAGE"]);
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    fs::write(v.mnt().join("table"), vec![1; 50_000]).unwrap();
    let ino = fs::metadata(v.mnt().join("table")).unwrap().ino().to_string();
    for what in ["IMAGE", "MNT"] {
        let info = v.ok(&["info", what]);
        assert!(info.contains("orders") && info.contains("mounted_on"), "{info}");
        let info: serde_json::Value = serde_json::from_str(&v.ok(&["info", "--json", what])).unwrap();
        assert_eq!((&info["page_size"], &info["read_only"]), (&8192.into(), &false.into()), "{info}");
        assert!(info["free_bytes"].as_u64().unwrap() < info["size_bytes"].as_u64().unwrap(), "{info}");
    }
    v.ok(&["umount", "MNT"]);

    let info = v.ok(&["info", "IMAGE"]);
    assert!(info.contains("orders") && info.contains("8192"), "{info}");
    assert!(v.ok(&["info", "--json", "IMAGE"]).contains("\"label\": \"orders\""));
    assert!(v.ok(&["dump", "IMAGE", "superblock"]).contains("orders"));
    assert!(v.ok(&["dump", "IMAGE", "inode", &ino]).contains("50000"));
    assert!(v.ok(&["dump", "IMAGE", "inode", "1"]).contains("table"));
    assert!(v.ok(&["dump", "IMAGE", "tree"]).contains("levels"));
    for what in ["slots", "journal", "bitmap"] {
        assert!(!v.ok(&["dump", "IMAGE", what]).is_empty(), "{what}");
        assert!(v.ok(&["dump", "--json", "IMAGE", what]).starts_with('{'), "{what}");
    }
    v.fails(&["dump", "IMAGE", "inode", "999999"], 1, &["volume.img"]);
    v.fails(&["dump", "IMAGE", "inode", "x"], 2, &["x"]);
    let tree: serde_json::Value = serde_json::from_str(&v.ok(&["dump", "--json", "IMAGE", "tree"])).unwrap();
    let entries = tree["entries"].as_array().unwrap();
    assert!(entries.iter().any(|e| e["node"].is_u64()) && entries.iter().any(|e| e["ino"] == 1), "{tree}");
}
