//! The superblock: what never changes about a volume. Written by mkfs (rule R2), as three copies:
//! block 0, block 8, and the volume's last block. A volume that grows gets one more, in its new last block.

use blockdev::AlignedBuf;
use uuid::Uuid;
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::{FsError, Result};
use crate::types::{BLOCK_SIZE, BlockNr, GroupNr, NODE_SIZE, PageSize};

/// First bytes of a dbfs volume.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"dbfsSB\r\n";

/// Version of the format this code writes.
pub const FORMAT_VERSION: u32 = 1;

/// Feature bits this code knows. A volume with an unknown `incompat` bit is not opened, one with an
/// unknown `ro_compat` bit only for reading.
pub const KNOWN_INCOMPAT: u64 = 0;
/// See [`KNOWN_INCOMPAT`].
pub const KNOWN_RO_COMPAT: u64 = 0;

/// Where the second copy of the superblock is.
pub const SECOND_COPY: BlockNr = BlockNr(8);

/// Smallest volume in blocks (64 MiB).
pub const MIN_BLOCKS: u64 = (64 << 20) / BLOCK_SIZE as u64;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    uuid: [u8; 16],
    own_addr: U64,
    compat: U64,
    ro_compat: U64,
    incompat: U64,
    block_size: U32,
    node_size: U32,
    page_size: U32,
    group_blocks: U32,
    total_blocks: U64,
    membership_start: U64,
    membership_blocks: U32,
    slot_rows: U32,
    slots_start: U64,
    first_data_block: U64,
    segment_blocks: U32,
    segments: U32,
    reserve_blocks: U64,
    takeover_groups: U32,
    checksum_kind: U32,
    hash_key: [u8; 16],
    created_secs: I64,
    created_nanos: U32,
    journal_groups: U32,
    label: [u8; 64],
    reserved: [u8; 3856],
}

const _: () = assert!(size_of::<Raw>() == BLOCK_SIZE);

/// Checksum kind: CRC32C.
const CHECKSUM_CRC32C: u32 = 1;

/// The decoded superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the volume; repeated in every structure on it.
    pub uuid: Uuid,
    /// Features old code may ignore.
    pub compat: u64,
    /// Features old code may ignore when reading.
    pub ro_compat: u64,
    /// Features old code must know.
    pub incompat: u64,
    /// Page size of the volume.
    pub page_size: PageSize,
    /// Blocks in a block group; a power of two from 512 to 32768.
    pub group_blocks: u32,
    /// Size of the volume at mkfs, in blocks. The root slot has the present size.
    pub total_blocks: u64,
    /// First block of the membership area.
    pub membership_start: BlockNr,
    /// Blocks in the membership area.
    pub membership_blocks: u32,
    /// First block of the root slots.
    pub slots_start: BlockNr,
    /// Rows of two root slots and a ticket; epoch e uses row e mod this.
    pub slot_rows: u32,
    /// First block that can be allocated.
    pub first_data_block: BlockNr,
    /// Blocks in a journal segment.
    pub segment_blocks: u32,
    /// Journal segments an epoch takes.
    pub segments: u32,
    /// Blocks kept for metadata and for blocks in limbo; left out of statfs (contract C9).
    pub reserve_blocks: u64,
    /// Groups that the running writer leaves unreserved for a take-over (rule R2).
    pub takeover_groups: u32,
    /// Groups that only journals use, from the first whole one of the data area on: three areas.
    pub journal_groups: u32,
    /// Secret of the name hash, so that nobody can construct collisions.
    pub hash_key: [u8; 16],
    /// When the volume was made.
    pub created: crate::api::Timestamp,
    /// Name given by the user; UTF-8, at most 63 bytes.
    pub label: String,
}

impl Superblock {
    /// Where mkfs puts the copies, on a volume of `total_blocks`; and where to look for them on a device
    /// of so many blocks.
    pub fn copies(total_blocks: u64) -> [BlockNr; 3] {
        [BlockNr(0), SECOND_COPY, BlockNr(total_blocks.saturating_sub(1))]
    }

    /// Where the copies are when the volume has `total_blocks`: where mkfs has put them and, if it has
    /// grown, in the last block.
    pub fn copies_at(&self, total_blocks: u64) -> Vec<BlockNr> {
        let mut copies = Self::copies(self.total_blocks).to_vec();
        if total_blocks > self.total_blocks {
            copies.push(BlockNr(total_blocks - 1));
        }
        copies
    }

    /// Groups that three journals take, each with groups of its own.
    pub fn journal_groups_for(group_blocks: u32, segment_blocks: u32, segments: u32) -> u32 {
        3 * segments.div_ceil(group_blocks / segment_blocks)
    }

    /// The first group that only journals use.
    pub fn first_journal_group(&self) -> GroupNr {
        GroupNr(self.first_data_block.0.div_ceil(self.group_blocks.into()))
    }

    /// Encodes the copy that belongs at `own`.
    pub fn encode(&self, own: BlockNr) -> AlignedBuf {
        let mut label = [0u8; 64];
        let n = self.label.len().min(63);
        label[..n].copy_from_slice(&self.label.as_bytes()[..n]);
        let mut raw = Raw {
            magic: SUPERBLOCK_MAGIC,
            version: FORMAT_VERSION.into(),
            crc: 0.into(),
            uuid: *self.uuid.as_bytes(),
            own_addr: own.0.into(),
            compat: self.compat.into(),
            ro_compat: self.ro_compat.into(),
            incompat: self.incompat.into(),
            block_size: (BLOCK_SIZE as u32).into(),
            node_size: (NODE_SIZE as u32).into(),
            page_size: (self.page_size.bytes() as u32).into(),
            group_blocks: self.group_blocks.into(),
            total_blocks: self.total_blocks.into(),
            membership_start: self.membership_start.0.into(),
            membership_blocks: self.membership_blocks.into(),
            slot_rows: self.slot_rows.into(),
            slots_start: self.slots_start.0.into(),
            first_data_block: self.first_data_block.0.into(),
            segment_blocks: self.segment_blocks.into(),
            segments: self.segments.into(),
            reserve_blocks: self.reserve_blocks.into(),
            takeover_groups: self.takeover_groups.into(),
            checksum_kind: CHECKSUM_CRC32C.into(),
            hash_key: self.hash_key,
            created_secs: self.created.secs.into(),
            created_nanos: self.created.nanos.into(),
            journal_groups: self.journal_groups.into(),
            label,
            reserved: [0; 3856],
        };
        raw.crc = crc32c::crc32c(raw.as_bytes()).into();
        AlignedBuf::from_slice(raw.as_bytes())
    }

    /// Decodes the copy read from block `own`, checking every value.
    pub fn decode(bytes: &[u8], own: BlockNr) -> Result<Self> {
        let bad = |detail: &str| FsError::corrupt("superblock", own, detail);
        let (raw, _) = Raw::read_from_prefix(bytes).map_err(|_| bad("short read"))?;
        if raw.magic != SUPERBLOCK_MAGIC {
            return Err(bad("no dbfs magic number: this is not a dbfs volume"));
        }
        let crc = raw.crc.get();
        let mut zeroed = Raw::read_from_prefix(bytes).map_err(|_| bad("short read"))?.0;
        zeroed.crc = 0.into();
        if crc32c::crc32c(zeroed.as_bytes()) != crc {
            return Err(bad("checksum mismatch"));
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(FsError::Volume(format!(
                "the volume has format version {}, this program knows version {FORMAT_VERSION}",
                raw.version.get()
            )));
        }
        if raw.own_addr.get() != own.0 {
            return Err(bad("it belongs to another address"));
        }
        let unknown = raw.incompat.get() & !KNOWN_INCOMPAT;
        if unknown != 0 {
            return Err(FsError::Volume(format!(
                "the volume uses features this program does not know (incompat {unknown:#x})"
            )));
        }
        let page_size = PageSize::new(raw.page_size.get()).ok_or_else(|| bad("impossible page size"))?;
        let label_len = raw.label.iter().position(|&b| b == 0).unwrap_or(63);
        let sb = Superblock {
            uuid: Uuid::from_bytes(raw.uuid),
            compat: raw.compat.get(),
            ro_compat: raw.ro_compat.get(),
            incompat: raw.incompat.get(),
            page_size,
            group_blocks: raw.group_blocks.get(),
            total_blocks: raw.total_blocks.get(),
            membership_start: BlockNr(raw.membership_start.get()),
            membership_blocks: raw.membership_blocks.get(),
            slots_start: BlockNr(raw.slots_start.get()),
            slot_rows: raw.slot_rows.get(),
            first_data_block: BlockNr(raw.first_data_block.get()),
            segment_blocks: raw.segment_blocks.get(),
            segments: raw.segments.get(),
            reserve_blocks: raw.reserve_blocks.get(),
            takeover_groups: raw.takeover_groups.get(),
            journal_groups: raw.journal_groups.get(),
            hash_key: raw.hash_key,
            created: crate::api::Timestamp { secs: raw.created_secs.get(), nanos: raw.created_nanos.get() },
            label: String::from_utf8_lossy(&raw.label[..label_len]).into_owned(),
        };
        sb.check_geometry(&raw).map_err(bad)?;
        Ok(sb)
    }

    fn check_geometry(&self, raw: &Raw) -> std::result::Result<(), &'static str> {
        let ordered = |a: u64, len: u64, b: u64| a.checked_add(len).is_some_and(|end| end <= b);
        if raw.block_size.get() as usize != BLOCK_SIZE || raw.node_size.get() as usize != NODE_SIZE {
            return Err("impossible block or node size");
        }
        if raw.checksum_kind.get() != CHECKSUM_CRC32C {
            return Err("unknown checksum kind");
        }
        if !self.group_blocks.is_power_of_two() || !(512..=32768).contains(&self.group_blocks) {
            return Err("impossible group size");
        }
        if self.total_blocks < MIN_BLOCKS || self.total_blocks >= 1 << 44 {
            return Err("impossible volume size");
        }
        if self.slot_rows < 4 || self.slot_rows > 65536 {
            return Err("impossible number of root slots");
        }
        if !ordered(self.membership_start.0, self.membership_blocks.into(), self.slots_start.0)
            || !ordered(self.slots_start.0, u64::from(self.slot_rows) * 3, self.first_data_block.0)
            || self.first_data_block.0 >= (self.total_blocks / 2).min(u32::MAX.into())
            || self.membership_start.0 <= SECOND_COPY.0
        {
            return Err("areas overlap");
        }
        if !(8..=8192).contains(&self.segment_blocks)
            || self.segment_blocks > self.group_blocks
            || !(4..=MAX_SEGMENTS).contains(&self.segments)
            || self.segment_blocks * self.segments > MAX_JOURNAL_BLOCKS
        {
            return Err("impossible journal size");
        }
        let journals = self.first_journal_group().0 + u64::from(self.journal_groups);
        if self.journal_groups
            != Self::journal_groups_for(self.group_blocks, self.segment_blocks, self.segments)
            || journals >= self.total_blocks / u64::from(self.group_blocks)
        {
            return Err("impossible journal areas");
        }
        if self.reserve_blocks >= self.total_blocks {
            return Err("the reserve is larger than the volume");
        }
        Ok(())
    }
}

/// Most blocks of an epoch's journal (64 MiB): recovery holds one in memory, and its changes.
pub const MAX_JOURNAL_BLOCKS: u32 = (64 << 20) / BLOCK_SIZE as u32;

/// Most segments an epoch can take, so that a root slot can list them.
pub const MAX_SEGMENTS: u32 = 32;
