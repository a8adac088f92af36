//! What each operation does, on both sides.

use std::ops::Range;

use fs_core::api::{
    Attr, Fallocate, FileType, FsOps, IoFlags, Owner, RenameFlags, Seek, SetAttr, SetTime, Timestamp,
};
use fs_core::{FsError, Ino, Result as FsResult};

use super::compare::{same_attr, same_outcome};
use super::failure::Failure;
use super::lockstep::Lockstep;
use super::record::{Promise, Written};
use super::subject::Subject;
use super::tree::list;
use crate::fail_with;
use crate::model::CAPABILITY;
use crate::ops::{How, Moving, Nth, Op, Then, pattern};

/// Longest write that is all or nothing.
const MAX_ATOMIC: u64 = 1 << 20;

/// What an operation has promised.
type Outcome = Result<Promise, Failure>;
type Both<T> = (FsResult<T>, FsResult<T>);
/// Translates a model inode number for the side that runs.
type At<'a> = &'a dyn Fn(Ino) -> Ino;

impl How {
    fn flags(self, kill_priv: bool) -> IoFlags {
        let direct = matches!(self, How::Direct | How::DirectDsync);
        let dsync = matches!(self, How::Dsync | How::Sync | How::DirectDsync);
        IoFlags { direct, dsync, sync: self == How::Sync, kill_priv }
    }
}

impl Moving {
    fn flags(self) -> RenameFlags {
        RenameFlags {
            no_replace: matches!(self, Moving::NoReplace | Moving::Nonsense),
            exchange: matches!(self, Moving::Exchange | Moving::Nonsense),
            whiteout: (self == Moving::Whiteout).then(root),
        }
    }
}

fn root() -> Owner {
    Owner { umask: 0o022, ..Owner::new(1, 2) }
}

impl<S: Subject> Lockstep<S> {
    /// Runs `f` on the subject and on the model.
    fn both<T>(&self, f: impl Fn(&dyn FsOps, At<'_>) -> FsResult<T>) -> Both<T> {
        let got = f(self.subject().fs(), &|ino| self.inos.subject(ino));
        (got, f(&self.model, &|ino| ino))
    }

    /// As [`Self::both`], for what takes space: a full volume may refuse it, and has changed nothing
    /// then.
    fn both_taking<T>(&mut self, f: impl Fn(&dyn FsOps, At<'_>) -> FsResult<T>) -> Both<T> {
        let got = f(self.subject().fs(), &|ino| self.inos.subject(ino));
        match &got {
            Err(e) if self.config.fill > 0 && e.errno() == libc::ENOSPC => {
                self.refused += 1;
                (got, Err(FsError::NO_SPACE))
            }
            _ => (got, f(&self.model, &|ino| ino)),
        }
    }

    /// As [`Self::both_taking`], for what takes `len` bytes but need not be whole: a full volume may take
    /// the first of them only, as write(2) says.
    fn both_filling(&mut self, len: u64, f: impl Fn(&dyn FsOps, At<'_>, u64) -> FsResult<u64>) -> Both<u64> {
        let got = f(self.subject().fs(), &|ino| self.inos.subject(ino), len);
        match &got {
            Err(e) if self.config.fill > 0 && e.errno() == libc::ENOSPC => {
                self.refused += 1;
                (got, Err(FsError::NO_SPACE))
            }
            Ok(part) if self.config.fill > 0 && 0 < *part && *part < len => {
                let part = *part;
                (got, f(&self.model, &|ino| ino, part))
            }
            _ => (got, f(&self.model, &|ino| ino, len)),
        }
    }

    /// A change of a file that was refused may have taken its capability all the same, as on Linux, which takes it
    /// first: the model follows.
    fn note_lost_capability(&self, ino: Ino, refused: bool) {
        let gone = || {
            let found = self.subject().fs().getxattr(self.inos.subject(ino), CAPABILITY);
            found.is_err_and(|e| e.errno() == libc::ENODATA)
        };
        if refused && self.model.getxattr(ino, CAPABILITY).is_ok() && gone() {
            self.model.lose_capability(ino);
        }
    }

    fn pick(&self, nth: Nth, wanted: impl Fn(&crate::model::Node) -> bool) -> Option<Ino> {
        let state = self.model.snapshot();
        let all: Vec<Ino> = state.nodes().iter().filter(|(_, n)| wanted(n)).map(|(i, _)| *i).collect();
        (!all.is_empty()).then(|| all[usize::from(nth) % all.len()])
    }

    fn dir(&self, nth: Nth) -> Ino {
        self.pick(nth, |n| n.is_dir() && n.nlink > 0).unwrap_or(Ino::ROOT)
    }

    fn node(&self, nth: Nth) -> Ino {
        self.pick(nth, |_| true).unwrap_or(Ino::ROOT)
    }

    /// The file that `nth` stands for, if there is any file.
    fn file(&self, nth: Nth) -> Option<Ino> {
        self.pick(nth, |n| n.content().is_some())
    }

    pub(super) fn execute(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Create { .. }
            | Op::Mknod { .. }
            | Op::Mkdir { .. }
            | Op::Symlink { .. }
            | Op::Tmpfile { .. } => self.make(op),
            Op::SetXattr { .. } | Op::RemoveXattr { .. } | Op::GetXattr { .. } => self.xattr_op(op),
            Op::Link { .. } | Op::Unlink { .. } | Op::Rmdir { .. } | Op::Rename { .. } => self.names(op),
            Op::Lookup { dir, name } => {
                let (dir, name) = (self.dir(dir), Op::name(name));
                self.attrs(self.both(|fs, at| fs.lookup(at(dir), &name)))
            }
            Op::List { dir, batch } => self.list(self.dir(dir), usize::from(batch)),
            Op::Readlink { node } => self.readlink(self.node(node)),
            Op::Open { node } => self.open(self.node(node)),
            Op::Close { nth } => self.close(nth),
            Op::Write { file, offset, len, how, kill_priv } => match self.file(file) {
                Some(ino) => self.write(ino, offset, len, how, kill_priv),
                None => Ok(Promise::None),
            },
            Op::Append { file, len, how, then } => self.append(file, len, how, then),
            Op::Read { file, offset, len, direct } => self.read(file, offset, len, direct),
            Op::Truncate { .. } | Op::Chmod { .. } | Op::Chown { .. } | Op::Utimes { .. } => self.attr_op(op),
            Op::Fallocate { file, mode, offset, len } => self.fallocate(file, mode, offset, len),
            Op::Seek { file, offset } => self.seek(file, offset),
            Op::Copy { .. } => self.copy(op),
            Op::Fsync { node, datasync } => self.fsync(self.node(node), datasync),
            Op::SyncAll => {
                self.plain(self.both(|fs, _| fs.sync_all()))?;
                Ok(Promise::All)
            }
            Op::Statfs => self.statfs(),
            Op::Maintain(work) => {
                self.subject().maintain(work).map_err(|e| Failure::refused(&e))?;
                Ok(Promise::None)
            }
            Op::Remount => self.remount(),
            Op::Pass { ms } => {
                self.clock.advance(u64::from(ms) * 1_000_000);
                Ok(Promise::None)
            }
        }
    }

    fn plain<T>(&self, (got, want): Both<T>) -> Outcome {
        same_outcome(&got, &want)?;
        Ok(Promise::None)
    }

    fn attrs(&self, (got, want): Both<Attr>) -> Outcome {
        same_outcome(&got, &want)?;
        if let (Ok(got), Ok(want)) = (got, want) {
            same_attr(&got, &want, &self.inos)?;
        }
        Ok(Promise::None)
    }

    fn make(&mut self, op: &Op) -> Outcome {
        let made = match *op {
            Op::Create { dir, name, perm } => {
                let (dir, name) = (self.dir(dir), Op::name(name));
                self.both_taking(|fs, at| fs.create(at(dir), &name, perm, root()))
            }
            Op::Mknod { dir, name, kind, perm } => {
                let (dir, name) = (self.dir(dir), Op::name(name));
                let rdev = if kind == FileType::CharDevice { 0x0103 } else { 0 };
                self.both_taking(|fs, at| fs.mknod(at(dir), &name, kind, perm, rdev, root()))
            }
            Op::Mkdir { dir, name, perm } => {
                let (dir, name) = (self.dir(dir), Op::name(name));
                self.both_taking(|fs, at| fs.mkdir(at(dir), &name, perm, root()))
            }
            Op::Symlink { dir, name, len } => {
                let (dir, name) = (self.dir(dir), Op::name(name));
                self.both_taking(|fs, at| fs.symlink(at(dir), &name, &Op::target(len), root()))
            }
            Op::Tmpfile { dir, perm } => {
                let dir = self.dir(dir);
                self.both_taking(|fs, at| fs.tmpfile(at(dir), perm, root()))
            }
            _ => return Ok(Promise::None),
        };
        if let (Ok(got), Ok(want)) = &made {
            if !self.inos.insert(want.ino, got.ino) {
                fail_with!("inode number {} was given out twice", got.ino);
            }
            if matches!(op, Op::Create { .. } | Op::Tmpfile { .. }) {
                self.open.push(want.ino);
            }
        }
        self.attrs(made)
    }

    fn names(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Link { node, dir, name } => {
                let (ino, dir, name) = (self.node(node), self.dir(dir), Op::name(name));
                let linked = self.both_taking(|fs, at| fs.link(at(ino), at(dir), &name));
                self.attrs(linked)
            }
            Op::Unlink { dir, name } => {
                let (dir, name) = (self.dir(dir), Op::name(name));
                self.plain(self.both(|fs, at| fs.unlink(at(dir), &name)))
            }
            Op::Rmdir { dir, name } => {
                let (dir, name) = (self.dir(dir), Op::name(name));
                self.plain(self.both(|fs, at| fs.rmdir(at(dir), &name)))
            }
            Op::Rename { dir, name, to_dir, to_name, how } => {
                let (dir, to_dir) = (self.dir(dir), self.dir(to_dir));
                let (name, to_name) = (Op::name(name), Op::name(to_name));
                let flags = how.flags();
                let renamed =
                    self.both_taking(|fs, at| fs.rename(at(dir), &name, at(to_dir), &to_name, flags));
                let left = renamed.0.is_ok() && flags.whiteout.is_some();
                let outcome = self.plain(renamed)?;
                if left {
                    self.meet_whiteout(dir, &name)?;
                }
                Ok(outcome)
            }
            _ => Ok(Promise::None),
        }
    }

    /// Learns the number of what a rename has left at the old name.
    fn meet_whiteout(&mut self, dir: Ino, name: &[u8]) -> Result<(), Failure> {
        let (got, want) = self.both(|fs, at| fs.lookup(at(dir), name));
        if let (Ok(got), Ok(want)) = (&got, &want)
            && self.inos.model(got.ino) != Some(want.ino)
            && !self.inos.insert(want.ino, got.ino)
        {
            fail_with!("inode number {} was given out twice", got.ino);
        }
        self.attrs((got, want)).map(|_| ())
    }

    fn list(&mut self, dir: Ino, batch: usize) -> Outcome {
        let names = |fs: &dyn FsOps, ino| -> Result<Vec<(Vec<u8>, FileType, Ino)>, Failure> {
            let mut all: Vec<_> =
                list(fs, ino, batch)?.into_iter().map(|e| (e.name, e.kind, e.ino)).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(all)
        };
        let got = names(self.subject().fs(), self.inos.subject(dir))?;
        let mut want = names(&self.model, dir)?;
        want.iter_mut().for_each(|e| e.2 = self.inos.subject(e.2));
        if got != want {
            fail_with!("listing of model inode {dir} is {got:?}, should be {want:?}");
        }
        Ok(Promise::None)
    }

    fn readlink(&mut self, ino: Ino) -> Outcome {
        let (got, want) = self.both(|fs, at| fs.readlink(at(ino)));
        same_outcome(&got, &want)?;
        if got.ok() != want.ok() {
            fail_with!("wrong target");
        }
        Ok(Promise::None)
    }

    fn open(&mut self, ino: Ino) -> Outcome {
        let opened = self.both(|fs, at| fs.open(at(ino)));
        if opened.1.is_ok() {
            self.open.push(ino);
        }
        self.attrs(opened)
    }

    fn close(&mut self, nth: Nth) -> Outcome {
        if self.open.is_empty() {
            return Ok(Promise::None);
        }
        let ino = self.open.swap_remove(usize::from(nth) % self.open.len());
        self.plain(self.both(|fs, at| {
            fs.close(at(ino));
            // The inode goes with its last close, or stays.
            fs.getattr(at(ino)).map(|_| ())
        }))
    }

    fn write(&mut self, ino: Ino, offset: u64, len: u32, how: How, kill_priv: bool) -> Outcome {
        self.writes += 1;
        let data = pattern(self.writes, offset, len as usize);
        let flags = how.flags(kill_priv);
        let range = offset..offset + u64::from(len);
        let whole = (flags.direct || flags.dsync) && u64::from(len) <= MAX_ATOMIC;
        self.written = Some(Written { ino, range: range.clone(), atomic: whole });
        let write = |fs: &dyn FsOps, at: At<'_>, len: u64| {
            fs.write(at(ino), offset, &data[..len as usize], flags).map(|n| n as u64)
        };
        let (got, want) = self.both_filling(len.into(), write);
        self.note_lost_capability(ino, got.is_err());
        same_outcome(&got, &want)?;
        let (Ok(got), Ok(want)) = (got, want) else { return Ok(Promise::None) };
        if got != want || (whole && got < u64::from(len)) {
            fail_with!("wrote {got} bytes of {want}");
        }
        Ok(promised(flags, ino, offset..offset + got))
    }

    fn append(&mut self, file: Nth, len: u32, how: How, then: Then) -> Outcome {
        let Some(ino) = self.file(file) else { return Ok(Promise::None) };
        let size = self.model.snapshot().get(ino).map_or(0, |n| n.size());
        let written = self.write(ino, size, len, how, false)?;
        match then {
            Then::Nothing => Ok(written),
            Then::Datasync => self.fsync(ino, true),
            Then::Fsync => self.fsync(ino, false),
        }
    }

    fn read(&mut self, file: Nth, offset: u64, len: u32, direct: bool) -> Outcome {
        let Some(ino) = self.file(file) else { return Ok(Promise::None) };
        let flags = IoFlags { direct, ..IoFlags::default() };
        let (got, want) = self.both(|fs, at| {
            let mut buf = vec![0x55; len as usize];
            fs.read(at(ino), offset, &mut buf, flags).map(|n| (n, buf))
        });
        same_outcome(&got, &want)?;
        let (Ok(got), Ok(want)) = (got, want) else { return Ok(Promise::None) };
        if got.0 != want.0 {
            fail_with!("read {} bytes, should be {}", got.0, want.0);
        }
        if let Some(i) = (0..got.0).find(|i| got.1[*i] != want.1[*i]) {
            fail_with!("model inode {ino}: wrong byte at offset {}", offset + i as u64);
        }
        Ok(Promise::None)
    }

    fn attr_op(&mut self, op: &Op) -> Outcome {
        let (ino, changes) = match *op {
            Op::Truncate { file, size } => {
                (self.file(file), SetAttr { size: Some(size), ..SetAttr::default() })
            }
            Op::Chmod { node, perm } => {
                (Some(self.node(node)), SetAttr { perm: Some(perm), ..SetAttr::default() })
            }
            Op::Chown { node, uid, gid } => {
                (Some(self.node(node)), SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() })
            }
            Op::Utimes { node, secs } => {
                let time = Some(SetTime::At(Timestamp { secs, nanos: 999_999_999 }));
                (Some(self.node(node)), SetAttr { atime: time, mtime: time, ..SetAttr::default() })
            }
            _ => return Ok(Promise::None),
        };
        let Some(ino) = ino else { return Ok(Promise::None) };
        self.attrs(self.both(|fs, at| fs.setattr(at(ino), &changes)))
    }

    fn xattr_op(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::SetXattr { node, attribute, len, flags } => {
                let (ino, (name, value)) = (self.node(node), Op::attribute(attribute, len));
                let set = self.both_taking(|fs, at| fs.setxattr(at(ino), &name, &value, flags));
                self.plain(set)
            }
            Op::RemoveXattr { node, attribute } => {
                let (ino, name) = (self.node(node), Op::attribute(attribute, 0).0);
                self.plain(self.both(|fs, at| fs.removexattr(at(ino), &name)))
            }
            Op::GetXattr { node, attribute } => {
                let (ino, name) = (self.node(node), Op::attribute(attribute, 0).0);
                let (got, want) = self.both(|fs, at| fs.getxattr(at(ino), &name));
                same_outcome(&got, &want)?;
                if got.ok() != want.ok() {
                    fail_with!("wrong value of an extended attribute");
                }
                self.plain(self.both(|fs, at| fs.listxattr(at(ino), false)))
            }
            _ => Ok(Promise::None),
        }
    }

    fn copy(&mut self, op: &Op) -> Outcome {
        let Op::Copy { from, from_offset, to, to_offset, len } = *op else { return Ok(Promise::None) };
        let (Some(from), Some(to)) = (self.file(from), self.file(to)) else { return Ok(Promise::None) };
        let size = self.model.snapshot().get(from).map_or(0, |n| n.size());
        let len = len.min(size.saturating_sub(from_offset));
        self.written = Some(Written { ino: to, range: to_offset..to_offset + len, atomic: false });
        let flags = IoFlags::default();
        let (got, want) = self.both_filling(len, |fs, at, len| {
            fs.copy_range(at(from), from_offset, at(to), to_offset, len, flags)
        });
        self.note_lost_capability(to, got.is_err());
        same_outcome(&got, &want)?;
        match (got, want) {
            (Ok(got), Ok(want)) if got != want => fail_with!("copied {got} bytes of {want}"),
            _ => Ok(Promise::None),
        }
    }

    /// The model knows which bytes are zero, but not in what units a file system has holes.
    fn seek(&mut self, file: Nth, offset: u64) -> Outcome {
        let Some(ino) = self.file(file) else { return Ok(Promise::None) };
        let state = self.model.snapshot();
        let Some(content) = state.get(ino).and_then(|n| n.content()) else { return Ok(Promise::None) };
        let seek = |what| self.subject().fs().seek(self.inos.subject(ino), offset, what);
        let size = content.size();
        match seek(Seek::Data) {
            Ok(at) if offset <= at && at < size && content.is_zero(offset..at) => {}
            Err(e) if e.errno() == libc::ENXIO && (offset >= size || content.is_zero(offset..size)) => {}
            other => fail_with!("model inode {ino}: data from {offset} is at {other:?}, size {size}"),
        }
        match seek(Seek::Hole) {
            Ok(at) if offset <= at && at < size => {
                let page = self.config.page;
                let end = size.min((at / page + 1) * page);
                if !content.is_zero(at..end) {
                    fail_with!("model inode {ino}: the hole at {at} has data");
                }
            }
            Ok(at) if offset < size && at == size => {}
            Err(e) if e.errno() == libc::ENXIO && offset >= size => {}
            other => fail_with!("model inode {ino}: the hole from {offset} is at {other:?}, size {size}"),
        }
        Ok(Promise::None)
    }

    fn fallocate(&mut self, file: Nth, mode: Fallocate, offset: u64, len: u64) -> Outcome {
        let Some(ino) = self.file(file) else { return Ok(Promise::None) };
        let reserved = self.both_taking(|fs, at| fs.fallocate(at(ino), mode, offset, len));
        self.note_lost_capability(ino, reserved.0.is_err());
        self.plain(reserved)
    }

    fn fsync(&mut self, ino: Ino, datasync: bool) -> Outcome {
        self.plain(self.both(|fs, at| fs.fsync(at(ino), datasync)))?;
        Ok(Promise::File { ino, times: !datasync })
    }

    fn statfs(&mut self) -> Outcome {
        match self.subject().fs().statfs() {
            Ok(s) if s.bavail <= s.bfree && s.bfree <= s.blocks && s.ffree <= s.files && s.namelen == 255 => {
                Ok(Promise::None)
            }
            other => fail_with!("statfs says {other:?}"),
        }
    }
}

fn promised(flags: IoFlags, ino: Ino, range: Range<u64>) -> Promise {
    if flags.dsync { Promise::Range { ino, range, times: flags.sync } } else { Promise::None }
}
