//! `dbfs cp`: copies files out of a volume.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use fs_core::Ino;
use fs_core::api::{Attr, FileType};
use serde_json::{Map, Value};

use super::{Look, ReadError, host, join};
use crate::{output, shown};

/// Directories within each other that are followed: the depth of a hostile tree must not end the
/// stack, nor the descriptors of this process.
const MAX_DEPTH: usize = 2000;

/// Zeros of this length become holes.
const HOLE: usize = 4096;

/// Copy files out of a volume that is not mounted, to the host.
///
/// Zeros become holes. Exit codes: 0 copied, 1 not, or not all of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directories with everything below them
    #[arg(short, long, short_alias = 'R')]
    recursive: bool,
    /// All there is: -r, with owners (if root), permissions, times, hard links, extended attributes,
    /// access control lists and special files
    #[arg(short, long)]
    archive: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    /// Block device or image file
    volume: PathBuf,
    /// Paths from the root of the volume
    #[arg(required = true)]
    sources: Vec<OsString>,
    /// On the host: a directory that exists, or (for one source) a new name
    target: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let look = Look::open(&args.volume)?;
    raise_descriptor_limit();
    let mut copy = Copy {
        look: &look,
        archive: args.archive,
        recursive: args.recursive || args.archive,
        umask: host::umask(),
        links: HashMap::new(),
        seen: HashSet::new(),
        done: Done::default(),
    };
    let into = args.target.is_dir();
    if !into && args.sources.len() > 1 {
        bail!("cannot copy several sources: {} is not a directory", args.target.display());
    }
    for source in &args.sources {
        copy.source(source, &args.target, into)?;
    }
    if args.json {
        output::json(&copy.done.object())?;
    }
    Ok(if copy.done.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What has been done so far.
#[derive(Default)]
struct Done {
    files: u64,
    directories: u64,
    symlinks: u64,
    special: u64,
    bytes: u64,
    errors: Vec<(Vec<u8>, String)>,
}

impl Done {
    fn object(&self) -> Value {
        let error = |(path, error): &(Vec<u8>, String)| {
            let mut fields = Map::new();
            shown::put(&mut fields, "path", path);
            fields.insert("error".into(), error.as_str().into());
            Value::Object(fields)
        };
        serde_json::json!({
            "files": self.files,
            "directories": self.directories,
            "symlinks": self.symlinks,
            "special": self.special,
            "bytes": self.bytes,
            "errors": self.errors.iter().map(error).collect::<Vec<_>>(),
        })
    }
}

/// A place on the host: a directory that is held open, the name in it, and both as a path.
struct Place<'a> {
    parent: &'a OwnedFd,
    name: &'a [u8],
    path: &'a [u8],
}

struct Copy<'a> {
    look: &'a Look,
    archive: bool,
    recursive: bool,
    umask: u32,
    /// Where files with several names were copied to.
    links: HashMap<Ino, PathBuf>,
    /// Directories met: a second time means a loop.
    seen: HashSet<Ino>,
    done: Done,
}

impl Copy<'_> {
    /// One source of the command line.
    fn source(&mut self, source: &OsString, target: &Path, into: bool) -> Result<()> {
        let bytes = source.as_bytes();
        let attr = match self.look.find(source, !self.recursive) {
            Ok(attr) => attr,
            Err(e) => {
                self.failed(bytes, &format!("{e:#}"));
                return Ok(());
            }
        };
        let cannot = || format!("cannot copy to {}", target.display());
        let name = bytes.split(|&b| b == b'/').rfind(|name| !name.is_empty()).unwrap_or(b".");
        let inside = matches!(name, b"." | b"..");
        if into && inside && attr.kind == FileType::Directory && self.recursive {
            let dir = host::open_dir(target).with_context(cannot)?;
            self.content(bytes, &attr, &dir, target.as_os_str().as_bytes(), 0);
            return Ok(());
        }
        let (parent, name) = if into {
            (target, name)
        } else {
            let name = target.file_name().with_context(cannot)?;
            (target.parent().unwrap_or(Path::new("")), name.as_bytes())
        };
        let dir = host::open_dir(parent).with_context(cannot)?;
        let path =
            join(if parent.as_os_str().is_empty() { b"." } else { parent.as_os_str().as_bytes() }, name);
        self.one(bytes, &attr, &Place { parent: &dir, name, path: &path }, 0);
        Ok(())
    }

    /// Copies anything; complains if that fails.
    fn one(&mut self, source: &[u8], attr: &Attr, to: &Place, depth: usize) {
        let copied = match attr.kind {
            FileType::Directory if !self.recursive => Err(anyhow!("is a directory; -r copies it")),
            FileType::Directory => self.directory(source, attr, to, depth),
            _ if self.is_linked(attr, to) => Ok(()),
            FileType::Regular => self.file(attr, to),
            FileType::Symlink => self.symlink(attr, to),
            _ if self.archive => self.special(attr, to),
            _ => Err(anyhow!("is neither file, directory nor link; -a copies it")),
        };
        match copied {
            Ok(()) if self.archive && attr.nlink > 1 && attr.kind != FileType::Directory => {
                self.links.entry(attr.ino).or_insert_with(|| path_of(to.path));
            }
            Ok(()) => {}
            Err(e) => self.failed(source, &format!("{e:#}")),
        }
    }

    /// Makes a hard link to the copy of the same file, if there is one.
    fn is_linked(&mut self, attr: &Attr, to: &Place) -> bool {
        let Some(first) = self.links.get(&attr.ino) else { return false };
        let name = std::ffi::OsStr::from_bytes(to.name);
        let linked =
            rustix::fs::linkat(rustix::fs::CWD, first, to.parent, name, rustix::fs::AtFlags::empty());
        // If not, a copy is as good.
        linked.is_ok()
    }

    fn directory(&mut self, source: &[u8], attr: &Attr, to: &Place, depth: usize) -> Result<()> {
        if depth >= MAX_DEPTH {
            bail!("is more than {MAX_DEPTH} directories deep");
        }
        let dir = host::make_dir(to.parent, to.name).with_context(|| cannot_make(to))?;
        self.content(source, attr, &dir, to.path, depth);
        let finished = if self.archive {
            host::keep_attributes(&dir, attr, &self.look.xattrs(attr.ino)?)
        } else {
            host::use_permissions(&dir, attr, self.umask)
        };
        self.done.directories += 1;
        finished.with_context(|| cannot_finish(to))
    }

    /// Everything in a directory.
    fn content(&mut self, source: &[u8], attr: &Attr, dir: &OwnedFd, path: &[u8], depth: usize) {
        if !self.seen.insert(attr.ino) {
            return self
                .failed(source, "this directory was met before: the volume is damaged, see `dbfs fsck -n`");
        }
        let entries = match self.look.entries(attr.ino) {
            Ok(entries) => entries,
            Err(e) => return self.failed(source, &e.to_string()),
        };
        for entry in entries {
            let source = join(source, &entry.name);
            match &entry.attr {
                Ok(attr) => {
                    let path = join(path, &entry.name);
                    let place = Place { parent: dir, name: &entry.name, path: &path };
                    self.one(&source, attr, &place, depth + 1);
                }
                Err(e) => self.failed(&source, &e.to_string()),
            }
        }
    }

    fn file(&mut self, attr: &Attr, to: &Place) -> Result<()> {
        let file = host::make_file(to.parent, to.name).with_context(|| cannot_make(to))?;
        let written = self.look.read(attr, |offset, bytes| write_sparse(&file, offset, bytes));
        match written {
            Ok(()) => {}
            Err(ReadError::Volume(e)) => {
                return Err(anyhow!(e).context("cannot read it; the copy is not whole"));
            }
            Err(ReadError::Taker(e)) => return Err(anyhow!(e).context(cannot_make(to))),
        }
        file.set_len(attr.size).with_context(|| cannot_make(to))?;
        let finished = if self.archive {
            host::keep_attributes(&file, attr, &self.look.xattrs(attr.ino)?)
        } else {
            host::use_permissions(&file, attr, self.umask)
        };
        self.done.files += 1;
        self.done.bytes += attr.size;
        finished.with_context(|| cannot_finish(to))
    }

    fn symlink(&mut self, attr: &Attr, to: &Place) -> Result<()> {
        let target = self.look.link_target(attr.ino)?;
        host::make_symlink(to.parent, to.name, &target).with_context(|| cannot_make(to))?;
        self.done.symlinks += 1;
        self.finish_unopened(attr, to)
    }

    fn special(&mut self, attr: &Attr, to: &Place) -> Result<()> {
        host::make_special(to.parent, to.name, attr).with_context(|| cannot_make(to))?;
        self.done.special += 1;
        self.finish_unopened(attr, to)
    }

    fn finish_unopened(&self, attr: &Attr, to: &Place) -> Result<()> {
        if self.archive {
            let xattrs = self.look.xattrs(attr.ino)?;
            host::keep_attributes_of(to.parent, to.name, attr, &xattrs).with_context(|| cannot_finish(to))?;
        }
        Ok(())
    }

    fn failed(&mut self, source: &[u8], error: &str) {
        super::complain("cp", source, &error);
        self.done.errors.push((source.to_vec(), error.to_owned()));
    }
}

fn path_of(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

fn cannot_make(to: &Place) -> String {
    format!("cannot write {}", shown::quoted(to.path))
}

fn cannot_finish(to: &Place) -> String {
    format!("cannot set the attributes of {}", shown::quoted(to.path))
}

/// Writes what is not zero.
fn write_sparse(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut at = offset;
    let is_hole = |chunk: &&[u8]| chunk.iter().all(|&b| b == 0);
    let chunks: Vec<&[u8]> = bytes.chunks(HOLE).collect();
    for run in chunks.chunk_by(|a, b| is_hole(a) == is_hole(b)) {
        let len: usize = run.iter().map(|chunk| chunk.len()).sum();
        if !is_hole(&run[0]) {
            let start = (at - offset) as usize;
            file.write_all_at(&bytes[start..start + len], at)?;
        }
        at += len as u64;
    }
    Ok(())
}

/// A descriptor for each directory on the way down.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // If not, deep trees are refused where the descriptors end.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
