//! Who uses the blocks that are used twice: a second look, only taken when there are any.

use super::merge::{Item, Merge};
use super::report::run_text;
use crate::error::FsError;
use crate::format::node::{Expected, Node, NodePtr};
use crate::format::{ItemKind, Key};
use crate::tree::{TreeReader, TreeVisitor};
use crate::types::{BlockRun, CHUNK_PAGES, NODE_BLOCKS};
use crate::volume::Recovered;
use crate::volume::meta::TreeState;

/// Users that are named for each run.
const MAX_USERS: usize = 8;

/// Runs that are used twice, with their users.
struct Owners<'a> {
    merge: Merge<'a>,
    runs: Vec<(BlockRun, Vec<String>)>,
}

/// A note for each of `runs`: all that use it. `kept`: the journal and the pending list.
pub(super) fn name(
    runs: &[BlockRun],
    kept: &[BlockRun],
    reader: &TreeReader,
    tree: &TreeState,
    recovered: &Recovered,
) -> Vec<String> {
    if runs.is_empty() {
        return Vec::new();
    }
    let merge = Merge::new(&recovered.delta, recovered.superblock.page_size.blocks());
    let mut owners = Owners { merge, runs: runs.iter().map(|r| (*r, Vec::new())).collect() };
    for run in kept {
        note(&mut owners.runs, *run, || "the journal or the pending list".into());
    }
    // A root that is impossible has been reported.
    let _ = crate::tree::verify(reader, &tree.root, &mut owners);
    let Owners { mut merge, mut runs } = owners;
    merge.finish(&mut |key, item| map_item(&mut runs, key, &item));
    runs.into_iter().map(|(run, users)| format!("{}: used by {}", run_text(run), users.join(", "))).collect()
}

fn note(runs: &mut [(BlockRun, Vec<String>)], used: BlockRun, who: impl Fn() -> String) {
    for (run, users) in runs {
        if used.start < run.end() && run.start < used.end() && users.len() < MAX_USERS {
            users.push(who());
        }
    }
}

fn map_item(runs: &mut [(BlockRun, Vec<String>)], key: Key, item: &Item<'_>) {
    let (ItemKind::Map, Item::Pages(pages)) = (key.kind, item) else { return };
    for (i, entry) in pages.iter().enumerate() {
        if let Some(blocks) = entry.blocks() {
            note(runs, blocks.run(), || {
                format!("page {} of inode {}", key.offset * CHUNK_PAGES + i as u64, key.ino)
            });
        }
    }
}

impl TreeVisitor for Owners<'_> {
    fn node(&mut self, node: &Node, _: &Expected) {
        let addr = node.ptr().addr;
        note(&mut self.runs, BlockRun::new(addr, NODE_BLOCKS), || format!("the tree node at block {addr}"));
    }

    fn item(&mut self, key: Key, value: &[u8]) {
        let runs = &mut self.runs;
        self.merge.tree_item(key, value, &mut |key, item| map_item(runs, key, &item));
    }

    fn bad(&mut self, _: NodePtr, _: &Expected, _: FsError) {}
}
