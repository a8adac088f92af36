//! A file system and the model, taking the same steps.

use std::sync::Arc;

use fs_core::Ino;
use fs_core::api::{FsOps, IoFlags};

use super::compare::same_attr;
use super::failure::Failure;
use super::inos::InoMap;
use super::record::{Promise, Record, Written};
use super::subject::{Config, Subject};
use super::tree::{Tree, read_xattrs, xattr_difference};
use crate::clock::Clock;
use crate::fail_with;
use crate::model::{Body, ModelFs, State};
use crate::ops::Op;

/// A run in progress, with all that is needed to judge a power cut at any of its moments.
pub struct Lockstep<S: Subject> {
    /// The file system under test; `None` only while it is being remounted.
    pub(super) subject: Option<S>,
    /// The reference.
    pub(super) model: ModelFs,
    /// Parameters.
    pub(super) config: Config,
    /// Number of operations that were refused for lack of space.
    pub(super) refused: u64,
    /// Time.
    pub(super) clock: Arc<Clock>,
    /// Inode numbers.
    pub(super) inos: InoMap,
    /// Inodes that the history has open, in the model's numbers, once for each open.
    pub(super) open: Vec<Ino>,
    /// The write call of the operation that runs; even a failed one may have left something.
    pub(super) written: Option<Written>,
    /// Number of the last write.
    pub(super) writes: u32,
    /// State before the first operation and after each.
    states: Vec<State>,
    records: Vec<Record>,
    /// Device events when the first state was durable.
    base: u64,
}

impl<S: Subject> Lockstep<S> {
    /// Continues from `state`, which is what the mounted `subject` holds durably.
    pub fn new(subject: S, state: State, inos: InoMap, config: &Config, clock: &Arc<Clock>) -> Self {
        Self {
            subject: Some(subject),
            states: vec![state.clone()],
            model: ModelFs::new(state, clock.clone()),
            config: config.clone(),
            refused: 0,
            clock: clock.clone(),
            inos,
            open: Vec::new(),
            written: None,
            writes: 0,
            records: Vec::new(),
            base: 0,
        }
    }

    /// The first state is durable only now, after the device's events so far.
    pub fn durable_from_now(mut self) -> Self {
        self.base = self.subject().seq();
        self
    }

    /// Device events when the first state was durable; a cut may not be earlier.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Gives up the file system under test.
    pub fn into_subject(mut self) -> S {
        self.subject.take().expect("present but for the moment of a remount")
    }

    /// Numbers the writes from `first + 1`, so that no two writes of a volume have the same.
    pub fn number_writes_from(&mut self, first: u32) {
        self.writes = first;
    }

    /// Number of the last write.
    pub fn last_write(&self) -> u32 {
        self.writes
    }

    /// Number of operations that were refused for lack of space.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The file system under test.
    pub fn subject(&self) -> &S {
        self.subject.as_ref().expect("present but for the moment of a remount")
    }

    /// State before the first operation and after each.
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// What ran.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Inode numbers.
    pub fn inos(&self) -> &InoMap {
        &self.inos
    }

    /// Runs one operation on both and compares. A failed one is recorded too; it promises nothing.
    pub fn step(&mut self, op: &Op) -> Result<(), Failure> {
        // Every operation has its own time, so that a mixed-up timestamp shows.
        self.clock.advance(1_000_000);
        let before = self.subject().seq();
        let number = self.records.len();
        let outcome = self.execute(op);
        let after = self.subject.as_ref().map_or(before, Subject::seq);
        let promise = outcome.as_ref().map_or(Promise::None, |promise| promise.clone());
        let written = self.written.take();
        self.records.push(Record { op: op.clone(), before, after, promise, written });
        self.states.push(self.model.snapshot());
        outcome.map(|_| ()).map_err(|f| f.within(format!("operation {number}: {op:?}")))
    }

    /// Unmounts and mounts both.
    pub(super) fn remount(&mut self) -> Result<Promise, Failure> {
        let subject = self.subject.take().expect("present but for the moment of a remount");
        match subject.remount() {
            Ok(subject) => self.subject = Some(subject),
            Err(e) => fail_with!("remount: {e}"),
        }
        self.model.close_all();
        self.open.clear();
        Ok(Promise::All)
    }

    /// Compares everything that users can see.
    pub fn compare_all(&self) -> Result<(), Failure> {
        let state = self.model.snapshot();
        let fs = self.subject().fs();
        let tree = Tree::read(fs)?;
        if let Some(text) = tree.difference(&state, |ino| self.inos.subject(ino)) {
            fail_with!("the trees differ: {text}");
        }
        for (ino, node) in state.nodes() {
            let at = self.inos.subject(*ino);
            let got =
                fs.getattr(at).map_err(|e| Failure::new(format!("getattr of model inode {ino}: {e}")))?;
            same_attr(&got, &node.attr(*ino), &self.inos)
                .map_err(|f| f.within(format!("model inode {ino}")))?;
            let xattrs = read_xattrs(fs, at)
                .map_err(|e| Failure::new(format!("extended attributes of model inode {ino}: {e}")))?;
            if let Some(text) = xattr_difference(&xattrs, &node.xattrs) {
                fail_with!("model inode {ino}: {text}");
            }
            if let Body::File(content) = &node.body {
                let bytes = read_file(fs, at, content.size())?;
                if let Some(bad) = content.first_difference(0, &bytes) {
                    fail_with!("model inode {ino} ({at}) differs from offset {bad} on");
                }
            }
        }
        Ok(())
    }
}

/// Reads all of a file, in pieces of an odd size.
pub fn read_file(fs: &dyn FsOps, ino: Ino, size: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0xEE; size as usize + 100];
    let mut done = 0;
    while done < bytes.len() {
        let end = bytes.len().min(done + 300_000);
        match fs.read(ino, done as u64, &mut bytes[done..end], IoFlags::default()) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) => fail_with!("read of inode {ino} at {done}: {e}"),
        }
    }
    if done as u64 != size {
        fail_with!("inode {ino} has {done} bytes to read, its size is {size}");
    }
    bytes.truncate(done);
    Ok(bytes)
}
