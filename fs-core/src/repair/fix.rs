//! Second look at all items: the new value of each that changes.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::decide::Decisions;
use super::gather::{Facility, is_good_name};
use super::report::{Class, Log};
use super::salvage::Loss;
use super::walk::{Old, Source};
use super::xattrs::{Settled, Xattrs};
use crate::api::{FileType, Timestamp};
use crate::delta::Delta;
use crate::file::ORPHAN_TRUNCATE;
use crate::format::dirent::{BUCKET_MAX, NameEntry, decode_bucket, encode_bucket, name_hash};
use crate::format::{Chunk, InodeItem, ItemKind, Key, PageEntry, Superblock};
use crate::fsck::{BlockSet, Item, Pages, continues_target};
use crate::types::{CHUNK_PAGES, Ino, Lsn, PageNr};

/// New values of items; `None`: the item goes.
pub(super) type Changes = BTreeMap<Key, Option<Vec<u8>>>;

/// What the repaired volume has.
#[derive(Debug, Default)]
pub(super) struct Fixed {
    pub(super) changes: Changes,
    /// Blocks of data.
    pub(super) used: BlockSet,
}

/// The inode whose items pass.
#[derive(Debug, Default)]
struct Current {
    ino: Ino,
    item: Option<InodeItem>,
    /// What the tree has of it.
    old: Option<Vec<u8>>,
    entries: u64,
    blocks: u64,
    data_end: u64,
    target: u64,
    xattrs: Xattrs,
}

/// When the repair takes place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) now: Timestamp,
    /// The record that the repaired volume begins with.
    pub(super) lsn: Lsn,
}

/// Makes the changes.
pub(super) struct Fix<'a> {
    pub(super) sb: &'a Superblock,
    pub(super) facility: &'a Facility,
    pub(super) decisions: &'a Decisions,
    pub(super) loss: &'a Loss,
    /// Pages that have been written anew.
    pub(super) moved: BTreeMap<(Ino, PageNr), PageEntry>,
    pub(super) at: Moment,
    pub(super) log: &'a mut Log,
    current: Option<Current>,
    /// There is something of the root directory.
    root_seen: bool,
    /// Names that have to be put in, by bucket.
    additions: BTreeMap<Key, Vec<NameEntry>>,
    out: Fixed,
}

impl<'a> Fix<'a> {
    pub(super) fn new(
        sb: &'a Superblock,
        facility: &'a Facility,
        decisions: &'a Decisions,
        loss: &'a Loss,
        moved: BTreeMap<(Ino, PageNr), PageEntry>,
        at: Moment,
        log: &'a mut Log,
    ) -> Self {
        Self {
            sb,
            facility,
            decisions,
            loss,
            moved,
            at,
            log,
            current: None,
            root_seen: false,
            additions: BTreeMap::new(),
            out: Fixed::default(),
        }
    }

    /// All changes that make `source` with the journal's `delta` over it whole.
    pub(super) fn run(mut self, source: &Source, delta: &Delta) -> Fixed {
        self.plan_names();
        let page_blocks = self.sb.page_size.blocks();
        source.each(delta, page_blocks, &mut |_| {}, &mut |key, item, old| self.item(key, item, old));
        self.end_inode();
        self.make_directories();
        let additions = std::mem::take(&mut self.additions);
        for (key, entries) in additions {
            self.out.changes.insert(key, Some(encode_bucket(&numbered(entries))));
        }
        self.out
    }

    /// The names of what goes to lost+found, and its own.
    fn plan_names(&mut self) {
        let Some(found) = &self.decisions.lost_found else { return };
        let add =
            |dir: Ino, name: Vec<u8>, ino: Ino, kind: FileType, all: &mut BTreeMap<Key, Vec<NameEntry>>| {
                let key = Key::new(dir, ItemKind::DirEntry, name_hash(&self.sb.hash_key, &name));
                all.entry(key).or_default().push(NameEntry { ino, kind, slot: 0, name });
            };
        for ino in &self.decisions.nameless {
            let mut name = format!("#{ino}").into_bytes();
            while !found.new && self.facility.found_names.contains(&name) {
                name.push(b'~');
            }
            let kind = self.facility.inodes.get(ino).and_then(|f| f.kind()).unwrap_or(FileType::Regular);
            add(found.ino, name, *ino, kind, &mut self.additions);
        }
        if found.new {
            add(Ino::ROOT, found.name.clone(), found.ino, FileType::Directory, &mut self.additions);
        }
    }

    fn item(&mut self, key: Key, item: Option<Item<'_>>, old: Old<'_>) {
        if key.ino == Ino::SYSTEM {
            return self.system(key, item, old);
        }
        if self.current.as_ref().is_none_or(|c| c.ino != key.ino) {
            self.end_inode();
            self.current = Some(Current { ino: key.ino, ..Current::default() });
        }
        let Some(item) = item else { return self.set(key, None, old) };
        if !self.decisions.exists(self.facility, key.ino) {
            return self.set(key, None, old);
        }
        match (key.kind, item) {
            (_, Item::Bad(_)) => self.set(key, None, old),
            (ItemKind::Inode, Item::Bytes(v)) => self.inode(key, v, old),
            (ItemKind::Symlink, Item::Bytes(v)) => self.symlink(key, v, old),
            (ItemKind::DirEntry, Item::Bytes(v)) => self.names(key, v, old),
            (ItemKind::Map, Item::Pages(pages)) => self.pages(key, pages, old),
            (ItemKind::Xattr, Item::Bytes(v)) => {
                let old = if let Old::Bytes(bytes) = old { Some(bytes.to_vec()) } else { None };
                let c = self.current.get_or_insert_default();
                let settled = c.xattrs.item(self.sb, (key, v.to_vec(), old));
                self.settle(key.ino, settled);
            }
            _ => self.set(key, None, old),
        }
    }

    fn settle(&mut self, ino: Ino, settled: Settled) {
        for (key, value, old) in settled.kept {
            self.set(key, Some(value), old.as_deref().map_or(Old::None, Old::Bytes));
        }
        if !settled.dropped.is_empty() {
            self.log.act(Class::Tree, Some(ino.0), || "an incomplete extended attribute is removed".into());
            self.log.note(ino.0, "an extended attribute is lost");
        }
        for (key, _, old) in settled.dropped {
            self.set(key, None, old.as_deref().map_or(Old::None, Old::Bytes));
        }
    }

    /// The item has this value from now on.
    fn set(&mut self, key: Key, value: Option<Vec<u8>>, old: Old<'_>) {
        let same = match (&value, old) {
            (Some(new), Old::Bytes(old)) => new == old,
            (None, Old::None) => true,
            _ => false,
        };
        if !same {
            self.out.changes.insert(key, value);
        }
    }

    fn system(&mut self, key: Key, item: Option<Item<'_>>, old: Old<'_>) {
        // Bitmaps are compared as a whole; deleted inodes and truncations are finished here.
        if key.kind != ItemKind::Bitmap {
            if matches!(item, Some(Item::Bytes(_))) && key.kind != ItemKind::Orphan {
                self.log
                    .act(Class::Tree, None, || format!("{:?} item {} is taken out", key.kind, key.offset));
            }
            self.set(key, None, old);
        }
    }

    fn inode(&mut self, key: Key, value: &[u8], old: Old<'_>) {
        let facts = self.facility.inodes.get(&key.ino);
        let good = facts.is_some_and(|f| f.item.is_some()) && key.offset == 0;
        let item = InodeItem::decode(value).filter(|_| good);
        let Some(item) = item else { return self.set(key, None, old) };
        if let Some(c) = &mut self.current {
            c.item = Some(item);
            c.old = if let Old::Bytes(bytes) = old { Some(bytes.to_vec()) } else { None };
        }
    }

    fn symlink(&mut self, key: Key, value: &[u8], old: Old<'_>) {
        let c = self.current.get_or_insert_default();
        let wanted = kind_of(self.facility, key.ino) == Some(FileType::Symlink);
        if !wanted || !continues_target(c.target, key, value) {
            return self.set(key, None, old);
        }
        c.target += value.len() as u64;
        self.set(key, Some(value.to_vec()), old);
    }

    fn names(&mut self, key: Key, value: &[u8], old: Old<'_>) {
        let is_dir = kind_of(self.facility, key.ino) == Some(FileType::Directory);
        let Some(entries) = decode_bucket(value).filter(|_| is_dir) else {
            return self.set(key, None, old);
        };
        let mut kept = Vec::new();
        for (i, e) in entries.iter().enumerate() {
            if is_good_name(self.sb, key, &entries, i) && self.keeps(key, e) {
                let kind = kind_of(self.facility, e.ino).unwrap_or(e.kind);
                kept.push(NameEntry { kind, ..e.clone() });
                continue;
            }
            let name = String::from_utf8_lossy(&e.name).into_owned();
            self.log.act(Class::Names, Some(key.ino.0), || format!("the name {name:?} in it is removed"));
            if !self.decisions.exists(self.facility, e.ino)
                && let Some(damaged) = self.log.damage(e.ino.0)
            {
                damaged.gone = true;
                damaged.name = Some(name);
            }
        }
        let added = self.additions.remove(&key).unwrap_or_default();
        if !added.is_empty() && kept.len() + added.len() <= BUCKET_MAX {
            kept.extend(added);
            kept = numbered(kept);
        }
        if let Some(c) = &mut self.current {
            c.entries += kept.len() as u64;
        }
        self.set(key, (!kept.is_empty()).then(|| encode_bucket(&kept)), old);
    }

    fn keeps(&self, key: Key, e: &NameEntry) -> bool {
        if !self.decisions.exists(self.facility, e.ino) {
            return false;
        }
        match self.decisions.kept.get(&e.ino) {
            Some(name) => *name == Some((key.ino, key.offset, e.slot)),
            None => true,
        }
    }

    fn pages(&mut self, key: Key, pages: &Pages, old: Old<'_>) {
        let mut new = *pages;
        let facts = self.facility.inodes.get(&key.ino);
        let regular = kind_of(self.facility, key.ino) == Some(FileType::Regular);
        let first = key.offset * CHUNK_PAGES;
        // What lies behind the end is left of a truncation, unless the size may be an old one.
        let size = facts.and_then(|f| f.item).map(|(.., size)| size);
        let end = size.map_or(u64::MAX, |size| self.sb.page_size.pages_for(size));
        let truncating = self.facility.orphans.get(&key.ino) == Some(&ORPHAN_TRUNCATE);
        for (i, entry) in new.iter_mut().enumerate() {
            let page = PageNr(first + i as u64);
            if let Some(moved) = self.moved.remove(&(key.ino, page)) {
                *entry = moved;
            } else if !regular || self.facility.bad_pages.contains_key(&(key.ino, page)) {
                *entry = PageEntry::Hole;
            }
            let data = matches!(entry, PageEntry::Mapped(..));
            if page.0 >= end && (truncating || (data && !self.loss.concerns(key.ino))) {
                *entry = PageEntry::Hole;
            }
            self.date(key.ino, page, entry);
        }
        self.count(first, &new);
        self.put_pages(key, pages, new, old);
    }

    /// Nothing can be younger than the volume.
    fn date(&mut self, ino: Ino, page: PageNr, entry: &mut PageEntry) {
        let (PageEntry::Mapped(blocks, _) | PageEntry::Unwritten(blocks)) = entry else { return };
        if blocks.birth > self.at.lsn {
            self.log.act(Class::Inodes, Some(ino.0), || {
                format!("page {page} says that it is of record {}, which is not there yet", blocks.birth)
            });
            blocks.birth = self.at.lsn;
        }
    }

    fn count(&mut self, first: u64, pages: &Pages) {
        let c = self.current.get_or_insert_default();
        for (i, entry) in pages.iter().enumerate() {
            let Some(blocks) = entry.blocks() else { continue };
            c.blocks += u64::from(blocks.len);
            if matches!(entry, PageEntry::Mapped(..)) {
                c.data_end = first + i as u64 + 1;
            }
            self.out.used.set(blocks.run(), true);
        }
    }

    fn put_pages(&mut self, key: Key, merged: &Pages, new: Pages, old: Old<'_>) {
        let page_blocks = self.sb.page_size.blocks();
        if let Old::Bytes(bytes) = old
            && *merged == new
            && Chunk::decode(bytes, page_blocks).is_some_and(|c| c.pages == new)
        {
            return;
        }
        self.set(key, Chunk { pages: new }.encode(page_blocks), old);
    }

    /// Pages written anew where nothing was mapped.
    fn put_new_pages(&mut self, ino: Ino) {
        let range: RangeInclusive<_> = (ino, PageNr(0))..=(ino, PageNr(u64::MAX));
        while let Some((&(_, page), _)) = self.moved.range(range.clone()).next() {
            let chunk = page.chunk();
            let mut pages = [PageEntry::Hole; CHUNK_PAGES as usize];
            for (i, entry) in pages.iter_mut().enumerate() {
                let page = PageNr(chunk * CHUNK_PAGES + i as u64);
                *entry = self.moved.remove(&(ino, page)).unwrap_or_default();
            }
            self.count(chunk * CHUNK_PAGES, &pages);
            let key = Key::new(ino, ItemKind::Map, chunk);
            self.set(key, Chunk { pages }.encode(self.sb.page_size.blocks()), Old::None);
        }
    }

    fn end_inode(&mut self) {
        let Some(ino) = self.current.as_ref().map(|c| c.ino) else { return };
        if kind_of(self.facility, ino) == Some(FileType::Regular) && self.decisions.exists(self.facility, ino)
        {
            self.put_new_pages(ino);
        }
        let rest = self.current.as_mut().map(|c| c.xattrs.end()).unwrap_or_default();
        self.settle(ino, rest);
        let Some(mut c) = self.current.take() else { return };
        if !self.decisions.exists(self.facility, ino) {
            return;
        }
        self.root_seen |= ino == Ino::ROOT;
        c.item = c.item.filter(|i| ino != Ino::ROOT || i.kind == FileType::Directory);
        // New buckets come when all items have passed.
        c.entries += self.added_to(ino);
        let Some(kind) = kind_of(self.facility, ino) else { return };
        let made = c.item.is_none();
        let old = c.item.clone().unwrap_or_else(|| self.new_inode(kind));
        let item = self.agree(&c, old.clone());
        if !made {
            self.log_changes(ino, &old, &item);
        }
        let bytes = c.old.take();
        self.set(
            Key::new(ino, ItemKind::Inode, 0),
            Some(item.encode()),
            bytes.as_deref().map_or(Old::None, Old::Bytes),
        );
    }

    fn added_to(&self, dir: Ino) -> u64 {
        let range = Key::new(dir, ItemKind::DirEntry, 0)..=Key::new(dir, ItemKind::DirEntry, u64::MAX);
        self.additions.range(range).map(|(_, entries)| entries.len() as u64).sum()
    }

    /// The inode as it has to be for what it has.
    fn agree(&self, c: &Current, mut item: InodeItem) -> InodeItem {
        let names = self.facility.inodes.get(&c.ino).map_or(0, |f| f.names);
        let nameless = self.decisions.nameless.contains(&c.ino);
        let found = self.decisions.lost_found.as_ref().map(|l| l.ino);
        match item.kind {
            FileType::Directory => {
                item.nlink = 2 + self.decisions.subdirs.get(&c.ino).copied().unwrap_or(0);
                item.size = c.entries;
                let kept = self.decisions.kept.get(&c.ino).copied().flatten().map(|(dir, ..)| dir);
                let parent = if nameless { found } else { kept };
                item.parent = if c.ino == Ino::ROOT { Ino::ROOT } else { parent.unwrap_or(Ino::ROOT) };
            }
            _ => item.nlink = names + u32::from(nameless),
        }
        match item.kind {
            FileType::Symlink => item.size = c.target,
            FileType::Regular => {
                let data = c.data_end.saturating_mul(self.sb.page_size.bytes() as u64);
                if self.sb.page_size.pages_for(item.size) < c.data_end {
                    item.size = data.min(i64::MAX as u64);
                }
            }
            _ => {}
        }
        item.blocks = c.blocks;
        item.xattr_list = c.xattrs.list;
        item
    }

    fn log_changes(&mut self, ino: Ino, old: &InodeItem, new: &InodeItem) {
        let log = &mut self.log;
        if old.size != new.size {
            let class = if new.kind == FileType::Directory { Class::Counters } else { Class::Inodes };
            log.act(class, Some(ino.0), || format!("its size {} becomes {}", old.size, new.size));
            if class == Class::Inodes {
                log.note(ino.0, "its size was wrong");
            }
        }
        if old.nlink != new.nlink {
            log.act(Class::Counters, Some(ino.0), || {
                format!("its number of links {} becomes {}", old.nlink, new.nlink)
            });
        }
        if old.blocks != new.blocks {
            log.act(Class::Counters, Some(ino.0), || {
                format!("its number of blocks {} becomes {}", old.blocks, new.blocks)
            });
        }
        if old.xattr_list != new.xattr_list {
            log.act(Class::Counters, Some(ino.0), || {
                "the size of its list of extended attributes is wrong".into()
            });
        }
        if old.parent != new.parent {
            log.act(Class::Names, Some(ino.0), || {
                format!("its parent {} becomes {}", old.parent, new.parent)
            });
        }
    }

    fn new_inode(&self, kind: FileType) -> InodeItem {
        let perm = if kind == FileType::Directory { 0o700 } else { 0o600 };
        InodeItem {
            kind,
            perm,
            nlink: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            parent: Ino(0),
            atime: self.at.now,
            mtime: self.at.now,
            ctime: self.at.now,
            btime: self.at.now,
            xattr_list: 0,
        }
    }

    /// The root directory and lost+found, where nothing is left of them.
    fn make_directories(&mut self) {
        let mut make = Vec::new();
        if self.decisions.new_root && !self.root_seen {
            make.push((Ino::ROOT, 0o755));
        }
        if let Some(found) = self.decisions.lost_found.as_ref().filter(|l| l.new) {
            make.push((found.ino, 0o700));
        }
        for (ino, perm) in make {
            let nlink = 2 + self.decisions.subdirs.get(&ino).copied().unwrap_or(0);
            let size = self.added_to(ino);
            let item =
                InodeItem { perm, nlink, parent: Ino::ROOT, size, ..self.new_inode(FileType::Directory) };
            self.out.changes.insert(Key::new(ino, ItemKind::Inode, 0), Some(item.encode()));
        }
    }
}

fn kind_of(facility: &Facility, ino: Ino) -> Option<FileType> {
    if ino == Ino::ROOT {
        return Some(FileType::Directory);
    }
    facility.inodes.get(&ino).and_then(|f| f.kind())
}

/// Gives the names of one bucket different slots, keeping those they have where possible.
fn numbered(mut entries: Vec<NameEntry>) -> Vec<NameEntry> {
    for i in 0..entries.len() {
        let taken = |slot: u8, entries: &[NameEntry]| {
            entries.iter().enumerate().any(|(j, e)| j != i && e.slot == slot)
        };
        if taken(entries[i].slot, &entries) && i > 0 {
            let free = (0..=u8::MAX).find(|s| !taken(*s, &entries));
            entries[i].slot = free.unwrap_or(entries[i].slot);
        }
    }
    entries
}
