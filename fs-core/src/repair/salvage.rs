//! Lost tree nodes: from where their content can be had.
//!
//! 1. An inner node is rebuilt from the nodes that were found on the volume. The pointer to it has
//!    its checksum, so a rebuilt one is proven to be the one that was lost, or dropped.
//! 2. The items of a lost range are taken from the root before, with the journal replayed over it:
//!    nothing that it needs is reused before the newer root is overwritten. This loses nothing, too.
//! 3. What is lost in both is taken from the nodes found, live or left behind: the newest wins. The
//!    bitmaps tell which of them are live. What else is found is old, and all that it may be about is
//!    named.

use std::collections::{BTreeMap, BTreeSet};

use super::scan::{FoundNode, Scan};
use super::walk::{Lost, Source};
use crate::format::bitmap::decode_piece;
use crate::format::node::{Node, NodeBuilder, Stamp};
use crate::format::{Chunk, ItemKind, Key};
use crate::fsck::{BlockSet, Item};
use crate::tree::{TreeRoot, TreeVisitor};
use crate::types::{BlockRun, Epoch, Ino, NODE_BLOCKS};
use crate::volume::Recovered;

/// Inner nodes that are rebuilt, at most: a bound for hostile volumes.
const MAX_REBUILT: usize = 100_000;

/// What could not be had as it was.
#[derive(Debug, Default)]
pub(super) struct Loss {
    /// Ranges of keys with nothing, or with old items: first and last inode.
    pub(super) ranges: Vec<(Key, Option<Key>)>,
    /// Items that may be older than what was lost.
    pub(super) stale_items: u64,
}

impl Loss {
    /// Items of the inode may be missing or old.
    pub(super) fn concerns(&self, ino: Ino) -> bool {
        self.ranges.iter().any(|(first, below)| ino >= first.ino && below.is_none_or(|b| ino <= b.ino))
    }
}

/// Rebuilds inner nodes from the children that were found. Gives the nodes.
pub(super) fn rebuild(lost: &[Lost], scan: &Scan, uuid: uuid::Uuid, live: Option<&BlockSet>) -> Vec<Node> {
    let epochs: BTreeSet<Epoch> = scan.nodes.iter().map(|n| n.epoch).collect();
    let inner = lost.iter().filter(|l| l.expected.level > 0 && l.ptr.addr.0 > 0);
    inner.take(MAX_REBUILT).filter_map(|l| rebuild_one(l, scan, uuid, live, &epochs)).collect()
}

fn rebuild_one(
    lost: &Lost,
    scan: &Scan,
    uuid: uuid::Uuid,
    live: Option<&BlockSet>,
    epochs: &BTreeSet<Epoch>,
) -> Option<Node> {
    let level = lost.expected.level;
    let is_child = |n: &&FoundNode| {
        n.level + 1 == level && n.ptr.birth <= lost.ptr.birth && lost.covers(&n.first) && lost.covers(&n.last)
    };
    let children: Vec<FoundNode> = scan.nodes.iter().filter(is_child).copied().collect();
    // All nodes of a checkpoint are of one epoch.
    let same = scan.nodes.iter().filter(|n| n.ptr.birth == lost.ptr.birth).map(|n| n.epoch);
    let mut tries: Vec<Epoch> = same.collect::<BTreeSet<_>>().into_iter().collect();
    if tries.is_empty() {
        tries = epochs.iter().copied().collect();
    }
    let build = |chosen: &[FoundNode]| {
        tries.iter().find_map(|epoch| {
            let stamp = Stamp { volume: uuid, epoch: *epoch, birth: lost.ptr.birth };
            let mut builder = NodeBuilder::new(level);
            if chosen.is_empty() || chosen.len() > MAX_CHILDREN {
                return None;
            }
            chosen.iter().for_each(|c| builder.push(&c.first, &c.ptr.encode()));
            let node = builder.finish(&stamp, lost.ptr.addr);
            (node.ptr() == lost.ptr).then_some(node)
        })
    };
    let only_live: Vec<FoundNode> = children.iter().filter(|n| is_live(n, live)).copied().collect();
    for set in [newest(&only_live), newest(&children)] {
        if let Some(node) = build(&set) {
            return Some(node);
        }
        // One left behind may stand where everything has been deleted.
        for i in 0..set.len() {
            let mut less = set.clone();
            less.remove(i);
            if let Some(node) = build(&less) {
                return Some(node);
            }
        }
    }
    None
}

/// Entries that fit into an inner node.
const MAX_CHILDREN: usize = 440;

fn is_live(node: &FoundNode, live: Option<&BlockSet>) -> bool {
    live.is_none_or(|set| set.contains(BlockRun::new(node.ptr.addr, NODE_BLOCKS)))
}

/// The newest nodes that do not overlap, in key order. A node of the present tree is newer than all
/// that ever had one of its keys.
fn newest(nodes: &[FoundNode]) -> Vec<FoundNode> {
    let mut by_age = nodes.to_vec();
    by_age.sort_by_key(|n| std::cmp::Reverse((n.ptr.birth, n.level, n.ptr.addr)));
    let mut chosen: BTreeMap<Key, FoundNode> = BTreeMap::new();
    for node in by_age {
        let before = chosen.range(..=node.last).next_back();
        if before.is_none_or(|(_, b)| b.last < node.first) {
            chosen.insert(node.first, node);
        }
    }
    chosen.into_values().collect()
}

/// Blocks in use by the bitmaps of this state; `None` if pieces of them may be missing.
pub(super) fn live_blocks(source: &Source, recovered: &Recovered) -> Option<BlockSet> {
    let from = Key::new(Ino::SYSTEM, ItemKind::Bitmap, 0);
    let to = Key::new(Ino::SYSTEM, ItemKind::Bitmap, u64::MAX);
    let overlaps =
        |l: &Lost| l.expected.first.is_none_or(|f| f <= to) && l.expected.below.is_none_or(|b| b > from);
    if source.lost.iter().any(overlaps) {
        return None;
    }
    let mut set = BlockSet::default();
    let mut take = |key: Key, value: &[u8]| {
        if let Some(words) = decode_piece(value) {
            set.set_piece(key.offset, &words);
        }
        std::ops::ControlFlow::Continue(())
    };
    source.reader.scan(&source.root, from, to, &mut take).ok()?;
    for entry in
        recovered.pending.iter().filter(|e| !e.used).chain(recovered.pending.iter().filter(|e| e.used))
    {
        set.set(entry.run, entry.used);
    }
    Some(set)
}

/// Takes the items of lost ranges from another state of the same moment. Gives what that has not
/// got either.
pub(super) fn from_other_root(source: &mut Source, other: &Source, with: &Recovered) -> Vec<Lost> {
    let lost = source.lost.clone();
    let page_blocks = with.superblock.page_size.blocks();
    let salvaged = &mut source.salvaged;
    other.each(&with.delta, page_blocks, &mut |_| {}, &mut |key, item, _| {
        if !lost.iter().any(|l| l.covers(&key)) || key.kind == ItemKind::Bitmap {
            return;
        }
        let value = match item {
            Some(Item::Bytes(bytes)) => Some(bytes.to_vec()),
            Some(Item::Pages(pages)) => Chunk { pages: *pages }.encode(page_blocks),
            Some(Item::Bad(_)) | None => None,
        };
        if let Some(value) = value {
            salvaged.insert(key, value);
        }
    });
    let mut left = Vec::new();
    for l in &lost {
        left.extend(other.lost.iter().filter_map(|o| intersection(l, o)));
    }
    left
}

/// What both ranges cover; the older node's birth bounds what may stand in.
fn intersection(a: &Lost, b: &Lost) -> Option<Lost> {
    let first = a.expected.first.max(b.expected.first);
    let below = match (a.expected.below, b.expected.below) {
        (Some(x), Some(y)) => Some(x.min(y)),
        (x, y) => x.or(y),
    };
    if let (Some(f), Some(b)) = (first, below)
        && f >= b
    {
        return None;
    }
    let mut both = *a;
    (both.expected.first, both.expected.below) = (first, below);
    both.expected.level = a.expected.level.max(b.expected.level);
    Some(both)
}

/// Takes the items of `ranges` from nodes found on the volume, the newest first.
pub(super) fn from_scan(
    source: &mut Source,
    ranges: &[Lost],
    scan: &Scan,
    live: Option<&BlockSet>,
    loss: &mut Loss,
) {
    for range in ranges {
        let from = range.expected.first.unwrap_or(super::walk::FIRST_KEY);
        let fits = |n: &&FoundNode| {
            n.ptr.birth <= range.ptr.birth
                && n.level <= range.expected.level
                && n.last >= from
                && range.expected.below.is_none_or(|b| n.first < b)
        };
        let found: Vec<FoundNode> = scan.nodes.iter().filter(fits).copied().collect();
        let mut taken = Taken { range, covered: BTreeMap::new(), items: BTreeMap::new(), span: None };
        let (current, mut old): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|n| live.is_some_and(|_| is_live(n, live)));
        // What is left behind has a root for each checkpoint: whole trees are not worth reading.
        old.retain(|n| n.level == 0);
        take_newest(&mut taken, &current, source);
        let sure = taken.items.len();
        let gaps = taken.gaps();
        take_newest(&mut taken, &old, source);
        loss.stale_items += (taken.items.len() - sure) as u64;
        loss.ranges.extend(gaps);
        source.salvaged.append(&mut taken.items);
    }
}

/// Items taken for a range, and the ranges of keys they stand for.
struct Taken<'a> {
    range: &'a Lost,
    /// First to last key.
    covered: BTreeMap<Key, Key>,
    items: BTreeMap<Key, Vec<u8>>,
    /// First and last key of the leaves whose items come; nothing is between them.
    span: Option<(Key, Key)>,
}

/// Takes whole subtrees, the newest and highest first; of an older one what newer ones do not cover.
fn take_newest(taken: &mut Taken<'_>, nodes: &[FoundNode], source: &Source) {
    let mut by_age = nodes.to_vec();
    by_age.sort_by_key(|n| std::cmp::Reverse((n.ptr.birth, n.level)));
    for node in by_age {
        if node.level == 0 && taken.is_covered(&node.first, &node.last) {
            continue;
        }
        let root = TreeRoot { ptr: Some(node.ptr), height: node.level + 1 };
        // Nothing is wrong with the root: it was just found.
        let _ = crate::tree::verify(&source.reader, &root, taken);
        taken.finish_span();
    }
}

impl Taken<'_> {
    fn is_covered(&self, first: &Key, last: &Key) -> bool {
        let Some((_, end)) = self.covered.range(..=*first).next_back() else { return false };
        end >= last
    }

    fn holds(&self, key: &Key) -> bool {
        self.covered.range(..=*key).next_back().is_some_and(|(_, end)| end >= key)
    }

    fn finish_span(&mut self) {
        let Some((mut first, mut last)) = self.span.take() else { return };
        // Joins what it overlaps.
        while let Some((&f, &l)) = self.covered.range(..=last).next_back() {
            if l < first {
                break;
            }
            (first, last) = (first.min(f), last.max(l));
            self.covered.remove(&f);
        }
        self.covered.insert(first, last);
    }

    /// The parts of the range that nothing covers.
    fn gaps(&self) -> Vec<(Key, Option<Key>)> {
        let mut gaps = Vec::new();
        let mut from = self.range.expected.first.unwrap_or(super::walk::FIRST_KEY);
        for (first, last) in &self.covered {
            if *first > from {
                gaps.push((from, Some(*first)));
            }
            from = from.max(*last);
        }
        if self.range.expected.below.is_none_or(|below| from < below) {
            gaps.push((from, self.range.expected.below));
        }
        gaps
    }
}

impl TreeVisitor for Taken<'_> {
    fn node(&mut self, node: &Node, _: &crate::format::node::Expected) {
        if node.level() == 0 {
            let first = self.span.map_or(node.key(0), |(first, _)| first);
            self.span = Some((first, node.key(node.len() - 1)));
        }
    }

    fn item(&mut self, key: Key, value: &[u8]) {
        // Bitmaps are made anew.
        if self.range.covers(&key) && key.kind != ItemKind::Bitmap && !self.holds(&key) {
            self.items.entry(key).or_insert_with(|| value.to_vec());
        }
    }

    fn bad(
        &mut self,
        _: crate::format::node::NodePtr,
        _: &crate::format::node::Expected,
        _: crate::error::FsError,
    ) {
        self.finish_span();
    }
}
