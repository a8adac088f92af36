//! Random damage, noticed by checksums and hidden from them: the check always comes to an end with
//! an answer, and so does a mount.

use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};

use super::full_check;
use super::rig::{edit_slot, flip, read, write};
use super::workload::{OWNER, Rnd, Workload};
use crate::api::{FsOps, IoFlags};
use crate::env::SystemEnv;
use crate::error::FsError;
use crate::format::node::{Expected, Node, NodePtr};
use crate::format::record::decode_record;
use crate::format::{Key, RootSlot, Superblock};
use crate::fsck::{CheckOptions, Report, check};
use crate::tree::{NodeCache, TreeReader, TreeVisitor};
use crate::types::{BLOCK_SIZE, BlockNr, Ino, NODE_BLOCKS};
use crate::volume::{FormatOptions, MountOptions, Recovered, Volume, recover, tree_state};

/// A volume whose tree has several levels and whose journal is not empty.
fn sample() -> RamDevice {
    let ram = RamDevice::new(64 << 20, 512);
    let device: Arc<dyn BlockDevice> = Arc::new(ram.clone());
    Volume::format(device.as_ref(), &FormatOptions::default(), &SystemEnv).unwrap();
    let v = super::mount(&device);
    let dir = v.mkdir(Ino::ROOT, b"many", 0o755, OWNER).unwrap().ino;
    for i in 0..300 {
        let ino = v.create(dir, format!("file number {i}").as_bytes(), 0o644, OWNER).unwrap().ino;
        if i % 10 == 0 {
            v.write(ino, 0, &[i as u8; 3000], IoFlags::default()).unwrap();
        }
        v.close(ino);
    }
    v.sync_all().unwrap();
    v.checkpoint().unwrap();
    let mut load = Workload::new(11);
    (0..200).for_each(|_| load.step(&v));
    v.sync_all().unwrap();
    ram
}

/// Checks, and mounts for reading and looks around: both must end without a panic.
fn examine(device: &Arc<dyn BlockDevice>) -> crate::error::Result<Report> {
    let report = check(device, &CheckOptions { data: true, progress: None });
    let options = MountOptions { read_only: true, cache_bytes: 1 << 20, ..MountOptions::default() };
    if let Ok(v) = Volume::mount(device.clone(), options, Arc::new(SystemEnv)) {
        let mut entries = Vec::new();
        let _ = v.readdir(Ino::ROOT, 0, &mut |e| {
            entries.push(e.ino);
            entries.len() < 50
        });
        let mut buf = vec![0; 70_000];
        for ino in entries {
            let _ = v.getattr(ino);
            let _ = v.readlink(ino);
            let _ = v.read(ino, 0, &mut buf, IoFlags::default());
        }
    }
    report
}

fn copy(ram: &RamDevice) -> Arc<dyn BlockDevice> {
    Arc::new(ram.snapshot())
}

#[derive(Default)]
struct Nodes(Vec<NodePtr>);

impl TreeVisitor for Nodes {
    fn node(&mut self, node: &Node, _: &Expected) {
        self.0.push(node.ptr());
    }
    fn item(&mut self, _: Key, _: &[u8]) {}
    fn bad(&mut self, ptr: NodePtr, _: &Expected, error: FsError) {
        panic!("{ptr:?}: {error}");
    }
}

fn nodes(device: &Arc<dyn BlockDevice>) -> (Recovered, Vec<NodePtr>) {
    let mut r = recover(device.as_ref()).unwrap();
    let tree = tree_state(&mut r);
    let reader = TreeReader::new(Arc::new(NodeCache::new(device.clone(), r.superblock.uuid, 1 << 20)));
    let mut nodes = Nodes::default();
    crate::tree::verify(&reader, &tree.root, &mut nodes).unwrap();
    (r, nodes.0)
}

#[test]
fn every_flipped_byte_of_a_node_or_a_superblock_is_noticed() {
    let ram = sample();
    let device = copy(&ram);
    assert!(full_check(&device).is_clean());
    let (r, nodes) = nodes(&device);
    assert!(r.slot.tree.height > 1 && r.records > 0);
    let mut rnd = Rnd::new(1);
    for _ in 0..80 {
        let node = nodes[rnd.below(nodes.len() as u64) as usize];
        let (block, byte) = (node.addr.plus(rnd.below(NODE_BLOCKS.into())), rnd.below(4096) as usize);
        flip(device.as_ref(), block, byte);
        assert!(!examine(&device).unwrap().is_clean(), "node at {}, byte {byte}", node.addr);
        flip(device.as_ref(), block, byte);
    }
    for _ in 0..30 {
        let copies = Superblock::copies(r.superblock.total_blocks);
        let (block, byte) = (copies[rnd.below(3) as usize], rnd.below(4096) as usize);
        flip(device.as_ref(), block, byte);
        assert!(!examine(&device).unwrap().is_clean(), "superblock {block}, byte {byte}");
        flip(device.as_ref(), block, byte);
    }
    assert!(full_check(&device).is_clean());
}

#[test]
fn flips_in_slots_and_journal_get_an_answer() {
    let ram = sample();
    let r = recover(&ram).unwrap();
    let sb = &r.superblock;
    let mut targets: Vec<BlockNr> =
        (0..2).map(|i| RootSlot::address(sb.slots_start, sb.slot_rows, r.slot.epoch, i)).collect();
    for part in &r.slot.journal {
        targets.extend((0..8).map(|i| part.segments[part.start.segment as usize].plus(i)));
    }
    targets.extend(r.slot.pending.map(|p| p.start));
    let mut rnd = Rnd::new(2);
    for _ in 0..120 {
        let device = copy(&ram);
        let at = targets[rnd.below(targets.len() as u64) as usize];
        flip(device.as_ref(), at, rnd.below(4096) as usize);
        let _ = examine(&device);
    }
}

/// Changes a few bytes.
fn scribble(bytes: &mut [u8], rnd: &mut Rnd) {
    for _ in 0..=rnd.below(3) {
        let at = rnd.below(bytes.len() as u64) as usize;
        match rnd.below(4) {
            0 => bytes[at] ^= 1 << rnd.below(8),
            1 => bytes[at] = rnd.below(256) as u8,
            2 => bytes[at..].iter_mut().take(8).for_each(|b| *b = 0xff),
            _ => bytes[at..].iter_mut().take(8).for_each(|b| *b = 0),
        }
    }
}

/// Puts the checksum of `bytes` at `at`.
fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn superblocks_and_slots_with_right_checksums() {
    let ram = sample();
    let r = recover(&ram).unwrap();
    let sb = &r.superblock;
    let copies = Superblock::copies(sb.total_blocks).to_vec();
    let slots: Vec<BlockNr> =
        (0..2).map(|i| RootSlot::address(sb.slots_start, sb.slot_rows, r.slot.epoch, i)).collect();
    let mut rnd = Rnd::new(3);
    for round in 0..160 {
        let device = copy(&ram);
        let (blocks, used) = if round % 2 == 0 { (&copies, 280) } else { (&slots, 700) };
        let same = Rnd::new(rnd.below(1 << 30));
        for block in blocks {
            let mut bytes = read(device.as_ref(), *block, 1);
            scribble(&mut bytes[..used], &mut same.clone());
            // The block's own address is right, or nothing else would be looked at.
            bytes[32..40].copy_from_slice(&block.0.to_le_bytes());
            seal(&mut bytes, 12);
            write(device.as_ref(), *block, &bytes);
        }
        let _ = examine(&device);
    }
}

/// Rewrites the tree from `ptr` down; `edit` may change each node. Gives the new checksum.
fn reseal(device: &dyn BlockDevice, at: BlockNr, edit: &mut dyn FnMut(BlockNr, &mut [u8])) -> u32 {
    const HEADER: usize = 80;
    const ENTRY: usize = 37;
    let mut bytes = read(device, at, NODE_BLOCKS as usize);
    let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    if bytes[14] > 0 {
        for i in 0..count {
            let entry = HEADER + i * ENTRY;
            let child = u64::from_le_bytes(bytes[entry + 17..entry + 25].try_into().unwrap());
            let crc = reseal(device, BlockNr(child), edit);
            bytes[entry + 33..entry + 37].copy_from_slice(&crc.to_le_bytes());
        }
    }
    edit(at, &mut bytes);
    seal(&mut bytes, 8);
    write(device, at, &bytes);
    u32::from_le_bytes(bytes[8..12].try_into().unwrap())
}

#[test]
fn nodes_with_right_checksums() {
    let ram = sample();
    let (r, nodes) = nodes(&copy(&ram));
    let mut rnd = Rnd::new(4);
    let mut noticed = 0;
    for _ in 0..120 {
        let device = copy(&ram);
        let target = nodes[rnd.below(nodes.len() as u64) as usize].addr;
        let crc = reseal(device.as_ref(), r.slot.tree.addr, &mut |at, bytes| {
            if at == target {
                // The header and the table, or the values at the end.
                let part = if rnd.below(2) == 0 { &mut bytes[12..1000] } else { &mut bytes[12_000..] };
                scribble(part, &mut rnd);
            }
        });
        edit_slot(device.as_ref(), |slot| slot.tree.crc = crc);
        noticed += u32::from(examine(&device).is_ok_and(|report| !report.is_clean()));
    }
    assert!(noticed > 40, "only {noticed}");
}

#[test]
fn journal_records_with_right_checksums() {
    let ram = sample();
    let r = recover(&ram).unwrap();
    let part = r.slot.journal.last().unwrap();
    // The last record of the segment in which replay starts.
    let segment = part.segments[part.start.segment as usize];
    let blocks = r.superblock.segment_blocks as usize;
    let bytes = read(&ram, segment, blocks);
    let found = (0..blocks).rev().find_map(|block| {
        let addr = segment.plus(block as u64);
        let (header, _) = decode_record(&r.superblock.uuid, addr, &bytes[block * BLOCK_SIZE..])?;
        (header.epoch == part.epoch && header.changes > 0).then_some((block, header))
    });
    let (block, header) = found.unwrap();
    let len = 96 + header.payload_len as usize;
    let mut rnd = Rnd::new(5);
    for _ in 0..150 {
        let device = copy(&ram);
        let mut record = bytes[block * BLOCK_SIZE..][..header.blocks() as usize * BLOCK_SIZE].to_vec();
        scribble(&mut record[96..len], &mut rnd);
        seal(&mut record[..len], 8);
        write(device.as_ref(), segment.plus(block as u64), &record);
        let _ = examine(&device);
    }
}
