//! One inode with everything it has.

use std::ops::ControlFlow;
use std::sync::Arc;

use blockdev::BlockDevice;
use serde_json::Value;

use super::doc::Doc;
use super::time;
use crate::error::{FsError, Result};
use crate::format::dirent::decode_bucket;
use crate::format::xattr::{decode_xattr, xattr_place};
use crate::format::{InodeItem, ItemKind, Key, PageEntry};
use crate::fsck::{Item, Merge, Pages};
use crate::tree::{NodeCache, TreeReader};
use crate::types::{BlockRun, CHUNK_PAGES, Ino};
use crate::volume::{recover, tree_state};

const CACHE_BYTES: usize = 4 << 20;

/// An inode's attributes, target, names (of a directory) and mappings, as a mount would see them.
/// ESTALE if there is no such inode.
pub fn inode(device: &Arc<dyn BlockDevice>, ino: Ino) -> Result<String> {
    inode_doc(device, ino).map(|d| d.text())
}

/// See [`inode`].
pub fn inode_json(device: &Arc<dyn BlockDevice>, ino: Ino) -> Result<Value> {
    inode_doc(device, ino).map(|d| d.json())
}

/// What was found of it.
#[derive(Default)]
struct Found {
    item: Option<InodeItem>,
    target: Vec<u8>,
    names: Vec<Doc>,
    xattrs: Vec<Doc>,
    runs: Vec<Run>,
    bad: Vec<Doc>,
}

/// Pages in consecutive blocks.
struct Run {
    page: u64,
    pages: u64,
    blocks: BlockRun,
    birth: u64,
    written: bool,
}

fn inode_doc(device: &Arc<dyn BlockDevice>, ino: Ino) -> Result<Doc> {
    let mut r = recover(device.as_ref())?;
    let tree = tree_state(&mut r);
    let cache = NodeCache::new(device.clone(), r.superblock.uuid, CACHE_BYTES);
    let reader = TreeReader::new(Arc::new(cache));
    let (from, to) = (Key::new(ino, ItemKind::Inode, 0), Key::new(ino, ItemKind::Xattr, u64::MAX));
    let mut found = Found::default();
    let mut merge = Merge::within(&r.delta, r.superblock.page_size.blocks(), from, to);
    reader.scan(&tree.root, from, to, &mut |key, value| {
        merge.tree_item(key, value, &mut |key, item| found.add(key, item));
        ControlFlow::Continue(())
    })?;
    merge.finish(&mut |key, item| found.add(key, item));
    let inline = r.patches.iter().filter(|(i, _)| *i == ino).map(|(_, page)| page.0.into()).collect();
    found.show(ino, inline)
}

impl Found {
    fn add(&mut self, key: Key, item: Item<'_>) {
        match (key.kind, item) {
            (ItemKind::Inode, Item::Bytes(v)) => self.item = InodeItem::decode(v),
            (ItemKind::Symlink, Item::Bytes(v)) => self.target.extend_from_slice(v),
            (ItemKind::DirEntry, Item::Bytes(v)) => self.add_names(key, v),
            (ItemKind::Xattr, Item::Bytes(v)) => self.add_xattr(key, v),
            (ItemKind::Map, Item::Pages(pages)) => self.add_pages(key.offset * CHUNK_PAGES, pages),
            (kind, Item::Bad(what)) => self.bad.push(format!("{kind:?} item {}: {what}", key.offset).into()),
            (kind, _) => self.bad.push(format!("{kind:?} item {}", key.offset).into()),
        }
    }

    fn add_names(&mut self, key: Key, value: &[u8]) {
        match decode_bucket(value) {
            None => self.bad.push(format!("directory entries {:x}: impossible values", key.offset).into()),
            Some(entries) => self.names.extend(entries.into_iter().map(|e| {
                Doc::Fields(vec![
                    ("name", String::from_utf8_lossy(&e.name).into_owned().into()),
                    ("inode", e.ino.0.into()),
                    ("type", format!("{:?}", e.kind).into()),
                    ("hash", format!("{:x}", key.offset).into()),
                    ("slot", u64::from(e.slot).into()),
                ])
            })),
        }
    }

    fn add_xattr(&mut self, key: Key, value: &[u8]) {
        if xattr_place(key.offset).1 > 0 {
            return;
        }
        match decode_xattr(value) {
            None => self.bad.push(format!("extended attribute {:x}: impossible values", key.offset).into()),
            Some(head) => self.xattrs.push(Doc::Fields(vec![
                ("name", String::from_utf8_lossy(head.name).into_owned().into()),
                ("bytes", (head.size as u64).into()),
            ])),
        }
    }

    fn add_pages(&mut self, first: u64, pages: &Pages) {
        for (page, entry) in (first..).zip(pages) {
            let Some(b) = entry.blocks() else { continue };
            let written = matches!(entry, PageEntry::Mapped(..));
            match self.runs.last_mut() {
                Some(r)
                    if r.page + r.pages == page
                        && r.blocks.end() == b.start
                        && r.birth == b.birth.0
                        && r.written == written =>
                {
                    r.pages += 1;
                    r.blocks.len += u32::from(b.len);
                }
                _ => self.runs.push(Run { page, pages: 1, blocks: b.run(), birth: b.birth.0, written }),
            }
        }
    }

    fn show(self, ino: Ino, inline: Vec<Doc>) -> Result<Doc> {
        let item = self.item.ok_or(FsError::STALE)?;
        let runs = self.runs.iter().map(|r| {
            let what = if r.written { "data" } else { "unwritten" };
            format!(
                "pages {} to {}: blocks {} to {}, {what}, born in record {}",
                r.page,
                r.page + r.pages - 1,
                r.blocks.start,
                r.blocks.end().0 - 1,
                r.birth
            )
            .into()
        });
        let mut fields = vec![
            ("inode", ino.0.into()),
            ("type", format!("{:?}", item.kind).into()),
            ("perm", format!("{:04o}", item.perm).into()),
            ("links", item.nlink.into()),
            ("uid", item.uid.into()),
            ("gid", item.gid.into()),
            ("rdev", item.rdev.into()),
            ("size", item.size.into()),
            ("blocks", item.blocks.into()),
            ("parent", item.parent.0.into()),
            ("atime", time(item.atime).into()),
            ("mtime", time(item.mtime).into()),
            ("ctime", time(item.ctime).into()),
            ("btime", time(item.btime).into()),
            ("mappings", runs.collect::<Vec<Doc>>().into()),
            ("pages_in_journal", inline.into()),
            ("names", self.names.into()),
            ("extended_attributes", self.xattrs.into()),
            ("bad_items", self.bad.into()),
        ];
        if !self.target.is_empty() {
            fields.push(("target", String::from_utf8_lossy(&self.target).into_owned().into()));
        }
        Ok(Doc::Fields(fields))
    }
}
