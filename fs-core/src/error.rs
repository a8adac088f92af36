//! Errors of the core. Each names what failed; [`FsError::errno`] maps it at the boundary.

use blockdev::{DeviceError, ErrorKind};

use crate::types::{BLOCK_SIZE, BlockNr, BlockRun, Ino};

/// Result of a file system operation.
pub type Result<T> = std::result::Result<T, FsError>;

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FsError {
    /// The device failed a request.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Something read from the device is not what was written there.
    #[error("corrupt {what} at block {block}: {detail}; run `dbfs fsck -n` on the volume")]
    Corrupt {
        /// The structure ("tree node", "journal record", "file data"...).
        what: &'static str,
        /// Where it was read.
        block: BlockNr,
        /// What is wrong with it.
        detail: String,
    },
    /// A data page does not match its checksum.
    #[error("checksum mismatch in file {ino} at offset {offset} (block {block})")]
    DataChecksum {
        /// The file.
        ino: Ino,
        /// Byte offset in the file.
        offset: u64,
        /// Where it was read.
        block: BlockNr,
    },
    /// The device fails to read blocks that a repair has to know.
    #[error(
        "{device} fails to read {}{}; a repair would give up what is there, so nothing is changed. Mend the \
         path to the device, or copy the device to a good one (with ddrescue) and repair the copy",
        places(blocks),
        if *more { " and perhaps others" } else { "" }
    )]
    Unreadable {
        /// Name of the device.
        device: std::sync::Arc<str>,
        /// Those that were found before the device was left alone.
        blocks: Vec<BlockRun>,
        /// There may be more.
        more: bool,
    },
    /// The volume cannot be used as asked.
    #[error("{0}")]
    Volume(String),
    /// The epoch has ended after a failed flush or journal write; the volume is read-only until
    /// it is mounted again (rule R6).
    #[error("the volume was stopped after a failed write ({0}); unmount and mount it again")]
    EpochEnded(String),
    /// What should have become durable has not (rule R6); the volume has stopped.
    #[error("the change could not be made durable ({0}); unmount and mount the volume again")]
    CommitFailed(String),
    /// An earlier write to this file was lost (contract C1); reported until rewritten.
    #[error("an earlier write to file {0} failed")]
    LostWrite(Ino),
    /// A plain POSIX refusal, such as ENOENT.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Posix(i32),
}

impl FsError {
    /// The errno a caller of the POSIX interface sees.
    pub fn errno(&self) -> i32 {
        match self {
            FsError::Device(e) if e.kind == ErrorKind::NoSpace => libc::ENOSPC,
            FsError::Device(_)
            | FsError::Corrupt { .. }
            | FsError::DataChecksum { .. }
            | FsError::Unreadable { .. }
            | FsError::CommitFailed(_)
            | FsError::LostWrite(_) => libc::EIO,
            FsError::Volume(_) => libc::EINVAL,
            FsError::EpochEnded(_) => libc::EROFS,
            FsError::Posix(errno) => *errno,
        }
    }

    /// The device failed, as opposed to: what is on it is wrong. A place beyond its end is wrong.
    pub fn is_failed_read(&self) -> bool {
        match self {
            FsError::Device(e) => e.kind != ErrorKind::Misaligned,
            FsError::Unreadable { .. } => true,
            _ => false,
        }
    }

    /// A corruption report.
    pub fn corrupt(what: &'static str, block: BlockNr, detail: impl Into<String>) -> Self {
        FsError::Corrupt { what, block, detail: detail.into() }
    }
}

/// "block 17 (bytes 69632 to 73727), blocks ..."
fn places(blocks: &[BlockRun]) -> String {
    let place = |run: &BlockRun| {
        let (first, end) = (run.start, run.end().0);
        let bytes = format!("bytes {} to {}", first.offset(), end.saturating_mul(BLOCK_SIZE as u64) - 1);
        match run.len {
            1 => format!("block {first} ({bytes})"),
            _ => format!("blocks {first} to {} ({bytes})", end - 1),
        }
    };
    blocks.iter().map(place).collect::<Vec<_>>().join(", ")
}

macro_rules! posix {
    ($($(#[$doc:meta])* $name:ident = $errno:ident;)*) => {
        impl FsError {
            $($(#[$doc])* pub const $name: FsError = FsError::Posix(libc::$errno);)*
        }
    };
}

posix! {
    /// No such file or directory.
    NOT_FOUND = ENOENT;
    /// The name exists already.
    EXISTS = EEXIST;
    /// A directory was needed.
    NOT_DIR = ENOTDIR;
    /// A directory is in the way.
    IS_DIR = EISDIR;
    /// The directory is not empty.
    NOT_EMPTY = ENOTEMPTY;
    /// The name is longer than 255 bytes.
    NAME_TOO_LONG = ENAMETOOLONG;
    /// No free block left.
    NO_SPACE = ENOSPC;
    /// An argument is out of range.
    INVALID = EINVAL;
    /// The inode is gone.
    STALE = ESTALE;
    /// Too many links.
    TOO_MANY_LINKS = EMLINK;
    /// The file would grow too large.
    TOO_BIG = EFBIG;
    /// Not possible on this kind of file, or not supported.
    NOT_SUPPORTED = EOPNOTSUPP;
    /// The volume is mounted read-only.
    READ_ONLY = EROFS;
    /// No such offset in the file.
    NO_OFFSET = ENXIO;
    /// A range does not fit a file.
    OVERFLOW = EOVERFLOW;
    /// The operation is not permitted.
    NOT_PERMITTED = EPERM;
    /// Permission bits or kind of the file forbid it.
    NO_ACCESS = EACCES;
    /// There is no extended attribute of this name.
    NO_ATTRIBUTE = ENODATA;
    /// A name of an extended attribute, or a buffer for its value, has the wrong length.
    RANGE = ERANGE;
    /// The value of an extended attribute is too long.
    VALUE_TOO_BIG = E2BIG;
}
