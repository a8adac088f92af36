//! `dbfs scrub` verifies a mounted volume. Needs root and /dev/fuse.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};

mod common;

use common::Volume;

#[test]
fn a_scrub_finds_rotten_data_by_path() {
    let v = Volume::made();
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    fs::create_dir(v.mnt().join("d")).unwrap();
    fs::write(v.mnt().join("d/good"), vec![1; 300_000]).unwrap();
    let pattern = *b"this is the data that will rot..";
    fs::write(v.mnt().join("d/rotten"), pattern.repeat(4096)).unwrap();
    v.ok(&["umount", "MNT"]);
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    assert!(v.ok(&["scrub", "MNT"]).contains("clean"));
    let bytes = fs::read(v.image()).unwrap();
    let at = bytes.windows(pattern.len()).position(|w| w == pattern).unwrap();
    let file = OpenOptions::new().write(true).open(v.image()).unwrap();
    file.write_all_at(b"T", at as u64).unwrap();
    v.fails(&["scrub", "--rate", "1000", "MNT"], 4, &["d/rotten", "checksum mismatch", "PROBLEM"]);
    v.fails(&["scrub", "--json", "MNT"], 4, &["\"complete\": true", "d/rotten"]);
    v.ok(&["umount", "MNT"]);
}

#[test]
fn a_scrub_needs_a_mount_and_the_socket_is_private() {
    let v = Volume::made();
    v.fails(&["scrub", "MNT"], 8, &["no dbfs volume is mounted"]);
    let info = v.ok(&["info", "--json", "IMAGE"]);
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    let uuid = info.split("\"uuid\": \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let socket = format!("/run/dbfs/{uuid}.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    v.ok(&["umount", "MNT"]);
    assert!(!std::path::Path::new(&socket).exists());
}
