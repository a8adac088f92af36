//! Merging changes into a new tree.
//!
//! One walk over the old tree in key order. Each level has a [`Packer`] of pending items; a node
//! that is rewritten gives its items (changed) to the packer of its level, and full nodes leave
//! the packer as entries for the packer of the level above. A subtree that no change touches goes
//! as one entry into the packer of its parent's level, after everything pending below was written,
//! unless what is pending would make bad nodes: then the subtree's edge is rewritten with it.
//!
//! So memory is bounded by a few nodes for each level, whatever the number of changes.

use std::collections::HashSet;
use std::sync::Arc;

use blockdev::AlignedBuf;

use super::changes::{Changes, ItemChange};
use super::pack::{Packer, WINDOW};
use super::{TreeReader, TreeRoot};
use crate::error::{FsError, Result};
use crate::format::Key;
use crate::format::node::{CAPACITY, Expected, MAX_HEIGHT, Node, NodeBuilder, NodePtr, Stamp};
use crate::types::{BlockNr, Epoch, Lsn};

/// Children read ahead of their rewriting in one submission.
const PREFETCH: usize = 32;

/// Nodes of one level that one change can cause to be written.
const NODES_PER_LEVEL: u64 = 5;

/// Where new nodes go.
pub trait NodeSink {
    /// [`NODE_BLOCKS`](crate::NODE_BLOCKS) consecutive free blocks for a new node.
    fn alloc(&mut self) -> Result<BlockNr>;

    /// Starts writing `node` at `addr`, which [`alloc`](Self::alloc) gave; need not wait for it.
    fn write(&mut self, addr: BlockNr, node: AlignedBuf) -> Result<()>;

    /// The new tree does not contain `node` of the old one.
    fn freed(&mut self, node: NodePtr);
}

/// Nodes that [`apply`] writes at most for `changes` changes to a tree of `height` levels: what to
/// reserve so that it cannot run out of space half way.
///
/// A change rewrites at most two and a half nodes' worth of items at each level (its own node and
/// neighbours taken in), which large items can spread over four nodes; an append may divide one
/// more. A new level on top counts like the others.
pub fn worst_case_nodes(height: u8, changes: u64) -> u64 {
    if changes == 0 {
        return 0;
    }
    changes.saturating_mul(NODES_PER_LEVEL).saturating_mul(u64::from(height) + 1)
}

/// Who makes the new tree, and how.
#[derive(Clone, Copy, Debug)]
pub struct ApplyContext {
    /// The running epoch, stored in new nodes.
    pub epoch: Epoch,
    /// LSN of the checkpoint; not below the birth of any node of the old tree.
    pub birth: Lsn,
    /// How full the nodes of a long run of rewritten items are made, in percent (50 to 100).
    pub fill_percent: u8,
}

impl ApplyContext {
    /// A context with full nodes, which is best for items that are appended or keep their size.
    pub fn new(epoch: Epoch, birth: Lsn) -> Self {
        Self { epoch, birth, fill_percent: 100 }
    }
}

/// Makes a new tree from the tree `root` and `changes`, which must be strictly ascending by key.
///
/// Old nodes are not touched, only reported to [`NodeSink::freed`] once each. New nodes are in the
/// reader's cache, but until the sink's writes have completed the new tree must not be read by
/// others: a node that fell out of the cache would be read from the device too early. Without any
/// change the result is `root` itself.
///
/// Blocks on reads of the old tree. After an error nothing of the new tree is valid: its
/// allocations are the caller's to take back, and the old tree is as it was.
pub fn apply<'c>(
    reader: &TreeReader,
    root: &TreeRoot,
    context: &ApplyContext,
    changes: impl IntoIterator<Item = (Key, ItemChange<'c>)>,
    sink: &mut dyn NodeSink,
) -> Result<TreeRoot> {
    apply_without(reader, root, context, &HashSet::new(), changes, sink)
}

/// As [`apply`], for a damaged tree: the nodes `lost` are taken for empty. A change in the range of
/// each, if only the removal of what is not there, makes sure that nothing leads to them any more.
pub fn apply_without<'c>(
    reader: &TreeReader,
    root: &TreeRoot,
    context: &ApplyContext,
    lost: &HashSet<NodePtr>,
    changes: impl IntoIterator<Item = (Key, ItemChange<'c>)>,
    sink: &mut dyn NodeSink,
) -> Result<TreeRoot> {
    if !root.is_plausible() {
        return Err(FsError::Volume(format!("impossible root of the tree: {root:?}")));
    }
    let mut changes = changes.into_iter().fuse();
    let mut apply = Apply {
        reader,
        lost,
        stamp: Stamp { volume: reader.cache().volume(), epoch: context.epoch, birth: context.birth },
        fill: CAPACITY * usize::from(context.fill_percent.clamp(50, 100)) / 100,
        changes: Changes::new(&mut changes),
        sink,
        levels: (0..=MAX_HEIGHT).map(Packer::new).collect(),
    };
    if !apply.changes.any_below(None)? {
        return Ok(*root);
    }
    match root.node() {
        None => apply.insert_below(None)?,
        Some((ptr, expected)) => apply.rewrite(ptr, &expected)?,
    }
    apply.finish()
}

struct Apply<'a, 'c> {
    reader: &'a TreeReader,
    /// Nodes that are not there.
    lost: &'a HashSet<NodePtr>,
    stamp: Stamp,
    /// Bytes to put into each node of a long run.
    fill: usize,
    changes: Changes<'a, 'c>,
    sink: &'a mut dyn NodeSink,
    /// What is pending for nodes of each level. The last one only ever gets the root.
    levels: Vec<Packer>,
}

impl Apply<'_, '_> {
    /// Takes an old node apart into the packer of its level, with the changes in its range.
    fn rewrite(&mut self, ptr: NodePtr, expected: &Expected) -> Result<()> {
        if self.lost.contains(&ptr) {
            return self.insert_below(expected.below);
        }
        let node = self.reader.load(ptr, expected)?;
        self.sink.freed(ptr);
        if node.level() == 0 {
            self.rewrite_items(&node, expected.below)
        } else {
            self.rewrite_children(&node, expected.below)
        }
    }

    fn rewrite_items(&mut self, node: &Node, below: Option<Key>) -> Result<()> {
        for i in 0..node.len() {
            let (key, old) = (node.key(i), node.value(i));
            self.insert_below(Some(key))?;
            match self.changes.next_at(&key)? {
                None => self.push(0, key, old, true)?,
                Some(change) => self.change(key, Some(old), change)?,
            }
        }
        self.insert_below(below)
    }

    /// Applies the changes below `below` to keys that are not in the tree.
    fn insert_below(&mut self, below: Option<Key>) -> Result<()> {
        while let Some((key, change)) = self.changes.next_below(below)? {
            self.change(key, None, change)?;
        }
        Ok(())
    }

    fn change(&mut self, key: Key, old: Option<&[u8]>, change: ItemChange<'_>) -> Result<()> {
        let Some(value) = change.resolve(old)? else { return Ok(()) };
        match old {
            Some(_) => self.levels[0].push(key, &value, false),
            None => self.levels[0].push_new(key, &value),
        }
        self.shorten(0)
    }

    fn rewrite_children(&mut self, node: &Node, below: Option<Key>) -> Result<()> {
        let level = usize::from(node.level());
        let mut fetched = 0;
        for i in 0..node.len() {
            let expected = node.child_expected(i, below);
            if self.changes.any_below(expected.below)? {
                if i >= fetched {
                    fetched = self.prefetch(node, i, below);
                }
                self.rewrite(node.child(i), &expected)?;
            } else if self.levels[..level].iter().any(Packer::wants_neighbour) {
                self.rewrite(node.child(i), &expected)?;
            } else {
                self.close(level - 1)?;
                self.push(level, node.key(i), &node.child(i).encode(), true)?;
            }
        }
        Ok(())
    }

    /// Reads the next children that will be rewritten, from the `first` on, as far as is known;
    /// gives the index behind the last of them.
    fn prefetch(&self, node: &Node, first: usize, below: Option<Key>) -> usize {
        let touched = self.changes.known_below(below).map(|key| node.search_last(key).unwrap_or(0));
        let mut children: Vec<usize> = touched.map(|i| i.max(first)).collect();
        children.dedup();
        children.truncate(PREFETCH);
        self.reader.prefetch(children.iter().map(|i| node.child(*i)));
        children.last().map_or(first, |last| last + 1)
    }

    /// Adds an item to a level.
    fn push(&mut self, level: usize, key: Key, value: &[u8], old: bool) -> Result<()> {
        self.levels[level].push(key, value, old);
        self.shorten(level)
    }

    /// Writes what has become too much for the packer of `level`.
    fn shorten(&mut self, level: usize) -> Result<()> {
        while self.levels[level].size() > WINDOW {
            let n = self.levels[level].first_cut(self.fill);
            self.emit(level, n)?;
        }
        Ok(())
    }

    /// Writes everything pending up to `level`: an untouched subtree follows.
    fn close(&mut self, level: usize) -> Result<()> {
        for level in 0..=level {
            for n in self.levels[level].inner_cuts() {
                self.emit(level, n)?;
            }
        }
        Ok(())
    }

    /// Writes a node with the first `n` pending items of `level`.
    fn emit(&mut self, level: usize, n: usize) -> Result<()> {
        if level >= usize::from(MAX_HEIGHT) {
            return Err(FsError::Volume("the metadata tree is too high".into()));
        }
        let addr = self.sink.alloc()?;
        let mut builder = NodeBuilder::new(level as u8);
        self.levels[level].take(n, &mut |key, value| builder.push(key, value));
        let node = Arc::new(builder.finish(&self.stamp, addr));
        let (first, ptr, bytes) = (node.key(0), node.ptr(), AlignedBuf::from_slice(node.bytes()));
        self.reader.cache().insert(node);
        self.sink.write(addr, bytes)?;
        self.push(level + 1, first, &ptr.encode(), false)
    }

    /// Writes what is left at the right edge and finds the root.
    fn finish(mut self) -> Result<TreeRoot> {
        for level in 0..self.levels.len() {
            self.merge_left(level)?;
            if self.levels[level + 1..].iter().all(Packer::is_empty)
                && let Some(root) = self.root(level)?
            {
                return Ok(root);
            }
            for n in self.levels[level].edge_cuts(self.fill) {
                self.emit(level, n)?;
            }
        }
        Err(FsError::Volume("the metadata tree is too high".into()))
    }

    /// The root, if what is pending in the topmost level in use is just that.
    fn root(&mut self, level: usize) -> Result<Option<TreeRoot>> {
        let top = &self.levels[level];
        if top.is_empty() {
            return Ok(Some(TreeRoot::default()));
        }
        let Some(ptr) = top.only_child() else { return Ok(None) };
        let old = top.last_old().is_some();
        let root = TreeRoot { ptr: Some(ptr), height: level as u8 };
        if old { self.lower(root).map(Some) } else { Ok(Some(root)) }
    }

    /// Drops nodes with a single child from the top.
    fn lower(&mut self, mut root: TreeRoot) -> Result<TreeRoot> {
        while let Some((ptr, expected)) = root.node()
            && expected.level > 0
        {
            let node = self.reader.load(ptr, &expected)?;
            if node.len() > 1 {
                break;
            }
            self.sink.freed(ptr);
            root = TreeRoot { ptr: Some(node.child(0)), height: expected.level };
        }
        Ok(root)
    }

    /// There is no neighbour on the right: takes in the untouched left one if both fit into one.
    fn merge_left(&mut self, level: usize) -> Result<()> {
        while self.levels[level].is_underfull()
            && let Some((first, ptr)) = self.levels.get(level + 1).and_then(Packer::last_old)
        {
            let below = self.levels[level].first_key();
            let expected = Expected { level: level as u8, first: Some(first), below };
            let node = self.reader.load(ptr, &expected)?;
            if node.used() + self.levels[level].size() > CAPACITY {
                break;
            }
            self.sink.freed(ptr);
            self.levels[level + 1].pop();
            self.levels[level].prepend(&node);
        }
        Ok(())
    }
}
