//! Making a volume.

use blockdev::{AlignedBuf, BlockDevice, IoClass, Request};
use uuid::Uuid;

use super::commit::check_all;
use super::journal_area::JournalAreas;
use crate::env::Env;
use crate::error::{FsError, Result};
use crate::format::superblock::{MIN_BLOCKS, SECOND_COPY};
use crate::format::{
    Change, DataArea, InodeItem, ItemKind, JournalPart, JournalPoint, Key, RootSlot, Superblock,
};
use crate::journal::JournalWriter;
use crate::types::{BLOCK_SIZE, BlockNr, Epoch, Ino, Lsn, PageSize};

/// How to make a volume.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Page size; 16 KiB by default.
    pub page_size: PageSize,
    /// Name of the volume, at most 63 bytes.
    pub label: String,
    /// Journal size in bytes; `None`: between 1/64 and 1/32 of the volume, from 2 to 64 MiB. Three times
    /// as much, in whole block groups, is set aside.
    pub journal_bytes: Option<u64>,
    /// Owner of the root directory.
    pub root_owner: (u32, u32),
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self {
            page_size: PageSize::new(16384).expect("16 KiB is a page size"),
            label: String::new(),
            journal_bytes: None,
            root_owner: (0, 0),
        }
    }
}

const SEGMENTS: u32 = 16;
/// The reserve of the smallest volume, in blocks.
const MIN_RESERVE: u64 = 512;
const MEMBERSHIP_START: BlockNr = BlockNr(16);
const MEMBERSHIP_BLOCKS: u32 = 256;
const SLOT_ROWS: u32 = 512;
const SLOT_ROWS_SMALL: u32 = 128;

/// Works out the layout of a volume of `bytes` bytes.
fn plan(bytes: u64, options: &FormatOptions, env: &dyn Env) -> Result<Superblock> {
    let total_blocks = bytes / BLOCK_SIZE as u64;
    if total_blocks < MIN_BLOCKS {
        return Err(FsError::Volume(format!(
            "{bytes} bytes are too small for a volume; it needs at least {} MiB",
            (MIN_BLOCKS * BLOCK_SIZE as u64) >> 20
        )));
    }
    if total_blocks >= 1 << 44 {
        return Err(FsError::Volume("the device is larger than 64 PiB".into()));
    }
    if options.label.len() > 63 {
        return Err(FsError::Volume("the label is longer than 63 bytes".into()));
    }
    // At least 32 groups, so that a take-over finds groups that the old writer had not reserved.
    let group_blocks = (total_blocks / 32).next_power_of_two() / 2;
    let group_blocks = group_blocks.clamp(512, 32768) as u32;
    // By default it fits a group, so that the groups set aside for journals are used well.
    let default = (bytes / 32).min(u64::from(group_blocks) * BLOCK_SIZE as u64);
    let journal = options.journal_bytes.unwrap_or(default).clamp(2 << 20, 64 << 20);
    let segment_blocks =
        (journal / u64::from(SEGMENTS) / BLOCK_SIZE as u64).clamp(32, u64::from(group_blocks)) as u32;
    let slot_rows = if total_blocks < 1 << 18 { SLOT_ROWS_SMALL } else { SLOT_ROWS };
    let slots_start = MEMBERSHIP_START.plus(MEMBERSHIP_BLOCKS.into());
    let mut hash_key = [0; 16];
    hash_key[..8].copy_from_slice(&env.random().to_le_bytes());
    hash_key[8..].copy_from_slice(&env.random().to_le_bytes());
    Ok(Superblock {
        uuid: Uuid::from_u64_pair(env.random(), env.random()),
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        page_size: options.page_size,
        group_blocks,
        total_blocks,
        membership_start: MEMBERSHIP_START,
        membership_blocks: MEMBERSHIP_BLOCKS,
        slots_start,
        slot_rows,
        first_data_block: slots_start.plus(u64::from(slot_rows) * 3),
        segment_blocks,
        segments: SEGMENTS,
        // Half of it is for metadata; the other half must do for the largest atomic write.
        reserve_blocks: (total_blocks / 50).min(1 << 18) + MIN_RESERVE,
        takeover_groups: 2,
        journal_groups: Superblock::journal_groups_for(group_blocks, segment_blocks, SEGMENTS),
        hash_key,
        created: env.now(),
        label: options.label.clone(),
    })
}

/// Makes an empty volume on `device`, over whatever is there.
///
/// Writes the fixed areas and one journal record (the root directory): a volume of any size takes
/// well under a second. The old superblock is destroyed first and the new one is written last, so
/// that an interrupted mkfs never leaves something that looks whole.
pub fn format(device: &dyn BlockDevice, options: &FormatOptions, env: &dyn Env) -> Result<Superblock> {
    let sb = plan(device.capabilities().size_bytes, options, env)?;
    zero(device, BlockNr(0), SECOND_COPY.0 + 1)?;
    zero(device, BlockNr(sb.total_blocks - 1), 1)?;
    device.flush()?;
    zero(device, sb.membership_start, sb.first_data_block.0 - sb.membership_start.0)?;
    write_first_epoch(device, &sb, options, env)?;
    device.flush()?;
    for copy in Superblock::copies(sb.total_blocks) {
        device.write_at(copy.offset(), sb.encode(copy), false, IoClass::Data)?;
    }
    device.flush()?;
    Ok(sb)
}

fn zero(device: &dyn BlockDevice, start: BlockNr, blocks: u64) -> Result<()> {
    const STEP: u64 = 256;
    let requests = (0..blocks)
        .step_by(STEP as usize)
        .map(|at| {
            let n = STEP.min(blocks - at) as usize;
            let buf = AlignedBuf::zeroed(n * BLOCK_SIZE);
            Request::write(start.plus(at).offset(), vec![buf], false, IoClass::Data)
        })
        .collect();
    check_all(device.execute_all(requests))
}

/// Epoch 1 makes the root directory and ends: the first mount recovers it from its journal.
fn write_first_epoch(
    device: &dyn BlockDevice,
    sb: &Superblock,
    options: &FormatOptions,
    env: &dyn Env,
) -> Result<()> {
    let epoch = Epoch(1);
    let segments = JournalAreas::new(sb).segments(0);
    let mut journal = JournalWriter::new(sb.uuid, epoch, 0, segments.clone(), sb.segment_blocks, (Lsn(0), 0));
    let now = env.now();
    let root = InodeItem {
        kind: crate::api::FileType::Directory,
        perm: 0o755,
        nlink: 2,
        uid: options.root_owner.0,
        gid: options.root_owner.1,
        rdev: 0,
        size: 0,
        blocks: 0,
        parent: Ino::ROOT,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        xattr_list: 0,
    };
    let changes = [
        Change::EpochStart { previous: Epoch(0), cut_lsn: Lsn(0), cut_crc: 0 },
        Change::PutItem { key: Key::new(Ino::ROOT, ItemKind::Inode, 0), value: root.encode() },
    ];
    let mut payload = Vec::new();
    for change in &changes {
        change.encode(&mut payload);
    }
    let record = journal
        .place(&payload, changes.len() as u32, Lsn(0), 1)
        .map_err(|_| FsError::Volume("the journal is too small".into()))?;
    device.write_at(record.addr.offset(), record.buf, false, IoClass::Log)?;
    device.flush()?;
    let slot = RootSlot {
        epoch,
        next_ino: Ino::FIRST_FREE,
        free_blocks: DataArea::new(sb, sb.total_blocks).blocks(),
        total_blocks: sb.total_blocks,
        inodes: 0,
        durable_lsn: Lsn(1),
        journal: vec![JournalPart { epoch, start: JournalPoint::default(), end: None, segments }],
        ..RootSlot::default()
    };
    for index in 0..2 {
        let own = RootSlot::address(sb.slots_start, sb.slot_rows, epoch, index);
        device.write_at(own.offset(), slot.encode(&sb.uuid, own)?, false, IoClass::Log)?;
    }
    Ok(())
}
