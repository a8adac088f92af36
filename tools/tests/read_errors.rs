//! A device that fails reads: the image file of the volume lies on another dbfs, where pages of it rot,
//! so that reading them gives EIO until they are mended.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

mod common;

use common::{Volume, is_mounted};

const BLOCK: usize = 4096;

/// A volume (inner) in a file on a mounted volume (outer).
struct Nested {
    outer: Volume,
    /// The bytes of the inner one.
    image: Vec<u8>,
}

impl Nested {
    /// With a file `d/f` on the inner one.
    fn new() -> Self {
        let outer = Volume::new();
        outer.ok(&["mkfs", "--size", "128M", "--page-size", "4K", "IMAGE"]);
        fs::create_dir(outer.dir.path().join("inner")).unwrap();
        let mut nested = Self { outer, image: Vec::new() };
        nested.mount_outer();
        nested.ok(&["mkfs", "--size", "64M", "INNER"]);
        nested.mount_inner();
        fs::create_dir(nested.inner_mnt().join("d")).unwrap();
        fs::write(nested.inner_mnt().join("d/f"), vec![7; 100_000]).unwrap();
        nested.umount_inner();
        nested.image = fs::read(nested.inner()).unwrap();
        nested
    }

    fn inner(&self) -> PathBuf {
        self.outer.mnt().join("inner.img")
    }

    fn inner_mnt(&self) -> PathBuf {
        self.outer.dir.path().join("inner")
    }

    fn mount_outer(&self) {
        self.outer.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    }

    fn mount_inner(&self) {
        let options = format!("log={}", self.outer.dir.path().join("inner.log").display());
        self.ok(&["mount", "-o", &options, "INNER", self.inner_mnt().to_str().unwrap()]);
    }

    fn umount_inner(&self) {
        self.ok(&["umount", self.inner_mnt().to_str().unwrap()]);
    }

    fn inner_log(&self) -> String {
        fs::read_to_string(self.outer.dir.path().join("inner.log")).unwrap()
    }

    /// The command on the inner volume: exit code and output.
    fn run(&self, args: &[&str]) -> (i32, String) {
        let inner = self.inner();
        let place =
            |a: &&str| if *a == "INNER" { inner.to_str().unwrap().to_owned() } else { (*a).to_owned() };
        let args: Vec<String> = args.iter().map(place).collect();
        self.outer.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn ok(&self, args: &[&str]) -> String {
        let (code, text) = self.run(args);
        assert_eq!(code, 0, "{args:?}: {text}\n{}", self.outer.log());
        text
    }

    fn fails(&self, args: &[&str], wanted: i32, words: &[&str]) {
        let (code, text) = self.run(args);
        assert_eq!(code, wanted, "{args:?}: {text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is missing in: {text}"));
    }

    /// Turns the bits of a byte of the inner volume's `block` on the outer device: the block cannot be
    /// read; once more, and it can.
    fn turn(&self, block: usize) {
        self.outer.ok(&["umount", "MNT"]);
        let bytes = fs::read(self.outer.image()).unwrap();
        let wanted = &self.image[block * BLOCK..][..BLOCK];
        let same = |b: &&[u8]| b[..100] == wanted[..100] && b[101..] == wanted[101..];
        let found: Vec<usize> =
            bytes.chunks_exact(BLOCK).enumerate().filter(|(_, b)| same(b)).map(|(i, _)| i).collect();
        assert_eq!(found.len(), 1, "block {block} lies at {found:?}");
        let at = found[0] * BLOCK + 100;
        let device = OpenOptions::new().write(true).open(self.outer.image()).unwrap();
        device.write_all_at(&[!bytes[at]], at as u64).unwrap();
        self.mount_outer();
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        if is_mounted(&self.inner_mnt()) {
            let _ = self.outer.command(&["umount", "--force", self.inner_mnt().to_str().unwrap()]).status();
        }
    }
}

#[test]
fn what_cannot_be_read_is_not_repaired_away() {
    let nested = Nested::new();
    let starts = |magic: &[u8]| nested.image.chunks(BLOCK).rposition(|b| b.starts_with(magic)).unwrap();
    nested.turn(starts(b"dbfsnode"));
    assert!(fs::read(nested.inner()).is_err());
    let what_to_do = ["FAILED 1 READ", "ddrescue", "offset"];
    nested.fails(&["fsck", "-n", "INNER"], 8, &what_to_do);
    for options in [&["fsck", "-y"][..], &["fsck", "-p"], &["fsck", "-y", "--data"]] {
        nested.fails(
            &[options, &["INNER"]].concat(),
            8,
            &["FAILED 1 READ", "ddrescue", "nothing is repaired"],
        );
    }
    let (code, json) = nested.run(&["fsck", "-y", "--json", "INNER"]);
    assert!(code == 8 && json.contains("\"read_errors\": 1"), "{json}");
    nested.turn(starts(b"dbfsnode"));
    assert!(fs::read(nested.inner()).unwrap() == nested.image, "not a byte was written");
    assert!(nested.ok(&["fsck", "-y", "--data", "INNER"]).contains("clean"));
    assert_eq!(nested.ok(&["cat", "INNER", "/d/f"]).as_bytes(), vec![7; 100_000]);
}

#[test]
fn another_copy_of_the_superblock_stands_in_for_one_that_cannot_be_read() {
    let nested = Nested::new();
    nested.turn(0);
    let commands: [&[&str]; 8] = [
        &["info", "INNER"],
        &["dump", "INNER", "superblock"],
        &["dump", "INNER", "slots"],
        &["dump", "INNER", "tree"],
        &["ls", "INNER"],
        &["tree", "INNER"],
        &["stat", "INNER", "/d/f"],
        &["cat", "INNER", "/d/f"],
    ];
    for command in commands {
        let said = nested.ok(command);
        assert!(said.contains("warning: the copy of the superblock at block 0"), "{command:?}: {said}");
    }
    nested.mount_inner();
    assert_eq!(fs::read(nested.inner_mnt().join("d/f")).unwrap(), vec![7; 100_000]);
    nested.umount_inner();
    let log = nested.inner_log();
    assert!(log.contains("a copy of the superblock is damaged or cannot be read"), "{log}");
    // A repair would write the copy again.
    nested.fails(&["fsck", "-n", "INNER"], 8, &["superblock", "FAILED 1 READ"]);
    nested.fails(&["fsck", "-p", "INNER"], 8, &["nothing is repaired"]);
    nested.turn(0);
    assert!(nested.ok(&["fsck", "-n", "--data", "INNER"]).contains("clean"));
}
