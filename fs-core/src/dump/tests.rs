//! What was put on a volume is shown.

use std::sync::Arc;

use blockdev::{AlignedBuf, BlockDevice, IoClass, RamDevice};

use super::*;
use crate::api::{FsOps, IoFlags, Owner};
use crate::env::SystemEnv;
use crate::types::Ino;
use crate::volume::{FormatOptions, MountOptions, Volume};

fn sample() -> (Arc<dyn BlockDevice>, Ino) {
    let device: Arc<dyn BlockDevice> = Arc::new(RamDevice::new(64 << 20, 512));
    let options = FormatOptions { label: "a\u{1b}b".into(), ..FormatOptions::default() };
    Volume::format(device.as_ref(), &options, &SystemEnv).unwrap();
    let v = Volume::mount(device.clone(), MountOptions::default(), Arc::new(SystemEnv)).unwrap();
    let owner = Owner::new(7, 8);
    let direct = IoFlags { direct: true, ..IoFlags::default() };
    let ino = v.create(Ino::ROOT, b"some name", 0o640, owner).unwrap().ino;
    v.write(ino, 0, &[1; 40_000], direct).unwrap();
    v.checkpoint().unwrap();
    v.write(ino, 1 << 20, &[1; 16_384], direct).unwrap();
    v.symlink(Ino::ROOT, b"link", b"to there", owner).unwrap();
    v.commit().unwrap();
    (device, ino)
}

fn damage(device: &dyn BlockDevice, block: BlockNr) {
    let mut buf = device.read_at(block.offset(), AlignedBuf::zeroed(BLOCK_SIZE), IoClass::Data).unwrap();
    buf[99] ^= 1;
    device.write_at(block.offset(), buf, false, IoClass::Data).unwrap();
}

#[test]
fn superblock_and_slots() {
    let (device, _) = sample();
    let json = superblock_json(device.as_ref()).unwrap();
    assert_eq!(json["page_size"], 16384);
    assert_eq!(json["copies"][2]["state"], "good");
    let plain = superblock(device.as_ref()).unwrap();
    assert!(plain.contains("label: a\\u{1b}b\n"), "{plain}");
    damage(device.as_ref(), BlockNr(8));
    let plain = superblock(device.as_ref()).unwrap();
    assert!(plain.contains("checksum mismatch"), "{plain}");
    let json = slots_json(device.as_ref()).unwrap();
    let slots_of_epoch_2 = json["slots"].as_array().unwrap().iter().filter(|s| s["epoch"] == 2);
    assert_eq!(slots_of_epoch_2.count(), 2);
    damage(device.as_ref(), BlockNr(json["slots"][0]["block"].as_u64().unwrap()));
    let plain = slots(device.as_ref()).unwrap();
    assert!(plain.contains("damaged: root slot at block"), "{plain}");
}

#[test]
fn inodes_and_their_mappings() {
    let (device, ino) = sample();
    let json = inode_json(&device, ino).unwrap();
    assert_eq!((&json["size"], &json["perm"]), (&Value::from((1 << 20) + 16_384), &Value::from("0640")));
    let runs = json["mappings"].as_array().unwrap();
    assert_eq!(runs.len(), 2, "{json:#}");
    assert!(runs[0].as_str().unwrap().starts_with("pages 0 to 2: blocks "), "{json:#}");
    assert!(runs[1].as_str().unwrap().starts_with("pages 64 to 64: blocks "), "{json:#}");
    let root = inode(&device, Ino::ROOT).unwrap();
    assert!(root.contains("name: some name\n") && root.contains("name: link\n"), "{root}");
    assert_eq!(inode(&device, Ino(999)).unwrap_err().errno(), libc::ESTALE);
}

#[test]
fn journal_tree_bitmap_and_info() {
    let (device, ino) = sample();
    let plain = journal(device.as_ref()).unwrap();
    assert!(plain.contains(&format!("map 1 pages of inode {ino} from page 64 to block ")), "{plain}");
    let json = journal_json(device.as_ref()).unwrap();
    assert!(json["journals"][0]["records"][0]["lsn"].as_u64().unwrap() > 1);
    let mut out = Vec::new();
    tree(&device, &mut out).unwrap();
    let plain = String::from_utf8(out).unwrap();
    assert!(plain.contains("level 0") && plain.contains(&format!("inode {ino} Map 0: ")), "{plain}");
    let report = crate::fsck::check(&device, &crate::fsck::CheckOptions::default()).unwrap();
    let (json, info) = (bitmap_json(&device).unwrap(), info_json(device.as_ref()).unwrap());
    let sb = read_superblock(device.as_ref()).unwrap().0;
    let data_area = sb.total_blocks - 1 - sb.first_data_block.0;
    assert_eq!(json["used_blocks"].as_u64().unwrap() + report.stats.free_blocks, data_area);
    assert_eq!(info["free_bytes"].as_u64().unwrap(), report.stats.free_blocks * BLOCK_SIZE as u64);
    assert_eq!(info["inodes"], report.stats.inodes);
    assert!(bitmap(&device).unwrap().contains("used_blocks: "));
    assert!(self::info(device.as_ref()).unwrap().contains("changes_to_replay: yes"));
}
