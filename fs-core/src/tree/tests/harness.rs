//! A tree on a RAM device beside a `BTreeMap`, with every promise of `apply` checked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use blockdev::{AlignedBuf, BlockDevice, IoClass, RamDevice};
use uuid::Uuid;

use crate::error::{FsError, Result};
use crate::format::node::{CAPACITY, Expected, Node, NodePtr};
use crate::format::{ItemKind, Key};
use crate::tree::*;
use crate::types::{BlockNr, Epoch, Ino, Lsn, NODE_BLOCKS};

pub const VOLUME: Uuid = Uuid::from_u128(42);
const DEVICE_SIZE: u64 = 1 << 32;

/// An owned change, for lists of changes.
#[derive(Clone, Debug)]
pub enum Change {
    Put(Vec<u8>),
    Delete,
    /// Read-modify-write: appends to the old value; removes it when it would exceed the limit.
    Append(Vec<u8>, usize),
}

pub fn key(n: u64) -> Key {
    let kinds = [ItemKind::Inode, ItemKind::DirEntry, ItemKind::Map, ItemKind::Xattr];
    Key::new(Ino(1 + n / 64), kinds[(n / 16 % 4) as usize], n % 16)
}

/// A value that tells which one it is.
pub fn value(seed: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| (seed.wrapping_mul(31).wrapping_add(i as u64)) as u8).collect()
}

#[derive(Default)]
pub struct Sink {
    device: Option<RamDevice>,
    next: u64,
    /// Blocks freed two batches ago, to be used again.
    reusable: Vec<BlockNr>,
    pub written: BTreeSet<BlockNr>,
    pub freed: BTreeSet<BlockNr>,
    pub allocated: BTreeSet<BlockNr>,
    /// Allocations before the next one fails.
    pub allowed: Option<usize>,
}

impl Sink {
    /// Forgets the accounting of the last batch.
    pub fn begin(&mut self) {
        self.freed.clear();
        self.written.clear();
        self.allocated.clear();
    }
}

impl NodeSink for Sink {
    fn alloc(&mut self) -> Result<BlockNr> {
        match &mut self.allowed {
            Some(0) => return Err(FsError::NO_SPACE),
            Some(n) => *n -= 1,
            None => {}
        }
        let addr = self.reusable.pop().unwrap_or_else(|| {
            self.next += u64::from(NODE_BLOCKS);
            BlockNr(self.next)
        });
        assert!(self.allocated.insert(addr));
        Ok(addr)
    }

    fn write(&mut self, addr: BlockNr, node: AlignedBuf) -> Result<()> {
        assert!(self.allocated.contains(&addr));
        assert!(self.written.insert(addr), "block {addr} is written twice");
        let device = self.device.as_ref().expect("the harness set it");
        Ok(device.write_at(addr.offset(), node, false, IoClass::Background)?)
    }

    fn freed(&mut self, node: NodePtr) {
        assert!(self.freed.insert(node.addr), "{node:?} is freed twice");
        assert!(!self.allocated.contains(&node.addr), "{node:?} is made and freed at once");
    }
}

/// What a full walk found.
#[derive(Default)]
pub struct Walk {
    pub nodes: BTreeSet<BlockNr>,
    pub ptrs: Vec<(NodePtr, Expected)>,
    pub leaf_fill: Vec<f64>,
    pub items: BTreeMap<Key, Vec<u8>>,
    pub bad: Vec<(NodePtr, Expected, FsError)>,
}

impl TreeVisitor for Walk {
    fn node(&mut self, node: &Node, expected: &Expected) {
        assert!(self.nodes.insert(node.ptr().addr), "{:?} is in the tree twice", node.ptr());
        self.ptrs.push((node.ptr(), *expected));
        if node.level() == 0 {
            self.leaf_fill.push(node.used() as f64 / CAPACITY as f64);
        }
    }
    fn item(&mut self, key: Key, value: &[u8]) {
        assert!(self.items.last_key_value().is_none_or(|(last, _)| *last < key));
        self.items.insert(key, value.to_vec());
    }
    fn bad(&mut self, ptr: NodePtr, expected: &Expected, error: FsError) {
        self.bad.push((ptr, *expected, error));
    }
}

impl Walk {
    pub fn mean_fill(&self) -> f64 {
        self.leaf_fill.iter().sum::<f64>() / self.leaf_fill.len() as f64
    }
}

pub struct Harness {
    pub device: RamDevice,
    pub reader: TreeReader,
    pub root: TreeRoot,
    pub model: BTreeMap<Key, Vec<u8>>,
    pub sink: Sink,
    pub fill_percent: u8,
    lsn: u64,
    freed_before: Vec<BlockNr>,
}

impl Harness {
    pub fn new(cache: usize) -> Self {
        let device = RamDevice::new(DEVICE_SIZE, 4096);
        let reader = reader(&device, cache);
        let sink = Sink { device: Some(device.clone()), ..Sink::default() };
        Self {
            device,
            reader,
            root: TreeRoot::default(),
            model: BTreeMap::new(),
            sink,
            fill_percent: 100,
            lsn: 0,
            freed_before: Vec::new(),
        }
    }

    pub fn context(&mut self) -> ApplyContext {
        self.lsn += 1;
        ApplyContext { epoch: Epoch(1), birth: Lsn(self.lsn), fill_percent: self.fill_percent }
    }

    /// Applies `changes` to tree and model without looking at the result. What was freed is used
    /// again from the batch after next on.
    pub fn apply(&mut self, changes: &BTreeMap<Key, Change>) -> Result<()> {
        self.sink.begin();
        let context = self.context();
        let reader = self.reader.clone();
        let worst = worst_case_nodes(self.root.height, changes.len() as u64);
        self.root = apply(&reader, &self.root, &context, changes.iter().map(item), &mut self.sink)?;
        assert!(self.sink.written.len() as u64 <= worst, "{} nodes written", self.sink.written.len());
        for (key, change) in changes {
            match resolve(change, self.model.get(key).map(Vec::as_slice)) {
                Some(value) => self.model.insert(*key, value),
                None => self.model.remove(key),
            };
        }
        self.sink.reusable.append(&mut self.freed_before);
        self.freed_before = self.sink.freed.iter().copied().collect();
        Ok(())
    }

    /// Applies `changes` and checks the tree's content and the accounting of nodes.
    pub fn apply_and_check(&mut self, changes: &BTreeMap<Key, Change>) -> Walk {
        let before = self.walk().nodes;
        self.apply(changes).expect("apply works");
        let walk = self.walk();
        assert!(walk.bad.is_empty(), "{:?}", walk.bad);
        assert!(walk.items == self.model, "tree and model differ");
        assert_eq!(self.sink.allocated, self.sink.written, "allocated but not written");
        assert!(self.sink.freed.is_subset(&before), "freed what was not there");
        let kept: BTreeSet<BlockNr> = before.difference(&self.sink.freed).copied().collect();
        let expected: BTreeSet<BlockNr> = kept.union(&self.sink.written).copied().collect();
        assert_eq!(walk.nodes, expected, "reachable is not old - freed + written");
        walk
    }

    pub fn walk(&self) -> Walk {
        walk(&self.reader, &self.root)
    }
}

pub fn walk(reader: &TreeReader, root: &TreeRoot) -> Walk {
    let mut walk = Walk::default();
    verify(reader, root, &mut walk).expect("the root is plausible");
    walk
}

pub fn reader(device: &RamDevice, cache: usize) -> TreeReader {
    TreeReader::new(Arc::new(NodeCache::new(Arc::new(device.clone()), VOLUME, cache)))
}

pub fn puts(items: impl IntoIterator<Item = (u64, Vec<u8>)>) -> BTreeMap<Key, Change> {
    items.into_iter().map(|(n, value)| (key(n), Change::Put(value))).collect()
}

fn item<'a>((key, change): (&Key, &'a Change)) -> (Key, ItemChange<'a>) {
    let change = match change {
        Change::Put(value) => ItemChange::Put(value.clone()),
        Change::Delete => ItemChange::Delete,
        Change::Append(..) => ItemChange::update(move |old| Ok(resolve(change, old))),
    };
    (*key, change)
}

fn resolve(change: &Change, old: Option<&[u8]>) -> Option<Vec<u8>> {
    match change {
        Change::Put(value) => Some(value.clone()),
        Change::Delete => None,
        Change::Append(more, limit) => {
            let new = [old.unwrap_or_default(), more].concat();
            (new.len() <= *limit).then_some(new)
        }
    }
}
