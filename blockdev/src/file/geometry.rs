//! What the kernel tells about a file or block device.

use std::fs::{File, Metadata, read_to_string};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FallocateFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

/// Geometry of an open target, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) size: u64,
    pub(super) logical_sector: u32,
    pub(super) physical_sector: u32,
    pub(super) volatile_write_cache: bool,
    pub(super) native_fua: bool,
    pub(super) discard: bool,
}

/// Alignment that direct I/O on a file needs, in bytes.
pub(super) struct DirectAlignment {
    pub(super) offset: u32,
    pub(super) memory: u32,
}

/// Asks the file system; `None` where it does not tell (before Linux 6.1).
pub(super) fn direct_alignment(file: &File) -> Option<DirectAlignment> {
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let told = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && stat.stx_dio_offset_align != 0;
    told.then_some(DirectAlignment { offset: stat.stx_dio_offset_align, memory: stat.stx_dio_mem_align })
}

/// Size in bytes, cut down to whole sectors.
pub(super) fn size(file: impl AsFd, sector: u32) -> Result<u64, Errno> {
    // The end of a block device is its size, as BLKGETSIZE64 gives it; nobody uses the position.
    let end = rustix::fs::seek(file, SeekFrom::End(0))?;
    Ok(end - end % u64::from(sector))
}

pub(super) fn of_block_device(file: &File, meta: &Metadata, writable: bool) -> Result<Geometry, Errno> {
    let logical_sector = rustix::fs::ioctl_blksszget(file)?;
    let physical_sector = rustix::fs::ioctl_blkpbszget(file)?.max(logical_sector);
    let discard_max: u64 =
        queue_attribute(meta, "discard_max_bytes").and_then(|v| v.parse().ok()).unwrap_or(0);
    // Whatever is not known to write through has a cache.
    let volatile_write_cache = queue_attribute(meta, "write_cache").is_none_or(|v| v != "write through");
    Ok(Geometry {
        size: size(file, logical_sector)?,
        logical_sector,
        physical_sector,
        volatile_write_cache,
        // Linux flushes the whole device behind every RWF_DSYNC write to a block device (blkdev_write_iter), even if
        // its queue knows FUA: a write and a flush of our own are cheaper.
        native_fua: !volatile_write_cache,
        discard: writable && discard_max > 0,
    })
}

pub(super) fn of_file(file: &File, meta: &Metadata, direct: bool, writable: bool) -> Result<Geometry, Errno> {
    // Where the file system does not tell, 4096 is what every disk below it takes.
    let direct_sector = || direct_alignment(file).map_or(4096, |a| a.offset);
    let logical_sector = if direct { direct_sector().max(512) } else { 512 };
    Ok(Geometry {
        size: size(file, logical_sector)?,
        logical_sector,
        physical_sector: u32::try_from(meta.blksize()).unwrap_or(4096).clamp(logical_sector, 65536),
        volatile_write_cache: true,
        // The file system flushes its device after each such write.
        native_fua: false,
        discard: writable && can_punch(file, meta.len()),
    })
}

/// Punching beyond the end changes nothing, but tells whether the file system can.
fn can_punch(file: &File, len: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let beyond = len.next_multiple_of(4096).max(4096);
    rustix::fs::fallocate(file, flags, beyond, 4096).is_ok()
}

/// An attribute of the request queue below a block device; of the disk's, for a partition.
fn queue_attribute(meta: &Metadata, name: &str) -> Option<String> {
    debug_assert!(meta.file_type().is_block_device());
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let attribute = |queue: &str| read_to_string(device.join(queue).join(name)).ok();
    attribute("queue").or_else(|| attribute("../queue")).map(|text| text.trim().to_owned())
}
