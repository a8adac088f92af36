//! A FUSE file system that stores nothing: the least that any FUSE daemon costs.
//!
//! One directory in memory; files have a size and read as zeros. Answers may be cached by the kernel for
//! as long as it likes, so no real file system can be cheaper than this one.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyWrite, Request, SessionACL, TimeOrNow, WriteFlags,
};

use super::Target;
use super::daemon::Daemon;
use crate::cmd;
use crate::paths;

const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// Options of the hidden command that serves it.
#[derive(clap::Args)]
pub struct NoopArgs {
    /// Where to mount it
    dir: PathBuf,
    /// Threads that take requests
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// Mounts and serves until it is unmounted.
pub fn serve_noop(args: &NoopArgs) -> Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("noop".into()), MountOption::DefaultPermissions];
    config.acl = SessionACL::All;
    config.n_threads = Some(args.threads);
    config.clone_fd = true;
    fuser::mount(NoopFs::default(), &args.dir, &config).context("cannot serve")
}

/// The no-op file system as a target; it has no volume.
pub struct Noop {
    dir: PathBuf,
    log: PathBuf,
    daemon: Option<Daemon>,
}

impl Noop {
    /// To be mounted at `dir`, with messages in `log`.
    pub fn new(dir: PathBuf, log: PathBuf) -> Self {
        Self { dir, log, daemon: None }
    }
}

impl Target for Noop {
    fn format(&mut self) -> Result<()> {
        Ok(())
    }

    fn mount(&mut self) -> Result<()> {
        if self.daemon.is_some() {
            bail!("mounted already");
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("noop-fuse").arg(&self.dir);
        self.daemon = Some(Daemon::start(&mut command, &self.dir, &self.log)?);
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        let daemon = self.daemon.as_ref().context("not mounted")?;
        cmd::capture(Command::new(paths::program("umount")?).arg(&self.dir))?;
        daemon.wait_for_clean_end()?;
        self.daemon = None;
        Ok(())
    }

    fn crash(&mut self) -> Result<()> {
        self.daemon.take().context("not mounted")?.kill();
        Ok(())
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn dir(&self) -> &Path {
        &self.dir
    }
}

#[derive(Default)]
struct NoopFs {
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    names: HashMap<OsString, u64>,
    sizes: HashMap<u64, u64>,
    last: u64,
}

impl NoopFs {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn size(&self, ino: INodeNo) -> Option<u64> {
        if ino == INodeNo::ROOT { Some(0) } else { self.files().sizes.get(&ino.0).copied() }
    }
}

impl Files {
    fn create(&mut self, name: &OsStr) -> INodeNo {
        self.last += 1;
        let ino = INodeNo::ROOT.0 + self.last;
        self.names.insert(name.to_owned(), ino);
        self.sizes.insert(ino, 0);
        INodeNo(ino)
    }
}

fn attributes(ino: INodeNo, size: u64) -> FileAttr {
    let is_root = ino == INodeNo::ROOT;
    FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_root { FileType::Directory } else { FileType::RegularFile },
        perm: if is_root { 0o755 } else { 0o644 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for NoopFs {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.files().names.get(name).map(|ino| INodeNo(*ino));
        match found.and_then(|ino| Some((ino, self.size(ino)?))) {
            Some((ino, size)) => reply.entry(&FOR_EVER, &attributes(ino, size), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.size(ino) {
            Some(size) => reply.attr(&FOR_EVER, &attributes(ino, size)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(size) = size {
            self.files().sizes.insert(ino.0, size);
        }
        reply.attr(&FOR_EVER, &attributes(ino, self.size(ino).unwrap_or(0)));
    }

    fn create(
        &self,
        _: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let ino = self.files().create(name);
        let attributes = attributes(ino, 0);
        reply.created(&FOR_EVER, &attributes, Generation(0), FileHandle(0), FopenFlags::empty());
    }

    fn unlink(&self, _: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut files = self.files();
        match files.names.remove(name) {
            Some(ino) => {
                files.sizes.remove(&ino);
                reply.ok();
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn rename(
        &self,
        _: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut files = self.files();
        match files.names.remove(name) {
            Some(ino) => {
                files.names.insert(newname.to_owned(), ino);
                reply.ok();
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
        let left = self.size(ino).unwrap_or(0).saturating_sub(offset);
        let length = usize::try_from(left.min(u64::from(size))).unwrap_or(0);
        reply.data(&ZEROS[..length.min(ZEROS.len())]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let end = offset.saturating_add(data.len() as u64);
        let mut files = self.files();
        let size = files.sizes.entry(ino.0).or_default();
        *size = end.max(*size);
        reply.written(u32::try_from(data.len()).unwrap_or(0));
    }

    fn fsync(&self, _: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn flush(&self, _: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // "Not implemented": the kernel asks once and never again.
        reply.error(Errno::ENOSYS);
    }
}
