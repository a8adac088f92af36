//! `dbfs fsck` repairs an image file.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

mod common;

use common::Volume;

const BLOCK: usize = 4096;

/// An image with a file, not mounted. Needs root and /dev/fuse.
fn with_a_file() -> Volume {
    let v = Volume::made();
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    fs::create_dir(v.mnt().join("d")).unwrap();
    fs::write(v.mnt().join("d/f"), vec![7; 100_000]).unwrap();
    v.ok(&["umount", "MNT"]);
    v
}

/// Blocks of the image that begin with `magic`.
fn blocks_with(v: &Volume, magic: &[u8]) -> Vec<u64> {
    let bytes = fs::read(v.image()).unwrap();
    let starts = bytes.chunks(BLOCK).enumerate().filter(|(_, b)| b.starts_with(magic));
    starts.map(|(i, _)| i as u64 * BLOCK as u64).collect()
}

fn zero(v: &Volume, at: u64) {
    let file = OpenOptions::new().write(true).open(v.image()).unwrap();
    file.write_all_at(&[0; BLOCK], at).unwrap();
}

#[test]
fn a_damaged_copy_of_the_superblock_is_safe_to_repair() {
    let v = with_a_file();
    zero(&v, 8 * BLOCK as u64);
    v.fails(&["fsck", "-n", "IMAGE"], 4, &["superblock", "PROBLEM"]);
    // Nobody can be asked: as with -n.
    v.fails(&["fsck", "IMAGE"], 4, &["no terminal", "PROBLEM"]);
    v.fails(&["fsck", "-p", "IMAGE"], 1, &["repaired", "nothing is lost"]);
    assert!(v.ok(&["fsck", "-n", "--data", "IMAGE"]).contains("clean"));
    assert!(v.ok(&["fsck", "-y", "--data", "IMAGE"]).contains("clean"));
}

#[test]
fn lost_nodes_are_repaired_only_when_that_is_wanted() {
    let v = with_a_file();
    let nodes = blocks_with(&v, b"dbfsnode");
    assert!(!nodes.is_empty());
    nodes.iter().for_each(|at| zero(&v, *at));
    let before = fs::read(v.image()).unwrap();
    v.fails(&["fsck", "-n", "IMAGE"], 4, &["tree node"]);
    v.fails(&["fsck", "-p", "IMAGE"], 4, &["NOT REPAIRED, nothing was written"]);
    assert!(before == fs::read(v.image()).unwrap(), "nothing was agreed to");
    let (code, json) = v.run(&["fsck", "-y", "--json", "IMAGE"]);
    assert_eq!(code, 1, "{json}");
    let start = json.find('{').unwrap();
    assert!(json[start..].contains("\"written\": true") && json.contains("\"damaged\""), "{json}");
    assert!(v.ok(&["fsck", "-n", "--data", "IMAGE"]).contains("clean"));
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    File::create(v.mnt().join("new")).unwrap();
    v.ok(&["umount", "MNT"]);
}
