//! Inodes and the names that lead to them: what has to agree across the whole volume.

use std::collections::{BTreeMap, HashMap};

use super::report::{Findings, ProblemKind};
use crate::api::FileType;
use crate::file::{ORPHAN_DELETE, ORPHAN_TRUNCATE};
use crate::format::InodeItem;
use crate::format::dirent::NameEntry;
use crate::types::Ino;

/// What is known of an inode, from its item and from the names that lead to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    /// Type, links and parent by the inode's own item; `None`: there is no such item.
    item: Option<(FileType, u32, Ino)>,
    /// Names found.
    names: u32,
    /// Type by the first of them, and the directory it is in.
    first_name: Option<(FileType, Ino)>,
    /// Names say different types.
    mixed: bool,
    /// Subdirectories found in it.
    subdirs: u32,
}

/// All inodes.
#[derive(Debug, Default)]
pub(super) struct Table {
    inodes: BTreeMap<Ino, Entry>,
    orphans: BTreeMap<Ino, u8>,
}

impl Table {
    /// An inode item.
    pub(super) fn define(&mut self, ino: Ino, item: &InodeItem) {
        self.inodes.entry(ino).or_default().item = Some((item.kind, item.nlink, item.parent));
    }

    /// A name in `dir`.
    pub(super) fn name(&mut self, dir: Ino, entry: &NameEntry) {
        if entry.kind == FileType::Directory {
            let dir = self.inodes.entry(dir).or_default();
            dir.subdirs = dir.subdirs.saturating_add(1);
        }
        let target = self.inodes.entry(entry.ino).or_default();
        target.names = target.names.saturating_add(1);
        let (kind, _) = *target.first_name.get_or_insert((entry.kind, dir));
        target.mixed |= kind != entry.kind;
    }

    /// An orphan item; false if its reason is not known.
    pub(super) fn orphan(&mut self, ino: Ino, reason: &[u8]) -> bool {
        match reason {
            &[r @ (ORPHAN_DELETE | ORPHAN_TRUNCATE)] => {
                self.orphans.insert(ino, r);
                true
            }
            _ => false,
        }
    }

    /// Why the inode is an orphan, if it is one.
    pub(super) fn orphan_reason(&self, ino: Ino) -> Option<u8> {
        self.orphans.get(&ino).copied()
    }

    /// Number of orphan items.
    pub(super) fn orphan_count(&self) -> u64 {
        self.orphans.len() as u64
    }

    /// Number of inode items.
    pub(super) fn inode_count(&self) -> u64 {
        self.inodes.values().filter(|e| e.item.is_some()).count() as u64
    }

    /// There is an inode of this number, and it is a regular file.
    pub(super) fn is_regular(&self, ino: Ino) -> bool {
        matches!(self.inodes.get(&ino), Some(Entry { item: Some((FileType::Regular, ..)), .. }))
    }

    /// The directory that the first name found of an inode is in.
    pub(super) fn named_in(&self, ino: Ino) -> Option<Ino> {
        self.inodes.get(&ino)?.first_name.map(|(_, dir)| dir)
    }

    /// Compares names, inodes and orphans. Only right if all items have been seen.
    pub(super) fn check(&self, findings: &mut Findings) {
        if self.inodes.get(&Ino::ROOT).is_none_or(|e| e.item.is_none()) {
            findings.inode(ProblemKind::Directory, Ino::ROOT, || "there is no root directory".into());
        }
        for (&ino, entry) in &self.inodes {
            self.check_inode(ino, entry, findings);
        }
        for (&ino, &reason) in &self.orphans {
            self.check_orphan(ino, reason, findings);
        }
        self.check_reachable(findings);
    }

    fn check_inode(&self, ino: Ino, entry: &Entry, findings: &mut Findings) {
        let Some((kind, nlink, parent)) = entry.item else {
            if entry.names > 0 {
                findings.inode(ProblemKind::Name, ino, || {
                    format!("a name leads to inode {ino}, which does not exist")
                });
            }
            return;
        };
        let named_as = entry.first_name.map(|(kind, _)| kind);
        if entry.mixed || named_as.is_some_and(|k| k != kind) {
            findings.inode(ProblemKind::Name, ino, || format!("it is a {kind:?}, a name says {named_as:?}"));
        }
        if kind == FileType::Directory {
            check_directory(ino, entry, nlink, parent, findings);
        } else if nlink != entry.names {
            findings.inode(ProblemKind::LinkCount, ino, || {
                format!("it has {} names, its number of links is {nlink}", entry.names)
            });
        }
        if nlink == 0 && self.orphan_reason(ino) != Some(ORPHAN_DELETE) {
            findings.inode(ProblemKind::Orphan, ino, || {
                "it has no name left and is not on the list of orphans: it will never be deleted".into()
            });
        }
    }

    fn check_orphan(&self, ino: Ino, reason: u8, findings: &mut Findings) {
        let item = self.inodes.get(&ino).and_then(|e| e.item);
        let wrong = match item {
            None => "on the list of orphans, but there is no such inode",
            Some((_, nlink, _)) if reason == ORPHAN_DELETE && nlink > 0 => {
                "on the list of inodes to delete, although it has names"
            }
            Some((kind, ..)) if reason == ORPHAN_TRUNCATE && kind != FileType::Regular => {
                "on the list of files to truncate, but it is no regular file"
            }
            Some(_) => return,
        };
        findings.inode(ProblemKind::Orphan, ino, || wrong.into());
    }

    /// From each directory the root can be reached through the names' directories.
    fn check_reachable(&self, findings: &mut Findings) {
        let mut good: HashMap<Ino, bool> = HashMap::from([(Ino::ROOT, true)]);
        for (&ino, entry) in &self.inodes {
            if !matches!(entry.item, Some((FileType::Directory, nlink, _)) if nlink > 0) {
                continue;
            }
            let mut path = Vec::new();
            let mut at = ino;
            let reached = loop {
                if let Some(known) = good.get(&at) {
                    break *known;
                }
                // Until it is known better: coming back here means a cycle.
                good.insert(at, false);
                path.push(at);
                match self.named_in(at) {
                    Some(dir) => at = dir,
                    None => break false,
                }
            };
            if reached {
                good.extend(path.iter().map(|at| (*at, true)));
            } else if entry.names > 0 {
                findings.inode(ProblemKind::Directory, ino, || {
                    "the directory has a name, but cannot be reached from the root".into()
                });
            }
        }
    }
}

fn check_directory(ino: Ino, entry: &Entry, nlink: u32, parent: Ino, findings: &mut Findings) {
    let named_in = entry.first_name.map(|(_, dir)| dir);
    if ino == Ino::ROOT {
        if parent != Ino::ROOT {
            findings.inode(ProblemKind::Directory, ino, || format!("the root's parent is inode {parent}"));
        }
        if let Some(dir) = named_in {
            findings.inode(ProblemKind::Directory, ino, || {
                format!("the root directory has a name in directory {dir}")
            });
        }
    } else if nlink == 0 {
        if entry.names > 0 {
            findings.inode(ProblemKind::LinkCount, ino, || "a deleted directory has a name".into());
        }
        return;
    } else {
        match named_in {
            None => findings.inode(ProblemKind::Directory, ino, || "the directory has no name".into()),
            Some(dir) if dir != parent => findings.inode(ProblemKind::Directory, ino, || {
                format!("it is in directory {dir}, its parent entry says {parent}")
            }),
            Some(_) => {}
        }
        if entry.names > 1 {
            findings
                .inode(ProblemKind::Directory, ino, || format!("the directory has {} names", entry.names));
        }
    }
    if u64::from(nlink) != 2 + u64::from(entry.subdirs) {
        findings.inode(ProblemKind::LinkCount, ino, || {
            format!("it has {} subdirectories, its number of links is {nlink}", entry.subdirs)
        });
    }
}
