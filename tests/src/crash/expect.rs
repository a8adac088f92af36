//! What a power cut at one moment of a run may leave.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use fs_core::Ino;

use crate::model::{Node, State};
use crate::run::{InoMap, Lockstep, Promise, Record, Subject, Tree};

/// Everything needed to judge what is recovered after a cut. State `i` is the one after `i`
/// operations.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// State before the first operation and after each, up to the last that had started.
    pub states: Vec<State>,
    /// What ran, as far as it had started.
    pub records: Vec<Record>,
    /// Number of operations that had returned.
    pub acked: usize,
    /// Inode numbers.
    pub inos: InoMap,
    /// Page size.
    pub page: u64,
}

/// The node of one inode from state `first` to state `last`.
#[derive(Clone, Debug)]
pub struct Version {
    /// First state that has it.
    pub first: usize,
    /// Last state that has it.
    pub last: usize,
    /// The inode, unless it did not exist.
    pub node: Option<Arc<Node>>,
}

impl Expectation {
    /// What a cut of `run` after `cut` device events may leave.
    pub fn at<S: Subject>(run: &Lockstep<S>, cut: u64, page: u64) -> Self {
        let started = run.records().partition_point(|r| r.before <= cut);
        let acked = run.records().partition_point(|r| r.after <= cut);
        Self {
            states: run.states()[..=started].to_vec(),
            records: run.records()[..started].to_vec(),
            acked,
            inos: run.inos().clone(),
            page,
        }
    }

    /// If an operation that failed has made an inode nevertheless, finds out its number.
    pub fn bind_new(&mut self, tree: &Tree) {
        let unknown: Vec<Ino> =
            tree.nodes.keys().copied().filter(|ino| self.inos.model(*ino).is_none()).collect();
        let known: BTreeSet<Ino> = self.inos.pairs().map(|(model, _)| model).collect();
        let all = self.states.iter().flat_map(|s| s.nodes().keys().copied());
        let made = all.rev().find(|ino| !known.contains(ino));
        if let (Some(model), [subject]) = (made, unknown.as_slice()) {
            self.inos.insert(model, *subject);
        }
    }

    /// Index of the last state that can have come about.
    pub fn last(&self) -> usize {
        self.states.len() - 1
    }

    /// Highest state whose promise (as chosen by `covers`) had been made before the cut.
    fn floor(&self, covers: impl Fn(&Promise) -> bool) -> usize {
        self.records[..self.acked].iter().rposition(|r| covers(&r.promise)).map_or(0, |i| i + 1)
    }

    /// The names may not be older than this state.
    pub fn names_floor(&self) -> usize {
        self.floor(|p| *p != Promise::None)
    }

    /// The data of `ino` may not be older than this state.
    pub fn data_floor(&self, ino: Ino) -> usize {
        self.floor(|p| matches!(p, Promise::File { ino: i, .. } if *i == ino) || *p == Promise::All)
    }

    /// The times of `ino` may not be older than this state.
    pub fn times_floor(&self, ino: Ino) -> usize {
        self.floor(|p| match p {
            Promise::File { ino: i, times } | Promise::Range { ino: i, times, .. } => *times && *i == ino,
            other => *other == Promise::All,
        })
    }

    /// Synchronous writes to `ino` that were promised behind state `floor`: the state after each
    /// and its bytes.
    pub fn durable_ranges(&self, ino: Ino, floor: usize) -> Vec<(usize, Range<u64>)> {
        let promised = self.records[..self.acked].iter().enumerate().skip(floor);
        promised
            .filter_map(|(i, r)| match &r.promise {
                Promise::Range { ino: of, range, .. } if *of == ino => Some((i + 1, range.clone())),
                _ => None,
            })
            .collect()
    }

    /// Writes to `ino` behind state `floor` that may or may not be there: the state after each, its
    /// bytes, and whether it is all or nothing.
    pub fn writes(&self, ino: Ino, floor: usize) -> Vec<(usize, Range<u64>, bool)> {
        let records = self.records.iter().enumerate().skip(floor);
        let written = records.filter_map(|(i, r)| Some((i + 1, r.written.as_ref()?)));
        written.filter(|(_, w)| w.ino == ino).map(|(i, w)| (i, w.range.clone(), w.atomic)).collect()
    }

    /// The operations from state `from` to state `to`, for a report.
    pub fn log(&self, from: usize, to: usize) -> String {
        let line = |(i, r): (usize, &Record)| {
            let (state, acked) = (i + 1, if i < self.acked { "" } else { ", not returned" });
            format!(
                "state {state}: {:?}, events {}..{}, promises {:?}{acked}",
                r.op, r.before, r.after, r.promise
            )
        };
        let some = self.records.iter().enumerate().take(to).skip(from);
        some.map(line).collect::<Vec<_>>().join("\n    ")
    }

    /// The operations that changed `ino` since state `floor`, for a report.
    pub fn story(&self, ino: Ino, floor: usize) -> String {
        let mut lines = Vec::new();
        for version in self.versions(ino, floor) {
            let size = version.node.map_or(0, |n| n.size());
            let op = version.first.checked_sub(1).and_then(|i| self.records.get(i));
            let op = op.map_or("(the start)".to_string(), |r| {
                format!("{:?}, events {}..{}", r.op, r.before, r.after)
            });
            lines.push(format!("state {} (size {size}): {op}", version.first));
        }
        lines.join("\n    ")
    }

    /// What `ino` was from state `floor` on, oldest first.
    pub fn versions(&self, ino: Ino, floor: usize) -> Vec<Version> {
        let mut all: Vec<Version> = Vec::new();
        for (i, state) in self.states.iter().enumerate().skip(floor) {
            let node = state.get(ino);
            match all.last_mut() {
                Some(last) if same(last.node.as_ref(), node) => last.last = i,
                _ => all.push(Version { first: i, last: i, node: node.cloned() }),
            }
        }
        all
    }
}

fn same(a: Option<&Arc<Node>>, b: Option<&Arc<Node>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    }
}
