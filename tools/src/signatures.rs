//! What a device holds already, by the marks that file systems and the like leave in fixed places.

use blockdev::{AlignedBuf, BlockDevice, DeviceError, IoClass};

/// A mark: these bytes at this place.
struct Mark {
    name: &'static str,
    place: Place,
    bytes: &'static [u8],
}

enum Place {
    /// Offset from the start.
    Start(u64),
    /// Distance of the mark's first byte from the end.
    End(u64),
    /// Offset from the end rounded down to a multiple of the second number.
    EndAligned(u64, u64),
}

use Place::{End, EndAligned, Start};

const fn mark(name: &'static str, place: Place, bytes: &'static [u8]) -> Mark {
    Mark { name, place, bytes }
}

/// In the order in which they are reported: what is more telling comes first.
const MARKS: &[Mark] = &[
    mark("dbfs", Start(0), b"dbfsSB\r\n"),
    mark("XFS", Start(0), b"XFSB"),
    mark("btrfs", Start(0x10040), b"_BHRfS_M"),
    mark("bcachefs", Start(4096 + 24), b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    mark("bcache", Start(4096 + 24), b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    mark("ext2/3/4", Start(0x438), b"\x53\xef"),
    mark("F2FS", Start(0x400), b"\x10\x20\xf5\xf2"),
    mark("EROFS", Start(0x400), b"\xe2\xe1\xf5\xe0"),
    mark("JFS", Start(0x8000), b"JFS1"),
    mark("ReiserFS", Start(0x10034), b"ReIsEr"),
    mark("NILFS2", Start(0x406), b"\x34\x34"),
    mark("GFS2", Start(0x10000), b"\x01\x16\x19\x70"),
    mark("OCFS2", Start(0x2000), b"OCFSV2"),
    mark("NTFS", Start(3), b"NTFS    "),
    mark("exFAT", Start(3), b"EXFAT   "),
    mark("FAT", Start(0x36), b"FAT1"),
    mark("FAT", Start(0x52), b"FAT32"),
    mark("ISO 9660", Start(0x8001), b"CD001"),
    mark("UDF", Start(0x8001), b"BEA01"),
    mark("SquashFS", Start(0), b"hsqs"),
    mark("LUKS", Start(0), b"LUKS\xba\xbe"),
    mark("LVM2", Start(0x218), b"LVM2 001"),
    mark("LVM2", Start(0x018), b"LVM2 001"),
    mark("Linux RAID", Start(0), b"\xfc\x4e\x2b\xa9"),
    mark("Linux RAID", Start(4096), b"\xfc\x4e\x2b\xa9"),
    mark("Linux RAID", EndAligned(8192, 4096), b"\xfc\x4e\x2b\xa9"),
    mark("Linux RAID", EndAligned(65536, 65536), b"\xfc\x4e\x2b\xa9"),
    mark("DRBD", End(4096 - 60), b"\x83\x74\x02\x6d"),
    mark("Ceph BlueStore", Start(0), b"bluestore block device\n"),
    mark("ZFS", Start(128 * 1024), b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    mark("swap space", Start(4096 - 10), b"SWAPSPACE2"),
    mark("swap space (suspended system)", Start(4096 - 10), b"S1SUSPEND"),
    mark("GPT partition table", Start(512), b"EFI PART"),
    mark("GPT partition table", Start(4096), b"EFI PART"),
    mark("GPT partition table (copy at the end)", End(512), b"EFI PART"),
    mark("GPT partition table (copy at the end)", End(4096), b"EFI PART"),
    // Last: the boot sectors of FAT and NTFS end the same way.
    mark("partition table or boot sector", Start(510), b"\x55\xaa"),
];

/// Bytes at the start, and at the end, that hold all marks.
const START: u64 = 132 * 1024;
const END: u64 = 128 * 1024;

/// What `device` holds, as far as it is known. Blocks for two reads.
pub fn find(device: &dyn BlockDevice) -> Result<Option<&'static str>, DeviceError> {
    let Ends { size, head, tail } = Ends::of(device);
    let read = |(offset, len): (u64, usize)| {
        device.read_at(offset, AlignedBuf::zeroed(len), IoClass::Data).map(|buf| buf.to_vec())
    };
    let (head, tail) = (read(head)?, read(tail)?);
    Ok(MARKS.iter().find(|m| is_there(m, size, &head, &tail)).map(|m| m.name))
}

/// Overwrites the places of all marks with zeros, so that no old one survives beside the new
/// volume's.
pub fn wipe(device: &dyn BlockDevice) -> Result<(), DeviceError> {
    let Ends { head, tail, .. } = Ends::of(device);
    for (offset, len) in [head, tail] {
        device.write_at(offset, AlignedBuf::zeroed(len), false, IoClass::Data)?;
    }
    device.flush()
}

/// Offset and length of the parts of a device that hold marks.
struct Ends {
    size: u64,
    head: (u64, usize),
    tail: (u64, usize),
}

impl Ends {
    fn of(device: &dyn BlockDevice) -> Self {
        let capabilities = device.capabilities();
        let sector = u64::from(capabilities.logical_sector);
        let size = capabilities.size_bytes / sector * sector;
        let start_of_tail = size.saturating_sub(END) / sector * sector;
        let head = (0, START.min(size) as usize);
        Self { size, head, tail: (start_of_tail, (size - start_of_tail) as usize) }
    }
}

fn is_there(mark: &Mark, size: u64, head: &[u8], tail: &[u8]) -> bool {
    let in_tail = |offset: u64| {
        let start = size - tail.len() as u64;
        offset.checked_sub(start).and_then(|o| tail.get(o as usize..))
    };
    let place = match mark.place {
        Start(offset) => head.get(offset as usize..),
        End(distance) => size.checked_sub(distance).and_then(in_tail),
        EndAligned(distance, alignment) => {
            (size / alignment * alignment).checked_sub(distance).and_then(in_tail)
        }
    };
    place.is_some_and(|bytes| bytes.starts_with(mark.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::RamDevice;

    fn device(bytes: u64) -> RamDevice {
        RamDevice::new(bytes, 512)
    }

    #[test]
    fn every_mark_is_found_where_it_belongs() {
        for m in MARKS {
            let d = device(1 << 20);
            let size = 1 << 20;
            let at = match m.place {
                Start(o) => o,
                End(o) => size - o,
                EndAligned(o, a) => size / a * a - o,
            };
            let sector = at / 4096 * 4096;
            let mut bytes = vec![0; 8192];
            let within = (at - sector) as usize;
            bytes[within..within + m.bytes.len()].copy_from_slice(m.bytes);
            let len = 8192.min(size - sector) as usize;
            d.write_at(sector, AlignedBuf::from_slice(&bytes[..len]), false, IoClass::Data).unwrap();
            assert_eq!(find(&d).unwrap(), Some(m.name));
            wipe(&d).unwrap();
            assert_eq!(find(&d).unwrap(), None);
        }
    }

    #[test]
    fn small_and_empty_devices() {
        for size in [4096, 8192, 64 << 10, 200 << 10] {
            let d = device(size);
            assert_eq!(find(&d).unwrap(), None, "{size}");
            wipe(&d).unwrap();
        }
    }
}
