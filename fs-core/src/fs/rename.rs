//! rename(2), with RENAME_NOREPLACE, RENAME_EXCHANGE and RENAME_WHITEOUT.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::MutexGuard;

use super::dir::{Bucket, check_new_name};
use super::names::{LINK_MAX, NewInode, claim_deletion, drop_dir, drop_link, same_bucket};
use super::{Inode, InodeState};
use crate::api::{FileType, Owner, RenameFlags, Timestamp};
use crate::error::{FsError, Result};
use crate::format::Change;
use crate::format::dirent::NameEntry;
use crate::mutants::{self, Mutant};
use crate::types::{BlockNr, Ino};
use crate::volume::Volume;

/// One end of a rename.
struct End {
    dir: Arc<Inode>,
    name: Vec<u8>,
}

/// The states of all inodes that a rename touches, locked in order.
struct Locked<'a>(BTreeMap<Ino, (&'a Inode, MutexGuard<'a, InodeState>)>);

impl<'a> Locked<'a> {
    fn new(inodes: impl IntoIterator<Item = &'a Arc<Inode>>) -> Self {
        let ordered: BTreeMap<Ino, &'a Inode> = inodes.into_iter().map(|i| (i.ino, &**i)).collect();
        Self(ordered.into_iter().map(|(ino, i)| (ino, (i, i.state.lock()))).collect())
    }

    fn get(&mut self, ino: Ino) -> (&'a Inode, &mut InodeState) {
        let (inode, state) = self.0.get_mut(&ino).expect("every inode of the rename was locked");
        (inode, state)
    }

    fn puts(&mut self) -> Vec<Change> {
        self.0.values_mut().filter(|(_, s)| s.item.nlink > 0).map(|(i, s)| s.put(i.ino)).collect()
    }
}

impl Volume {
    /// See [`FsOps::rename`](crate::api::FsOps::rename).
    pub(crate) fn rename_name(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        if flags.exchange && (flags.no_replace || flags.whiteout.is_some()) {
            return Err(FsError::INVALID);
        }
        let deleted = {
            let _admitted = if flags.whiteout.is_some() { self.admit_growth() } else { self.admit() }?;
            let _names = self.names_exclusive();
            let from = End { dir: self.directory(parent)?, name: name.to_vec() };
            let to = End { dir: self.directory(new_parent)?, name: new_name.to_vec() };
            self.rename_locked(&from, &to, flags)?
        };
        self.finish_unlink(deleted);
        Ok(())
    }

    fn rename_locked(&self, from: &End, to: &End, flags: RenameFlags) -> Result<Option<Arc<Inode>>> {
        for name in [&from.name, &to.name] {
            match &name[..] {
                b"." | b".." => return Err(FsError::Posix(libc::EBUSY)),
                name => check_new_name(name)?,
            }
        }
        let mut source = self.bucket(from.dir.ino, &from.name)?;
        let moved = source.find(&from.name).cloned().ok_or(FsError::NOT_FOUND)?;
        let mut target = self.bucket(to.dir.ino, &to.name)?;
        let replaced = target.find(&to.name).cloned();
        match &replaced {
            Some(_) if flags.no_replace => return Err(FsError::EXISTS),
            None if flags.exchange => return Err(FsError::NOT_FOUND),
            Some(r) if r.ino == moved.ino => return Ok(None), // two names of one file: nothing to do
            _ => {}
        }
        if moved.kind == FileType::Directory {
            self.check_not_inside(moved.ino, to.dir.ino)?;
        }
        if let Some(r) = replaced.as_ref().filter(|r| r.kind == FileType::Directory && flags.exchange) {
            self.check_not_inside(r.ino, from.dir.ino)?;
        }
        if let Some(r) = replaced.as_ref().filter(|r| r.kind == FileType::Directory)
            && self.check_not_inside(r.ino, from.dir.ino).is_err()
        {
            return Err(FsError::NOT_EMPTY); // it holds, at some depth, what is to be moved
        }
        let moved_inode = self.inodes.get(&self.meta, moved.ino)?;
        let replaced_inode = match &replaced {
            Some(r) => Some(self.inodes.get(&self.meta, r.ino)?),
            None => None,
        };
        let all = [&from.dir, &to.dir, &moved_inode];
        let mut locked = Locked::new(all.into_iter().chain(&replaced_inode));
        if flags.exchange {
            let Some(replaced) = replaced else { return Err(FsError::NOT_FOUND) };
            let names = swap_names(from, to, &mut source, &mut target, &moved, &replaced);
            self.exchange(from, to, &moved, &replaced, &mut locked, names)?;
            return Ok(None);
        }
        let entries = (&moved, replaced.as_ref());
        self.replace(from, to, (source, target), entries, flags.whiteout, &mut locked)?;
        let gone = match &replaced_inode {
            Some(inode) => claim_deletion(locked.get(inode.ino).1),
            None => false,
        };
        drop(locked);
        Ok(replaced_inode.filter(|_| gone))
    }

    fn replace(
        &self,
        from: &End,
        to: &End,
        (mut source, mut target): (Bucket, Bucket),
        (moved, replaced): (&NameEntry, Option<&NameEntry>),
        whiteout: Option<Owner>,
        locked: &mut Locked<'_>,
    ) -> Result<()> {
        let now = self.env.now();
        let moves_dir = moved.kind == FileType::Directory;
        let across = from.dir.ino != to.dir.ino;
        let mut changes = Vec::new();
        if let Some(r) = replaced {
            let (inode, state) = locked.get(r.ino);
            match (moves_dir, r.kind == FileType::Directory) {
                (true, false) => return Err(FsError::NOT_DIR),
                (false, true) => return Err(FsError::IS_DIR),
                (true, true) if state.item.size > 0 => return Err(FsError::NOT_EMPTY),
                (true, true) => changes.extend(drop_dir(inode, state, now)),
                (false, false) => changes.extend(drop_link(inode, state, now)),
            }
        } else if moves_dir && across && locked.get(to.dir.ino).1.item.nlink >= LINK_MAX {
            return Err(FsError::TOO_MANY_LINKS);
        }
        let same = same_bucket(&source, &target);
        let bucket = if same { &mut source } else { &mut target };
        let put = match replaced {
            Some(_) => bucket.point(&to.name, moved.ino, moved.kind),
            None => bucket.add(&to.name, moved.ino, moved.kind)?,
        };
        changes.push(put);
        match whiteout {
            Some(owner) => {
                let (ino, made) = self.whiteout(owner, from.dir.ino, locked, now);
                changes.push(source.point(&from.name, ino, FileType::CharDevice));
                changes.extend(made);
            }
            None => changes.push(source.remove(&from.name)),
        }
        let adjust = |locked: &mut Locked<'_>, dir: Ino, entries: i64, subdirs: i32| {
            let item = &mut locked.get(dir).1.item;
            item.size = item.size.saturating_add_signed(entries);
            item.nlink = item.nlink.saturating_add_signed(subdirs);
            (item.mtime, item.ctime) = (now, now);
        };
        adjust(locked, from.dir.ino, i64::from(whiteout.is_some()) - 1, -i32::from(moves_dir));
        let kept = i64::from(replaced.is_none());
        let replaced_dir = replaced.is_some_and(|r| r.kind == FileType::Directory);
        adjust(locked, to.dir.ino, kept, i32::from(moves_dir) - i32::from(replaced_dir));
        let item = &mut locked.get(moved.ino).1.item;
        item.ctime = now;
        if moves_dir {
            item.parent = to.dir.ino;
        }
        changes.extend(locked.puts());
        if mutants::active(Mutant::RenameInTwoSteps) {
            let rest = changes.split_off(1);
            self.meta.apply(std::mem::replace(&mut changes, rest), 0)?;
            self.commit()?;
        }
        self.meta.apply(changes, i64::from(whiteout.is_some()))?;
        Ok(())
    }

    /// A new whiteout for `dir`: its number, and the changes that store it.
    fn whiteout(
        &self,
        owner: Owner,
        dir: Ino,
        locked: &mut Locked<'_>,
        now: Timestamp,
    ) -> (Ino, Vec<Change>) {
        let new = NewInode {
            kind: FileType::CharDevice,
            perm: 0,
            rdev: 0,
            owner,
            target: None,
            open: false,
            nameless: false,
        };
        let ino = self.meta.new_ino();
        (ino, self.new_inode(ino, &new, (dir, &locked.get(dir).1.item), None, now).1)
    }

    fn exchange(
        &self,
        from: &End,
        to: &End,
        moved: &NameEntry,
        replaced: &NameEntry,
        locked: &mut Locked<'_>,
        mut changes: Vec<Change>,
    ) -> Result<()> {
        let now = self.env.now();
        let subdirs = |e: &NameEntry| i32::from(e.kind == FileType::Directory);
        for (dir, gained, lost) in [(&from.dir, replaced, moved), (&to.dir, moved, replaced)] {
            let item = &mut locked.get(dir.ino).1.item;
            item.nlink = item.nlink.saturating_add_signed(subdirs(gained) - subdirs(lost));
            (item.mtime, item.ctime) = (now, now);
        }
        for (entry, dir) in [(moved, &to.dir), (replaced, &from.dir)] {
            let item = &mut locked.get(entry.ino).1.item;
            item.ctime = now;
            if entry.kind == FileType::Directory {
                item.parent = dir.ino;
            }
        }
        changes.extend(locked.puts());
        self.meta.apply(changes, 0)?;
        Ok(())
    }

    /// EINVAL if `dir` is `ancestor` or below it.
    fn check_not_inside(&self, ancestor: Ino, dir: Ino) -> Result<()> {
        let mut at = dir;
        let mut seen = HashSet::new();
        // Every directory once: the device may say that two of them contain each other.
        while seen.insert(at) {
            if at == ancestor {
                return Err(FsError::INVALID);
            }
            if at == Ino::ROOT {
                return Ok(());
            }
            let parent = self.inodes.get(&self.meta, at)?.state.lock().item.parent;
            if parent == at || parent.0 == 0 {
                return Ok(());
            }
            at = parent;
        }
        Err(FsError::corrupt("directory", BlockNr(0), format!("directory {dir} is not below the root")))
    }
}

fn swap_names(
    from: &End,
    to: &End,
    source: &mut Bucket,
    target: &mut Bucket,
    moved: &NameEntry,
    replaced: &NameEntry,
) -> Vec<Change> {
    let first = source.point(&from.name, replaced.ino, replaced.kind);
    if same_bucket(source, target) {
        return vec![first, source.point(&to.name, moved.ino, moved.kind)];
    }
    vec![first, target.point(&to.name, moved.ino, moved.kind)]
}
