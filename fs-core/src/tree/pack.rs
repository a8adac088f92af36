//! Items on their way into the nodes of one level.

use std::collections::VecDeque;

use crate::format::Key;
use crate::format::node::{CAPACITY, INNER_OVERHEAD, LEAF_OVERHEAD, Node, NodePtr};

/// Pending bytes above which the first node is cut off. What stays behind, more than two nodes'
/// worth, is enough to end a run with nodes that are two thirds full or more.
pub(super) const WINDOW: usize = 3 * CAPACITY;

/// A node with fewer bytes wants to be merged.
const UNDERFULL: usize = CAPACITY * 2 / 5;

/// Pending items of one level, in ascending order: leaf items, or children as encoded pointers.
/// Bounded by [`WINDOW`] and one node.
#[derive(Debug)]
pub(super) struct Packer {
    overhead: usize,
    items: VecDeque<Pending>,
    /// The items' values, one behind the other.
    values: Vec<u8>,
    /// Bytes the items take in nodes.
    size: usize,
    /// Number of items up to and including the last one that was appended, see
    /// [`push_new`](Self::push_new); 0 if there is none.
    appended: usize,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    key: Key,
    len: usize,
    /// Stands in the old tree, as opposed to: made by this run.
    old: bool,
}

impl Packer {
    pub(super) fn new(level: u8) -> Self {
        let overhead = if level == 0 { LEAF_OVERHEAD } else { INNER_OVERHEAD };
        Self { overhead, items: VecDeque::new(), values: Vec::new(), size: 0, appended: 0 }
    }

    pub(super) fn push(&mut self, key: Key, value: &[u8], old: bool) {
        debug_assert!(self.items.back().is_none_or(|last| last.key < key));
        self.items.push_back(Pending { key, len: value.len(), old });
        self.values.extend_from_slice(value);
        self.size += self.overhead + value.len();
    }

    /// Pushes an item that was not in the tree. If it continues its predecessor (a file that
    /// grows), more of its kind will likely follow at the same place.
    pub(super) fn push_new(&mut self, key: Key, value: &[u8]) {
        let continues = self.items.back().is_some_and(|last| follows(&last.key, &key));
        self.push(key, value, false);
        if continues {
            self.appended = self.items.len();
        }
    }

    /// Puts all items of `node` in front. Only at the right edge, where it no longer matters what
    /// was appended.
    pub(super) fn prepend(&mut self, node: &Node) {
        let mut values = Vec::with_capacity(self.size + CAPACITY);
        for i in 0..node.len() {
            let value = node.value(i);
            values.extend_from_slice(value);
            self.items.insert(i, Pending { key: node.key(i), len: value.len(), old: true });
            self.size += self.overhead + value.len();
        }
        values.append(&mut self.values);
        self.values = values;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes the items take in nodes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn first_key(&self) -> Option<Key> {
        self.items.front().map(|item| item.key)
    }

    pub(super) fn is_underfull(&self) -> bool {
        !self.is_empty() && self.size < UNDERFULL
    }

    /// The pending items would fill nodes badly, and the next neighbour would help: too little for
    /// one node, or just too much, so that two would be half full. (Splitting two nodes into
    /// three instead of one into two keeps them at two thirds and more.)
    pub(super) fn wants_neighbour(&self) -> bool {
        if self.is_empty() || self.appends_at_end() {
            return false;
        }
        match self.append_split() {
            Some(split) => self.size - self.bytes(0, split) < UNDERFULL,
            None => self.is_underfull() || (self.size > CAPACITY && self.size < CAPACITY * 3 / 2),
        }
    }

    /// The last child, if it stands in the old tree.
    pub(super) fn last_old(&self) -> Option<(Key, NodePtr)> {
        let last = self.items.back().filter(|item| item.old)?;
        let ptr = NodePtr::decode(&self.values[self.values.len() - last.len..])?;
        Some((last.key, ptr))
    }

    /// The child, if it is the only one.
    pub(super) fn only_child(&self) -> Option<NodePtr> {
        if self.overhead != INNER_OVERHEAD || self.items.len() != 1 {
            return None;
        }
        NodePtr::decode(&self.values)
    }

    /// Takes the last item away.
    pub(super) fn pop(&mut self) {
        if let Some(last) = self.items.pop_back() {
            self.values.truncate(self.values.len() - last.len);
            self.size -= self.overhead + last.len;
        }
    }

    /// Takes the first `n` items away, giving each to `f`.
    pub(super) fn take(&mut self, n: usize, f: &mut dyn FnMut(&Key, &[u8])) {
        let mut start = 0;
        for item in self.items.drain(..n) {
            f(&item.key, &self.values[start..start + item.len]);
            start += item.len;
            self.size -= self.overhead + item.len;
        }
        // Once a node, and what is left is bounded.
        self.values.drain(..start);
        self.appended = self.appended.saturating_sub(n);
    }

    /// Number of items for the first node when filled up to `limit` bytes; at least one.
    pub(super) fn first_cut(&self, limit: usize) -> usize {
        self.cut(0, limit)
    }

    /// Numbers of items for the nodes at the right edge of the tree, each filled up to `limit`
    /// except for the last: what follows is likely appended, and full nodes stay full.
    pub(super) fn edge_cuts(&self, limit: usize) -> Vec<usize> {
        let limit = if self.size <= CAPACITY { CAPACITY } else { limit };
        self.greedy_cuts(0, self.items.len(), limit)
    }

    /// Numbers of items for nodes before a neighbour that stays as it is.
    pub(super) fn inner_cuts(&self) -> Vec<usize> {
        let end = self.items.len();
        if self.appends_at_end() {
            return self.greedy_cuts(0, end, CAPACITY);
        }
        // What grows ends a node with room, behind full ones; what follows has its own.
        let split = self.append_split().unwrap_or(0);
        let mut cuts = self.greedy_cuts(0, split, CAPACITY);
        cuts.append(&mut self.even_cuts(split, end));
        cuts
    }

    /// The last item was appended: the next will be, too.
    fn appends_at_end(&self) -> bool {
        self.appended == self.items.len()
    }

    /// Where to divide more than one node's worth of items in the middle of which items are being
    /// appended. Not if there are few before the place: they would make a bad node if no more
    /// follow after all.
    fn append_split(&self) -> Option<usize> {
        if self.size <= CAPACITY || self.appended == 0 || self.bytes(0, self.appended) < UNDERFULL {
            return None;
        }
        let (last, next) = (self.items.get(self.appended - 1)?, self.items.get(self.appended)?);
        // Otherwise it was a hole that was filled.
        (!follows(&last.key, &next.key)).then_some(self.appended)
    }

    /// Numbers of items for the fewest nodes for `start..end`, filled up to `limit` bytes.
    fn greedy_cuts(&self, mut start: usize, end: usize, limit: usize) -> Vec<usize> {
        let mut cuts = Vec::new();
        while start < end {
            let n = self.cut(start, limit).min(end - start);
            cuts.push(n);
            start += n;
        }
        cuts
    }

    /// Numbers of items for the fewest nodes for `start..end`, with the items spread evenly.
    fn even_cuts(&self, mut start: usize, end: usize) -> Vec<usize> {
        let greedy = self.greedy_cuts(start, end, CAPACITY);
        let (mut cuts, mut left) = (Vec::new(), self.bytes(start, end - start));
        for nodes in (2..=greedy.len()).rev() {
            let n = self.nearest_cut(start, left / nodes);
            left -= self.bytes(start, n);
            start += n;
            cuts.push(n);
        }
        // Large items may not fit when spread evenly.
        if greedy.is_empty() || left > CAPACITY {
            return greedy;
        }
        cuts.push(end - start);
        cuts
    }

    /// Items from `start` on that fit into `limit` bytes; at least one.
    fn cut(&self, start: usize, limit: usize) -> usize {
        let mut bytes = 0;
        let fits = self.items.range(start..).take_while(|item| {
            bytes += self.overhead + item.len;
            bytes <= limit
        });
        fits.count().max(1)
    }

    /// Items from `start` on whose size comes nearest to `target`, within a node.
    fn nearest_cut(&self, start: usize, target: usize) -> usize {
        let n = self.cut(start, target);
        let with = self.bytes(start, n + 1);
        let nearer = with.saturating_sub(target) < target.saturating_sub(self.bytes(start, n));
        if nearer && with <= CAPACITY { n + 1 } else { n }
    }

    fn bytes(&self, start: usize, n: usize) -> usize {
        self.items.range(start..).take(n).map(|item| self.overhead + item.len).sum()
    }
}

/// `next` continues the row of items that `key` is in: the next piece of the same file, say.
fn follows(key: &Key, next: &Key) -> bool {
    next.ino == key.ino && next.kind == key.kind && Some(next.offset) == key.offset.checked_add(1)
}
