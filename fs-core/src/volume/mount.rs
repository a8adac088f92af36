//! Opening a volume: recovery, the claim of a new epoch, and the end of one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use blockdev::BlockDevice;
use parking_lot::{Mutex, RwLock};

use super::admit::Admissions;
use super::background::Bells;
use super::checkpoint::Checkpointer;
use super::commit::Committer;
use super::counters::Counters;
use super::draining::Draining;
use super::followers::Followers;
use super::journal_area::{AREAS, JournalAreas};
use super::meta::{MetaStart, MetaStore, TreeState};
use super::recover::{Recovered, recover};
use super::space::{BitmapLoader, KeptBlocks, Space};
use super::{MountOptions, Volume};
use crate::alloc::{Allocator, Config, Geometry, GroupLoader, Hold, Purpose, Slack};
use crate::cache::{Flights, PageCache};
use crate::env::Env;
use crate::error::{FsError, Result};
use crate::file::Prefetched;
use crate::format::superblock::KNOWN_RO_COMPAT;
use crate::format::{DataArea, JournalPart, RootSlot};
use crate::fs::InodeTable;
use crate::journal::JournalWriter;
use crate::mutants::{self, Mutant};
use crate::stats::Stats;
use crate::tree::{NodeCache, TreeReader, TreeRoot};
use crate::types::{BlockNr, BlockRun, Epoch, NODE_BLOCKS};

/// Blocks that are kept in runs of a page or node, for what must not fail on a full volume: the largest
/// atomic write, and the nodes of a small checkpoint.
const CUSHION_BLOCKS: u32 = 320;
/// Attempts at finding groups for them.
const CUSHION_ROUNDS: usize = 8;

/// The tree and its pending list, as a recovered volume has them.
pub(crate) fn tree_state(recovered: &mut Recovered) -> TreeState {
    TreeState { root: tree_root(&recovered.slot), pending: std::mem::take(&mut recovered.pending) }
}

/// The tree of a root slot.
pub(crate) fn tree_root(slot: &RootSlot) -> TreeRoot {
    let tree = &slot.tree;
    let ptr = (tree.height > 0).then_some(crate::format::node::NodePtr {
        addr: tree.addr,
        birth: tree.birth,
        crc: tree.crc,
    });
    TreeRoot { ptr, height: tree.height }
}

impl Volume {
    /// Opens the volume on `device`: recovers it, and unless read-only claims a new epoch.
    ///
    /// Blocks for the recovery (well under a second for the largest journal on a fast device).
    /// EINVAL if there is no volume or it is damaged beyond what recovery may decide.
    pub fn mount(
        device: Arc<dyn BlockDevice>,
        options: MountOptions,
        env: Arc<dyn Env>,
    ) -> Result<Arc<Volume>> {
        let recovered = recover(device.as_ref())?;
        let unknown = recovered.superblock.ro_compat & !KNOWN_RO_COMPAT;
        if unknown != 0 && !options.read_only {
            return Err(FsError::Volume(format!(
                "the volume uses features that this program can only read (ro_compat {unknown:#x}); mount it read-only"
            )));
        }
        for e in &recovered.bad_superblocks {
            tracing::warn!(error = %e, volume = %device.name(), "a copy of the superblock is damaged or cannot be read; another one is used");
        }
        if !options.read_only && !mutants::active(Mutant::NoFlushAfterRecovery) {
            // What recovery read may exist only in the device's cache (rule R7).
            device.flush()?;
        }
        let read_only = options.read_only;
        let volume = Self::assemble(device, options, env, recovered)?;
        if !read_only {
            volume.let_go_of_old_journals()?;
            volume.reclaim_orphans()?;
        }
        Ok(volume)
    }

    /// Makes checkpoints before anything is served, if all journal areas are in use: the next mount
    /// needs one. Until they are durable nothing goes into this epoch's journal that recovery would
    /// need, and nothing is used again that an older root refers to: if the power fails meanwhile, it is
    /// as if this epoch had not been.
    fn let_go_of_old_journals(&self) -> Result<()> {
        if self.checkpointer.lock().slot.journal.len() < AREAS {
            return Ok(());
        }
        self.space.pause_publishing(true);
        self.meta.pause_logging(true);
        let homed = {
            let _homing = self.homing.write();
            self.home_inline()
        };
        self.meta.pause_logging(false);
        homed?;
        // The changes have the number of this record, and the checkpoint must not be older.
        self.write_empty_record()?;
        // Twice: both root slots let go of the old journals.
        self.checkpoint_again()?;
        self.checkpoint_again()?;
        self.space.pause_publishing(false);
        self.publish_durable()
    }

    fn assemble(
        device: Arc<dyn BlockDevice>,
        options: MountOptions,
        env: Arc<dyn Env>,
        mut recovered: Recovered,
    ) -> Result<Arc<Volume>> {
        let sb = recovered.superblock.clone();
        let base = recovered.slot.clone();
        let kept = Arc::new(KeptBlocks::default());
        let held_blocks = Arc::new(KeptBlocks::default());
        recovered.slot.pending.into_iter().for_each(|run| kept.add(run));
        let tree = tree_state(&mut recovered);
        let held: Vec<BlockRun> = tree.pending.iter().filter(|e| !e.used).map(|e| e.run).collect();
        held.iter().for_each(|run| held_blocks.add(*run));
        let used_blocks = recovered.delta.used_blocks;
        let draining = if options.assume_drained {
            Draining::default()
        } else {
            Draining::new(&recovered, device.capabilities().exclusive)
        };
        let excluded = draining.groups();
        let areas = JournalAreas::new(&sb);
        let cache = NodeCache::new(device.clone(), sb.uuid, options.node_cache_bytes);
        let meta = Arc::new(MetaStore::new(
            TreeReader::new(Arc::new(cache)),
            sb.page_size.blocks(),
            sb.segment_blocks,
            MetaStart {
                delta: std::mem::take(&mut recovered.delta),
                tree,
                next_lsn: recovered.end.lsn.next(),
                next_ino: recovered.next_ino,
                inodes: recovered.inodes,
            },
        ));
        let area = DataArea::new(&sb, base.total_blocks);
        let geometry = Geometry {
            total_blocks: area.end().0,
            first_data_block: area.first(),
            group_blocks: sb.group_blocks,
            fixed_block: Some(BlockNr(sb.total_blocks - 1)),
        };
        let loader: Arc<dyn GroupLoader> = Arc::new(BitmapLoader {
            meta: meta.clone(),
            kept: kept.clone(),
            held: held_blocks.clone(),
            group_blocks: sb.group_blocks,
        });
        let free = base.free_blocks.saturating_add_signed(-used_blocks);
        let unit = sb.page_size.blocks().max(NODE_BLOCKS);
        let space = {
            let config = Config {
                takeover_groups: sb.takeover_groups,
                reserve_blocks: sb.reserve_blocks,
                cushion_unit: unit,
                cushion_units: (CUSHION_BLOCKS / unit) as usize,
                slack: Slack::for_pages(sb.page_size.blocks()),
                ..Config::for_volume(&geometry)
            };
            let alloc = Allocator::new(geometry, config, loader.clone())?;
            alloc.exclude(&areas.all_groups())?;
            alloc.exclude(&excluded)?;
            alloc.set_free(free.saturating_sub(kept.total() + held_blocks.total()))?;
            Space {
                alloc,
                kept,
                held: held_blocks,
                followers: Followers::new(recovered.end.lsn, base.checkpoint_lsn),
                reserved: Mutex::default(),
                publishing_paused: AtomicBool::new(false),
                patched: Mutex::default(),
                reclaim: Mutex::default(),
            }
        };
        // The room that the epoch before has left for a take-over: this is one.
        if space.alloc.available_blocks(Purpose::Essential) < sb.reserve_blocks {
            space.alloc.release_room();
        }
        let mut segments = Vec::new();
        if !options.read_only {
            let needed = needed_parts(&recovered).flat_map(|p| p.segments.iter().copied());
            let (ring, groups) =
                areas.choose(needed, &excluded, &draining.inherited).ok_or_else(no_journal_area)?;
            space.note_reserved(&groups);
            segments = ring;
            // The claim reserves the first groups, too.
            let mut groups = space.alloc.needs_more().unwrap_or_default();
            for _ in 0..CUSHION_ROUNDS {
                space.note_reserved(&groups);
                space.alloc.reserve_done(&groups)?;
                groups = space.alloc.fill_cushion()?;
                if groups.is_empty() {
                    break;
                }
            }
        }
        if !options.read_only {
            *space.patched.lock() = hold_patched(&space.alloc, &recovered);
        }
        // Epochs that were only begun are not used again: their writes may still land.
        let epoch = Epoch(recovered.rows.last_epoch().max(base.epoch).0 + 1);
        let claim_id = env.random() | 1;
        let (journal, claim) = if options.read_only {
            (idle_journal(&recovered, base.epoch), None)
        } else {
            let last = (recovered.end.lsn, recovered.end.crc);
            let journal =
                JournalWriter::new(sb.uuid, epoch, options.node_id, segments, sb.segment_blocks, last);
            let claim = claim_slot(&recovered, &space, &journal, epoch)?;
            let unlocked = !device.capabilities().exclusive;
            let claim = RootSlot { claim: claim_id, unlocked, ended: false, ..claim };
            (journal, Some(draining.note_in(claim)))
        };
        let slot = claim.clone().unwrap_or_else(|| base.clone());
        let mut checkpointer = Checkpointer::new(slot);
        checkpointer.held = held.into_iter().map(|run| (base.checkpoint_lsn, run)).collect();
        let page_size = sb.page_size;
        let volume = Arc::new(Volume {
            cache: PageCache::new(page_size, options.cache_bytes, options.cache_policy, options.cache_shards)
                .used_by(&device),
            flights: Flights::default(),
            prefetched: Prefetched::default(),
            read_only: options.read_only,
            options,
            stats: Stats::new(env.clone(), base.checkpoint_lsn),
            env,
            epoch,
            claim_id,
            commit: Committer::new(journal, recovered.end.lsn),
            bells: Bells::default(),
            space,
            meta,
            checkpointer: Mutex::new(checkpointer),
            inodes: InodeTable::new(),
            names: RwLock::new(()),
            patches: Mutex::new(std::mem::take(&mut recovered.patches)),
            homing: RwLock::new(()),
            admissions: Admissions::new(),
            unflushed: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            counters: Counters::default(),
            closed: AtomicBool::new(false),
            superblock: sb,
            device,
        });
        if let Some(claim) = claim {
            volume.claim(claim, &recovered)?;
            volume.set_nodes_aside(None);
        }
        Ok(volume)
    }

    /// Ends the mount: everything durable, a last checkpoint, so that the next mount finds nothing
    /// to replay. The volume refuses further changes, and other processes find nothing in its cache.
    pub fn shutdown(&self) -> Result<()> {
        // The volume may be somebody else's next.
        self.cache.stop_sharing();
        if self.read_only || self.closed.load(std::sync::atomic::Ordering::SeqCst) {
            return Ok(());
        }
        self.drop_ahead(0);
        self.sync_everything()?;
        self.checkpoint()?;
        self.note_end()?;
        self.closed.store(true, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }

    /// Refuses changes on a read-only, stopped or closed volume: EROFS.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.read_only || self.closed.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(FsError::READ_ONLY);
        }
        match self.commit.failure() {
            Some(reason) => Err(FsError::EpochEnded(reason)),
            None => Ok(()),
        }
    }
}

fn no_journal_area() -> FsError {
    FsError::Volume(
        "the volume is full: every journal area is in use, or an earlier owner that may still be alive can write \
         to it; make sure that it is gone, and mount with that assumption"
            .into(),
    )
}

/// The journals that the recovered state needs. Those that changed nothing will not be in the claim.
fn needed_parts(recovered: &Recovered) -> impl Iterator<Item = &JournalPart> + Clone {
    recovered.slot.journal.iter().zip(&recovered.effective).filter(|(_, e)| **e).map(|(part, _)| part)
}

/// Space for the way home of the pages that recovery found bytes of in the journal. The epoch before
/// held as much for them.
fn hold_patched(alloc: &Allocator, recovered: &Recovered) -> Option<Hold> {
    let blocks = recovered.patches.iter().count() as u64 * u64::from(recovered.superblock.page_size.blocks());
    let hold = alloc.hold(blocks, Purpose::Essential);
    if hold.is_err() {
        tracing::warn!(blocks, "no space can be set aside for small writes that are in the journal");
    }
    hold.ok()
}

fn claim_slot(
    recovered: &Recovered,
    space: &Space,
    journal: &JournalWriter,
    epoch: Epoch,
) -> Result<RootSlot> {
    let base = &recovered.slot;
    let cut = (recovered.end.lsn, recovered.end.crc);
    let mut parts: Vec<JournalPart> = Vec::new();
    let last = base.journal.len() - 1;
    for (i, part) in base.journal.iter().enumerate() {
        let end = if i == last { Some(cut) } else { part.end };
        if recovered.effective.get(i).copied().unwrap_or(true) {
            parts.push(JournalPart { end, ..part.clone() });
        }
    }
    let own = journal.part_from(recovered.end.lsn);
    parts.push(own.ok_or_else(|| FsError::Volume("a new journal has no start".into()))?);
    Ok(RootSlot {
        epoch,
        seq: 0,
        durable_lsn: recovered.end.lsn,
        reserved: space.reserved.lock().clone(),
        journal: parts,
        next_ino: recovered.next_ino.max(base.next_ino),
        inodes: base.inodes,
        ..base.clone()
    })
}

/// A journal that is never written, for a read-only mount.
fn idle_journal(recovered: &Recovered, epoch: Epoch) -> JournalWriter {
    let segments = recovered.slot.journal.last().map(|p| p.segments.clone()).unwrap_or_default();
    let last = (recovered.end.lsn, recovered.end.crc);
    JournalWriter::new(
        recovered.superblock.uuid,
        epoch,
        0,
        segments,
        recovered.superblock.segment_blocks,
        last,
    )
}
