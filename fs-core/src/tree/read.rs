//! Looking up and scanning.

use std::ops::{ControlFlow, Deref, Range};
use std::sync::Arc;

use blockdev::IoClass;

use super::cache::NodeCache;
use super::{CacheStats, TreeRoot};
use crate::error::Result;
use crate::format::Key;
use crate::format::node::{Expected, Node, NodePtr};

/// Children a scan reads in one submission.
const READ_AHEAD: usize = 8;

/// A value in a cached node; keeps the node in memory.
#[derive(Clone, Debug)]
pub struct ValueRef {
    node: Arc<Node>,
    range: Range<usize>,
}

impl ValueRef {
    fn new(node: Arc<Node>, i: usize) -> Self {
        let range = node.value_range(i);
        Self { node, range }
    }
}

impl Deref for ValueRef {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.node.bytes()[self.range.clone()]
    }
}

/// Reads trees. Cheap to clone; clones share one cache. All reads may block on the device and
/// fail with [`FsError::Corrupt`](crate::FsError::Corrupt) or a device error.
#[derive(Clone, Debug)]
pub struct TreeReader {
    cache: Arc<NodeCache>,
    class: IoClass,
}

impl TreeReader {
    /// A reader through `cache` whose reads are of class [`IoClass::Data`].
    pub fn new(cache: Arc<NodeCache>) -> Self {
        Self { cache, class: IoClass::Data }
    }

    /// The same reader with reads of class `class`.
    pub fn with_class(&self, class: IoClass) -> Self {
        Self { cache: self.cache.clone(), class }
    }

    /// The cache behind it.
    pub fn cache(&self) -> &Arc<NodeCache> {
        &self.cache
    }

    /// Counters of the cache.
    pub fn stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// The class of this reader's reads.
    pub(super) fn class(&self) -> IoClass {
        self.class
    }

    /// The value of `key`.
    pub fn get(&self, root: &TreeRoot, key: &Key) -> Result<Option<ValueRef>> {
        let Some((mut ptr, mut expected)) = root.node() else { return Ok(None) };
        loop {
            let node = self.load(ptr, &expected)?;
            if node.level() == 0 {
                return Ok(node.search(key).ok().map(|i| ValueRef::new(node, i)));
            }
            let Some(i) = node.search_last(key) else { return Ok(None) };
            (ptr, expected) = (node.child(i), node.child_expected(i, expected.below));
        }
    }

    /// Calls `f` for every item from `from` to `to`, both included, in order, until it breaks.
    /// `f` may read trees.
    pub fn scan(
        &self,
        root: &TreeRoot,
        from: Key,
        to: Key,
        f: &mut dyn FnMut(Key, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut give = |node: &Arc<Node>, i| f(node.key(i), node.value(i));
        Scan { reader: self, from, to: Some(to), f: &mut give }.run(root)
    }

    /// The first item at or above `from`.
    pub fn first_from(&self, root: &TreeRoot, from: &Key) -> Result<Option<(Key, ValueRef)>> {
        let mut found = None;
        let mut take = |node: &Arc<Node>, i| {
            found = Some((node.key(i), ValueRef::new(node.clone(), i)));
            ControlFlow::Break(())
        };
        Scan { reader: self, from: *from, to: None, f: &mut take }.run(root)?;
        Ok(found)
    }

    /// The last item below `key`.
    pub fn last_below(&self, root: &TreeRoot, key: &Key) -> Result<Option<(Key, ValueRef)>> {
        let Some((mut ptr, mut expected)) = root.node() else { return Ok(None) };
        loop {
            let node = self.load(ptr, &expected)?;
            let (Ok(next) | Err(next)) = node.search(key);
            // Only at the root can there be none: a parent's key is the child's first, exactly.
            let Some(i) = next.checked_sub(1) else { return Ok(None) };
            if node.level() == 0 {
                return Ok(Some((node.key(i), ValueRef::new(node, i))));
            }
            (ptr, expected) = (node.child(i), node.child_expected(i, expected.below));
        }
    }

    /// The node at `ptr`, checked against what its parent promises.
    pub(super) fn load(&self, ptr: NodePtr, expected: &Expected) -> Result<Arc<Node>> {
        let node = self.cache.get(ptr, self.class)?;
        node.check(expected)?;
        Ok(node)
    }

    /// Brings those of `ptrs` that are missing into the cache, in one submission. Errors are left
    /// for the read that needs the node.
    pub(super) fn prefetch(&self, ptrs: impl Iterator<Item = NodePtr>) {
        if !self.cache.is_roomy() {
            return;
        }
        let missing: Vec<NodePtr> = ptrs.filter(|ptr| !self.cache.contains(ptr)).collect();
        if missing.len() < 2 {
            return;
        }
        for node in self.cache.read_many(&missing, self.class).into_iter().flatten() {
            self.cache.insert(node);
        }
    }
}

/// A walk over the items from one key on.
struct Scan<'a> {
    reader: &'a TreeReader,
    from: Key,
    /// Last key; `None`: no bound.
    to: Option<Key>,
    f: &'a mut dyn FnMut(&Arc<Node>, usize) -> ControlFlow<()>,
}

impl Scan<'_> {
    fn run(&mut self, root: &TreeRoot) -> Result<()> {
        match root.node() {
            None => Ok(()),
            Some((ptr, expected)) => self.visit(ptr, &expected).map(|_| ()),
        }
    }

    fn visit(&mut self, ptr: NodePtr, expected: &Expected) -> Result<ControlFlow<()>> {
        let node = self.reader.load(ptr, expected)?;
        let first = match node.search(&self.from) {
            Ok(i) => i,
            // The key may be within the child before.
            Err(i) if node.level() > 0 => i.saturating_sub(1),
            Err(i) => i,
        };
        for i in first..node.len() {
            if self.to.is_some_and(|to| node.key(i) > to) {
                return Ok(ControlFlow::Break(()));
            }
            let flow = if node.level() == 0 {
                (self.f)(&node, i)
            } else {
                // A scan that has gone past one child is likely to go on.
                if i > first && (i - first - 1).is_multiple_of(READ_AHEAD) {
                    self.read_ahead(&node, i);
                }
                self.visit(node.child(i), &node.child_expected(i, expected.below))?
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Brings the children from the `i`-th on into the cache, a few at a time.
    fn read_ahead(&self, node: &Node, i: usize) {
        let end = node.len().min(i + READ_AHEAD);
        let wanted = (i..end).take_while(|i| self.to.is_none_or(|to| node.key(*i) <= to));
        self.reader.prefetch(wanted.map(|i| node.child(i)));
    }
}
