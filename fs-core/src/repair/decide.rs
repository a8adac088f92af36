//! What becomes of each inode and each name, when all of them are known.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::gather::{Facility, Facts, LOST_FOUND, NameAt};
use super::report::{Class, Log};
use super::salvage::Loss;
use crate::api::FileType;
use crate::file::ORPHAN_DELETE;
use crate::types::Ino;

/// Where inodes go that have no name.
#[derive(Clone, Debug)]
pub(super) struct LostFound {
    /// The directory.
    pub(super) ino: Ino,
    /// Its name in the root directory.
    pub(super) name: Vec<u8>,
    /// It has to be made.
    pub(super) new: bool,
}

/// What was decided.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    /// Inodes whose items go.
    pub(super) gone: BTreeSet<Ino>,
    /// Inodes that get a name in lost+found.
    pub(super) nameless: BTreeSet<Ino>,
    /// Directories: the name they keep; `None`: none of those they have.
    pub(super) kept: BTreeMap<Ino, Option<NameAt>>,
    /// Subdirectories of each directory.
    pub(super) subdirs: HashMap<Ino, u32>,
    /// Where the nameless go.
    pub(super) lost_found: Option<LostFound>,
    /// The root directory has to be made.
    pub(super) new_root: bool,
    /// Inodes there will be.
    pub(super) inodes: u64,
    /// Next number to be given out.
    pub(super) next_ino: Ino,
}

impl Decisions {
    /// Whether the inode will be there.
    pub(super) fn exists(&self, facility: &Facility, ino: Ino) -> bool {
        if self.gone.contains(&ino) {
            return false;
        }
        let made = self.lost_found.as_ref().is_some_and(|l| l.new && l.ino == ino);
        made || facility.inodes.get(&ino).is_some_and(|f| f.kind().is_some())
            || (ino == Ino::ROOT && self.new_root)
    }
}

/// Decides.
pub(super) fn decide(facility: &Facility, next_ino: Ino, loss: &Loss, log: &mut Log) -> Decisions {
    let mut d = Decisions { next_ino, ..Decisions::default() };
    for (&ino, facts) in &facility.inodes {
        if is_deleted(facility, ino, facts) {
            d.gone.insert(ino);
            if is_bare_link(facts) {
                log.act(Class::Tree, Some(ino.0), || {
                    "the target of the symbolic link is lost, and it with it".into()
                });
                if let Some(damaged) = log.damage(ino.0) {
                    damaged.gone = true;
                }
            } else if facts.item.is_some() {
                log.act(Class::Orphans, Some(ino.0), || "it was deleted: what is left of it is freed".into());
            } else if facts.names > 0 || facts.damaged {
                log.act(Class::Names, Some(ino.0), || "nothing is left of it: its names are removed".into());
            }
        } else if facts.item.is_none() {
            log.act(Class::Inodes, Some(ino.0), || "its inode is lost; it is made again".into());
            log.note(ino.0, "its owner, permissions and times are lost, its size is that of its pages");
        }
        if facts.damaged && ino != Ino::SYSTEM {
            log.act(Class::Tree, Some(ino.0), || "items of it are damaged and taken out".into());
            log.note(ino.0, "parts of its metadata are damaged");
        }
        if loss.concerns(ino) {
            log.note(ino.0, "parts of its metadata may be lost or old");
        }
        d.next_ino = d.next_ino.max(Ino(ino.0.saturating_add(1)));
    }
    let root = facility.inodes.get(&Ino::ROOT);
    d.new_root = root.and_then(Facts::kind) != Some(FileType::Directory);
    if d.new_root {
        d.gone.remove(&Ino::ROOT);
        log.act(Class::Inodes, Some(Ino::ROOT.0), || "the root directory is made again".into());
        log.note(Ino::ROOT.0, "the root directory is lost");
    }
    settle_directories(facility, &mut d, log);
    for (&ino, facts) in &facility.inodes {
        let directory = facts.kind() == Some(FileType::Directory);
        if !directory && facts.names == 0 && d.exists(facility, ino) && ino != Ino::ROOT {
            d.nameless.insert(ino);
        }
    }
    find_lost_found(facility, &mut d);
    for &ino in &d.nameless {
        log.act(Class::Names, Some(ino.0), || "it has no name: it goes to lost+found".into());
        log.note(ino.0, "its name is lost");
    }
    count(facility, &mut d);
    d
}

/// Nothing names it, and it says so itself; or there is nothing of it but names.
fn is_deleted(facility: &Facility, ino: Ino, facts: &Facts) -> bool {
    match facts.item {
        _ if is_bare_link(facts) && ino != Ino::ROOT => true,
        None => facts.kind().is_none() && ino != Ino::ROOT,
        Some((_, nlink, ..)) => {
            let orphan = facility.orphans.get(&ino) == Some(&ORPHAN_DELETE);
            facts.names == 0 && facts.entries == 0 && (nlink == 0 || orphan) && ino != Ino::ROOT
        }
    }
}

/// A symbolic link that leads nowhere.
fn is_bare_link(facts: &Facts) -> bool {
    matches!(facts.item, Some((FileType::Symlink, ..))) && facts.target == 0
}

/// Gives each directory one name, so that all can be reached from the root.
fn settle_directories(facility: &Facility, d: &mut Decisions, log: &mut Log) {
    let is_dir = |ino: Ino, d: &Decisions| {
        ino == Ino::ROOT
            || (d.exists(facility, ino)
                && facility.inodes.get(&ino).and_then(Facts::kind) == Some(FileType::Directory))
    };
    let directories: Vec<Ino> =
        facility.inodes.keys().copied().filter(|i| *i != Ino::ROOT && is_dir(*i, d)).collect();
    for &ino in &directories {
        let facts = &facility.inodes[&ino];
        let parent = facts.item.map(|(_, _, parent, _)| parent);
        let others = facility.more_names.get(&ino).into_iter().flatten().copied();
        let usable = facts.name.into_iter().chain(others).filter(|(dir, ..)| is_dir(*dir, d));
        let name = usable.min_by_key(|(dir, ..)| Some(*dir) != parent);
        if facts.names > 1 {
            log.act(Class::Names, Some(ino.0), || {
                format!("the directory has {} names: it keeps one", facts.names)
            });
        }
        d.kept.insert(ino, name);
    }
    let mut good: BTreeSet<Ino> = BTreeSet::from([Ino::ROOT]);
    for &ino in &directories {
        let mut path = BTreeSet::new();
        let mut at = ino;
        while !good.contains(&at) {
            if !path.insert(at) {
                // Back where it began: the circle is opened here.
                d.kept.insert(at, None);
            }
            match d.kept.get(&at).copied().flatten() {
                Some((dir, ..)) => at = dir,
                None => {
                    d.nameless.insert(at);
                    break;
                }
            }
        }
        good.extend(path);
    }
}

fn find_lost_found(facility: &Facility, d: &mut Decisions) {
    if d.nameless.is_empty() {
        return;
    }
    let usable = |ino: Ino| {
        d.exists(facility, ino)
            && !d.nameless.contains(&ino)
            && d.kept.get(&ino).copied().flatten().is_some_and(|(dir, ..)| dir == Ino::ROOT)
    };
    let there = facility.like_lost_found.iter().find(|e| e.name == LOST_FOUND && usable(e.ino));
    if let Some(entry) = there {
        d.lost_found = Some(LostFound { ino: entry.ino, name: entry.name.clone(), new: false });
        return;
    }
    let taken = |name: &[u8]| facility.like_lost_found.iter().any(|e| e.name == name);
    let mut name = LOST_FOUND.to_vec();
    let mut n = 1;
    while taken(&name) {
        name = [LOST_FOUND, format!(".{n}").as_bytes()].concat();
        n += 1;
    }
    d.lost_found = Some(LostFound { ino: d.next_ino, name, new: true });
    d.next_ino = Ino(d.next_ino.0 + 1);
}

fn count(facility: &Facility, d: &mut Decisions) {
    let made = u64::from(d.lost_found.as_ref().is_some_and(|l| l.new));
    let there = facility.inodes.keys().filter(|i| d.exists(facility, **i)).count() as u64;
    let root = u64::from(d.new_root && !facility.inodes.contains_key(&Ino::ROOT));
    d.inodes = there + made + root;
    for dir in d.kept.values().flatten().map(|(dir, ..)| *dir) {
        *d.subdirs.entry(dir).or_default() += 1;
    }
    if let Some(found) = d.lost_found.clone() {
        let moved = d.nameless.iter().filter(|i| d.kept.contains_key(i)).count() as u32;
        *d.subdirs.entry(found.ino).or_default() += moved;
        if found.new {
            *d.subdirs.entry(Ino::ROOT).or_default() += 1;
        }
    }
}
