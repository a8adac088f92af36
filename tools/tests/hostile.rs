//! Looking into volumes that were made to harm: their checksums are right, what they say is not.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use fs_core::api::FileType;
use fs_core::format::dirent::{NameEntry, encode_bucket, name_hash};
use fs_core::format::record::{RecordPlace, encode_record};
use fs_core::format::{Change, ItemKind, Key, Superblock};
use fs_core::{BlockNr, Epoch, Ino, Lsn};

mod common;

use common::Volume;

const BLOCK: usize = fs_core::BLOCK_SIZE;

/// A volume whose directory `a/b` has these names, whatever they lead to.
fn volume_with_names(names: impl Fn(&Path) -> Vec<(Ino, FileType)>, name: &[u8]) -> Volume {
    let v = Volume::made();
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    fs::create_dir_all(v.mnt().join("a/b")).unwrap();
    let dir = ino(&v.mnt().join("a/b"));
    let targets = names(&v.mnt());
    v.ok(&["umount", "MNT"]);
    let entry = |(slot, (ino, kind))| NameEntry { ino, kind, slot, name: name.to_vec() };
    let entries: Vec<NameEntry> = (0..).zip(targets).map(entry).collect();
    let sb = superblock(&v.image());
    let key = Key::new(dir, ItemKind::DirEntry, name_hash(&sb.hash_key, name));
    forge(&v, &Change::PutItem { key, value: encode_bucket(&entries) });
    v
}

fn ino(path: &Path) -> Ino {
    Ino(fs::symlink_metadata(path).unwrap().ino())
}

fn superblock(image: &Path) -> Superblock {
    let mut bytes = vec![0; BLOCK];
    File::open(image).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    Superblock::decode(&bytes, BlockNr(0)).unwrap()
}

/// Puts a record with this change where the journal goes on.
fn forge(v: &Volume, change: &Change) {
    let dump: serde_json::Value =
        serde_json::from_str(&v.ok(&["dump", "--json", "IMAGE", "journal"])).unwrap();
    let place = &dump["journals"].as_array().unwrap().last().unwrap()["place"];
    let number = |field: &str| place[field].as_u64().unwrap();
    let segments = place["segments"].as_str().unwrap();
    let segment: u64 = segments.split(' ').nth(number("segment") as usize).unwrap().parse().unwrap();
    let lsn = Lsn(number("after_record") + 1);
    let record = RecordPlace {
        addr: BlockNr(segment + number("segment_block")),
        epoch: Epoch(number("epoch")),
        lsn,
        durable_lsn: lsn,
        prev_crc: u32::from_str_radix(place["after_crc"].as_str().unwrap(), 16).unwrap(),
        inodes: 10,
        node_id: 0,
    };
    let mut payload = Vec::new();
    change.encode(&mut payload);
    let (bytes, _) = encode_record(&superblock(&v.image()).uuid, &record, &payload, 1);
    let image = File::options().write(true).open(v.image()).unwrap();
    image.write_all_at(&bytes, record.addr.offset()).unwrap();
}

#[test]
fn a_loop_of_directories_ends() {
    let v = volume_with_names(|mnt| vec![(ino(&mnt.join("a")), FileType::Directory)], b"again");
    assert!(v.ok(&["ls", "IMAGE", "a/b/again/b"]).contains("again"), "the forgery was not believed");
    v.fails(&["tree", "IMAGE"], 1, &["/a/b/again: this directory was met before", "fsck"]);
    let out = v.dir.path().join("out");
    v.fails(
        &["cp", "-a", "IMAGE", "/", out.to_str().unwrap()],
        1,
        &["/a/b/again: this directory was met before"],
    );
    assert!(!out.join("a/b/again/b").exists());
}

#[test]
fn two_files_of_one_name_cannot_lead_a_copy_elsewhere() {
    let outside = tempfile::tempdir().unwrap();
    let v = volume_with_names(
        |mnt| {
            symlink(outside.path(), mnt.join("link")).unwrap();
            fs::create_dir(mnt.join("dir")).unwrap();
            fs::write(mnt.join("dir/planted"), b"x").unwrap();
            vec![(ino(&mnt.join("link")), FileType::Symlink), (ino(&mnt.join("dir")), FileType::Directory)]
        },
        b"x",
    );
    assert_eq!(v.ok(&["ls", "IMAGE", "a/b"]), "x\nx\n");
    let out = v.dir.path().join("out");
    v.fails(&["cp", "-a", "IMAGE", "a", out.to_str().unwrap()], 1, &["a/b/x", "cannot write"]);
    assert!(out.join("b/x").is_symlink());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}
