//! What a check has found.

use serde::Serialize;

use crate::error::FsError;
use crate::types::{BlockNr, BlockRun, Ino};

/// Problems that are described one by one; further ones are only counted.
pub const MAX_PROBLEMS: usize = 1000;

/// Kind of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProblemKind {
    /// A copy of the superblock is damaged or differs from the others.
    Superblock,
    /// The state of the volume cannot be recovered: root slots, pending list or journal.
    Recovery,
    /// A root slot contradicts what it leads to.
    RootSlot,
    /// A tree node is damaged or not the one its parent means.
    Node,
    /// An item's bytes are not those of its kind, or its key is impossible.
    Item,
    /// An inode's attributes contradict what it has.
    Inode,
    /// Items, or inline data in the journal, of an inode that does not exist.
    NoInode,
    /// A directory entry is wrong: hash, slot, type, or a target that does not exist.
    Name,
    /// A number of links is wrong.
    LinkCount,
    /// A directory cannot be reached from the root, or is in the wrong place.
    Directory,
    /// An orphan item is missing, or there is one that should not be.
    Orphan,
    /// A page is mapped where it must not be.
    Mapping,
    /// A block outside of what may be allocated is used.
    OutOfRange,
    /// A block is used twice.
    DoubleUse,
    /// A block is in use and marked free.
    MarkedFree,
    /// A block is marked used and is not in use.
    Leak,
    /// A total (free blocks, inodes, next inode number) is wrong.
    Count,
    /// A block group was written to without a reservation (rule R2).
    Reservation,
    /// A page of data does not match its checksum.
    DataChecksum,
    /// The device failed a read.
    Device,
}

impl ProblemKind {
    /// The kind of what `error` says: a failed read, or else `other`.
    pub(super) fn of(error: &FsError, other: Self) -> Self {
        if error.is_failed_read() { ProblemKind::Device } else { other }
    }
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What kind of problem it is.
    pub kind: ProblemKind,
    /// What is wrong, as a sentence for the user.
    pub what: String,
    /// Path of the file it is about, if it is about one and has a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The inode it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ino: Option<u64>,
    /// The (first) block it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<u64>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.path, self.ino) {
            (Some(path), _) => write!(f, "{}: {}", escape(path), self.what),
            (None, Some(ino)) => write!(f, "inode {ino}: {}", self.what),
            (None, None) => f.write_str(&self.what),
        }
    }
}

/// What the volume says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeSummary {
    /// Identity.
    pub uuid: String,
    /// Name.
    pub label: String,
    /// Blocks of 4 KiB.
    pub total_blocks: u64,
    /// Page size in bytes.
    pub page_size: u32,
    /// Blocks in a block group.
    pub group_blocks: u32,
    /// Epoch of the root that counts.
    pub epoch: u64,
    /// Changes up to this record are in the tree.
    pub checkpoint_lsn: u64,
    /// Last record that counts.
    pub last_lsn: u64,
}

/// What was counted on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Inodes, those without a name included.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Inodes that wait to be deleted, or to have the rest of a truncation done.
    pub orphans: u64,
    /// Names.
    pub names: u64,
    /// Blocks of data, preallocated ones included.
    pub data_blocks: u64,
    /// Blocks that are preallocated and not written.
    pub unwritten_blocks: u64,
    /// Nodes of the tree.
    pub nodes: u64,
    /// Items in the tree.
    pub items: u64,
    /// Levels of the tree.
    pub height: u8,
    /// Bytes of the tree's nodes and the pending list.
    pub metadata_bytes: u64,
    /// Blocks of the journals that the root refers to.
    pub journal_blocks: u64,
    /// Free blocks, the reserve included.
    pub free_blocks: u64,
    /// Journal records that recovery replays.
    pub records: u64,
    /// Pages with bytes that are in the journal only.
    pub inline_pages: u64,
    /// Pages of data that were read and verified.
    pub verified_pages: u64,
}

/// The outcome of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Problems; empty for a good volume.
    pub problems: Vec<Problem>,
    /// Further problems that are not listed.
    pub more_problems: u64,
    /// How many of the problems are reads that the device failed: what it fails to read is not checked,
    /// and a repair is refused.
    pub read_errors: u64,
    /// What is worth knowing and no problem.
    pub notes: Vec<String>,
    /// What the volume says about itself; `None` if it could not be recovered.
    pub volume: Option<VolumeSummary>,
    /// What was counted.
    pub stats: Stats,
}

impl Report {
    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Number of problems, those not listed included.
    pub fn problem_count(&self) -> u64 {
        self.problems.len() as u64 + self.more_problems
    }
}

/// Collects problems, a bounded number of them.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    problems: Vec<Problem>,
    more: u64,
    /// Reads that the device failed.
    pub(super) read_errors: u64,
    /// Parts of the metadata could not be read: what depends on all of it cannot be judged.
    pub(super) incomplete: bool,
}

impl Findings {
    /// Adds a problem; `what` is only asked for if there is room.
    pub(super) fn add(
        &mut self,
        kind: ProblemKind,
        ino: Option<Ino>,
        block: Option<BlockNr>,
        what: impl FnOnce() -> String,
    ) {
        self.count(kind);
        if self.problems.len() >= MAX_PROBLEMS {
            self.more += 1;
            return;
        }
        let (ino, block) = (ino.map(|i| i.0), block.map(|b| b.0));
        self.problems.push(Problem { kind, what: what(), path: None, ino, block });
    }

    /// A problem of the volume as a whole. There are few of them: each is listed.
    pub(super) fn volume(&mut self, kind: ProblemKind, what: impl FnOnce() -> String) {
        self.count(kind);
        self.problems.push(Problem { kind, what: what(), path: None, ino: None, block: None });
    }

    fn count(&mut self, kind: ProblemKind) {
        self.read_errors += u64::from(kind == ProblemKind::Device);
    }

    /// A problem with an inode.
    pub(super) fn inode(&mut self, kind: ProblemKind, ino: Ino, what: impl FnOnce() -> String) {
        self.add(kind, Some(ino), None, what);
    }

    /// A problem with blocks; `what` gets them as text.
    pub(super) fn blocks(&mut self, kind: ProblemKind, run: BlockRun, what: impl FnOnce(String) -> String) {
        self.add(kind, None, Some(run.start), || what(run_text(run)));
    }

    /// The inodes that the problems are about.
    pub(super) fn inodes(&self) -> impl Iterator<Item = Ino> + '_ {
        self.problems.iter().filter_map(|p| p.ino.map(Ino))
    }

    /// Hands the problems over, with paths put in.
    pub(super) fn finish(self, path: impl Fn(Ino) -> Option<String>) -> (Vec<Problem>, u64) {
        let mut problems = self.problems;
        for p in &mut problems {
            p.path = p.ino.and_then(|ino| path(Ino(ino)));
        }
        (problems, self.more)
    }
}

/// What a name on a hostile volume must not do to a terminal.
pub(crate) fn escape(s: &str) -> String {
    s.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// "block 7" or "blocks 7 to 9".
pub(super) fn run_text(run: BlockRun) -> String {
    if run.len == 1 {
        format!("block {}", run.start)
    } else {
        format!("blocks {} to {}", run.start, run.end().0.saturating_sub(1))
    }
}
