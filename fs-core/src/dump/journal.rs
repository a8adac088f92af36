//! The records that recovery would read.

use blockdev::BlockDevice;
use serde_json::Value;

use super::doc::Doc;
use super::part_doc;
use crate::error::Result;
use crate::format::record::RecordHeader;
use crate::format::{Change, JournalPart, RootSlot, Superblock};
use crate::fsck::text;
use crate::journal::scan_part;
use crate::volume::{best_slot, read_superblock};

/// The journals that the root refers to, with their records and changes. Records whose data never
/// reached the device are shown too.
pub fn journal(device: &dyn BlockDevice) -> Result<String> {
    journal_doc(device).map(|d| d.text())
}

/// See [`journal`].
pub fn journal_json(device: &dyn BlockDevice) -> Result<Value> {
    journal_doc(device).map(|d| d.json())
}

fn journal_doc(device: &dyn BlockDevice) -> Result<Doc> {
    let (sb, _) = read_superblock(device)?;
    let (slot, _) = best_slot(device, &sb)?;
    let parts = slot.journal.iter().map(|part| records(device, &sb, &slot, part));
    Ok(Doc::Fields(vec![
        ("checkpoint_lsn", slot.checkpoint_lsn.0.into()),
        ("journals", parts.collect::<Vec<_>>().into()),
    ]))
}

fn records(device: &dyn BlockDevice, sb: &Superblock, slot: &RootSlot, part: &JournalPart) -> Doc {
    let mut list = Vec::new();
    let outcome = scan_part(
        device,
        &sb.uuid,
        part,
        sb.segment_blocks,
        slot.durable_lsn,
        &mut |_| Ok(true),
        &mut |header, changes| {
            list.push(record(header, changes));
            Ok(())
        },
    );
    let mut fields = vec![("place", part_doc(part)), ("records", list.into())];
    if let Err(e) = outcome {
        fields.push(("damaged", text(&e).into()));
    }
    Doc::Fields(fields)
}

fn record(header: &RecordHeader, changes: &[Change]) -> Doc {
    let changes = changes.iter().map(|c| change(c).into());
    Doc::Fields(vec![
        ("lsn", header.lsn.0.into()),
        ("durable_lsn", header.durable_lsn.0.into()),
        ("crc", format!("{:08x}", header.crc).into()),
        ("bytes", header.payload_len.into()),
        ("inodes", header.inodes.into()),
        ("changes", changes.collect::<Vec<Doc>>().into()),
    ])
}

/// A change in one line.
fn change(change: &Change) -> String {
    match change {
        Change::PutItem { key, value } => {
            format!("put {:?} item {} of inode {}, {} bytes", key.kind, key.offset, key.ino, value.len())
        }
        Change::DelItem { key } => format!("delete {:?} item {} of inode {}", key.kind, key.offset, key.ino),
        Change::MapRun { ino, page, run } => {
            let what = if run.crcs.is_some() { "data" } else { "unwritten" };
            format!("map {} pages of inode {ino} from page {page} to block {} ({what})", run.pages, run.start)
        }
        Change::Unmap { ino, page, pages } => format!("unmap {pages} pages of inode {ino} from page {page}"),
        Change::Free { run } => format!("free {} blocks from block {}", run.len, run.start),
        Change::Inline { ino, offset, data } => {
            format!("{} bytes at offset {offset} of inode {ino}", data.len())
        }
        Change::InlineZero { ino, offset, len } => {
            format!("{len} zero bytes at offset {offset} of inode {ino}")
        }
        Change::Reserve { first, count } => format!("reserve {count} groups from group {first}"),
        Change::EpochStart { previous, cut_lsn, cut_crc } => {
            format!("epoch starts; epoch {previous} ended with record {cut_lsn} ({cut_crc:08x})")
        }
    }
}
