//! rename(2) and renameat2(2), in the order of checks that Linux has.

use fs_core::api::{FileType, RenameFlags, Timestamp};
use fs_core::{FsError, Ino, Result};

use super::state::{Body, Node, State, check_name};

/// One end of a rename.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The directory.
    pub dir: Ino,
    /// The name in it.
    pub name: &'a [u8],
}

impl State {
    pub(super) fn rename(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        flags: RenameFlags,
        now: Timestamp,
    ) -> Result<()> {
        if flags.exchange && (flags.no_replace || flags.whiteout.is_some()) {
            return Err(FsError::INVALID);
        }
        let (source, target) = self.rename_ends(from, to)?;
        if flags.no_replace && target.is_some() {
            return Err(FsError::EXISTS);
        }
        if flags.exchange && target.is_none() {
            return Err(FsError::NOT_FOUND);
        }
        if self.is_ancestor(source, to.dir) {
            return Err(FsError::INVALID);
        }
        if target.is_some_and(|t| self.is_ancestor(t, from.dir)) {
            return Err(if flags.exchange { FsError::INVALID } else { FsError::NOT_EMPTY });
        }
        match target {
            Some(target) if target == source => Ok(()),
            Some(target) if flags.exchange => self.swap(from, to, source, target, now),
            _ => {
                self.replace(from, to, source, target, now)?;
                if let Some(owner) = flags.whiteout {
                    let node = Node::new(FileType::CharDevice, 0, owner, Body::Special, now);
                    let ino = self.make(from.dir, from.name, node)?;
                    // Nobody may do anything with it anyway.
                    self.node_mut(ino)?.xattrs.clear();
                }
                Ok(())
            }
        }
    }

    fn rename_ends(&self, from: Place<'_>, to: Place<'_>) -> Result<(Ino, Option<Ino>)> {
        let sources = self.dir(from.dir)?;
        let targets = self.dir(to.dir)?;
        check_name(from.name)?;
        check_name(to.name)?;
        let source = sources.get(from.name).copied().ok_or(FsError::NOT_FOUND)?;
        if self.node(to.dir)?.nlink == 0 {
            return Err(FsError::NOT_FOUND);
        }
        Ok((source, targets.get(to.name).copied()))
    }

    fn replace(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        source: Ino,
        target: Option<Ino>,
        now: Timestamp,
    ) -> Result<()> {
        let moves_dir = self.node(source)?.is_dir();
        if let Some(target) = target {
            self.check_replaceable(moves_dir, target)?;
            let target_is_dir = self.node(target)?.is_dir();
            self.remove_entry(to.dir, to.name, now)?;
            if target_is_dir {
                self.node_mut(to.dir)?.nlink -= 1;
            }
            self.drop_link(target, now)?;
        }
        self.remove_entry(from.dir, from.name, now)?;
        self.add_entry(to.dir, to.name, source, now)?;
        self.node_mut(source)?.ctime = now;
        self.moved(source, from.dir, to.dir)
    }

    fn check_replaceable(&self, moves_dir: bool, target: Ino) -> Result<()> {
        let entries = self.node(target)?.entries();
        match (moves_dir, entries) {
            (true, None) => Err(FsError::NOT_DIR),
            (false, Some(_)) => Err(FsError::IS_DIR),
            (true, Some(entries)) if !entries.is_empty() => Err(FsError::NOT_EMPTY),
            _ => Ok(()),
        }
    }

    fn swap(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        source: Ino,
        target: Ino,
        now: Timestamp,
    ) -> Result<()> {
        self.add_entry(from.dir, from.name, target, now)?;
        self.add_entry(to.dir, to.name, source, now)?;
        self.node_mut(source)?.ctime = now;
        self.node_mut(target)?.ctime = now;
        self.moved(source, from.dir, to.dir)?;
        self.moved(target, to.dir, from.dir)
    }

    /// Settles ".." of what moved and the link counts that it is part of.
    fn moved(&mut self, ino: Ino, old_dir: Ino, new_dir: Ino) -> Result<()> {
        if let Body::Dir { parent, .. } = &mut self.node_mut(ino)?.body {
            *parent = new_dir;
            self.node_mut(old_dir)?.nlink -= 1;
            self.node_mut(new_dir)?.nlink += 1;
        }
        Ok(())
    }
}
