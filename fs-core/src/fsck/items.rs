//! One item after the other: is each what its kind says, and do the items of an inode agree?

use super::data::DataChecker;
use super::merge::{Item, Pages};
use super::report::{Findings, ProblemKind, run_text};
use super::reserved::Reserved;
use super::space::Space;
use super::table::Table;
use super::xattrs::Xattrs;
use super::{Stats, text};
use crate::api::FileType;
use crate::error::FsError;
use crate::file::ORPHAN_TRUNCATE;
use crate::format::bitmap::decode_piece;
use crate::format::dirent::{decode_bucket, name_hash};
use crate::format::node::MAX_VALUE;
use crate::format::{InodeItem, ItemKind, Key, PageEntry, Superblock};
use crate::types::{CHUNK_PAGES, Ino, PageNr};

/// The inode whose items are passing.
#[derive(Debug, Default)]
struct Current {
    ino: Ino,
    item: Option<InodeItem>,
    /// Its item is there, but damaged.
    damaged: bool,
    entries: u64,
    blocks: u64,
    /// Bytes of a symbolic link's target so far.
    target: u64,
    /// Behind the last page with data.
    data_end: u64,
    xattrs: Xattrs,
}

/// Sees all items in key order.
pub(super) struct ItemCheck<'a> {
    sb: &'a Superblock,
    next_ino: Ino,
    current: Option<Current>,
    pub(super) findings: Findings,
    pub(super) table: Table,
    pub(super) space: Space,
    pub(super) reserved: Reserved,
    pub(super) stats: Stats,
    pub(super) data: Option<DataChecker<'a>>,
}

impl<'a> ItemCheck<'a> {
    pub(super) fn new(
        sb: &'a Superblock,
        next_ino: Ino,
        space: Space,
        reserved: Reserved,
        findings: Findings,
        data: Option<DataChecker<'a>>,
    ) -> Self {
        let (table, stats) = (Table::default(), Stats::default());
        Self { sb, next_ino, current: None, findings, table, space, reserved, stats, data }
    }

    /// The next item.
    pub(super) fn item(&mut self, key: Key, item: Item<'_>) {
        self.stats.items += 1;
        let system = key.ino == Ino::SYSTEM;
        if system != matches!(key.kind, ItemKind::Orphan | ItemKind::Bitmap) {
            return self.bad_item(key, "an item of this kind does not belong there");
        }
        if !system && self.current.as_ref().is_none_or(|c| c.ino != key.ino) {
            self.end_inode();
            self.current = Some(Current { ino: key.ino, ..Current::default() });
        }
        match (key.kind, item) {
            (_, Item::Bad(what)) => self.bad_item(key, what),
            (ItemKind::Inode, Item::Bytes(v)) => self.inode(key, v),
            (ItemKind::Symlink, Item::Bytes(v)) => self.symlink(key, v),
            (ItemKind::DirEntry, Item::Bytes(v)) => self.names(key, v),
            (ItemKind::Map, Item::Pages(pages)) => self.pages(key, pages),
            (ItemKind::Xattr, Item::Bytes(v)) => self.xattr(key, v),
            (ItemKind::Orphan, Item::Bytes(v)) => {
                if !self.table.orphan(Ino(key.offset), v) {
                    self.bad_item(key, "an orphan item with an unknown reason");
                }
            }
            (ItemKind::Bitmap, Item::Bytes(v)) => match decode_piece(v) {
                Some(words) => self.space.bitmap(key.offset, &words, &mut self.findings),
                None => self.bad_item(key, "an allocation bitmap of impossible length"),
            },
            _ => self.bad_item(key, "an item of a kind that this version does not write"),
        }
    }

    /// All items have been seen.
    pub(super) fn end(&mut self) {
        self.end_inode();
        if let Some(data) = &mut self.data {
            data.flush(&mut self.findings, &mut self.stats);
        }
    }

    fn bad_item(&mut self, key: Key, what: &str) {
        if key.kind == ItemKind::Inode
            && let Some(c) = &mut self.current
        {
            c.damaged = true;
        }
        let ino = (key.ino != Ino::SYSTEM).then_some(key.ino);
        self.findings
            .add(ProblemKind::Item, ino, None, || format!("{:?} item {}: {what}", key.kind, key.offset));
    }

    fn inode(&mut self, key: Key, value: &[u8]) {
        let item = InodeItem::decode(value).filter(|_| key.offset == 0);
        let Some(item) = item else {
            return self.bad_item(key, "an inode with impossible values");
        };
        self.table.define(key.ino, &item);
        if key.ino >= self.next_ino || (key.ino < Ino::FIRST_FREE && key.ino != Ino::ROOT) {
            let next = self.next_ino;
            self.findings.inode(ProblemKind::Count, key.ino, || {
                format!("this inode number was never given out: the next one is {next}")
            });
        }
        if key.ino == Ino::ROOT && item.kind != FileType::Directory {
            self.findings.inode(ProblemKind::Inode, key.ino, || "the root is not a directory".into());
        }
        if item.size > i64::MAX as u64 {
            self.findings.inode(ProblemKind::Inode, key.ino, || format!("its size is {}", item.size));
        }
        self.stats.directories += u64::from(item.kind == FileType::Directory);
        if let Some(c) = &mut self.current {
            c.item = Some(item);
        }
    }

    fn symlink(&mut self, key: Key, value: &[u8]) {
        let so_far = self.current.as_ref().map_or(0, |c| c.target);
        if !continues_target(so_far, key, value) {
            return self.bad_item(key, "not a part of the target of a symbolic link");
        }
        if let Some(c) = &mut self.current {
            c.target += value.len() as u64;
        }
    }

    fn names(&mut self, key: Key, value: &[u8]) {
        let Some(entries) = decode_bucket(value) else {
            return self.bad_item(key, "directory entries with impossible values");
        };
        for (i, e) in entries.iter().enumerate() {
            let name = String::from_utf8_lossy(&e.name);
            let others = &entries[..i];
            let wrong = [
                (name_hash(&self.sb.hash_key, &e.name) != key.offset, "is under a wrong hash"),
                (others.iter().any(|o| o.slot == e.slot), "has the slot of another name"),
                (others.iter().any(|o| o.name == e.name), "is there twice"),
            ];
            for (_, what) in wrong.iter().filter(|(is_wrong, _)| *is_wrong) {
                self.findings.inode(ProblemKind::Name, key.ino, || format!("the name {name:?} in it {what}"));
            }
            self.table.name(key.ino, e);
        }
        self.stats.names += entries.len() as u64;
        if let Some(c) = &mut self.current {
            c.entries += entries.len() as u64;
        }
    }

    fn xattr(&mut self, key: Key, value: &[u8]) {
        let sb = self.sb;
        if let Some(what) = self.current.as_mut().and_then(|c| c.xattrs.item(sb, key, value)) {
            self.bad_item(key, what);
        }
    }

    fn pages(&mut self, key: Key, pages: &Pages) {
        let first = key.offset * CHUNK_PAGES;
        for (i, entry) in pages.iter().enumerate() {
            let Some(blocks) = entry.blocks() else { continue };
            let page = PageNr(first + i as u64);
            let run = blocks.run();
            let len = u64::from(run.len);
            let usable = self.space.claim(run, Some(key.ino), &mut self.findings, || {
                format!("page {page} of inode {}", key.ino)
            });
            self.stats.data_blocks += len;
            if self.reserved.is_future(blocks.birth) {
                self.findings.add(ProblemKind::Reservation, Some(key.ino), Some(run.start), || {
                    format!("page {page} says that it is of record {}, which is not there yet", blocks.birth)
                });
            } else if self.reserved.is_violated(blocks.birth, run) {
                self.findings.add(ProblemKind::Reservation, Some(key.ino), Some(run.start), || {
                    format!("page {page} is in {}, in a group that its epoch has not reserved", run_text(run))
                });
            }
            if let Some(c) = &mut self.current {
                c.blocks += len;
                if matches!(entry, PageEntry::Mapped(..)) {
                    c.data_end = page.0 + 1;
                }
            }
            match entry {
                PageEntry::Unwritten(_) => self.stats.unwritten_blocks += len,
                PageEntry::Mapped(_, crc) if usable => {
                    if let Some(data) = &mut self.data {
                        data.add(key.ino, page, run, *crc, &mut self.findings, &mut self.stats);
                    }
                }
                _ => {}
            }
        }
    }

    /// The items of an inode are complete.
    fn end_inode(&mut self) {
        let Some(c) = self.current.take() else { return };
        // What is missing may have been in a node that cannot be read.
        if self.findings.incomplete || c.damaged {
            return;
        }
        let Some(item) = &c.item else {
            self.findings.inode(ProblemKind::NoInode, c.ino, || {
                format!("there are items of inode {}, but no inode", c.ino)
            });
            return;
        };
        let orphan = self.table.orphan_reason(c.ino);
        for (kind, what) in contradictions(&c, item, orphan, self.sb) {
            self.findings.inode(kind, c.ino, || what);
        }
    }

    /// A node that cannot be read.
    pub(super) fn bad_node(&mut self, error: &FsError, ptr_block: crate::types::BlockNr) {
        self.findings.incomplete = true;
        let kind = ProblemKind::of(error, ProblemKind::Node);
        self.findings.add(kind, None, Some(ptr_block), || text(error));
    }
}

/// What an inode has, against what its item says.
fn contradictions(
    c: &Current,
    item: &InodeItem,
    orphan: Option<u8>,
    sb: &Superblock,
) -> Vec<(ProblemKind, String)> {
    let mut out = Vec::new();
    let kind = item.kind;
    if c.entries > 0 && kind != FileType::Directory {
        out.push((ProblemKind::Inode, format!("it has directory entries, but is a {kind:?}")));
    }
    if kind == FileType::Directory && c.entries != item.size {
        out.push((ProblemKind::Inode, format!("it has {} entries, its size says {}", c.entries, item.size)));
    }
    match (kind == FileType::Symlink, c.target) {
        (true, 0) => out.push((ProblemKind::Inode, "a symbolic link without a target".into())),
        (true, n) if n != item.size => {
            out.push((ProblemKind::Inode, format!("its target has {n} bytes, its size says {}", item.size)));
        }
        (false, 1..) => out.push((ProblemKind::Inode, format!("it has a target, but is a {kind:?}"))),
        _ => {}
    }
    if c.blocks > 0 && kind != FileType::Regular {
        out.push((ProblemKind::Mapping, format!("it has {} blocks of data, but is a {kind:?}", c.blocks)));
    }
    // An inode that is being deleted does not keep count.
    let counted = if item.nlink == 0 { item.blocks >= c.blocks } else { item.blocks == c.blocks };
    if !counted {
        out.push((ProblemKind::Inode, format!("it has {} blocks, its inode says {}", c.blocks, item.blocks)));
    }
    if let Some(what) = c.xattrs.contradiction(c.ino, item.xattr_list, item.nlink == 0) {
        out.push((ProblemKind::Inode, what));
    }
    let end = sb.page_size.pages_for(item.size);
    if kind == FileType::Regular && c.data_end > end && item.nlink > 0 && orphan != Some(ORPHAN_TRUNCATE) {
        out.push((
            ProblemKind::Mapping,
            format!("page {} has data, its size of {} bytes ends before", c.data_end - 1, item.size),
        ));
    }
    out
}

/// This item is the next part of a symbolic link's target of which there are `so_far` bytes.
pub(crate) fn continues_target(so_far: u64, key: Key, value: &[u8]) -> bool {
    let follows = key.offset.checked_mul(MAX_VALUE as u64) == Some(so_far);
    follows && !value.is_empty() && !value.contains(&0)
}
