//! A device that fails on demand: an image file, served through FUSE by this program.
//!
//! dbfs is the one that users run, and sees what a broken disk gives it: EIO from read, write and fsync of
//! the file that it has opened for direct I/O. Which requests fail is decided by what they are for: a record
//! of dbfs's journal and a page of PostgreSQL's are known by their first bytes.

use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, SessionACL, WriteFlags,
};
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::{make_image, mounts};
use crate::cleanup::Guard;

/// Which requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// Writes of pages of PostgreSQL's tables and indexes.
    Pages,
    /// Writes of the journal.
    Journal,
    /// Flushes, and writes that are to be durable when they return.
    Flushes,
    /// Reads.
    Reads,
    /// Everything that changes the device or makes it durable.
    Changes,
}

/// What a failed write leaves in its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// The old bytes.
    Nothing,
    /// The new bytes up to the middle, the old ones behind it.
    Half,
    /// The new bytes.
    All,
}

/// Requests that fail, from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which ones.
    pub failing: Failing,
    /// How many of them are let through first.
    pub after: u64,
    /// How many fail; then all goes well again.
    pub times: u64,
    /// What writes leave.
    pub leaves: Leaves,
}

/// A request to the device, as far as it matters.
#[derive(Clone, Copy, Debug)]
enum Asked<'a> {
    Read,
    /// With whether it is to be durable when it returns (`O_DSYNC`, `RWF_DSYNC`: no fsync follows).
    Write(&'a [u8], bool),
    Flush,
    Discard,
}

/// What is to fail, and what has.
#[derive(Debug, Default)]
struct Faults {
    fault: Option<Fault>,
    hits: u64,
}

impl Faults {
    /// Counts a request; `Some` if it fails.
    fn meet(&mut self, asked: Asked<'_>) -> Option<Leaves> {
        let fault = self.fault.as_mut().filter(|fault| fault.times > 0 && fault.failing.means(asked))?;
        if fault.after > 0 {
            fault.after -= 1;
            return None;
        }
        fault.times -= 1;
        self.hits += 1;
        Some(fault.leaves)
    }
}

impl Failing {
    fn means(self, asked: Asked<'_>) -> bool {
        match (self, asked) {
            (Failing::Pages, Asked::Write(bytes, _)) => is_page(bytes),
            (Failing::Journal, Asked::Write(bytes, _)) => is_journal(bytes),
            (Failing::Flushes | Failing::Changes, Asked::Flush | Asked::Write(_, true)) => true,
            (Failing::Reads, Asked::Read) => true,
            (Failing::Changes, Asked::Write(..) | Asked::Discard) => true,
            _ => false,
        }
    }
}

/// A record of the journal (docs/FORMAT.md).
fn is_journal(bytes: &[u8]) -> bool {
    bytes.starts_with(b"dbJR")
}

/// A page of a table or an index: its size and the version of its layout are in one number, `pd_pagesize_version`.
fn is_page(bytes: &[u8]) -> bool {
    const AT: Range<usize> = 18..20;
    const PAGE_SIZE: u16 = 8192;
    const LAYOUT: u16 = 4;
    bytes.get(AT) == Some((PAGE_SIZE | LAYOUT).to_le_bytes().as_slice())
}

/// The device; it is gone when this is dropped.
pub struct FaultyDevice {
    faults: Arc<Mutex<Faults>>,
    path: PathBuf,
    _mount: Guard,
    _session: BackgroundSession,
}

const NAME: &str = "device";
const INO: INodeNo = INodeNo(2);

impl FaultyDevice {
    /// A device of `size` bytes, kept in the new file `image`, that appears in the directory `dir`.
    pub fn new(image: &PathBuf, dir: &Path, size: u64) -> Result<Self> {
        make_image(image, size)?;
        let file = File::options().read(true).write(true).open(image)?;
        let faults = Arc::default();
        let server = FaultyFile { file, faults: Arc::clone(&faults) };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("faulty".into()), MountOption::DefaultPermissions];
        config.acl = SessionACL::All;
        config.n_threads = Some(4);
        let session = fuser::spawn_mount(server, dir, &config).context("cannot serve the device")?;
        let mount = Guard::new({
            let dir = dir.to_path_buf();
            move || {
                if let Err(error) = mounts::detach(&dir) {
                    eprintln!("warning: {error:#}");
                }
            }
        });
        Ok(Self { faults, path: dir.join(NAME), _mount: mount, _session: session })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Requests fail as `fault` says; one that was set before is forgotten, and so is what it has hit.
    pub fn fail(&self, fault: Fault) {
        *lock(&self.faults) = Faults { fault: Some(fault), hits: 0 };
    }

    /// No more requests fail.
    pub fn heal(&self) {
        lock(&self.faults).fault = None;
    }

    /// The number of requests that have failed since [`FaultyDevice::fail`].
    pub fn hits(&self) -> u64 {
        lock(&self.faults).hits
    }
}

fn lock(faults: &Mutex<Faults>) -> MutexGuard<'_, Faults> {
    faults.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory with one file in it.
struct FaultyFile {
    file: File,
    faults: Arc<Mutex<Faults>>,
}

/// The kernel asks anew each time: nothing here is worth a cache.
const NOT_CACHED: Duration = Duration::ZERO;

impl FaultyFile {
    fn attributes(&self, ino: INodeNo) -> std::result::Result<FileAttr, Errno> {
        let is_file = ino == INO;
        let size = if is_file { self.file.metadata()?.len() } else { 0 };
        Ok(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o600 } else { 0o755 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn meet(&self, asked: Asked<'_>) -> Option<Leaves> {
        lock(&self.faults).meet(asked)
    }

    fn write_to(&self, offset: u64, data: &[u8], durable: bool) -> std::result::Result<(), Errno> {
        let Some(leaves) = self.meet(Asked::Write(data, durable)) else {
            return Ok(self.file.write_all_at(data, offset)?);
        };
        let written = match leaves {
            Leaves::Nothing => 0,
            Leaves::Half => data.len() / 2,
            Leaves::All => data.len(),
        };
        self.file.write_all_at(&data[..written], offset)?;
        Err(Errno::EIO)
    }
}

impl Filesystem for FaultyFile {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = if name == NAME { self.attributes(INO) } else { Err(Errno::ENOENT) };
        match found {
            Ok(attributes) => reply.entry(&NOT_CACHED, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Ok(attributes) => reply.attr(&NOT_CACHED, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // No request is held back by another, or answered by the kernel's cache.
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.meet(Asked::Read).is_some() {
            return reply.error(Errno::EIO);
        }
        let mut bytes = vec![0; size as usize];
        // A device of this program's is a file of the same size: only its end makes a read short.
        match self.file.read_at(&mut bytes, offset) {
            Ok(length) => reply.data(&bytes[..length]),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let durable = flags.0.cast_unsigned() & OFlags::DSYNC.bits() != 0;
        match self.write_to(offset, data, durable) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // What is flushed need not reach a disk: this machine keeps its power.
        match self.meet(Asked::Flush) {
            None => reply.ok(),
            Some(_) => reply.error(Errno::EIO),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if self.meet(Asked::Discard).is_some() {
            return reply.error(Errno::EIO);
        }
        let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        match fallocate(&self.file, flags, offset, length) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(std::io::Error::from(errno).into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Vec<u8> {
        let mut page = vec![0; 8192];
        page[18..20].copy_from_slice(&[0x04, 0x20]);
        page
    }

    #[test]
    fn requests_fail_by_what_they_are_for() {
        let page = page();
        let (page, record) = (Asked::Write(&page, false), Asked::Write(b"dbJR and more", false));
        let durable = Asked::Write(&[0; 4096], true);
        let means = |failing: Failing| {
            let all = [page, record, durable, Asked::Flush, Asked::Read, Asked::Discard];
            all.map(|asked| failing.means(asked))
        };
        assert_eq!(means(Failing::Pages), [true, false, false, false, false, false]);
        assert_eq!(means(Failing::Journal), [false, true, false, false, false, false]);
        assert_eq!(means(Failing::Flushes), [false, false, true, true, false, false]);
        assert_eq!(means(Failing::Reads), [false, false, false, false, true, false]);
        assert_eq!(means(Failing::Changes), [true, true, true, true, false, true]);
    }

    #[test]
    fn so_many_fail_after_so_many() {
        let fault = Fault { failing: Failing::Flushes, after: 2, times: 2, leaves: Leaves::Nothing };
        let mut faults = Faults { fault: Some(fault), hits: 0 };
        assert_eq!(faults.meet(Asked::Read), None);
        let outcomes = [0; 6].map(|_| faults.meet(Asked::Flush).is_some());
        assert_eq!(outcomes, [false, false, true, true, false, false]);
        assert_eq!(faults.hits, 2);
    }
}
