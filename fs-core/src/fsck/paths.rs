//! Paths of the files that problems are about.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::merge::{Item, Merge};
use super::table::Table;
use crate::delta::Delta;
use crate::format::dirent::decode_bucket;
use crate::format::{ItemKind, Key, Superblock};
use crate::tree::TreeReader;
use crate::types::Ino;
use crate::volume::meta::TreeState;

/// Deepest path that is given; deeper ones begin with an ellipsis.
const MAX_DEPTH: usize = 256;

/// Names that were looked up: inode to the directory and the name in it.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<Ino, (Ino, Vec<u8>)>);

impl Names {
    /// The path of an inode from the root; `None` if it has no name that was found.
    pub(crate) fn path(&self, ino: Ino) -> Option<String> {
        if ino == Ino::ROOT {
            return Some("/".into());
        }
        let mut parts = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT && parts.len() < MAX_DEPTH {
            match self.0.get(&at) {
                Some((dir, name)) => {
                    parts.push(String::from_utf8_lossy(name).into_owned());
                    at = *dir;
                }
                None if parts.is_empty() => return None,
                None => break,
            }
        }
        let top = if at == Ino::ROOT { "" } else { "..." };
        parts.push(top.into());
        parts.reverse();
        Some(parts.join("/"))
    }
}

/// Looks for the names of `inodes` and of the directories above them. Each directory that matters
/// is read once or, if it holds both files and directories that matter, a few times.
pub(super) fn resolve(
    inodes: impl Iterator<Item = Ino>,
    table: &Table,
    reader: &TreeReader,
    tree: &TreeState,
    delta: &Delta,
    sb: &Superblock,
) -> Names {
    let mut names = Names::default();
    let mut wanted: BTreeSet<Ino> = inodes.collect();
    for _ in 0..MAX_DEPTH {
        let mut by_dir: BTreeMap<Ino, BTreeSet<Ino>> = BTreeMap::new();
        for ino in wanted.iter().filter(|i| **i != Ino::ROOT && !names.0.contains_key(i)) {
            if let Some(dir) = table.named_in(*ino) {
                by_dir.entry(dir).or_default().insert(*ino);
            }
        }
        if by_dir.is_empty() {
            break;
        }
        for (dir, children) in &by_dir {
            read_names(*dir, children, reader, tree, delta, sb, &mut names);
        }
        wanted = by_dir.into_keys().collect();
    }
    names
}

fn read_names(
    dir: Ino,
    children: &BTreeSet<Ino>,
    reader: &TreeReader,
    tree: &TreeState,
    delta: &Delta,
    sb: &Superblock,
    names: &mut Names,
) {
    let from = Key::new(dir, ItemKind::DirEntry, 0);
    let to = Key::new(dir, ItemKind::DirEntry, u64::MAX);
    let mut take = |_: Key, item: Item<'_>| {
        let Item::Bytes(value) = item else { return };
        for e in decode_bucket(value).unwrap_or_default() {
            if children.contains(&e.ino) {
                names.0.entry(e.ino).or_insert((dir, e.name));
            }
        }
    };
    let mut merge = Merge::within(delta, sb.page_size.blocks(), from, to);
    // A node that cannot be read has been reported; names in it are not known.
    let _ = reader.scan(&tree.root, from, to, &mut |key, value| {
        merge.tree_item(key, value, &mut take);
        ControlFlow::Continue(())
    });
    merge.finish(&mut take);
}
