//! `dbfs ls`, `tree`, `stat`, `cat` and `cp`: the files of a volume that is not mounted.
//!
//! The volume is opened as a read-only mount would: the journal is replayed in memory, and the device
//! is opened for reading only, so nothing is changed. What is on a volume may be hostile: names are
//! shown so that they command no terminal, loops end, and copies stay below their target.

pub mod cat;
pub mod cp;
mod describe;
mod host;
pub mod ls;
pub mod stat;
pub mod tree;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use fs_core::api::{Attr, FileType, FsOps, Seek};
use fs_core::{FsError, Ino, Volume};

use crate::options::Options;
use crate::{engine, output, shown};

/// Page cache for a look, in bytes.
const CACHE: usize = 32 << 20;

/// Symbolic links that a path may lead through, as in the kernel.
const MAX_LINKS: u32 = 40;

/// Bytes read at once.
const STEP: usize = 1 << 20;

/// A volume that is looked into.
pub struct Look {
    volume: Arc<Volume>,
}

/// Name and value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// A name in a directory, with what it leads to.
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// What it leads to, or why that cannot be read.
    pub attr: Result<Attr, FsError>,
    /// Inode number.
    pub ino: Ino,
}

impl Look {
    /// Opens the volume on `path` for reading; a daemon that is still draining it is waited for.
    pub fn open(path: &Path) -> Result<Self> {
        let options = Options { read_only: true, cache: Some(CACHE), ..Options::default() };
        let device = engine::open_to_look(path)?;
        Ok(Self { volume: engine::mount(path, Arc::new(device), &options)? })
    }

    /// What `path` (from the root of the volume) leads to; `follow`: through a symbolic link at its
    /// end, too.
    pub fn find(&self, path: &OsStr, follow: bool) -> Result<Attr> {
        self.resolve(path.as_bytes(), follow)
            .map_err(|e| anyhow!(e))
            .with_context(|| format!("cannot open {}", shown::quoted(path.as_bytes())))
    }

    fn resolve(&self, path: &[u8], follow: bool) -> Result<Attr, FsError> {
        let mut todo: Vec<Vec<u8>> = components(path);
        let mut at = self.volume.getattr(Ino::ROOT)?;
        // "x/" means a directory, so a link there is followed.
        let follow = follow || path.ends_with(b"/");
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let next = self.volume.lookup(at.ino, &name)?;
            if next.kind != FileType::Symlink || (todo.is_empty() && !follow) {
                at = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(FsError::Posix(libc::ELOOP));
            }
            let target = self.volume.readlink(next.ino)?;
            todo.extend(components(&target));
            if target.starts_with(b"/") {
                at = self.volume.getattr(Ino::ROOT)?;
            }
        }
        if path.ends_with(b"/") && at.kind != FileType::Directory {
            return Err(FsError::NOT_DIR);
        }
        Ok(at)
    }

    /// The entries of a directory by name, without "." and "..".
    pub fn entries(&self, dir: Ino) -> Result<Vec<Entry>, FsError> {
        let mut list = Vec::new();
        self.volume.readdir(dir, 0, &mut |e| {
            if !matches!(e.name.as_slice(), b"." | b"..") {
                list.push((e.name.clone(), e.ino));
            }
            true
        })?;
        list.sort_unstable();
        let entry = |(name, ino)| Entry { name, ino, attr: self.volume.getattr(ino) };
        Ok(list.into_iter().map(entry).collect())
    }

    /// Target of a symbolic link.
    pub fn link_target(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        self.volume.readlink(ino)
    }

    /// Extended attributes, access control lists included: names with values.
    pub fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>, FsError> {
        let names = self.volume.listxattr(ino, true)?;
        let names = names.split(|&b| b == 0).filter(|name| !name.is_empty());
        names.map(|name| Ok((name.to_vec(), self.volume.getxattr(ino, name)?))).collect()
    }

    /// Hands the content of a file over, step by step: offset and bytes. Holes are left out.
    pub fn read(
        &self,
        attr: &Attr,
        mut take: impl FnMut(u64, &[u8]) -> std::io::Result<()>,
    ) -> Result<(), ReadError> {
        let mut buf = vec![0; STEP];
        let mut offset = 0;
        while offset < attr.size {
            offset = match self.volume.seek(attr.ino, offset, Seek::Data) {
                Err(FsError::Posix(libc::ENXIO)) => break,
                other => other?,
            };
            let n = self.volume.read(attr.ino, offset, &mut buf, Default::default())?;
            if n == 0 {
                break;
            }
            take(offset, &buf[..n]).map_err(ReadError::Taker)?;
            offset += n as u64;
        }
        Ok(())
    }

    /// The engine, for what is the same on a mount.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }
}

/// Why the content of a file was not handed over.
#[derive(Debug)]
pub enum ReadError {
    /// It could not be read.
    Volume(FsError),
    /// It was not taken.
    Taker(std::io::Error),
}

impl From<FsError> for ReadError {
    fn from(error: FsError) -> Self {
        ReadError::Volume(error)
    }
}

/// The names of a path, the last one first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&b| b == b'/').filter(|name| !name.is_empty()).rev().map(<[u8]>::to_vec).collect()
}

/// `dir`/`name`.
fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if dir.ends_with(b"/") { b"" } else { b"/" };
    [dir, slash, name].concat()
}

/// Says what went wrong with one of several things, and goes on.
fn complain(command: &str, path: &[u8], error: &dyn std::fmt::Display) {
    output::say(&format!("dbfs {command}: {}: {error}", shown::quoted(path)));
}
