//! Tests of the allocator as a whole.

mod cushion;
mod lifecycle;
mod loom_words;
mod model;
mod mutants;
mod place;
mod reservation;
mod stress;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use proptest::test_runner::{Config as ProptestConfig, RngSeed};

use super::group::Kind;
use super::*;
use crate::types::{BlockNr, BlockRun, GroupNr};

/// A fixed seed: the same cases in every run.
pub(super) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(0xa110c),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

pub(super) const GROUP: u32 = 512;

/// The allocation bits as the tree and the journal know them.
pub(super) struct Disk {
    used: Mutex<Vec<bool>>,
    pub loads: AtomicU64,
    pub broken: Mutex<Vec<GroupNr>>,
}

impl Disk {
    pub fn new(blocks: u64) -> Arc<Self> {
        let used = Mutex::new(vec![false; blocks as usize]);
        Arc::new(Self { used, loads: AtomicU64::new(0), broken: Mutex::default() })
    }

    pub fn set(&self, run: BlockRun, used: bool) {
        let mut bits = self.used.lock();
        for block in run.start.0..run.end().0 {
            if let Some(bit) = bits.get_mut(block as usize) {
                *bit = used;
            }
        }
    }
}

impl GroupLoader for Disk {
    fn load(&self, group: GroupNr) -> crate::Result<GroupBits> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        if self.broken.lock().contains(&group) {
            return Err(FsError::corrupt("tree node", BlockNr(1), "test"));
        }
        let bits = self.used.lock();
        let used = |b: u64| bits.get(b as usize).copied().unwrap_or(false);
        let first = group.0 * GROUP as u64;
        let word = |w: u64| (0..64).fold(0, |word, b| word | (used(first + w * 64 + b) as u64) << b);
        Ok((0..GROUP as u64 / 64).map(word).collect())
    }
}

pub(super) fn geometry(total_blocks: u64) -> Geometry {
    Geometry { total_blocks, first_data_block: BlockNr(8), group_blocks: GROUP, fixed_block: None }
}

pub(super) fn config() -> Config {
    Config {
        takeover_groups: 0,
        reserve_blocks: 0,
        cushion_unit: 4,
        cushion_units: 0,
        low_water_blocks: 0,
        batch_blocks: GROUP as u64,
        max_loaded_groups: 1 << 20,
        discard_queue: 0,
        check_frees: false,
        slack: Slack::NONE,
    }
}

/// An open allocator over `disk`, nothing reserved yet.
pub(super) fn open(total: u64, config: Config, disk: &Arc<Disk>) -> Allocator {
    let allocator = Allocator::new(geometry(total), config, disk.clone()).unwrap();
    let free = allocator.count_free().unwrap();
    allocator.set_free(free).unwrap();
    allocator
}

/// An open allocator of `groups` empty groups, all of them reserved.
pub(super) fn empty(groups: u64) -> (Allocator, Arc<Disk>) {
    let total = groups * GROUP as u64;
    let disk = Disk::new(total);
    let allocator = open(total, config(), &disk);
    allocator.reserve_done(&(0..groups).map(GroupNr).collect::<Vec<_>>()).unwrap();
    (allocator, disk)
}

pub(super) fn run(start: u64, len: u32) -> BlockRun {
    BlockRun::new(BlockNr(start), len)
}

pub(super) fn data(want: u32, min: u32, align: u32) -> Request {
    Request::new(want, min, align, Class::Data)
}

pub(super) fn blocks(run: BlockRun) -> std::ops::Range<u64> {
    run.start.0..run.end().0
}

impl Allocator {
    /// The live bits of a loaded or full group.
    pub(super) fn live_bits(&self, group: GroupNr) -> Option<Vec<u64>> {
        let slot = self.slots.get(group.0)?;
        match slot.state().kind() {
            Kind::Loaded => {
                let frame = self.frame_of(slot)?;
                assert_eq!(slot.free.load(Ordering::SeqCst), frame.words.count_free());
                Some((0..frame.words.len()).map(|i| frame.words.word(i)).collect())
            }
            Kind::Full => Some(vec![!0; self.base.group_words()]),
            Kind::Absent | Kind::Loading => None,
        }
    }
}
