//! Checking a whole tree.

use std::sync::Arc;

use super::{TreeReader, TreeRoot};
use crate::error::{FsError, Result};
use crate::format::Key;
use crate::format::node::{Expected, Node, NodePtr};

/// Children read at the same time.
const BATCH: usize = 16;

/// Told what [`verify`] finds, in key order.
pub trait TreeVisitor {
    /// A good node; its items or children follow.
    fn node(&mut self, node: &Node, expected: &Expected);

    /// An item of a good leaf.
    fn item(&mut self, key: Key, value: &[u8]);

    /// A node that cannot be read or is not what its parent says. Everything below it, the keys
    /// from `expected.first` up to `expected.below`, is skipped.
    fn bad(&mut self, ptr: NodePtr, expected: &Expected, error: FsError);

    /// Nothing more is wanted: the rest is not read.
    fn is_done(&self) -> bool {
        false
    }
}

/// Reads every node of a tree from the device, past the cache, and checks it and its place in the
/// tree. Goes on after bad nodes; an error is returned only for an impossible root.
///
/// Ends on any input: levels strictly decrease, and the ranges of a node's children are disjoint,
/// so that no node is accepted in two places. Blocks for as long as the reading takes; holds a few
/// nodes of each level in memory.
pub fn verify(reader: &TreeReader, root: &TreeRoot, visitor: &mut dyn TreeVisitor) -> Result<()> {
    if !root.is_plausible() {
        return Err(FsError::Volume(format!("impossible root of the tree: {root:?}")));
    }
    if let Some(root) = root.node() {
        visit_all(reader, &[root], visitor);
    }
    Ok(())
}

fn visit_all(reader: &TreeReader, nodes: &[(NodePtr, Expected)], visitor: &mut dyn TreeVisitor) {
    if visitor.is_done() {
        return;
    }
    let ptrs: Vec<NodePtr> = nodes.iter().map(|(ptr, _)| *ptr).collect();
    let read = reader.cache().read_many(&ptrs, reader.class());
    for ((ptr, expected), node) in nodes.iter().zip(read) {
        match node.and_then(|node| node.check(expected).map(|()| node)) {
            Ok(node) => visit(reader, &node, expected, visitor),
            Err(error) => visitor.bad(*ptr, expected, error),
        }
    }
}

fn visit(reader: &TreeReader, node: &Arc<Node>, expected: &Expected, visitor: &mut dyn TreeVisitor) {
    visitor.node(node, expected);
    if node.level() == 0 {
        for i in 0..node.len() {
            visitor.item(node.key(i), node.value(i));
        }
        return;
    }
    let children: Vec<(NodePtr, Expected)> =
        (0..node.len()).map(|i| (node.child(i), node.child_expected(i, expected.below))).collect();
    for batch in children.chunks(BATCH) {
        visit_all(reader, batch, visitor);
    }
}
