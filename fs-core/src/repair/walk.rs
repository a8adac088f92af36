//! The items of a volume whose tree has holes: what was salvaged stands where nodes are lost.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use blockdev::{BlockDevice, IoClass};
use uuid::Uuid;

use crate::delta::Delta;
use crate::error::FsError;
use crate::format::Key;
use crate::format::node::{Expected, MAX_HEIGHT, Node, NodePtr};
use crate::fsck::{Item, Merge};
use crate::tree::{NodeCache, TreeReader, TreeRoot, TreeVisitor};
use crate::types::{BlockRun, NODE_BLOCKS};

/// Memory for cached nodes.
const CACHE_BYTES: usize = 16 << 20;

/// A subtree that cannot be read: where it should be, and which keys it has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub(super) ptr: NodePtr,
    pub(super) expected: Expected,
}

impl Lost {
    /// The key is in the subtree's range.
    pub(super) fn covers(&self, key: &Key) -> bool {
        self.expected.first.is_none_or(|first| *key >= first)
            && self.expected.below.is_none_or(|below| *key < below)
    }
}

/// A tree as far as it can be read, and what stands in for the rest.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) reader: TreeReader,
    pub(super) root: TreeRoot,
    /// Subtrees that are not there.
    pub(super) lost: Vec<Lost>,
    /// Items of the lost subtrees.
    pub(super) salvaged: BTreeMap<Key, Vec<u8>>,
}

/// What an item of the tree was before the journal's changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Old<'a> {
    /// A good leaf has it.
    Bytes(&'a [u8]),
    /// The tree does not have it.
    None,
}

/// An item of the volume, or one of the tree that the journal has removed.
pub(super) type Emit<'e> = dyn FnMut(Key, Option<Item<'_>>, Old<'_>) + 'e;

impl Source {
    /// A source for the tree `root` on `device`; what is lost is to be found out.
    pub(super) fn new(device: Arc<dyn BlockDevice>, uuid: Uuid, root: TreeRoot) -> Self {
        let reader = TreeReader::new(Arc::new(NodeCache::new(device, uuid, CACHE_BYTES)))
            .with_class(IoClass::Background);
        let root = if root.is_plausible() { root } else { TreeRoot::default() };
        Self { reader, root, lost: Vec::new(), salvaged: BTreeMap::new() }
    }

    /// Finds the subtrees that cannot be read, and calls `node` with each good node.
    pub(super) fn find_lost(&mut self, node: &mut dyn FnMut(&Node)) {
        let mut visitor = Nodes { lost: Vec::new(), node };
        // A root that is impossible has been replaced.
        let _ = crate::tree::verify(&self.reader, &self.root, &mut visitor);
        self.lost = visitor.lost;
        if self.root.ptr.is_none() {
            self.lost = vec![everything()];
        }
    }

    /// Pointers that lead to lost subtrees.
    pub(super) fn lost_pointers(&self) -> HashSet<NodePtr> {
        self.lost.iter().map(|l| l.ptr).collect()
    }

    /// Calls `emit` with all items in key order, the changes in `delta` merged in, and `node` with
    /// the blocks of each node that is read.
    pub(super) fn each(
        &self,
        delta: &Delta,
        page_blocks: u32,
        node: &mut dyn FnMut(BlockRun),
        emit: &mut Emit<'_>,
    ) {
        let merge = Merge::new(delta, page_blocks);
        let mut items = Items { merge, salvaged: &self.salvaged, node, emit };
        if self.root.ptr.is_none() {
            items.salvaged_between(&everything().expected);
        }
        // As above.
        let _ = crate::tree::verify(&self.reader, &self.root, &mut items);
        let Items { mut merge, emit, .. } = items;
        merge.finish(&mut |key, item| emit(key, Some(item), Old::None));
    }
}

/// The range of a tree whose root is lost.
fn everything() -> Lost {
    let ptr = NodePtr { addr: crate::types::BlockNr(0), birth: crate::types::Lsn(u64::MAX), crc: 0 };
    Lost { ptr, expected: Expected { level: MAX_HEIGHT, first: None, below: None } }
}

struct Nodes<'a> {
    lost: Vec<Lost>,
    node: &'a mut dyn FnMut(&Node),
}

impl TreeVisitor for Nodes<'_> {
    fn node(&mut self, node: &Node, _: &Expected) {
        (self.node)(node);
    }
    fn item(&mut self, _: Key, _: &[u8]) {}
    fn bad(&mut self, ptr: NodePtr, expected: &Expected, _: FsError) {
        self.lost.push(Lost { ptr, expected: *expected });
    }
}

struct Items<'a, 'e> {
    merge: Merge<'a>,
    salvaged: &'a BTreeMap<Key, Vec<u8>>,
    node: &'e mut dyn FnMut(BlockRun),
    emit: &'e mut Emit<'e>,
}

impl Items<'_, '_> {
    fn one(&mut self, key: Key, value: &[u8], old: Old<'_>) {
        let mut there = false;
        let emit = &mut *self.emit;
        self.merge.tree_item(key, value, &mut |at, item| {
            there |= at == key;
            emit(at, Some(item), if at == key { old } else { Old::None });
        });
        if !there && old != Old::None {
            emit(key, None, old);
        }
    }

    fn salvaged_between(&mut self, range: &Expected) {
        let salvaged = self.salvaged;
        let from = range.first.unwrap_or(FIRST_KEY);
        let below = |key: &Key| range.below.is_none_or(|below| *key < below);
        for (key, value) in salvaged.range(from..).take_while(|(key, _)| below(key)) {
            self.one(*key, value, Old::None);
        }
    }
}

/// Below all keys there are.
pub(super) const FIRST_KEY: Key = Key::new(crate::types::Ino(0), crate::format::ItemKind::Inode, 0);

impl TreeVisitor for Items<'_, '_> {
    fn node(&mut self, node: &Node, _: &Expected) {
        (self.node)(BlockRun::new(node.ptr().addr, NODE_BLOCKS));
    }
    fn item(&mut self, key: Key, value: &[u8]) {
        self.one(key, value, Old::Bytes(value));
    }
    fn bad(&mut self, _: NodePtr, expected: &Expected, _: FsError) {
        self.salvaged_between(expected);
    }
}
