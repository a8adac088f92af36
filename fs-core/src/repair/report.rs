//! What a repair does, and what it could not save.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::fsck::{Problem, escape};

/// Actions and files that are listed one by one; further ones are only counted.
pub const MAX_LISTED: usize = 10_000;

/// Kind of a repair: what a user is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Class {
    /// Copies of the superblock are written again.
    Superblock,
    /// An older root, or one that was found, takes the place of a damaged one.
    Root,
    /// The journal is cut before damage: acknowledged changes are lost.
    Journal,
    /// Nodes of the tree are rebuilt, or what is left of their content is put in again.
    Tree,
    /// Pages of files whose data is lost become holes.
    Data,
    /// Names that lead nowhere are removed, files without a name go to `/lost+found`.
    Names,
    /// Attributes of inodes are made to agree with what they have.
    Inodes,
    /// What was deleted and still there is freed.
    Orphans,
    /// Bitmaps and totals are counted again.
    Counters,
}

impl Class {
    /// No content of a file and no name can be lost by it: `fsck -p` does it without asking.
    pub fn is_safe(self) -> bool {
        matches!(self, Class::Superblock | Class::Orphans | Class::Counters)
    }

    /// What to ask.
    pub fn question(self) -> &'static str {
        match self {
            Class::Superblock => "write the damaged copies of the superblock again",
            Class::Root => "go on from another root of the volume",
            Class::Journal => "cut the journal before the damage (changes behind it are lost)",
            Class::Tree => "rebuild the damaged part of the metadata tree",
            Class::Data => "turn damaged pages of files into holes",
            Class::Names => "remove names that lead nowhere, put files without a name into /lost+found",
            Class::Inodes => "correct attributes of files",
            Class::Orphans => "free files that were deleted",
            Class::Counters => "correct bitmaps and counters",
        }
    }
}

/// One repair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Action {
    /// Its kind.
    pub class: Class,
    /// What is done, as a sentence for the user.
    pub what: String,
    /// The inode it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ino: Option<u64>,
    /// Its path after the repair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.path, self.ino) {
            (Some(path), _) => write!(f, "{}: {}", escape(path), escape(&self.what)),
            (None, Some(ino)) => write!(f, "#{ino}: {}", escape(&self.what)),
            (None, None) => f.write_str(&escape(&self.what)),
        }
    }
}

/// A file that is not what it was: gone, or with parts missing or old.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Damaged {
    /// Its number.
    pub ino: u64,
    /// Its path after the repair; `None`: it is gone, or has no name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The name that it had, if only that is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Nothing is left of it.
    pub gone: bool,
    /// Bytes that read as zeros now: offset and length.
    pub holes: Vec<(u64, u64)>,
    /// Why it is here.
    pub why: Vec<String>,
}

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.path, &self.name) {
            (Some(path), _) => f.write_str(&escape(path))?,
            (None, Some(name)) => write!(f, "#{} ({})", self.ino, escape(name))?,
            (None, None) => write!(f, "#{}", self.ino)?,
        }
        write!(f, ": {}", if self.gone { "LOST" } else { "DAMAGED" })?;
        for why in &self.why {
            write!(f, "; {}", escape(why))?;
        }
        for (offset, len) in &self.holes {
            write!(f, "; bytes {offset} to {} are lost", offset + len - 1)?;
        }
        Ok(())
    }
}

/// The outcome of planning a repair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// What is done.
    pub actions: Vec<Action>,
    /// Further actions that are not listed.
    pub more_actions: u64,
    /// Files that are not what they were.
    pub damaged: Vec<Damaged>,
    /// Further ones that are not listed.
    pub more_damaged: u64,
    /// Acknowledged records of the journal that are lost: first and last.
    pub lost_records: Option<(u64, u64)>,
    /// What would still be wrong; then nothing is written.
    pub unsolved: Vec<Problem>,
    /// Bytes that are written.
    pub bytes: u64,
}

impl RepairReport {
    /// The kinds of repairs, each with the number of its actions.
    pub fn classes(&self) -> BTreeMap<Class, u64> {
        let mut classes = BTreeMap::new();
        for action in &self.actions {
            *classes.entry(action.class).or_default() += 1;
        }
        classes
    }

    /// The file is named as not being what it was.
    pub fn names(&self, ino: u64) -> bool {
        self.damaged.iter().any(|d| d.ino == ino)
    }
}

/// Collects a report.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) report: RepairReport,
    damaged: BTreeMap<u64, Damaged>,
}

impl Log {
    /// Adds an action.
    pub(super) fn act(&mut self, class: Class, ino: Option<u64>, what: impl FnOnce() -> String) {
        // One of each class is always listed: users are asked by class.
        let full = self.report.actions.len() >= MAX_LISTED;
        if full && self.report.actions.iter().any(|a| a.class == class) {
            self.report.more_actions += 1;
        } else {
            self.report.actions.push(Action { class, what: what(), ino, path: None });
        }
    }

    /// The entry of a file that is not what it was.
    pub(super) fn damage(&mut self, ino: u64) -> Option<&mut Damaged> {
        if self.damaged.len() >= MAX_LISTED && !self.damaged.contains_key(&ino) {
            self.report.more_damaged += 1;
            return None;
        }
        Some(self.damaged.entry(ino).or_insert_with(|| Damaged { ino, ..Damaged::default() }))
    }

    /// Notes why a file is not what it was.
    pub(super) fn note(&mut self, ino: u64, why: &str) {
        if let Some(d) = self.damage(ino)
            && d.why.iter().all(|w| w != why)
        {
            d.why.push(why.to_owned());
        }
    }

    /// Notes a range of bytes that is lost.
    pub(super) fn hole(&mut self, ino: u64, offset: u64, len: u64) {
        let Some(d) = self.damage(ino) else { return };
        match d.holes.last_mut() {
            Some((at, n)) if *at + *n == offset => *n += len,
            _ => d.holes.push((offset, len)),
        }
    }

    /// The inodes that are named.
    pub(super) fn inodes(&self) -> Vec<u64> {
        let actions = self.report.actions.iter().filter_map(|a| a.ino);
        self.damaged.keys().copied().chain(actions).collect()
    }

    /// The report, with paths.
    pub(super) fn finish(mut self, path: &dyn Fn(u64) -> Option<String>) -> RepairReport {
        for action in &mut self.report.actions {
            action.path = action.ino.and_then(path);
        }
        self.report.damaged = self.damaged.into_values().collect();
        for damaged in &mut self.report.damaged {
            damaged.path = if damaged.gone { None } else { path(damaged.ino) };
        }
        self.report
    }
}
