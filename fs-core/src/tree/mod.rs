//! The metadata tree: one copy-on-write B+tree of all items of a volume.
//!
//! Nodes never change once written. [`apply`] merges a sorted stream of changes into the tree that
//! a [`TreeRoot`] names and gives the root of a new tree, which shares all untouched nodes with the
//! old one; both can be read until the old one's freed nodes are reused. [`TreeReader`] reads, through
//! a bounded cache of validated nodes. [`verify`] checks every node.
//!
//! The key of a child in its parent is the first key of the child's subtree, exactly. No node is
//! empty; an empty tree has no node.

mod apply;
mod cache;
mod changes;
mod pack;
mod read;
#[cfg(test)]
mod tests;
mod verify;

pub use apply::{ApplyContext, NodeSink, apply, apply_without, worst_case_nodes};
pub use cache::{CacheStats, NodeCache};
pub use changes::ItemChange;
pub use read::{TreeReader, ValueRef};
pub use verify::{TreeVisitor, verify};

use crate::format::node::{Expected, MAX_HEIGHT, NodePtr};

/// Names a tree. Empty by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeRoot {
    /// The root node; `None` for an empty tree.
    pub ptr: Option<NodePtr>,
    /// Number of levels; 0 for an empty tree.
    pub height: u8,
}

impl TreeRoot {
    /// The root node and what is known about it. `None` for an empty tree, and for a root whose
    /// height is impossible (see [`is_plausible`](Self::is_plausible)).
    fn node(&self) -> Option<(NodePtr, Expected)> {
        let level = self.height.checked_sub(1)?;
        Some((self.ptr?, Expected { level, first: None, below: None }))
    }

    /// Height and pointer fit together. To be checked on a root read from a device.
    pub fn is_plausible(&self) -> bool {
        match self.ptr {
            None => self.height == 0,
            Some(ptr) => ptr.plausible() && (1..=MAX_HEIGHT).contains(&self.height),
        }
    }
}
