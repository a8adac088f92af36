//! What is done with an image that may be anything.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};
use fs_core::api::{Attr, FileType, FsOps, IoFlags, Owner};
use fs_core::fsck::{CheckOptions, Report, check};
use fs_core::{Ino, Volume};

use super::aged::{DOOMED, VICTIM, mount};

/// Bytes read at once: errors are told apart at this grain.
const STEP: u64 = 4096;
/// Most bytes of a file that are read, from its start and from its end.
const MOST: u64 = 2 << 20;
/// Most names that are looked at in a directory, and inodes in all: a hostile image may have more.
const MOST_NAMES: usize = 20_000;

const READ: IoFlags = IoFlags { direct: false, dsync: false, sync: false, kill_priv: false };
const DIRECT: IoFlags = IoFlags { direct: true, ..READ };
const DSYNC: IoFlags = IoFlags { dsync: true, ..READ };

/// A part of an image that was read, or the error.
type Got<T> = Result<T, String>;

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The inode.
    pub ino: Ino,
    /// Type, permissions, links, owner, group, device, size.
    pub attr: Got<(FileType, u32, u32, u32, u32, u32, u64)>,
    /// Target of a symbolic link.
    pub target: Got<Vec<u8>>,
    /// Parts of a file's data.
    pub data: BTreeMap<u64, Got<Vec<u8>>>,
    /// Names in a directory.
    pub names: Got<Vec<Vec<u8>>>,
    /// Names of extended attributes.
    pub xattrs: Got<Vec<u8>>,
    /// Their values.
    pub values: BTreeMap<Vec<u8>, Got<Vec<u8>>>,
}

/// All that is reachable from the root, by path.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Entries; those whose directories cannot be read are missing.
    pub entries: BTreeMap<Vec<u8>, Got<Entry>>,
    /// Errors seen.
    pub errors: usize,
}

fn text<T>(result: fs_core::Result<T>, errors: &mut usize) -> Got<T> {
    result.map_err(|e| {
        *errors += 1;
        e.to_string()
    })
}

/// Mounts the image read-only and reads everything.
pub fn read_all(device: &RamDevice) -> fs_core::Result<Content> {
    let v = mount(device, true, 3)?;
    Ok(walk(&v))
}

/// Reads everything on a mounted volume.
pub fn walk(v: &Volume) -> Content {
    let mut out = Content::default();
    let mut todo = vec![(Vec::new(), Ino::ROOT)];
    let mut directories = std::collections::HashSet::new();
    let mut seen = 0;
    while let Some((path, ino)) = todo.pop() {
        seen += 1;
        if seen > MOST_NAMES {
            break;
        }
        let Some(entry) = text(v.getattr(ino), &mut out.errors)
            .map(|attr| read_entry(v, &attr, &mut out.errors))
            .map_or_else(
                |e| {
                    out.entries.insert(path.clone(), Err(e));
                    None
                },
                Some,
            )
        else {
            continue;
        };
        let is_dir = matches!(entry.attr, Ok((FileType::Directory, ..)));
        if is_dir && directories.insert(ino) {
            for name in entry.names.iter().flatten() {
                let full = [&path[..], b"/", name].concat();
                match text(v.lookup(ino, name), &mut out.errors) {
                    Ok(attr) => todo.push((full, attr.ino)),
                    Err(e) => {
                        out.entries.insert(full, Err(e));
                    }
                }
            }
        }
        out.entries.insert(path, Ok(entry));
    }
    out
}

fn read_entry(v: &Volume, attr: &Attr, errors: &mut usize) -> Entry {
    let ino = attr.ino;
    let mut entry = Entry {
        ino,
        attr: Ok((attr.kind, attr.perm, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.size)),
        target: Ok(Vec::new()),
        data: BTreeMap::new(),
        names: Ok(Vec::new()),
        xattrs: text(v.listxattr(ino, true), errors),
        values: BTreeMap::new(),
    };
    for name in entry.xattrs.iter().flatten().copied().collect::<Vec<u8>>().split(|b| *b == 0) {
        if !name.is_empty() {
            entry.values.insert(name.to_vec(), text(v.getxattr(ino, name), errors));
        }
    }
    match attr.kind {
        FileType::Symlink => entry.target = text(v.readlink(ino), errors),
        FileType::Directory => entry.names = text(names(v, ino), errors),
        FileType::Regular => {
            let ends = attr.size.saturating_sub(MOST).max(MOST) / STEP * STEP;
            let parts = (0..attr.size.min(MOST)).step_by(STEP as usize);
            let parts = parts.chain((ends..attr.size).step_by(STEP as usize));
            for at in parts {
                let flags = if (at / STEP).is_multiple_of(2) { READ } else { DIRECT };
                let mut buf = vec![0xEE; STEP as usize];
                let got = v.read(ino, at, &mut buf, flags).map(|n| {
                    buf.truncate(n);
                    buf
                });
                entry.data.insert(at, text(got, errors));
            }
        }
        _ => {}
    }
    entry
}

fn names(v: &Volume, ino: Ino) -> fs_core::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    v.readdir(ino, 0, &mut |e| {
        if e.name != b"." && e.name != b".." {
            names.push(e.name.clone());
        }
        names.len() < MOST_NAMES
    })?;
    names.sort();
    Ok(names)
}

impl Content {
    /// The first thing that is neither right nor an error. `touched`: what a probe has changed itself
    /// is not looked at.
    fn wrong(&self, want: &Content, touched: bool) -> Option<String> {
        let show = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let is_touched = |path: &[u8]| {
            let victims = [NEW, VICTIM, DOOMED];
            touched && victims.iter().any(|v| path.strip_prefix(b"/") == Some(v.as_bytes()))
        };
        for (path, got) in &self.entries {
            let Ok(got) = got else { continue };
            if is_touched(path) {
                continue;
            }
            let Some(Ok(want)) = want.entries.get(path) else {
                return Some(format!("{} should not be there", show(path)));
            };
            if let Some(what) = differs(got, want, touched && path.is_empty()) {
                return Some(format!("{what} of {} is wrong", show(path)));
            }
        }
        None
    }
}

fn differs(got: &Entry, want: &Entry, touched_root: bool) -> Option<&'static str> {
    let off = |ok: bool, what| (!ok).then_some(what);
    if touched_root {
        return off(got.ino == want.ino, "the inode");
    }
    let data = got.data.iter().all(|(at, got)| match got {
        Err(_) => true,
        got => want.data.get(at) == Some(got),
    });
    let values = got.values.iter().all(|(name, got)| got.is_err() || want.values.get(name) == Some(got));
    let parts = got.attr.is_err() || got.data.len() == want.data.len();
    off(got.ino == want.ino, "the inode")
        .or(off(got.attr.is_err() || got.attr == want.attr, "an attribute"))
        .or(off(got.target.is_err() || got.target == want.target, "the target"))
        .or(off(got.names.is_err() || got.names == want.names, "the list of names"))
        .or(off(got.xattrs.is_err() || got.xattrs == want.xattrs, "the list of attributes"))
        .or(off(values, "an extended attribute"))
        .or(off(data && parts, "the data"))
}

/// What became of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The mount was refused.
    pub refused: bool,
    /// Something could not be read.
    pub errors: bool,
    /// fsck found something, or could not run.
    pub reported: bool,
    /// It was repaired, if that was tried.
    pub repaired: bool,
}

/// The file that probes make.
const NEW: &str = "made by a probe";

/// Runs `f`; a panic is an error.
pub(super) fn guarded<T>(what: &str, f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?");
        Err(format!("panic in {what}: {text}"))
    })
}

fn full_check(device: &RamDevice) -> Option<Report> {
    let device: Arc<dyn BlockDevice> = Arc::new(device.snapshot());
    check(&device, &CheckOptions { data: true, ..CheckOptions::default() }).ok()
}

/// Uses an image in every way. With `want`, all that is read must be that or an error; without, nothing
/// is known about it. `Err`: a panic or wrong data.
pub fn probe(image: &RamDevice, want: Option<&Content>) -> Result<Outcome, String> {
    let report = guarded("fsck", || Ok(full_check(image)))?;
    let mut outcome = Outcome { reported: report.is_none_or(|r| !r.is_clean()), ..Outcome::default() };
    let compare = |content: &Content, touched: bool, when: &str| match want {
        Some(want) => content.wrong(want, touched).map_or(Ok(()), |w| Err(format!("{when}: {w}"))),
        None => Ok(()),
    };
    guarded("a read-only mount", || {
        match read_all(&image.snapshot()) {
            Err(_) => outcome.refused = true,
            Ok(content) => {
                outcome.errors |= content.errors > 0;
                compare(&content, false, "mounted read-only")?;
            }
        }
        Ok(())
    })?;
    let device = image.snapshot();
    let mounted = guarded("a mount", || {
        let Ok(v) = mount(&device, false, 4) else {
            outcome.refused = true;
            return Ok(false);
        };
        let content = walk(&v);
        outcome.errors |= content.errors > 0;
        compare(&content, false, "mounted")?;
        let _ = change(&v);
        compare(&walk(&v), true, "after changes")?;
        let _ = v.shutdown();
        Ok(true)
    })?;
    if mounted {
        guarded("the next mount", || match read_all(&device) {
            Ok(content) => compare(&content, true, "mounted again after changes"),
            Err(_) => Ok(()),
        })?;
        guarded("the last fsck", || Ok(full_check(&device)))?;
    }
    if want.is_some() && (outcome.refused || outcome.errors) && !outcome.reported {
        return Err(format!("fsck says that all is well, but: {outcome:?}"));
    }
    Ok(outcome)
}

/// Writes, overwrites, removes, and makes checkpoints, as far as the volume lets it.
fn change(v: &Volume) -> fs_core::Result<()> {
    let owner = Owner { uid: 1, gid: 1, umask: 0 };
    let make = || -> fs_core::Result<()> {
        let ino = v.create(Ino::ROOT, NEW.as_bytes(), 0o600, owner)?.ino;
        v.write(ino, 5000, &[0x5A; 9000], READ)?;
        v.write(ino, 0, &[0x5B; 8192], DIRECT)?;
        v.write(ino, 100, &[0x5C; 300], DSYNC)?;
        v.close(ino);
        Ok(())
    };
    let _ = make();
    if let Ok(victim) = v.lookup(Ino::ROOT, VICTIM.as_bytes()) {
        let _ = v.write(victim.ino, 3000, &[0x5D; 20_000], READ);
        let _ = v.write(victim.ino, 40_960, &[0x5E; 8192], DIRECT);
        let _ = v.fsync(victim.ino, false);
    }
    let _ = v.checkpoint();
    let _ = v.unlink(Ino::ROOT, DOOMED.as_bytes());
    let _ = v.publish_durable();
    v.sync_all()?;
    v.checkpoint()
}
