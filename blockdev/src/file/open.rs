//! Opening: direct I/O where it works, and an exclusive claim before anything is read.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::AlignedBuf;

use super::geometry::{self, Geometry};
use super::{Direct, OpenOptions};

/// How often a claim that somebody else holds is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else has it, and kept it for the whole waiting time.
    #[error("{} is in use{}", path.display(), holder_text(holder))]
    InUse {
        /// What was to be opened.
        path: PathBuf,
        /// Who has it, as far as the kernel tells: "process 123 (postgres)".
        holder: Option<String>,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is neither a file nor a block device", path.display())]
    WrongType {
        /// What was to be opened.
        path: PathBuf,
    },
    /// Direct I/O was required, and cannot be had.
    #[error("{} does not support direct I/O with 4096-byte buffers", path.display())]
    NoDirectIo {
        /// What was to be opened.
        path: PathBuf,
    },
    /// Its sectors are larger than 4096 bytes, or no power of two.
    #[error("{} has sectors of {sector} bytes; at most 4096 are supported", path.display())]
    SectorSize {
        /// What was to be opened.
        path: PathBuf,
        /// The sector size in bytes.
        sector: u32,
    },
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Os {
        /// What was to be opened.
        path: PathBuf,
        /// What was tried: "open", "lock"...
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn holder_text(holder: &Option<String>) -> String {
    holder.as_ref().map_or_else(String::new, |who| format!(" by {who}"))
}

/// What opening found.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) geometry: Geometry,
    pub(super) is_block_device: bool,
    pub(super) direct: bool,
    pub(super) exclusive: bool,
}

pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Opened, OpenError> {
    let os = |action| move |source| OpenError::Os { path: path.to_owned(), action, source };
    // Looked at first: opening a FIFO would block, opening other devices may do anything.
    let before = std::fs::metadata(path).map_err(os("open"))?.file_type();
    if !before.is_file() && !before.is_block_device() {
        return Err(OpenError::WrongType { path: path.to_owned() });
    }
    let (file, direct) = open_claimed(path, options, before.is_block_device())?;
    let meta = file.metadata().map_err(os("examine"))?;
    if meta.file_type() != before {
        return Err(OpenError::WrongType { path: path.to_owned() });
    }
    let geometry = examine(&file, &meta, direct, !options.read_only).map_err(io::Error::from);
    let geometry = geometry.map_err(os("examine"))?;
    let sector = geometry.logical_sector;
    if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
        return Err(OpenError::SectorSize { path: path.to_owned(), sector });
    }
    Ok(Opened {
        file,
        geometry,
        is_block_device: meta.file_type().is_block_device(),
        direct,
        exclusive: options.lock && !options.read_only,
    })
}

fn examine(file: &File, meta: &Metadata, direct: bool, writable: bool) -> Result<Geometry, Errno> {
    if meta.file_type().is_block_device() {
        geometry::of_block_device(file, meta, writable)
    } else {
        geometry::of_file(file, meta, direct, writable)
    }
}

/// Opens and claims the target; the flag says whether the descriptor does direct I/O.
fn open_claimed(path: &Path, options: &OpenOptions, is_block: bool) -> Result<(File, bool), OpenError> {
    let deadline = Instant::now() + options.lock_timeout;
    if options.direct != Direct::Off {
        let file = match open_one(path, options, is_block, libc::O_DIRECT, deadline) {
            // A file system without direct I/O refuses the flag.
            Err(OpenError::Os { action: "open", source, .. })
                if source.raw_os_error() == Some(libc::EINVAL) =>
            {
                None
            }
            other => Some(other?),
        };
        if let Some(file) = file
            && direct_io_works(&file)
        {
            return Ok((file, true));
        }
        if options.direct == Direct::Require {
            return Err(OpenError::NoDirectIo { path: path.to_owned() });
        }
        tracing::warn!(path = %path.display(), "no direct I/O: the data is cached twice");
    }
    Ok((open_one(path, options, is_block, 0, deadline)?, false))
}

/// Opens with `flags` and takes the lock on that very descriptor.
fn open_one(
    path: &Path,
    options: &OpenOptions,
    is_block: bool,
    flags: i32,
    deadline: Instant,
) -> Result<File, OpenError> {
    let claim = options.lock && !options.read_only;
    // Keeps the kernel (mount, RAID, LVM) off a block device, which flock does not.
    let excl = if is_block && claim { libc::O_EXCL } else { 0 };
    loop {
        // std adds O_CLOEXEC: the descriptor, and with it the lock, never reaches another program.
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .custom_flags(flags | excl)
            .open(path);
        let holder = match opened {
            Ok(file) => match lock(&file, options) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) => find_holder(path),
                Err(errno) => {
                    let source = errno.into();
                    return Err(OpenError::Os { path: path.to_owned(), action: "lock", source });
                }
            },
            Err(e) if excl != 0 && e.raw_os_error() == Some(libc::EBUSY) => {
                find_holder(path).or_else(|| Some("the kernel (is it mounted, or part of a RAID?)".into()))
            }
            Err(source) => return Err(OpenError::Os { path: path.to_owned(), action: "open", source }),
        };
        if Instant::now() >= deadline {
            return Err(OpenError::InUse { path: path.to_owned(), holder });
        }
        std::thread::sleep(RETRY);
    }
}

/// Readers share, a writer is alone.
fn lock(file: &File, options: &OpenOptions) -> Result<(), Errno> {
    match (options.lock, options.read_only) {
        (false, _) => Ok(()),
        (true, true) => rustix::fs::flock(file, FlockOperation::NonBlockingLockShared),
        (true, false) => rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive),
    }
}

/// Some file systems take O_DIRECT and then refuse the I/O.
fn direct_io_works(file: &File) -> bool {
    let alignment = geometry::direct_alignment(file);
    let aligned = alignment.is_none_or(|a| a.memory <= AlignedBuf::ALIGN as u32 && a.offset <= 4096);
    let mut probe = AlignedBuf::zeroed(4096);
    aligned && rustix::io::pread(file, &mut probe[..], 0) != Err(Errno::INVAL)
}

/// Looks for the holder of a lock in /proc/locks.
fn find_holder(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let wanted = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = holder_in(&locks, &wanted)?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    Some(name.map_or_else(|| format!("process {pid}"), |name| format!("process {pid} ({})", name.trim())))
}

/// A line: "1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF"; waiters have "->" after the number.
fn holder_in(locks: &str, wanted: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, _, pid, file, ..] if file == wanted => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_holder_of_a_lock() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fd:00:7 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 22 fd:00:7 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 33 fd:00:7 0 EOF\n\
                     garbage\n\n3: FLOCK  ADVISORY  READ x fd:00:8 0 EOF\n";
        assert_eq!(holder_in(locks, "fd:00:7"), Some(22));
        assert_eq!(holder_in(locks, "fd:00:8"), None);
        assert_eq!(holder_in(locks, "fd:00:9"), None);
    }
}
