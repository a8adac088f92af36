//! Problems with what lies below the items: superblocks, root slots, journal, nodes, data.

use blockdev::{BlockDevice, Capabilities, Completion, ErrorKind, Op, Pending, Request};
use std::sync::Arc;

use super::rig::{Rig, edit_slot, expect, flip, read, write};
use super::{full_check, mount};
use crate::format::{RootSlot, Superblock};
use crate::fsck::{CheckOptions, ProblemKind, check};
use crate::types::{BLOCK_SIZE, BlockNr};
use crate::volume::recover;

#[test]
fn each_copy_of_the_superblock_is_compared() {
    let copies = Superblock::copies((64 << 20) / BLOCK_SIZE as u64);
    for copy in copies {
        let rig = Rig::new();
        rig.flip(copy, 100);
        rig.expect(ProblemKind::Superblock, &format!("at block {copy}"));
    }
    // A valid copy that says something else.
    let rig = Rig::new();
    let mut sb = Superblock::decode(&rig.read(copies[1], 1), copies[1]).unwrap();
    sb.label = "other".into();
    write(rig.device.as_ref(), copies[1], &sb.encode(copies[1]));
    rig.expect(ProblemKind::Superblock, "differs from the others");
    // None left: there is nothing to check.
    let rig = Rig::new();
    copies.iter().for_each(|c| rig.flip(*c, 100));
    assert!(check(&rig.device, &CheckOptions::default()).is_err());
}

#[test]
fn root_slots() {
    let rig = Rig::new();
    let device = rig.device.as_ref();
    edit_slot(device, |s| s.free_blocks += 1);
    expect(&rig.problems(), ProblemKind::Count, "blocks are free");
    edit_slot(device, |s| s.free_blocks -= 1);
    assert_eq!(rig.problems(), []);
    edit_slot(device, |s| s.durable_lsn.0 = s.checkpoint_lsn.0 - 1);
    expect(&rig.problems(), ProblemKind::RootSlot, "ahead of what was durable");
    let rig = Rig::new();
    edit_slot(rig.device.as_ref(), |s| s.total_blocks += 10);
    expect(&rig.problems(), ProblemKind::Recovery, "the device is truncated");
    let rig = Rig::new();
    edit_slot(rig.device.as_ref(), |s| s.reserved.clear());
    expect(&rig.problems(), ProblemKind::Reservation, "has not reserved");
    let rig = Rig::new();
    edit_slot(rig.device.as_ref(), |s| s.reserved[0].count = 5000);
    expect(&rig.problems(), ProblemKind::RootSlot, "are reserved");
    let rig = Rig::new();
    edit_slot(rig.device.as_ref(), |s| s.tree.birth.0 += 1);
    expect(&rig.problems(), ProblemKind::RootSlot, "younger than its root slot");
    let rig = Rig::new();
    edit_slot(rig.device.as_ref(), |s| s.tree.height += 1);
    expect(&rig.problems(), ProblemKind::Node, "level");
}

#[test]
fn root_slots_in_the_wrong_place() {
    let rig = Rig::new();
    let r = recover(rig.device.as_ref()).unwrap();
    let (sb, slot) = (r.superblock, r.slot);
    let own = RootSlot::address(sb.slots_start, sb.slot_rows, slot.epoch, slot.seq + 1);
    write(rig.device.as_ref(), own, &slot.encode(&sb.uuid, own).unwrap());
    assert!(slot.seq > 0);
    expect(&rig.problems(), ProblemKind::RootSlot, "wrong one of its row");
    let rig = Rig::new();
    let r = recover(rig.device.as_ref()).unwrap();
    let (sb, old) = (r.superblock, RootSlot { epoch: r.slot.epoch, ..r.slot });
    let own = sb.slots_start.plus(100);
    write(rig.device.as_ref(), own, &old.encode(&sb.uuid, own).unwrap());
    expect(&rig.problems(), ProblemKind::RootSlot, "does not belong into row");
}

#[test]
fn a_torn_root_slot_is_only_worth_a_note() {
    let rig = Rig::new();
    rig.v.checkpoint().unwrap();
    let r = recover(rig.device.as_ref()).unwrap();
    let other =
        RootSlot::address(r.superblock.slots_start, r.superblock.slot_rows, r.slot.epoch, r.slot.seq + 1);
    rig.flip(other, 4000);
    let report = full_check(&rig.device);
    assert_eq!((report.problems.len(), report.notes.len()), (0, 1), "{report:?}");
}

#[test]
fn what_recovery_refuses_is_a_problem() {
    // Both slots of the epoch gone: the epoch before must not be taken for the present.
    let rig = Rig::new();
    let r = recover(rig.device.as_ref()).unwrap();
    for index in 0..2 {
        let sb = &r.superblock;
        rig.flip(RootSlot::address(sb.slots_start, sb.slot_rows, r.slot.epoch, index), 4000);
    }
    expect(&rig.problems(), ProblemKind::Recovery, "root");
    // A record that is known to be durable is damaged.
    let rig = Rig::new();
    rig.v.publish_durable().unwrap();
    let point = recover(rig.device.as_ref()).unwrap().slot.journal.pop().unwrap();
    let first = point.segments[point.start.segment as usize].plus(point.start.block.into());
    rig.flip(first, 97);
    expect(&rig.problems(), ProblemKind::Recovery, "refusing to drop acknowledged changes");
    // The pending list does not match its checksum.
    let rig = Rig::new();
    let list = recover(rig.device.as_ref()).unwrap().slot.pending.unwrap();
    rig.flip(list.start, 3);
    expect(&rig.problems(), ProblemKind::Recovery, "pending list");
}

#[test]
fn nodes_and_data() {
    let rig = Rig::new();
    let node = rig.v.meta.frozen().1.root.ptr.unwrap().addr;
    rig.flip(node, 200);
    expect(&rig.problems(), ProblemKind::Node, "checksum");
    let rig = Rig::new();
    let page = rig.blocks(rig.file, 3).start;
    rig.flip(page, 11);
    expect(&rig.problems(), ProblemKind::DataChecksum, "/d/f: the page at offset 49152");
    assert_eq!(rig.problems().len(), 1);
    let report = check(&rig.device, &CheckOptions::default()).unwrap();
    assert!(report.is_clean(), "data is only read when asked for");
}

/// Fails reads of one block.
#[derive(Debug)]
struct BadSector(Arc<dyn BlockDevice>, BlockNr);

impl BlockDevice for BadSector {
    fn name(&self) -> Arc<str> {
        self.0.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        requests.into_iter().map(|r| self.one(r)).collect()
    }
}

impl BadSector {
    fn one(&self, request: Request) -> Pending {
        if let Op::Read { offset, bufs } = &request.op {
            let len: u64 = bufs.iter().map(|b| b.len() as u64).sum();
            if (*offset..offset + len).contains(&self.1.offset()) {
                let (device, op, kind) = (self.name(), "read", ErrorKind::Io);
                let error = blockdev::DeviceError { device, op, offset: *offset, len, kind, errno: 5 };
                let Op::Read { bufs, .. } = request.op else { unreachable!("it is a read") };
                return Pending::ready(Completion { bufs, result: Err(error) });
            }
        }
        Pending::ready(self.0.execute(request))
    }
}

#[test]
fn sectors_that_cannot_be_read_are_named() {
    let rig = Rig::new();
    let bad: Arc<dyn BlockDevice> = Arc::new(BadSector(rig.device.clone(), rig.blocks(rig.file, 2).start));
    let report = full_check(&bad);
    expect(&report.problems, ProblemKind::Device, "/d/f: the page at offset 32768 cannot be read");
    assert_eq!(report.problems.len(), 1);
    assert!(report.stats.verified_pages >= 5, "its neighbours are verified");
    let node = rig.v.meta.frozen().1.root.ptr.unwrap().addr;
    let bad: Arc<dyn BlockDevice> = Arc::new(BadSector(rig.device.clone(), node));
    expect(&full_check(&bad).problems, ProblemKind::Device, "read");
}

#[test]
fn the_check_writes_nothing_and_a_mount_after_it_works() {
    let rig = Rig::new();
    let image = rig.ram.snapshot();
    full_check(&rig.device);
    let blocks = (64 << 20) / BLOCK_SIZE as u64;
    for at in (0..blocks).step_by(256) {
        assert_eq!(read(&image, BlockNr(at), 256)[..], rig.read(BlockNr(at), 256)[..]);
    }
    let copy: Arc<dyn BlockDevice> = Arc::new(image);
    mount(&copy).shutdown().unwrap();
    assert_eq!(full_check(&copy).problems, []);
    flip(copy.as_ref(), BlockNr(0), 0);
    assert_eq!(full_check(&copy).problems.len(), 1);
}
