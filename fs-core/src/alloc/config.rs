//! Settings of the allocator.

use super::geometry::Geometry;
use super::slack::Slack;

/// Settings of the allocator; see [`Config::for_volume`] for sensible ones.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Groups kept unreserved as room for a take-over (rule R2); at most a quarter of the volume is
    /// used for this. Their blocks are not available to users.
    pub takeover_groups: u32,
    /// Free blocks that users leave for overwrites, deletes and metadata (contract C9).
    pub reserve_blocks: u64,
    /// Length of the runs in the cushion: what pages and nodes need.
    pub cushion_unit: u32,
    /// Runs in the cushion.
    pub cushion_units: usize,
    /// With fewer free blocks in reserved groups, [`needs_more`](super::Allocator::needs_more) asks
    /// for more groups.
    pub low_water_blocks: u64,
    /// Free blocks that one suggestion should bring.
    pub batch_blocks: u64,
    /// Above this many loaded groups, full ones are unloaded (4 KiB of memory each).
    pub max_loaded_groups: u32,
    /// Runs remembered for [`take_discardable`](super::Allocator::take_discardable); 0 = none.
    pub discard_queue: usize,
    /// Load the group of every freed run, to notice at once when free blocks are freed. Otherwise
    /// it shows in groups that are not loaded only when a checkpoint changes their bits.
    pub check_frees: bool,
    /// Where new data leaves blocks free among itself, for what will replace it, while there is space.
    pub slack: Slack,
}

impl Config {
    /// Settings for a volume: a sixteenth of it (at most 1 GiB) is reserved at a time, with one
    /// group of room, without discard and with a C9 reserve of a 64th, at most 1 GiB.
    pub fn for_volume(geometry: &Geometry) -> Self {
        let group = geometry.group_blocks as u64;
        let batch = (geometry.groups() / 16).clamp(1, 8) * group;
        Self {
            takeover_groups: 1,
            reserve_blocks: (geometry.total_blocks / 64).min(1 << 18),
            cushion_unit: 4,
            cushion_units: 0,
            low_water_blocks: batch / 4,
            batch_blocks: batch,
            max_loaded_groups: 16384,
            discard_queue: 0,
            check_frees: false,
            slack: Slack::for_pages(1),
        }
    }
}
