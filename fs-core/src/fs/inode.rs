//! Inodes in memory.
//!
//! There is at most one [`Inode`] of a number at any time. Its state runs ahead of the metadata
//! store in two ways: a buffered write grows the size before its pages are on the device, and times
//! of mere overwrites are written lazily.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, RwLock};

use crate::api::{Attr, FileType, Timestamp};
use crate::cache::FrameRef;
use crate::error::{FsError, Result};
use crate::file::{LostBytes, RangeLock, Streams, Tail};
use crate::format::{Change, InodeItem, ItemKind, Key};
use crate::stats::Usage;
use crate::types::{BLOCK_SIZE, BlockNr, Ino, PageNr};
use crate::volume::meta::MetaStore;

/// An inode's changing part.
#[derive(Debug)]
pub(crate) struct InodeState {
    /// As callers see it now.
    pub(crate) item: InodeItem,
    /// Size in the metadata store: data up to here is mapped, or was never written.
    pub(crate) disk_size: u64,
    /// `item` has times that the metadata store has not.
    pub(crate) lazy: bool,
    /// Open handles.
    pub(crate) opens: u32,
    /// No name, no handle: its items are gone.
    pub(crate) deleted: bool,
    /// Made without a name: it may get its first one.
    pub(crate) linkable: bool,
    /// It is not known that it has no `security.capability`.
    pub(crate) may_have_capability: bool,
    /// What a truncation has cut off and not yet freed.
    pub(crate) tail: Tail,
    /// Bytes whose writer could not be told that they were refused.
    pub(crate) lost: LostBytes,
}

impl InodeState {
    /// The change that stores the inode as it may be stored now.
    pub(crate) fn put(&mut self, ino: Ino) -> Change {
        self.lazy = false;
        let item = InodeItem { size: self.stored_size(), ..self.item.clone() };
        Change::PutItem { key: Key::new(ino, ItemKind::Inode, 0), value: item.encode() }
    }

    /// It knows what the metadata store does not.
    fn must_stay(&self) -> bool {
        self.opens > 0 || self.tail != Tail::Clean || !self.lost.is_empty()
    }

    fn stored_size(&self) -> u64 {
        if self.item.kind == FileType::Regular { self.disk_size } else { self.item.size }
    }

    /// Content changed at `now`.
    pub(crate) fn touch_content(&mut self, now: Timestamp) {
        self.item.mtime = now;
        self.item.ctime = now;
        self.lazy = true;
    }
}

/// An inode in memory.
#[derive(Debug)]
pub(crate) struct Inode {
    /// Its number.
    pub(crate) ino: Ino,
    /// Page ranges in use.
    pub(crate) ranges: RangeLock,
    /// Its extended attributes: shared to read one, exclusively to change one.
    pub(crate) xattrs: RwLock<()>,
    /// Its state.
    pub(crate) state: Mutex<InodeState>,
    /// How it is written.
    pub(crate) usage: Usage,
    /// Scans that are read ahead of.
    pub(crate) streams: Mutex<Streams>,
    /// Told when `state.tail` changes.
    pub(crate) tail_changed: Condvar,
    /// Pages that are dirty or whose bytes are in the journal only.
    pub(crate) unhomed: Mutex<BTreeMap<PageNr, FrameRef>>,
}

/// No arithmetic overflows on what the device says about an inode.
fn in_range(item: &InodeItem) -> bool {
    item.size <= i64::MAX as u64 && item.blocks < i64::MAX as u64 / BLOCK_SIZE as u64
}

impl Inode {
    /// Attributes.
    pub(crate) fn attr(&self) -> Attr {
        let state = self.state.lock();
        let mut attr = state.attr(self.ino);
        // Pages behind the stored end have no blocks yet. They count as if they had (as ext4's delayed
        // allocation does), so that the number does not change by itself when they are written.
        let waiting = state.item.size.saturating_sub(state.disk_size).div_ceil(BLOCK_SIZE as u64);
        let most = self.unhomed.lock().len() as u64 * (1 << 16) / BLOCK_SIZE as u64;
        attr.blocks += waiting.min(most) * (BLOCK_SIZE as u64 / 512);
        attr
    }

    /// The type, which never changes.
    pub(crate) fn kind(&self) -> FileType {
        self.state.lock().item.kind
    }
}

impl InodeState {
    /// Attributes.
    pub(crate) fn attr(&self, ino: Ino) -> Attr {
        let i = &self.item;
        let size = match i.kind {
            FileType::Directory => BLOCK_SIZE as u64 * (1 + i.size / 64),
            _ => i.size,
        };
        Attr {
            ino,
            generation: 0,
            kind: i.kind,
            perm: i.perm,
            nlink: i.nlink,
            uid: i.uid,
            gid: i.gid,
            rdev: i.rdev,
            size,
            blocks: i.blocks * (BLOCK_SIZE as u64 / 512),
            atime: i.atime,
            mtime: i.mtime,
            ctime: i.ctime,
            btime: i.btime,
        }
    }
}

const SHARDS: usize = 16;
/// Inodes a shard keeps before it drops unused ones.
const SHARD_TARGET: usize = 4096;

#[derive(Debug, Default)]
struct Shard {
    inodes: HashMap<Ino, Arc<Inode>>,
    /// How often inodes were taken out.
    removals: u64,
}

/// All inodes in memory, bounded by dropping those nobody uses.
#[derive(Debug)]
pub(crate) struct InodeTable {
    shards: Vec<Mutex<Shard>>,
    /// Inodes with dirty pages, inline pages or lazy times, and since when (monotonic ns).
    pub(crate) dirty: Mutex<BTreeMap<Ino, u64>>,
    /// Inodes that have lost bytes, or had some until lately.
    pub(crate) lost: Mutex<BTreeSet<Ino>>,
}

impl InodeTable {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            dirty: Mutex::new(BTreeMap::new()),
            lost: Mutex::new(BTreeSet::new()),
        }
    }

    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[(ino.0 % SHARDS as u64) as usize]
    }

    /// The inode, read from the metadata if it is not in memory; ESTALE if it does not exist.
    pub(crate) fn get(&self, meta: &MetaStore, ino: Ino) -> Result<Arc<Inode>> {
        loop {
            let removals = {
                let shard = self.shard(ino).lock();
                if let Some(inode) = shard.inodes.get(&ino) {
                    return Ok(inode.clone());
                }
                shard.removals
            };
            let value = meta.item(&Key::new(ino, ItemKind::Inode, 0))?.ok_or(FsError::STALE)?;
            let item = InodeItem::decode(&value).filter(in_range).ok_or_else(|| {
                FsError::corrupt("inode item", BlockNr(0), format!("inode {ino}: impossible values"))
            })?;
            // If the inode came and went meanwhile, it may have changed or been deleted.
            if let Some(inode) = self.add_if(ino, item, |shard| shard.removals == removals) {
                return Ok(inode);
            }
        }
    }

    /// Puts an inode that was just made into the table.
    pub(crate) fn add(&self, ino: Ino, item: InodeItem) -> Arc<Inode> {
        let inode = self.add_if(ino, item, |_| true);
        inode.expect("nothing was asked of the table")
    }

    /// The inode if it is in the table; else puts it there, if `ok`.
    fn add_if(&self, ino: Ino, item: InodeItem, ok: impl FnOnce(&Shard) -> bool) -> Option<Arc<Inode>> {
        let mut shard = self.shard(ino).lock();
        if let Some(inode) = shard.inodes.get(&ino) {
            return Some(inode.clone());
        }
        if !ok(&shard) {
            return None;
        }
        if shard.inodes.len() >= SHARD_TARGET {
            let dirty = self.dirty.lock();
            let keep = |i: &Arc<Inode>| {
                Arc::strong_count(i) > 1 || dirty.contains_key(&i.ino) || i.state.lock().must_stay()
            };
            // A quarter of the shard at a time, so that the sweep is paid rarely.
            let mut spare = SHARD_TARGET / 4;
            shard.removals += 1;
            shard.inodes.retain(|_, i| {
                let go = spare > 0 && !keep(i);
                spare -= usize::from(go);
                !go
            });
        }
        let inode = Arc::new(Inode {
            ino,
            ranges: RangeLock::default(),
            xattrs: RwLock::new(()),
            state: Mutex::new(InodeState {
                disk_size: item.size,
                may_have_capability: item.xattr_list > 0,
                item,
                lazy: false,
                opens: 0,
                deleted: false,
                linkable: false,
                tail: Tail::Clean,
                lost: LostBytes::default(),
            }),
            usage: Usage::default(),
            streams: Mutex::new(Streams::default()),
            tail_changed: Condvar::new(),
            unhomed: Mutex::new(BTreeMap::new()),
        });
        shard.inodes.insert(ino, inode.clone());
        Some(inode)
    }

    /// Forgets a deleted inode.
    pub(crate) fn forget(&self, ino: Ino) {
        self.dirty.lock().remove(&ino);
        self.lost.lock().remove(&ino);
        let mut shard = self.shard(ino).lock();
        shard.inodes.remove(&ino);
        shard.removals += 1;
    }

    /// Remembers that the inode has something to be written.
    pub(crate) fn mark_dirty(&self, ino: Ino, now_ns: u64) {
        self.dirty.lock().entry(ino).or_insert(now_ns);
    }
}
