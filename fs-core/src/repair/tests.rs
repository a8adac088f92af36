//! Each kind of problem, made by hand, is repaired; what is lost is named.

use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};

use super::{Class, RepairOptions, RepairReport, plan};
use crate::api::{FileType, FsOps, IoFlags};
use crate::env::SystemEnv;
use crate::format::dirent::NameEntry;
use crate::format::{Change, ItemKind, Key, RootSlot, Superblock};
use crate::fsck::tests::rig::{Rig, edit_slot, flip, write};
use crate::fsck::{CheckOptions, ProblemKind, check};
use crate::types::{BLOCK_SIZE, BlockNr, Epoch, Ino};
use crate::volume::{MountOptions, Volume, recover};

fn is_clean(device: &Arc<dyn BlockDevice>) -> bool {
    check(device, &CheckOptions { data: true, progress: None }).unwrap().is_clean()
}

/// Repairs a copy of the rig's volume that `damage` has changed.
fn repaired(rig: &Rig, damage: impl FnOnce(&Arc<dyn BlockDevice>)) -> (RamDevice, RepairReport) {
    rig.v.commit().unwrap();
    let ram = rig.ram.snapshot();
    let device: Arc<dyn BlockDevice> = Arc::new(ram.clone());
    damage(&device);
    let planned = plan(&device, &RepairOptions { data: true, progress: None }, &SystemEnv).unwrap();
    let report = planned.report().clone();
    assert!(planned.is_good(), "{report:#?}");
    planned.execute(device.as_ref()).unwrap();
    assert!(is_clean(&device), "{report:#?}");
    (ram, report)
}

fn mounted(ram: &RamDevice) -> Arc<Volume> {
    let options = MountOptions { cache_bytes: 4 << 20, ..MountOptions::default() };
    Volume::mount(Arc::new(ram.clone()), options, Arc::new(SystemEnv)).unwrap()
}

fn read(v: &Volume, ino: Ino, len: usize) -> Vec<u8> {
    let mut buf = vec![1; len];
    let n = v.read(ino, 0, &mut buf, IoFlags::default()).unwrap();
    buf.truncate(n);
    buf
}

/// The rig's files are as it made them.
fn assert_whole(rig: &Rig, ram: &RamDevice) {
    let v = mounted(ram);
    assert_eq!(read(&v, rig.file, 5 * 16384), [7; 5 * 16384]);
    assert_eq!(read(&v, rig.other, 10_000), [8; 10_000]);
    assert_eq!(v.readlink(rig.link).unwrap(), b"f");
    assert_eq!(v.lookup(rig.sub, b"t").unwrap().ino, rig.inner);
    assert_eq!(v.getattr(rig.sub).unwrap().nlink, 3);
}

#[test]
fn a_good_volume_stays_as_it_is() {
    let rig = Rig::new();
    let (ram, report) = repaired(&rig, |_| {});
    assert_eq!((report.actions, report.damaged), (Vec::new(), Vec::new()));
    assert_whole(&rig, &ram);
}

#[test]
fn counters_and_bitmaps_are_safe_to_repair() {
    let rig = Rig::new();
    rig.edit_inode(rig.file, |i| (i.nlink, i.blocks) = (7, 1000));
    rig.edit_inode(rig.sub, |i| (i.nlink, i.size) = (9, 5));
    rig.v.meta.apply(vec![Change::Free { run: rig.blocks(rig.file, 1).run() }], 0).unwrap();
    let (ram, report) = repaired(&rig, |device| {
        edit_slot(device.as_ref(), |slot| (slot.free_blocks, slot.inodes) = (17, 99));
        write(device.as_ref(), Superblock::copies(16384)[1], &[3; BLOCK_SIZE]);
    });
    let classes = report.classes();
    assert!(classes.keys().all(|c| c.is_safe()), "{report:#?}");
    assert!(classes.contains_key(&Class::Counters) && classes.contains_key(&Class::Superblock));
    assert_eq!(report.damaged, []);
    assert_whole(&rig, &ram);
}

#[test]
fn names_that_lead_nowhere_go_and_files_without_a_name_are_found() {
    let rig = Rig::new();
    let entry = |ino, name: &[u8]| NameEntry { ino, kind: FileType::Regular, slot: 9, name: name.to_vec() };
    rig.edit_bucket(rig.dir, b"ghost", |all| all.push(entry(Ino(4000), b"ghost")));
    rig.edit_bucket(rig.dir, b"f", Vec::clear);
    let (ram, report) = repaired(&rig, |_| {});
    assert!(report.names(4000) && report.names(rig.file.0), "{report:#?}");
    let ghost = report.damaged.iter().find(|d| d.ino == 4000).unwrap();
    assert!(ghost.gone && ghost.name.as_deref() == Some("ghost"));
    let v = mounted(&ram);
    let found = v.lookup(Ino::ROOT, b"lost+found").unwrap().ino;
    assert_eq!(v.lookup(found, format!("#{}", rig.file).as_bytes()).unwrap().ino, rig.file);
    assert!(v.lookup(rig.dir, b"ghost").is_err());
    drop(v);
    assert_whole(&rig, &ram);
}

#[test]
fn directories_in_a_circle_are_cut_loose() {
    let rig = Rig::new();
    // d/s/t becomes the parent of s.
    rig.edit_bucket(rig.dir, b"s", Vec::clear);
    let up = NameEntry { ino: rig.sub, kind: FileType::Directory, slot: 0, name: b"up".to_vec() };
    rig.edit_bucket(rig.inner, b"up", |all| all.push(up));
    let (ram, _) = repaired(&rig, |_| {});
    let v = mounted(&ram);
    let found = v.lookup(Ino::ROOT, b"lost+found").unwrap().ino;
    let mut n = 0;
    v.readdir(found, 0, &mut |e| {
        n += u32::from(e.name != b"." && e.name != b"..");
        true
    })
    .unwrap();
    assert_eq!(n, 1);
}

#[test]
fn a_lost_inode_is_made_again_from_its_pages() {
    let rig = Rig::new();
    rig.apply(vec![Change::DelItem { key: Key::new(rig.file, ItemKind::Inode, 0) }]);
    let (ram, report) = repaired(&rig, |_| {});
    assert!(report.names(rig.file.0));
    assert_whole(&rig, &ram);
    let v = mounted(&ram);
    let attr = v.lookup(rig.dir, b"f").unwrap();
    assert_eq!((attr.uid, attr.perm), (0, 0o600));
}

#[test]
fn blocks_used_twice_belong_to_whose_checksum_is_right() {
    let rig = Rig::new();
    let at = rig.blocks(rig.file, 0).start;
    rig.map(rig.other, 1, at);
    // The same blocks with a checksum that is not that of what is there.
    let run = crate::format::MappedRun { start: at, pages: 1, last_blocks: 4, crcs: Some(vec![17]) };
    rig.apply(vec![Change::MapRun { ino: rig.other, page: crate::PageNr(1), run }]);
    rig.edit_inode(rig.other, |i| i.size = 2 * 16384);
    let (ram, report) = repaired(&rig, |_| {});
    assert!(report.names(rig.other.0) && !report.names(rig.file.0), "{report:#?}");
    let d = report.damaged.iter().find(|d| d.ino == rig.other.0).unwrap();
    assert_eq!(d.holes, [(16384, 16384)]);
    assert_eq!(read(&mounted(&ram), rig.file, 5 * 16384), [7; 5 * 16384]);
}

#[test]
fn pages_outside_of_the_volume_and_rotten_ones_become_holes() {
    let rig = Rig::new();
    let run = crate::format::MappedRun { start: BlockNr(16380), pages: 1, last_blocks: 4, crcs: None };
    rig.apply(vec![Change::MapRun { ino: rig.file, page: crate::PageNr(3), run }]);
    let rotten = rig.blocks(rig.file, 1).start;
    let (ram, report) = repaired(&rig, |device| flip(device.as_ref(), rotten, 5));
    let d = report.damaged.iter().find(|d| d.ino == rig.file.0).unwrap();
    assert_eq!(d.holes, [(16384, 16384), (3 * 16384, 16384)]);
    assert_eq!(d.path.as_deref(), Some("/d/f"));
    let bytes = read(&mounted(&ram), rig.file, 5 * 16384);
    assert!(bytes[..16384].iter().all(|b| *b == 7) && bytes[16384..2 * 16384].iter().all(|b| *b == 0));
}

#[test]
fn a_damaged_record_cuts_the_journal_and_is_named() {
    let rig = Rig::new();
    // Later records say that it was durable.
    (0..3).for_each(|uid| rig.edit_inode(rig.file, |i| i.uid = uid));
    let r = recover(rig.device.as_ref()).unwrap();
    let part = r.slot.journal.last().unwrap();
    let at = part.segments[part.start.segment as usize].plus(part.start.block.into());
    let found = |device: &Arc<dyn BlockDevice>| {
        let report = check(device, &CheckOptions::default()).unwrap();
        report.problems.iter().any(|p| p.kind == ProblemKind::Recovery)
    };
    let (_, report) = repaired(&rig, |device| {
        flip(device.as_ref(), at, 100);
        assert!(found(device), "it was acknowledged");
    });
    let (first, last) = report.lost_records.unwrap();
    assert!(first <= last && report.classes().contains_key(&Class::Journal));
}

#[test]
fn an_incomplete_attribute_goes_and_others_stay() {
    let rig = Rig::new();
    let flags = crate::api::XattrFlags::default();
    rig.v.setxattr(rig.file, b"user.long", &[7; 10_000], flags).unwrap();
    rig.v.setxattr(rig.file, b"user.short", b"x", flags).unwrap();
    let hash = crate::format::xattr::xattr_hash(&rig.v.superblock().hash_key, b"user.long");
    rig.apply(vec![Change::DelItem { key: crate::format::xattr::xattr_key(rig.file, hash, 1) }]);
    let (ram, report) = repaired(&rig, |_| {});
    assert!(report.names(rig.file.0));
    let v = mounted(&ram);
    assert_eq!(v.getxattr(rig.file, b"user.short").unwrap(), b"x");
    assert!(v.getxattr(rig.file, b"user.long").is_err());
}

#[test]
fn a_root_slot_in_a_wrong_place_is_emptied() {
    let rig = Rig::new();
    let (ram, report) = repaired(&rig, |device| {
        let (sb, _) = crate::volume::read_superblock(device.as_ref()).unwrap();
        let (slot, _) = crate::volume::best_slot(device.as_ref(), &sb).unwrap();
        let other = RootSlot::address(sb.slots_start, sb.slot_rows, Epoch(slot.epoch.0 + 3), 1);
        write(device, other, &slot.encode(&sb.uuid, other).unwrap());
        assert!(!is_clean(device));
    });
    assert_eq!(report.classes().keys().collect::<Vec<_>>(), [&Class::Root]);
    assert_eq!(report.damaged, Vec::new());
    assert_whole(&rig, &ram);
}

/// A ticket is damaged in the row that the repair would take, and the power goes while it writes its first root slot. Nothing
/// tells then that this epoch has served nothing: so the repair takes another row.
#[test]
fn a_torn_root_beside_a_damaged_ticket_does_not_look_like_a_lost_one() {
    let rig = Rig::new();
    rig.v.commit().unwrap();
    let ram = rig.ram.snapshot();
    let device: Arc<dyn BlockDevice> = Arc::new(ram.clone());
    let (sb, _) = crate::volume::read_superblock(device.as_ref()).unwrap();
    let (slot, _) = crate::volume::best_slot(device.as_ref(), &sb).unwrap();
    let ticket = crate::format::Ticket::address(sb.slots_start, sb.slot_rows, Epoch(slot.epoch.0 + 1));
    write(&device, ticket, &[9; BLOCK_SIZE]);
    drop(mounted(&ram.snapshot()));
    let planned = plan(&device, &RepairOptions { data: true, progress: None }, &SystemEnv).unwrap();
    let (first, _) = planned.slots[0];
    write(&device, first, &[9; BLOCK_SIZE]);
    assert_whole(&rig, &ram);
}
