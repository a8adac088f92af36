//! A mounted volume: where everything meets.
//!
//! Lock order, outermost first; a thread takes locks only downwards:
//!
//! 1. `checkpointer` (one checkpoint at a time)
//! 2. `names` (the name space: shared for look-ups that need a stable name, exclusive for changes)
//! 3. `homing` (shared by writers that put data into the journal, exclusive to shut them out)
//! 4. an inode's page ranges ([`crate::file::RangeLock`]). Whoever changes mappings or sizes waits for the
//!    inode's tail ([`crate::file::Tail`]) before 2, with no lock held, and looks again with the range.
//!    Synchronous overwrites and syncs hold theirs until they are durable: whoever leads a commit takes none of
//!    these. Several ranges of a file are taken at once.
//! 5. an inode's extended attributes
//! 6. an inode's state (several: by ascending inode number)
//! 7. a page frame
//! 8. leaves: the metadata store, the commit state, the journal writer, the allocator, the page
//!    cache's shards, `patches`, the list of slow syncs
//!
//! A thread that waits for another's read of a page (`flights`) holds 1 to 4 at most, and the page's range shared
//! with the reader, who takes only what comes after 4.

mod admit;
mod background;
mod checkpoint;
mod claim;
mod commit;
mod counters;
mod draining;
mod explain;
mod flight;
mod followers;
mod format;
mod gathering;
mod group_ranges;
mod grow;
mod journal_area;
pub(crate) mod meta;
mod mount;
mod patches;
mod recover;
mod scrub;
mod slots;
mod space;
mod status;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use blockdev::BlockDevice;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(crate) use admit::{Admission, Cost};
pub use background::StopFlag;
pub(crate) use commit::{check_all, wait_all};
pub use counters::CounterValues;
pub(crate) use draining::Draining;
pub use explain::{Explanation, Extent};
pub(crate) use flight::{Flight, WayBack};
pub use followers::{ClaimLost, FollowerClaim, FollowerPosition};
pub use format::FormatOptions;
pub use grow::{GrowTo, Grown};
pub(crate) use mount::{tree_root, tree_state};
pub(crate) use patches::Patches;
pub(crate) use recover::{Recovered, UnprovenData, check_change, read_superblock, recover, recover_from};
pub use scrub::{Pace, ScrubFinding, ScrubStats};
pub(crate) use slots::{Rows, best_slot, check_slot, has_served};
pub use status::{CacheStatus, JournalStatus, VolumeStatus};

use crate::cache::policy::PolicyKind;
use crate::cache::{Flights, PageCache, SharedCache};
use crate::env::Env;
use crate::error::Result;
use crate::file::Prefetched;
use crate::format::Superblock;
use crate::fs::InodeTable;
use crate::stats::{Stage, Stats};
use crate::types::{Epoch, PageSize};

/// How to mount a volume.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Change nothing on the device.
    pub read_only: bool,
    /// Reading leaves access times as they are.
    pub no_atime: bool,
    /// Page cache capacity in bytes; [`Volume::set_cache_bytes`] changes it. The tables of the policy take a
    /// hundredth of it at most, from the start.
    pub cache_bytes: usize,
    /// What decides which pages stay in the cache.
    pub cache_policy: PolicyKind,
    /// Parts of the page cache that do not wait for each other's locks; fewer if it is small.
    pub cache_shards: usize,
    /// Capacity of the cache of tree nodes in bytes.
    pub node_cache_bytes: usize,
    /// Dirty bytes in the page cache at which writers have to wait for writeback.
    pub dirty_bytes: usize,
    /// Age in nanoseconds at which dirty pages are written and changes committed.
    pub dirty_age_ns: u64,
    /// Largest synchronous write, in bytes, that goes into the journal itself.
    pub inline_max: usize,
    /// Rough size in bytes that changes may reach in memory before a checkpoint.
    pub delta_bytes: usize,
    /// Identity of this node in the journal.
    pub node_id: u32,
    /// Somebody has made sure that no earlier owner of the volume can write any more (it is fenced, or
    /// its machine is off): use again what they may have written to.
    pub assume_drained: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            no_atime: false,
            cache_bytes: 256 << 20,
            cache_policy: PolicyKind::default(),
            cache_shards: 16,
            node_cache_bytes: 64 << 20,
            dirty_bytes: 64 << 20,
            dirty_age_ns: 2_000_000_000,
            inline_max: 64 << 10,
            delta_bytes: 64 << 20,
            node_id: 0,
            assume_drained: false,
        }
    }
}

/// A mounted volume. Has no threads of its own: every call works on its caller's thread, and
/// [`run_background`](Volume::run_background) is for threads that the host provides.
pub struct Volume {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) superblock: Superblock,
    pub(crate) options: MountOptions,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) epoch: Epoch,
    /// Number of this mount's claim, random.
    claim_id: u64,
    read_only: bool,
    closed: AtomicBool,
    checkpointer: Mutex<checkpoint::Checkpointer>,
    names: RwLock<()>,
    pub(crate) homing: RwLock<()>,
    pub(crate) inodes: InodeTable,
    pub(crate) cache: PageCache,
    pub(crate) flights: Flights,
    pub(crate) prefetched: Prefetched,
    pub(crate) patches: Mutex<Patches>,
    pub(crate) meta: Arc<meta::MetaStore>,
    pub(crate) commit: commit::Committer,
    bells: background::Bells,
    pub(crate) space: space::Space,
    pub(crate) admissions: admit::Admissions,
    unflushed: AtomicU64,
    /// Blocks freed since the last commit began.
    freed: AtomicU64,
    pub(crate) counters: counters::Counters,
    pub(crate) stats: Stats,
}

impl Volume {
    /// Makes an empty volume on `device`, over whatever is there. Takes well under a second.
    pub fn format(device: &dyn BlockDevice, options: &FormatOptions, env: &dyn Env) -> Result<Superblock> {
        format::format(device, options, env)
    }

    /// What mkfs decided about the volume.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Present size of the volume in blocks: see [`Self::grow`].
    pub fn total_blocks(&self) -> u64 {
        // Beside what can be allocated, the copy of the superblock at the end.
        self.space.alloc.geometry().total_blocks + 1
    }

    /// The running epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Page size of the volume.
    pub fn page_size(&self) -> PageSize {
        self.superblock.page_size
    }

    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn page_blocks(&self) -> u32 {
        self.superblock.page_size.blocks()
    }

    pub(crate) fn page_bytes(&self) -> usize {
        self.superblock.page_size.bytes()
    }

    /// The name space, to look at it.
    pub(crate) fn names_shared(&self) -> RwLockReadGuard<'_, ()> {
        self.names.try_read().unwrap_or_else(|| {
            let _waiting = self.stats.time(Stage::Lock);
            self.names.read()
        })
    }

    /// The name space, to change it.
    pub(crate) fn names_exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.names.try_write().unwrap_or_else(|| {
            let _waiting = self.stats.time(Stage::Lock);
            self.names.write()
        })
    }

    /// Reads the counters.
    pub fn counters(&self) -> CounterValues {
        let mut values = self.counters.read();
        values.shared_commits = self.commit.riders();
        values.journal_wraps = self.commit.journal.lock().wraps();
        let stats = self.space.alloc.stats();
        values.blocks_reused = stats.reused_blocks;
        values.cushion_blocks = stats.cushion_blocks;
        values.quarantined_blocks = self.space.alloc.quarantined_blocks();
        values
    }

    /// Changes the capacity of the page cache, in bytes. Never waits for the device: pages that are too many
    /// are evicted at once; those that are dirty or in use now go when others come in.
    pub fn set_cache_bytes(&self, bytes: usize) {
        self.cache.set_capacity(bytes);
        self.drop_ahead(self.most_ahead());
    }

    /// The files of the page cache, for a process that may read every file of the volume: see
    /// [`SharedReader`](crate::cache::SharedReader). `None`: the cache is not in shared memory.
    pub fn shared_cache(&self) -> Option<SharedCache> {
        self.cache.shared()
    }

    /// Why the volume has stopped accepting changes (rule R6), if it has.
    pub fn failure(&self) -> Option<String> {
        self.commit.failure()
    }
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume").field("uuid", &self.superblock.uuid).field("epoch", &self.epoch).finish()
    }
}
