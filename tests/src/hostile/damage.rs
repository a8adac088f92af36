//! Damage: bytes of an image become others, and no checksum is made right again.

use blockdev::RamDevice;
use fs_core::{BLOCK_SIZE, BlockNr};

use super::aged::Aged;
use super::layout::{read, write};
use super::script::Script;

const BLOCK: usize = BLOCK_SIZE;

/// Kinds of structures that are damaged equally often.
const KINDS: usize = 7;

/// A block of a structure of the image, and how many bytes of it are in use.
fn choose(aged: &Aged, script: &mut Script<'_>) -> (&'static str, BlockNr, usize) {
    let l = &aged.layout;
    let sb = &l.superblock;
    match script.below(KINDS) {
        0 => {
            let copies = fs_core::format::Superblock::copies(sb.total_blocks);
            ("superblock", *script.pick(&copies), 256)
        }
        1 => ("root slot", *script.pick(&l.slots), 1200),
        2 => ("ticket", *script.pick(&l.tickets), 512),
        3 => {
            let record = script.pick(&l.records);
            let block = script.below(record.header.blocks() as usize) as u64;
            let used = (96 + record.header.payload_len as usize).saturating_sub(block as usize * BLOCK);
            ("record", record.addr.plus(block), used.clamp(1, BLOCK))
        }
        4 => {
            let node = script.pick(&l.nodes);
            ("node", node.addr.plus(script.below(4) as u64), BLOCK)
        }
        5 if l.slot.pending.is_some() => {
            let run = l.slot.pending.unwrap_or(fs_core::BlockRun::new(BlockNr(0), 1));
            let used = (l.slot.pending_len as usize * 13).min(BLOCK);
            ("pending list", run.start.plus(script.below(run.len as usize) as u64), used)
        }
        _ => {
            let run = script.pick(&l.data);
            ("data", run.start.plus(script.below(run.len as usize) as u64), BLOCK)
        }
    }
}

/// Damages a copy of the image in one place, as the script says. Returns what was done.
pub fn damage(aged: &Aged, script: &mut Script<'_>) -> (RamDevice, String) {
    let device = aged.image.snapshot();
    let (what, block, used) = choose(aged, script);
    let at = block.offset();
    let old = read(&device, at, BLOCK);
    let mut new = old.clone();
    let how = match script.below(8) {
        0..=2 => {
            let byte = script.below(used.max(1));
            let mask = script.byte().max(1);
            new[byte] ^= mask;
            format!("byte {byte} xor {mask:#x}")
        }
        3 => {
            new.fill(0);
            "zeroed".into()
        }
        4 => {
            let (_, other, _) = choose(aged, script);
            new = read(&device, other.offset(), BLOCK);
            write(&device, other.offset(), &old);
            format!("swapped with block {other}")
        }
        5 => {
            let age = script.below(aged.older.len());
            new = read(&aged.older[age], at, BLOCK);
            format!("as it was at moment {age}")
        }
        6 => {
            // A torn write: some sectors are those of an earlier moment.
            let age = script.below(aged.older.len());
            let from = script.below(8) * 512;
            let earlier = read(&aged.older[age], at, BLOCK);
            new[from..].copy_from_slice(&earlier[from..]);
            format!("from byte {from} on as it was at moment {age}")
        }
        _ => {
            let fill = script.byte();
            new.iter_mut().enumerate().for_each(|(i, b)| *b = fill.wrapping_mul(i as u8).wrapping_add(fill));
            "overwritten".into()
        }
    };
    write(&device, at, &new);
    (device, format!("{what} at block {block}: {how}"))
}

/// Flips bits in one byte of metadata, the `index`-th of all there are; `None` behind the last one.
pub fn flip(aged: &Aged, index: u64, mask: u8) -> Option<(RamDevice, String)> {
    let (offset, what) = metadata_byte(aged, index)?;
    let device = aged.image.snapshot();
    let start = offset / BLOCK as u64 * BLOCK as u64;
    let mut block = read(&device, start, BLOCK);
    block[(offset - start) as usize] ^= mask;
    write(&device, start, &block);
    Some((device, format!("{what}, byte {offset} xor {mask:#x}")))
}

/// Bytes of metadata in use.
pub fn metadata_bytes(aged: &Aged) -> u64 {
    metadata(aged).iter().map(|(_, len, _)| len).sum()
}

/// Byte offset of the `index`-th byte of metadata in use.
fn metadata_byte(aged: &Aged, mut index: u64) -> Option<(u64, &'static str)> {
    for (start, len, what) in metadata(aged) {
        if index < len {
            return Some((start + index, what));
        }
        index -= len;
    }
    None
}

/// The structures that count: offset, bytes in use, name.
fn metadata(aged: &Aged) -> Vec<(u64, u64, &'static str)> {
    let l = &aged.layout;
    let copies = fs_core::format::Superblock::copies(l.superblock.total_blocks);
    let mut out: Vec<_> = copies.iter().map(|b| (b.offset(), 240, "superblock")).collect();
    out.extend(l.row(l.slot.epoch).iter().map(|b| (b.offset(), 1200, "root slot")));
    out.push((l.ticket().offset(), 512, "ticket"));
    let record =
        |r: &super::layout::RecordAt| (r.addr.offset(), 96 + u64::from(r.header.payload_len), "record");
    out.extend(l.records.iter().map(record));
    out.extend(
        l.slot.pending.map(|r| (r.start.offset(), u64::from(l.slot.pending_len) * 13, "pending list")),
    );
    out.extend(l.nodes.iter().map(|n| (n.addr.offset(), 4 * BLOCK as u64, "node")));
    out
}
