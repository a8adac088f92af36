//! Space: the allocator, its reservations, and what keeps blocks from it.
//!
//! Lock order: `kept` is a leaf.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Volume;
use super::followers::Followers;
use super::meta::MetaStore;
use crate::alloc::{AllocError, Allocator, GroupBits, GroupLoader, Hold, Request};
use crate::error::{FsError, Result};
use crate::format::bitmap::{BITMAP_BLOCKS, decode_piece};
use crate::format::{Change, GroupRange, ItemKind, Key};
use crate::mutants::{self, Mutant};
use crate::types::{BlockNr, BlockRun, GroupNr, Ino};

/// Blocks in use that no bitmap shows. First block to length.
#[derive(Debug, Default)]
pub(crate) struct KeptBlocks(Mutex<BTreeMap<u64, u32>>);

impl KeptBlocks {
    /// Keeps a run.
    pub(crate) fn add(&self, run: BlockRun) {
        self.0.lock().insert(run.start.0, run.len);
    }

    /// The run is no longer needed.
    pub(crate) fn remove(&self, run: BlockRun) {
        self.0.lock().remove(&run.start.0);
    }

    fn for_each(&self, f: &mut dyn FnMut(BlockRun)) {
        for (start, len) in self.0.lock().iter() {
            f(BlockRun::new(BlockNr(*start), *len));
        }
    }

    /// Blocks kept.
    pub(crate) fn total(&self) -> u64 {
        self.0.lock().values().map(|len| u64::from(*len)).sum()
    }
}

/// Gives the allocator the bits of a group from the metadata.
pub(crate) struct BitmapLoader {
    pub(crate) meta: Arc<MetaStore>,
    pub(crate) kept: Arc<KeptBlocks>,
    pub(crate) held: Arc<KeptBlocks>,
    pub(crate) group_blocks: u32,
}

impl GroupLoader for BitmapLoader {
    fn load(&self, group: GroupNr) -> Result<GroupBits> {
        let len = u64::from(self.group_blocks);
        let start = BlockNr(group.0 * len);
        let mut changes = Vec::new();
        let tree = self.meta.block_changes(start, len, &mut |run, used| changes.push((run, used)));
        let mut bits = vec![0u64; (len as usize).div_ceil(64)].into_boxed_slice();
        let mut mark = |run: BlockRun, used: bool| {
            let from = run.start.0.max(start.0);
            let to = run.end().0.min(start.0 + len);
            for block in from..to {
                let bit = block - start.0;
                let (word, mask) = (&mut bits[(bit / 64) as usize], 1u64 << (bit % 64));
                if used { *word |= mask } else { *word &= !mask }
            }
        };
        let reader = self.meta.reader();
        for piece in start.0 / BITMAP_BLOCKS..=(start.0 + len - 1) / BITMAP_BLOCKS {
            let key = Key::new(Ino::SYSTEM, ItemKind::Bitmap, piece);
            let Some(value) = reader.get(&tree.root, &key)? else { continue };
            let words = decode_piece(&value).ok_or_else(|| {
                FsError::corrupt("bitmap item", BlockNr(piece * BITMAP_BLOCKS), "impossible length")
            })?;
            for bit in 0..BITMAP_BLOCKS {
                if words[(bit / 64) as usize] & 1 << (bit % 64) != 0 {
                    mark(BlockRun::new(BlockNr(piece * BITMAP_BLOCKS + bit), 1), true);
                }
            }
        }
        for (run, used) in changes {
            mark(run, used);
        }
        // Nodes freed by the last checkpoint stay until the next root is durable (rule R7). Those it
        // took come last: it may have taken blocks that changes behind it had freed as data.
        for entry in tree.pending.iter().filter(|e| e.used) {
            mark(entry.run, true);
        }
        self.kept.for_each(&mut |run| mark(run, true));
        self.held.for_each(&mut |run| mark(run, true));
        Ok(bits)
    }
}

/// Space of a mounted volume.
pub(crate) struct Space {
    pub(crate) alloc: Allocator,
    /// Pending lists.
    pub(crate) kept: Arc<KeptBlocks>,
    /// Nodes that no bitmap of the present tree shows, and that are not free yet: the root before
    /// it, or somebody who reads an older tree, needs them.
    pub(crate) held: Arc<KeptBlocks>,
    /// Groups this epoch may write to, as root slots list them.
    pub(crate) reserved: Mutex<Vec<GroupRange>>,
    /// Who reads the volume as of an earlier moment.
    pub(super) followers: Followers,
    /// Frees stay in limbo for now.
    pub(super) publishing_paused: AtomicBool,
    /// Space for the pages that recovery found bytes of in the journal, until they are loaded.
    pub(crate) patched: Mutex<Option<Hold>>,
    /// Held by whoever frees space under pressure; taken with no other lock.
    pub(crate) reclaim: Mutex<()>,
}

impl Space {
    /// Keeps all frees in limbo, or lets the next [`Self::publish`] let go of them.
    pub(super) fn pause_publishing(&self, pause: bool) {
        self.publishing_paused.store(pause, Ordering::SeqCst);
    }

    /// See [`Allocator::publish`]. Returns how many followers have lost their claims by it.
    pub(crate) fn publish(&self, durable: crate::types::Lsn) -> u64 {
        if self.publishing_paused.load(Ordering::SeqCst) {
            return 0;
        }
        self.followers.publish(&self.alloc, durable).unwrap_or_else(|e| {
            tracing::error!(error = %e, "the allocator disagrees with the journal about freed blocks");
            0
        })
    }

    /// Space for the way home of one page that recovery found bytes of in the journal.
    pub(crate) fn take_patched(&self, blocks: u64) -> Option<Hold> {
        self.patched.lock().as_mut()?.take(blocks)
    }

    /// Number of pages that recovery found bytes of in the journal and that have not been loaded.
    pub(super) fn patched_pages(&self, page_blocks: u32) -> usize {
        self.patched.lock().as_ref().map_or(0, |hold| (hold.blocks() / u64::from(page_blocks)) as usize)
    }

    /// Adds groups to the list for root slots, joining neighbours.
    pub(crate) fn note_reserved(&self, groups: &[GroupNr]) {
        let mut list = self.reserved.lock();
        for g in groups {
            list.push(GroupRange { first: *g, count: 1 });
        }
        list.sort_by_key(|r| r.first);
        let mut joined: Vec<GroupRange> = Vec::new();
        for r in list.drain(..) {
            match joined.last_mut() {
                Some(last) if last.first.0 + u64::from(last.count) >= r.first.0 => {
                    let end = (r.first.0 + u64::from(r.count)).max(last.first.0 + u64::from(last.count));
                    last.count = (end - last.first.0) as u32;
                }
                _ => joined.push(r),
            }
        }
        *list = joined;
    }
}

/// Consecutive groups as one change each.
fn reserve_changes(groups: &[GroupNr]) -> Vec<Change> {
    groups.iter().map(|g| Change::Reserve { first: *g, count: 1 }).collect()
}

impl Volume {
    /// Allocates from `min` to `want` blocks in one run, aligned to `align`, near `goal`, for metadata.
    /// Makes reservations and publishes frees as needed; blocks on device writes then. No lock that a
    /// commit needs may be held.
    pub(crate) fn allocate(&self, request: &Request) -> Result<BlockRun> {
        // What was set aside for it; or else, whatever is left.
        if let Some(mut hold) = self.admissions.take(request.want.into()) {
            return self.allocate_from(request, &mut hold);
        }
        let mut reclaimed = false;
        loop {
            match self.space.alloc.alloc(request, None) {
                Ok(run) => return Ok(run),
                Err(AllocError::NeedReservation { suggested }) => self.reserve_groups(&suggested)?,
                Err(AllocError::Full | AllocError::Fragmented) if !reclaimed => {
                    reclaimed = true;
                    self.reclaim_limbo()?;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// As [`Self::allocate`], from what is held. Where no run is aligned as asked, another one will do.
    pub(crate) fn allocate_from(&self, request: &Request, hold: &mut Hold) -> Result<BlockRun> {
        let mut align = request.align;
        let mut reclaimed = false;
        loop {
            match self.space.alloc.alloc(&Request { align, ..*request }, Some(hold)) {
                Ok(run) => return Ok(run),
                Err(AllocError::NeedReservation { suggested }) => self.reserve_groups(&suggested)?,
                Err(AllocError::Full | AllocError::Fragmented) if align > 1 => align = 1,
                Err(AllocError::Full | AllocError::Fragmented) if !reclaimed => {
                    reclaimed = true;
                    align = request.align;
                    self.reclaim_limbo()?;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Makes freed blocks usable: commits what freed them and publishes that, whatever followers need.
    pub(crate) fn reclaim_limbo(&self) -> Result<()> {
        if self.space.alloc.limbo_blocks() > 0 {
            self.commit()?;
            self.publish_durable()?;
            self.revoke_claims();
        }
        Ok(())
    }

    /// Reserves groups: flushed first, then used (rule R2).
    fn reserve_groups(&self, groups: &[GroupNr]) -> Result<()> {
        if groups.is_empty() {
            return Err(FsError::NO_SPACE);
        }
        // Noted first: a root that leaves the record behind must name the groups itself.
        self.space.note_reserved(groups);
        let lsn = self.meta.apply(reserve_changes(groups), 0)?;
        if !mutants::active(Mutant::UseUnflushedReservation) {
            self.commit_to(lsn)?;
        }
        self.space.alloc.reserve_done(groups)
    }

    /// Reserves groups ahead of need, if few free blocks are left in reserved ones.
    pub(crate) fn reserve_ahead(&self) -> Result<()> {
        match self.space.alloc.needs_more() {
            Some(groups) => self.reserve_groups(&groups),
            None => Ok(()),
        }
    }
}
