//! First look at all items: what there is of each inode, who names it, and which blocks are used.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use blockdev::BlockDevice;

use crate::api::FileType;
use crate::delta::Delta;
use crate::file::{ORPHAN_DELETE, ORPHAN_TRUNCATE};
use crate::format::bitmap::decode_piece;
use crate::format::dirent::{NameEntry, decode_bucket, name_hash};
use crate::format::pending::PendingEntry;
use crate::format::{DataArea, InodeItem, ItemKind, Key, PageEntry, Superblock};
use crate::fsck::{BlockSet, DataChecker, Findings, Item, Stats, continues_target};
use crate::types::{BlockNr, BlockRun, CHUNK_PAGES, Ino, Lsn, PageNr};
use crate::volume::Patches;

use super::Progress;
use super::walk::{Old, Source};

/// Name of the directory for what has lost its name.
pub(super) const LOST_FOUND: &[u8] = b"lost+found";

/// Items between two looks at the progress.
const PROGRESS_STEP: u64 = 4096;

/// Where a name is: directory, hash, slot.
pub(super) type NameAt = (Ino, u64, u8);

/// What is known of an inode. About 150 bytes with its place in the table.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Type, links, parent and size by its item; `None`: it has none.
    pub(super) item: Option<(FileType, u32, Ino, u64)>,
    /// Valid names that lead to it.
    pub(super) names: u32,
    /// Of a directory: the name that it keeps.
    pub(super) name: Option<NameAt>,
    /// Names in it.
    pub(super) entries: u64,
    /// Bytes of a symbolic link's target.
    pub(super) target: u64,
    /// Behind the last page with blocks.
    pub(super) pages_end: u64,
    /// An item of it is damaged.
    pub(super) damaged: bool,
}

impl Facts {
    /// Its type; without an inode item the one that its other items speak for.
    pub(super) fn kind(&self) -> Option<FileType> {
        match self.item {
            Some((kind, ..)) => Some(kind),
            None if self.entries > 0 => Some(FileType::Directory),
            None if self.target > 0 => Some(FileType::Symlink),
            None if self.pages_end > 0 => Some(FileType::Regular),
            None => None,
        }
    }
}

/// A page that uses blocks which something else uses, too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) ino: Ino,
    pub(super) page: PageNr,
    pub(super) run: BlockRun,
    pub(super) crc: Option<u32>,
    pub(super) birth: Lsn,
}

/// All that was seen.
#[derive(Debug, Default)]
pub(super) struct Facility {
    pub(super) inodes: BTreeMap<Ino, Facts>,
    pub(super) orphans: BTreeMap<Ino, u8>,
    /// Names of directories that have one already.
    pub(super) more_names: BTreeMap<Ino, Vec<NameAt>>,
    /// Pages to become holes.
    pub(super) bad_pages: BTreeMap<(Ino, PageNr), &'static str>,
    /// Blocks of data.
    pub(super) used: BlockSet,
    /// Blocks of nodes of the tree.
    pub(super) nodes: BlockSet,
    /// Blocks that are claimed twice.
    pub(super) conflicts: BlockSet,
    /// The bitmap in the tree.
    pub(super) marked: BlockSet,
    /// What the bitmap says when the pending list and the journal are put over it.
    pub(super) marked_now: BlockSet,
    /// Its pieces.
    pub(super) pieces: BTreeSet<u64>,
    /// Pages with bytes that are in the journal only.
    pub(super) patched: BTreeMap<(Ino, PageNr), PageEntry>,
    /// Names in the root directory that begin like that of lost+found.
    pub(super) like_lost_found: Vec<NameEntry>,
    /// Names in the directories that these lead to.
    pub(super) found_names: HashSet<Vec<u8>>,
}

/// Looks at all items of `source` with the changes in `delta`; verifies data if `data` says so.
pub(super) struct Gather<'a> {
    sb: &'a Superblock,
    area: DataArea,
    patches: &'a Patches,
    data: Option<DataChecker<'a>>,
    ignored: (Findings, Stats),
    seen: u64,
    out: Facility,
    progress: &'a Progress<'a>,
    total: u64,
}

impl<'a> Gather<'a> {
    pub(super) fn new(
        device: &'a dyn BlockDevice,
        sb: &'a Superblock,
        total_blocks: u64,
        patches: &'a Patches,
        data: bool,
        progress: &'a Progress<'a>,
    ) -> Self {
        let data = data.then(|| DataChecker::new(device, sb.page_size.bytes()));
        Self {
            sb,
            area: DataArea::new(sb, total_blocks),
            patches,
            data,
            ignored: Default::default(),
            seen: 0,
            out: Facility::default(),
            progress,
            total: total_blocks,
        }
    }

    /// Does it. `kept`: blocks of the journal, which must not be data.
    pub(super) fn run(
        mut self,
        source: &Source,
        delta: &Delta,
        pending: &[PendingEntry],
        kept: &[BlockRun],
    ) -> Facility {
        let mut nodes = BlockSet::default();
        let page_blocks = self.sb.page_size.blocks();
        source.each(delta, page_blocks, &mut |run| nodes.add(run), &mut |key, item, old| {
            if key.kind == ItemKind::Bitmap && key.ino == Ino::SYSTEM {
                return self.bitmap(key, old);
            }
            if let Some(item) = item {
                self.item(key, &item);
            }
        });
        if let Some(data) = &mut self.data {
            data.flush(&mut self.ignored.0, &mut self.ignored.1);
            for (ino, page) in data.take_bad() {
                self.out.bad_pages.insert((ino, page), "its data does not match its checksum");
            }
        }
        for run in kept {
            self.out.conflicts.set(*run, true);
        }
        let mut both = Vec::new();
        self.out.used.common(&nodes, &mut |run| both.push(run));
        both.into_iter().for_each(|run| self.out.conflicts.add(run));
        self.out.nodes = nodes;
        self.mark_now(delta, pending);
        self.out
    }

    fn bitmap(&mut self, key: Key, old: Old<'_>) {
        let Old::Bytes(bytes) = old else { return };
        self.out.pieces.insert(key.offset);
        if let Some(words) = decode_piece(bytes) {
            self.out.marked.set_piece(key.offset, &words);
        }
    }

    /// In the order that recovery has.
    fn mark_now(&mut self, delta: &Delta, pending: &[PendingEntry]) {
        let end = self.area.end().0;
        let mut now = BlockSet::default();
        self.out.marked.for_each(&mut |run| now.add(run));
        let mut set = |start: u64, len: u64, used: bool| {
            let len = len.min(end.saturating_sub(start));
            if len > 0 && len < 1 << 32 {
                now.set(BlockRun::new(BlockNr(start), len as u32), used);
            }
        };
        pending.iter().filter(|e| !e.used).for_each(|e| set(e.run.start.0, e.run.len.into(), false));
        delta.blocks.iter().for_each(|(start, len, used)| set(start, len, *used));
        pending.iter().filter(|e| e.used).for_each(|e| set(e.run.start.0, e.run.len.into(), true));
        self.out.marked_now = now;
    }

    fn item(&mut self, key: Key, item: &Item<'_>) {
        self.seen += 1;
        if self.seen.is_multiple_of(PROGRESS_STEP) {
            self.progress.show("reading metadata", self.out.used.len(), self.total);
        }
        match (key.kind, item) {
            (ItemKind::Orphan, Item::Bytes([reason @ (ORPHAN_DELETE | ORPHAN_TRUNCATE)])) => {
                self.out.orphans.insert(Ino(key.offset), *reason);
            }
            _ if key.ino == Ino::SYSTEM => {}
            (ItemKind::Inode, Item::Bytes(v)) => self.inode(key, v),
            (ItemKind::Symlink, Item::Bytes(v)) => {
                let facts = self.facts(key.ino);
                if continues_target(facts.target, key, v) {
                    facts.target += v.len() as u64;
                }
            }
            (ItemKind::DirEntry, Item::Bytes(v)) => self.names(key, v),
            (ItemKind::Map, Item::Pages(pages)) => self.pages(key, pages.as_slice()),
            (_, Item::Bad(_)) => self.facts(key.ino).damaged = true,
            _ => drop(self.facts(key.ino)),
        }
    }

    fn facts(&mut self, ino: Ino) -> &mut Facts {
        self.out.inodes.entry(ino).or_default()
    }

    fn inode(&mut self, key: Key, value: &[u8]) {
        let item = InodeItem::decode(value).filter(|i| key.offset == 0 && i.size <= i64::MAX as u64);
        match item {
            Some(i) => self.facts(key.ino).item = Some((i.kind, i.nlink, i.parent, i.size)),
            None => self.facts(key.ino).damaged = true,
        }
    }

    fn names(&mut self, key: Key, value: &[u8]) {
        let kind = self.facts(key.ino).item.map(|i| i.0);
        let entries = decode_bucket(value).filter(|_| kind.is_none_or(|k| k == FileType::Directory));
        let Some(entries) = entries else {
            self.facts(key.ino).damaged = true;
            return;
        };
        for (i, e) in entries.iter().enumerate() {
            if !is_good_name(self.sb, key, &entries, i) {
                self.facts(key.ino).damaged = true;
                continue;
            }
            if key.ino == Ino::ROOT && e.name.starts_with(LOST_FOUND) {
                self.out.like_lost_found.push(e.clone());
            }
            if self.out.like_lost_found.iter().any(|l| l.ino == key.ino) {
                self.out.found_names.insert(e.name.clone());
            }
            self.facts(key.ino).entries += 1;
            let at = (key.ino, key.offset, e.slot);
            let target = self.facts(e.ino);
            target.names = target.names.saturating_add(1);
            if target.name.is_none() {
                target.name = Some(at);
            } else if e.kind == FileType::Directory {
                self.out.more_names.entry(e.ino).or_default().push(at);
            }
        }
    }

    fn pages(&mut self, key: Key, pages: &[PageEntry]) {
        let first = key.offset * CHUNK_PAGES;
        for (i, entry) in pages.iter().enumerate() {
            let page = PageNr(first + i as u64);
            if self.patches.get(key.ino, page).is_some() {
                self.out.patched.insert((key.ino, page), *entry);
            }
            let Some(blocks) = entry.blocks() else { continue };
            let run = blocks.run();
            self.facts(key.ino).pages_end = page.0 + 1;
            if !self.area.contains(run.start, run.len.into()) {
                self.out.bad_pages.insert((key.ino, page), "its blocks are outside of the volume");
                continue;
            }
            if self.out.used.set(run, true).is_some() {
                self.out.conflicts.set(run, true);
            }
            if let (PageEntry::Mapped(_, crc), Some(data)) = (entry, &mut self.data) {
                data.add(key.ino, page, run, *crc, &mut self.ignored.0, &mut self.ignored.1);
            }
        }
    }
}

/// The name can stay as it is: in the right place, once, and not of the root.
pub(super) fn is_good_name(sb: &Superblock, key: Key, entries: &[NameEntry], i: usize) -> bool {
    let e = &entries[i];
    name_hash(&sb.hash_key, &e.name) == key.offset
        && e.ino != Ino::ROOT
        && entries[..i].iter().all(|o| o.name != e.name && o.slot != e.slot)
}

/// All pages that use any of `conflicts`.
pub(super) fn claims(source: &Source, delta: &Delta, page_blocks: u32, conflicts: &BlockSet) -> Vec<Claim> {
    let mut out = Vec::new();
    source.each(delta, page_blocks, &mut |_| {}, &mut |key, item, _| {
        let (ItemKind::Map, Some(Item::Pages(pages))) = (key.kind, item) else { return };
        for (i, entry) in pages.iter().enumerate() {
            let Some(blocks) = entry.blocks().filter(|b| conflicts.touches(b.run())) else { continue };
            let page = PageNr(key.offset * CHUNK_PAGES + i as u64);
            let crc = if let PageEntry::Mapped(_, crc) = entry { Some(*crc) } else { None };
            out.push(Claim { ino: key.ino, page, run: blocks.run(), crc, birth: blocks.birth });
        }
    });
    out
}

/// Who keeps blocks that several pages use: those whose checksum is right, the newest of them first.
/// Gives the pages that lose theirs.
pub(super) fn losers(device: &Arc<dyn BlockDevice>, mut claims: Vec<Claim>, nodes: &BlockSet) -> Vec<Claim> {
    use blockdev::{AlignedBuf, IoClass};
    let matches = |c: &Claim| {
        let read = || {
            let buf = AlignedBuf::zeroed(c.run.bytes());
            device.read_at(c.run.start.offset(), buf, IoClass::Background).ok()
        };
        c.crc.is_some_and(|crc| read().is_some_and(|buf| crc32c::crc32c(&buf) == crc))
    };
    let mut judged: Vec<(bool, Claim)> = claims.drain(..).map(|c| (matches(&c), c)).collect();
    judged.sort_by_key(|(ok, c)| (!ok, std::cmp::Reverse(c.birth), c.ino, c.page));
    let mut taken = BlockSet::default();
    let mut out = Vec::new();
    for (ok, claim) in judged {
        let wrong = claim.crc.is_some() && !ok;
        if wrong || nodes.touches(claim.run) || taken.touches(claim.run) {
            out.push(claim);
        } else {
            taken.set(claim.run, true);
        }
    }
    out
}
