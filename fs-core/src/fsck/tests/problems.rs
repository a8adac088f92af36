//! Each kind of problem with items, names, mappings and blocks, made by hand, is found.

use super::full_check;
use super::rig::{Rig, expect};
use crate::api::{FileType, FsOps, XattrFlags};
use crate::file::{ORPHAN_DELETE, ORPHAN_TRUNCATE};
use crate::format::dirent::NameEntry;
use crate::format::xattr::{encode_xattr, xattr_hash, xattr_key};
use crate::format::{Change, ItemKind, Key, MappedRun};
use crate::fsck::ProblemKind;
use crate::types::{BlockNr, BlockRun, Ino, PageNr};

fn orphan_key(ino: Ino) -> Key {
    Key::new(Ino::SYSTEM, ItemKind::Orphan, ino.0)
}

#[test]
fn the_rig_itself_is_clean() {
    let rig = Rig::new();
    assert_eq!(rig.problems(), []);
    rig.v.checkpoint().unwrap();
    assert_eq!(rig.problems(), []);
}

#[test]
fn items_that_are_none_of_their_kind() {
    for kind in [ItemKind::Inode, ItemKind::DirEntry] {
        let rig = Rig::new();
        rig.put(Key::new(rig.file, kind, 0), vec![1, 2, 3]);
        rig.expect(ProblemKind::Item, "impossible values");
    }
    let rig = Rig::new();
    rig.put(Key::new(rig.link, ItemKind::Symlink, 0), b"a\0b".to_vec());
    rig.expect(ProblemKind::Item, "not a part of the target");
    for kind in [ItemKind::RefCount, ItemKind::Snapshot] {
        let rig = Rig::new();
        rig.put(Key::new(Ino::SYSTEM, kind, 0), vec![1]);
        rig.expect(ProblemKind::Item, &format!("{kind:?} item"));
    }
    let rig = Rig::new();
    rig.put(orphan_key(rig.file), vec![77]);
    rig.expect(ProblemKind::Item, "unknown reason");
    let rig = Rig::new();
    rig.put(Key::new(Ino::SYSTEM, ItemKind::Inode, 0), vec![1]);
    rig.expect(ProblemKind::Item, "does not belong there");
    let rig = Rig::new();
    rig.put(Key::new(rig.file, ItemKind::Map, 0), vec![1]);
    expect(&rig.problems(), ProblemKind::Item, "only a checkpoint");
    let rig = Rig::new();
    rig.put(Key::new(rig.file, ItemKind::Map, 1000), vec![1, 9]);
    expect(&rig.problems(), ProblemKind::Item, "only a checkpoint");
    let rig = Rig::new();
    rig.put(Key::new(Ino::SYSTEM, ItemKind::Bitmap, 0), vec![1]);
    expect(&rig.problems(), ProblemKind::Item, "only a checkpoint");
}

#[test]
fn extended_attributes_that_are_not_whole() {
    let name = b"user.long";
    let with_attribute = || {
        let rig = Rig::new();
        rig.v.setxattr(rig.file, name, &[7; 10_000], XattrFlags::default()).unwrap();
        assert_eq!(rig.problems(), []);
        let hash = xattr_hash(&rig.v.superblock().hash_key, name);
        (rig, hash)
    };
    let (rig, hash) = with_attribute();
    rig.edit_inode(rig.file, |i| i.xattr_list += 1);
    rig.expect(ProblemKind::Inode, "take 10 bytes, its inode says 11");
    rig.put(xattr_key(rig.file, hash, 0), vec![1, 2, 3]);
    expect(&rig.problems(), ProblemKind::Item, "with impossible values");
    let (rig, hash) = with_attribute();
    rig.apply(vec![Change::DelItem { key: xattr_key(rig.file, hash, 1) }]);
    rig.expect(ProblemKind::Item, "without what comes before it");
    let (rig, hash) = with_attribute();
    rig.apply(vec![Change::DelItem { key: xattr_key(rig.file, hash, 2) }]);
    rig.expect(ProblemKind::Inode, "ends too early");
    let (rig, hash) = with_attribute();
    rig.put(xattr_key(rig.file, hash, 2), vec![7; 12]);
    rig.expect(ProblemKind::Item, "a wrong length");
    let (rig, hash) = with_attribute();
    rig.put(xattr_key(rig.file, hash - 1, 0), encode_xattr(b"user.other", b"x").remove(0));
    expect(&rig.problems(), ProblemKind::Item, "under a wrong hash");
    let (rig, _) = with_attribute();
    rig.apply(vec![Change::DelItem { key: Key::new(rig.file, ItemKind::Inode, 0) }]);
    expect(&rig.problems(), ProblemKind::NoInode, "no inode");
}

#[test]
fn attributes_that_contradict_the_items() {
    let rig = Rig::new();
    rig.edit_inode(rig.dir, |i| i.size += 1);
    rig.expect(ProblemKind::Inode, "/d: it has 4 entries, its size says 5");
    let rig = Rig::new();
    rig.edit_inode(rig.file, |i| i.blocks += 1);
    rig.expect(ProblemKind::Inode, "/d/f: it has 20 blocks, its inode says 21");
    let rig = Rig::new();
    rig.edit_inode(rig.link, |i| i.size = 9);
    rig.expect(ProblemKind::Inode, "its target has 1 bytes");
    let rig = Rig::new();
    rig.apply(vec![Change::DelItem { key: Key::new(rig.link, ItemKind::Symlink, 0) }]);
    rig.expect(ProblemKind::Inode, "without a target");
    let rig = Rig::new();
    rig.put(Key::new(rig.file, ItemKind::Symlink, 0), b"x".to_vec());
    rig.expect(ProblemKind::Inode, "it has a target");
    let rig = Rig::new();
    rig.edit_inode(rig.file, |i| i.size = u64::MAX);
    rig.expect(ProblemKind::Inode, "its size is");
    let rig = Rig::new();
    rig.edit_inode(rig.dir, |i| i.kind = FileType::Regular);
    rig.expect(ProblemKind::Inode, "it has directory entries");
    let rig = Rig::new();
    rig.edit_inode(Ino::ROOT, |i| i.kind = FileType::Regular);
    rig.expect(ProblemKind::Inode, "root is not a directory");
}

#[test]
fn inodes_that_are_missing_or_were_never_given_out() {
    let rig = Rig::new();
    rig.apply(vec![Change::DelItem { key: Key::new(rig.file, ItemKind::Inode, 0) }]);
    rig.expect(ProblemKind::NoInode, "but no inode");
    rig.expect(ProblemKind::Name, "/d/f: a name leads to inode");
    rig.expect(ProblemKind::Count, "inodes, the volume says");
    let rig = Rig::new();
    rig.apply(vec![Change::Inline { ino: Ino(9000), offset: 0, data: vec![1] }]);
    expect(&rig.problems(), ProblemKind::NoInode, "the journal has data");
    let rig = Rig::new();
    let key = Key::new(rig.file, ItemKind::Inode, 0);
    let value = rig.v.meta.item(&key).unwrap().unwrap().to_vec();
    rig.put(Key::new(Ino(5), ItemKind::Inode, 0), value);
    rig.expect(ProblemKind::Count, "never given out");
    let rig = Rig::new();
    rig.apply(vec![Change::DelItem { key: Key::new(Ino::ROOT, ItemKind::Inode, 0) }]);
    rig.expect(ProblemKind::Directory, "no root directory");
}

#[test]
fn names_that_are_wrong() {
    let rig = Rig::new();
    let key = rig.name_key(rig.dir, b"f");
    let value = rig.v.meta.item(&key).unwrap().unwrap().to_vec();
    rig.apply(vec![
        Change::DelItem { key },
        Change::PutItem { key: Key { offset: key.offset + 1, ..key }, value },
    ]);
    rig.expect(ProblemKind::Name, "\"f\" in it is under a wrong hash");
    let rig = Rig::new();
    let twin = NameEntry { ino: rig.other, kind: FileType::Regular, slot: 0, name: b"zz".to_vec() };
    rig.edit_bucket(rig.dir, b"f", |b| b.push(twin));
    rig.expect(ProblemKind::Name, "slot of another name");
    let rig = Rig::new();
    rig.edit_bucket(rig.dir, b"f", |b| b.push(NameEntry { slot: 1, ..b[0].clone() }));
    rig.expect(ProblemKind::Name, "is there twice");
    let rig = Rig::new();
    rig.edit_bucket(rig.dir, b"f", |b| b[0].kind = FileType::Fifo);
    rig.expect(ProblemKind::Name, "/d/f: it is a Regular, a name says Some(Fifo)");
    let rig = Rig::new();
    rig.edit_bucket(rig.dir, b"f", |b| b[0].ino = Ino(4711));
    rig.expect(ProblemKind::Name, "/d/f: a name leads to inode 4711");
    rig.expect(ProblemKind::LinkCount, "it has 0 names");
}

#[test]
fn numbers_of_links_that_are_wrong() {
    let rig = Rig::new();
    rig.edit_inode(rig.file, |i| i.nlink = 2);
    rig.expect(ProblemKind::LinkCount, "/d/f: it has 1 names, its number of links is 2");
    let rig = Rig::new();
    rig.edit_inode(rig.dir, |i| i.nlink = 7);
    rig.expect(ProblemKind::LinkCount, "/d: it has 1 subdirectories, its number of links is 7");
}

#[test]
fn directories_in_the_wrong_place() {
    let rig = Rig::new();
    rig.edit_inode(rig.sub, |i| i.parent = Ino::ROOT);
    rig.expect(ProblemKind::Directory, "/d/s: it is in directory");
    let rig = Rig::new();
    rig.edit_bucket(rig.dir, b"s", |b| b.clear());
    rig.expect(ProblemKind::Directory, "the directory has no name");
    rig.expect(ProblemKind::Directory, "cannot be reached from the root");
    let rig = Rig::new();
    let (sub, kind) = (rig.sub, FileType::Directory);
    rig.edit_bucket(rig.dir, b"again", |b| {
        b.push(NameEntry { ino: sub, kind, slot: 0, name: b"again".to_vec() });
    });
    rig.expect(ProblemKind::Directory, "the directory has 2 names");
    // A loop: s is moved into t, which is in s.
    let rig = Rig::new();
    rig.edit_bucket(rig.dir, b"s", |b| b.clear());
    let sub = rig.sub;
    rig.edit_bucket(rig.inner, b"s", |b| b.push(NameEntry { ino: sub, kind, slot: 0, name: b"s".to_vec() }));
    let inner = rig.inner;
    rig.edit_inode(rig.sub, |i| i.parent = inner);
    rig.expect(ProblemKind::Directory, "cannot be reached from the root");
    let rig = Rig::new();
    rig.edit_inode(Ino::ROOT, |i| i.parent = Ino(99));
    rig.expect(ProblemKind::Directory, "the root's parent");
    let rig = Rig::new();
    rig.edit_bucket(rig.dir, b"r", |b| {
        b.push(NameEntry { ino: Ino::ROOT, kind, slot: 0, name: b"r".to_vec() });
    });
    rig.expect(ProblemKind::Directory, "the root directory has a name");
    let rig = Rig::new();
    rig.edit_inode(rig.inner, |i| i.nlink = 0);
    rig.expect(ProblemKind::LinkCount, "a deleted directory has a name");
}

#[test]
fn orphans_that_should_or_should_not_be() {
    let rig = Rig::new();
    rig.edit_bucket(rig.dir, b"f", |b| b.clear());
    rig.edit_inode(rig.file, |i| i.nlink = 0);
    rig.expect(ProblemKind::Orphan, "it will never be deleted");
    let rig = Rig::new();
    rig.put(orphan_key(rig.file), vec![ORPHAN_DELETE]);
    rig.expect(ProblemKind::Orphan, "/d/f: on the list of inodes to delete");
    let rig = Rig::new();
    rig.put(orphan_key(Ino(5000)), vec![ORPHAN_DELETE]);
    rig.expect(ProblemKind::Orphan, "there is no such inode");
    let rig = Rig::new();
    rig.put(orphan_key(rig.dir), vec![ORPHAN_TRUNCATE]);
    rig.expect(ProblemKind::Orphan, "no regular file");
}

#[test]
fn mappings_that_must_not_be() {
    let rig = Rig::new();
    rig.edit_inode(rig.file, |i| i.size = 16384);
    rig.expect(ProblemKind::Mapping, "/d/f: page 4 has data");
    // While a truncation is under way that is right.
    let rig = Rig::new();
    rig.edit_inode(rig.file, |i| i.size = 16384);
    rig.put(orphan_key(rig.file), vec![ORPHAN_TRUNCATE]);
    assert_eq!(rig.problems(), []);
    let rig = Rig::new();
    let from = rig.blocks(rig.file, 4).start;
    rig.map(rig.dir, 0, from);
    rig.expect(ProblemKind::Mapping, "/d: it has 4 blocks of data");
    let rig = Rig::new();
    rig.map(rig.file, 1 << 58, from);
    expect(&rig.problems(), ProblemKind::Item, "largest file");
}

#[test]
fn blocks_outside_of_the_data_area() {
    let last = (64 << 20) / 4096 - 4;
    for block in [1, 20, last] {
        let rig = Rig::new();
        rig.map(rig.file, 9, BlockNr(block));
        rig.expect(ProblemKind::OutOfRange, "outside of the data area");
    }
    let rig = Rig::new();
    rig.apply(vec![Change::Free { run: BlockRun::new(BlockNr(8), 1) }]);
    expect(&rig.problems(), ProblemKind::OutOfRange, "the journal names 1 blocks");
}

#[test]
fn blocks_used_twice() {
    let rig = Rig::new();
    let same = rig.blocks(rig.file, 0).start;
    rig.map(rig.other, 50, same);
    rig.expect(ProblemKind::DoubleUse, "page 50 of inode");
    let notes = full_check(&rig.device).notes;
    let users = format!("used by page 0 of inode {}, page 50 of inode {}", rig.file, rig.other);
    assert!(notes.iter().any(|n| n.ends_with(&users)), "{notes:?}");
    let rig = Rig::new();
    let node = rig.v.meta.frozen().1.root.ptr.unwrap().addr;
    rig.map(rig.other, 50, node);
    expect(&rig.problems(), ProblemKind::DoubleUse, "something else uses too");
    let rig = Rig::new();
    let segment =
        crate::volume::recover(rig.device.as_ref()).unwrap().slot.journal.pop().unwrap().segments[9];
    rig.map(rig.other, 50, segment);
    expect(&rig.problems(), ProblemKind::DoubleUse, "/d/g");
    expect(&rig.problems(), ProblemKind::Leak, "of the journal or the pending list are marked used");
}

#[test]
fn blocks_that_the_bitmaps_show_wrongly() {
    let rig = Rig::new();
    let run = rig.blocks(rig.file, 1).run();
    rig.apply(vec![Change::Free { run }]);
    rig.expect(ProblemKind::MarkedFree, "in use, but marked free");
    let rig = Rig::new();
    rig.apply(vec![Change::Unmap { ino: rig.file, page: PageNr(1), pages: 1 }]);
    rig.edit_inode(rig.file, |i| i.blocks -= 4);
    rig.expect(ProblemKind::Leak, "marked used, but not in use");
    assert_eq!(rig.problems().len(), 1, "{:?}", rig.problems());
    // A run that is freed twice makes the count wrong.
    let rig = Rig::new();
    let run = rig.blocks(rig.file, 1).run();
    rig.apply(vec![
        Change::Unmap { ino: rig.file, page: PageNr(1), pages: 1 },
        Change::Free { run },
        Change::Free { run },
    ]);
    rig.edit_inode(rig.file, |i| i.blocks -= 4);
    rig.expect(ProblemKind::Count, "blocks are free by the bitmaps");
}

#[test]
fn data_outside_of_what_its_epoch_has_reserved() {
    let rig = Rig::new();
    let last_group = (64 << 20) / 4096 - 512;
    rig.map(rig.file, 9, BlockNr(last_group));
    expect(&rig.problems(), ProblemKind::Reservation, "/d/f: page 9 is in blocks");
}

#[test]
fn blocks_used_many_times_over_end_the_check() {
    let rig = Rig::new();
    let start = rig.v.superblock.first_data_block;
    let pages = 3000;
    for i in 0..10 {
        let run = MappedRun { start, pages, last_blocks: 4, crcs: None };
        let page = PageNr(10_000 + i * u64::from(pages));
        rig.apply(vec![Change::MapRun { ino: rig.file, page, run }]);
    }
    expect(&rig.problems(), ProblemKind::DoubleUse, "many times over");
}
