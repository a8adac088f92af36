//! Looking into a volume: what is on the device, as text for people and as JSON for programs.
//!
//! All functions only read, may block on the device, and take nothing for granted: a structure
//! that is damaged is shown as such where that is possible, else it is the error.

mod bitmap;
mod doc;
mod inode;
mod journal;
mod tree;

use blockdev::BlockDevice;
use serde_json::Value;

pub use bitmap::{bitmap, bitmap_json};
pub use inode::{inode, inode_json};
pub use journal::{journal, journal_json};
pub use tree::{tree, tree_json};

use crate::api::Timestamp;
use crate::error::Result;
use crate::format::{GroupRange, JournalPart, RootSlot, Superblock};
use crate::fsck::{FoundSlot, for_each_slot, read_copy, text};
use crate::types::{BLOCK_SIZE, BlockNr};
use crate::volume::{Recovered, best_slot, read_superblock, recover};
use doc::Doc;

/// The superblock and its copies.
pub fn superblock(device: &dyn BlockDevice) -> Result<String> {
    superblock_doc(device).map(|d| d.text())
}

/// See [`superblock`].
pub fn superblock_json(device: &dyn BlockDevice) -> Result<Value> {
    superblock_doc(device).map(|d| d.json())
}

/// All root slots that were ever written.
pub fn slots(device: &dyn BlockDevice) -> Result<String> {
    slots_doc(device).map(|d| d.text())
}

/// See [`slots`].
pub fn slots_json(device: &dyn BlockDevice) -> Result<Value> {
    slots_doc(device).map(|d| d.json())
}

/// The volume in a few lines: identity, sizes, free space, state.
pub fn info(device: &dyn BlockDevice) -> Result<String> {
    info_doc(device).map(|d| d.text())
}

/// See [`info`].
pub fn info_json(device: &dyn BlockDevice) -> Result<Value> {
    info_doc(device).map(|d| d.json())
}

/// As [`info_json`], for a volume that is mounted: what its superblock and its newest root slot tell. Free space,
/// inodes and records are in the daemon's memory, newer than on the device; they are not in it. The journal is
/// not read.
pub fn info_of_mounted_json(device: &dyn BlockDevice) -> Result<Value> {
    let (sb, _) = read_superblock(device)?;
    let (slot, _) = best_slot(device, &sb)?;
    Ok(Doc::Fields(identity(device, &sb, &slot)).json())
}

/// What is wrong with copies of the superblock, a sentence for each: damaged, different, or not to be
/// read. The volume is read with another one.
pub fn bad_superblocks(device: &dyn BlockDevice) -> Result<Vec<String>> {
    let (sb, _) = read_superblock(device)?;
    let bad = |at| match copy_state(device, &sb, at) {
        Ok(()) => None,
        Err(wrong) => Some(format!("the copy of the superblock at block {at}: {wrong}")),
    };
    Ok(copies(device, &sb).into_iter().filter_map(bad).collect())
}

/// Where copies of the superblock have to be.
fn copies(device: &dyn BlockDevice, sb: &Superblock) -> Vec<BlockNr> {
    let slot = best_slot(device, sb).map(|(slot, _)| slot.total_blocks);
    sb.copies_at(slot.unwrap_or(sb.total_blocks))
}

/// Whether a copy is as it should be, or else what is wrong with it.
fn copy_state(device: &dyn BlockDevice, sb: &Superblock, at: BlockNr) -> std::result::Result<(), String> {
    match read_copy(device, at) {
        Ok(copy) if copy == *sb => Ok(()),
        Ok(_) => Err("differs".to_owned()),
        Err(e) => Err(text(&e)),
    }
}

fn superblock_doc(device: &dyn BlockDevice) -> Result<Doc> {
    let (sb, _) = read_superblock(device)?;
    let copies = copies(device, &sb).into_iter().map(|at| {
        let state = copy_state(device, &sb, at).err().unwrap_or_else(|| "good".to_owned());
        Doc::Fields(vec![("block", at.0.into()), ("state", state.into())])
    });
    Ok(Doc::Fields(vec![
        ("uuid", sb.uuid.to_string().into()),
        ("label", sb.label.as_str().into()),
        ("created", time(sb.created).into()),
        ("compat", format!("{:#x}", sb.compat).into()),
        ("ro_compat", format!("{:#x}", sb.ro_compat).into()),
        ("incompat", format!("{:#x}", sb.incompat).into()),
        ("block_size", (BLOCK_SIZE as u64).into()),
        ("page_size", (sb.page_size.bytes() as u64).into()),
        ("group_blocks", sb.group_blocks.into()),
        ("total_blocks", sb.total_blocks.into()),
        ("membership_start", sb.membership_start.0.into()),
        ("membership_blocks", sb.membership_blocks.into()),
        ("slots_start", sb.slots_start.0.into()),
        ("slot_rows", sb.slot_rows.into()),
        ("first_data_block", sb.first_data_block.0.into()),
        ("segment_blocks", sb.segment_blocks.into()),
        ("segments", sb.segments.into()),
        ("reserve_blocks", sb.reserve_blocks.into()),
        ("takeover_groups", sb.takeover_groups.into()),
        ("journal_groups", sb.journal_groups.into()),
        ("copies", copies.collect::<Vec<_>>().into()),
    ]))
}

fn slots_doc(device: &dyn BlockDevice) -> Result<Doc> {
    let (sb, _) = read_superblock(device)?;
    let mut list = Vec::new();
    for_each_slot(device, &sb, &mut |found| {
        let FoundSlot { row, index, block, content } = found;
        let mut fields = vec![("row", row.into()), ("slot", index.into()), ("block", block.0.into())];
        match content {
            Ok(Some(slot)) => fields.extend(slot_fields(&slot)),
            Ok(None) => {}
            Err(e) => fields.push(("damaged", text(&e).into())),
        }
        list.push(Doc::Fields(fields));
    })?;
    Ok(Doc::Fields(vec![("slots", list.into())]))
}

fn slot_fields(slot: &RootSlot) -> Vec<(&'static str, Doc)> {
    let ranges = |list: &[GroupRange]| -> Doc {
        list.iter().map(|r| format!("{} from {}", r.count, r.first).into()).collect::<Vec<Doc>>().into()
    };
    vec![
        ("epoch", slot.epoch.0.into()),
        ("number", slot.seq.into()),
        ("node_id", slot.node_id.into()),
        ("lease_ballot", slot.lease_ballot.into()),
        ("checkpoint_lsn", slot.checkpoint_lsn.0.into()),
        ("durable_lsn", slot.durable_lsn.0.into()),
        ("tree_block", slot.tree.addr.0.into()),
        ("tree_birth", slot.tree.birth.0.into()),
        ("tree_crc", format!("{:08x}", slot.tree.crc).into()),
        ("tree_height", u64::from(slot.tree.height).into()),
        ("pending_block", slot.pending.map_or(0, |r| r.start.0).into()),
        ("pending_entries", slot.pending_len.into()),
        ("next_inode", slot.next_ino.0.into()),
        ("free_blocks", slot.free_blocks.into()),
        ("total_blocks", slot.total_blocks.into()),
        ("inodes", slot.inodes.into()),
        ("claim", format!("{:016x}", slot.claim).into()),
        ("locked", (!slot.unlocked).into()),
        ("reserved_groups", ranges(&slot.reserved)),
        ("draining_groups", ranges(&slot.draining)),
        ("draining_unlocked_groups", ranges(&slot.draining_unlocked)),
        ("journal", slot.journal.iter().map(part_doc).collect::<Vec<_>>().into()),
    ]
}

/// Where the journal of an epoch is.
fn part_doc(part: &JournalPart) -> Doc {
    let end = part.end.map_or("open".to_owned(), |(lsn, crc)| format!("record {lsn} ({crc:08x})"));
    let at = &part.start;
    let segments: Vec<String> = part.segments.iter().map(BlockNr::to_string).collect();
    Doc::Fields(vec![
        ("epoch", part.epoch.0.into()),
        ("after_record", at.lsn.0.into()),
        ("after_crc", format!("{:08x}", at.crc).into()),
        ("segment", at.segment.into()),
        ("segment_block", at.block.into()),
        ("end", end.into()),
        ("segments", segments.join(" ").into()),
    ])
}

fn info_doc(device: &dyn BlockDevice) -> Result<Doc> {
    let r = recover(device)?;
    let mut fields = identity(device, &r.superblock, &r.slot);
    fields.extend([
        ("free_bytes", (free_blocks(&r) * BLOCK_SIZE as u64).into()),
        ("inodes", r.inodes.into()),
        ("last_record", r.end.lsn.0.into()),
        ("checkpoint_record", r.slot.checkpoint_lsn.0.into()),
        ("records_to_replay", r.records.into()),
        ("changes_to_replay", r.effective.iter().any(|e| *e).into()),
    ]);
    Ok(Doc::Fields(fields))
}

/// What changes rarely, mounted or not.
fn identity(device: &dyn BlockDevice, sb: &Superblock, slot: &RootSlot) -> Vec<(&'static str, Doc)> {
    let journal = u64::from(sb.segment_blocks) * u64::from(sb.segments);
    vec![
        ("volume", device.name().to_string().into()),
        ("uuid", sb.uuid.to_string().into()),
        ("label", sb.label.as_str().into()),
        ("created", time(sb.created).into()),
        ("size_bytes", (slot.total_blocks * BLOCK_SIZE as u64).into()),
        ("reserve_bytes", (sb.reserve_blocks * BLOCK_SIZE as u64).into()),
        ("page_size", (sb.page_size.bytes() as u64).into()),
        ("journal_bytes", (journal * BLOCK_SIZE as u64).into()),
        ("epoch", slot.epoch.0.into()),
    ]
}

/// Free blocks, the reserve included.
fn free_blocks(r: &Recovered) -> u64 {
    let segments: usize = r.slot.journal.iter().map(|p| p.segments.len()).sum();
    let kept = segments as u64 * u64::from(r.superblock.segment_blocks);
    let pending = r.slot.pending.map_or(0, |p| u64::from(p.len));
    let free = r.slot.free_blocks.saturating_add_signed(-r.delta.used_blocks);
    free.saturating_sub(kept + pending)
}

/// A time as seconds since 1970 with its nanoseconds.
fn time(t: Timestamp) -> String {
    format!("{}.{:09}", t.secs, t.nanos)
}

#[cfg(test)]
mod tests;
