//! What can be put through a history: the engine on the simulator, or a stand-in that tries the
//! harness itself.

use std::sync::Arc;

use fs_core::api::FsOps;

use crate::clock::Clock;
use crate::ops::{Maintenance, Profile};
use crate::rng::Rng;

/// Parameters of a run; they follow from its seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Everything random follows from it.
    pub seed: u64,
    /// Page size of the volume in bytes.
    pub page: u64,
    /// Kind of history.
    pub profile: Profile,
    /// Bytes that a first file takes, so that the rest of the volume comes round soon. If not 0,
    /// operations may be refused for lack of space.
    pub fill: u64,
}

impl Config {
    /// The parameters of run `seed`.
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x636F_6E66_6967);
        let page = *rng.pick(&[4096, 8192, 16384, 16384, 65536]);
        let profile = *rng.pick(&Profile::ALL);
        let fill = if rng.one_in(3) { rng.between(30, 56) << 20 } else { 0 };
        Self { seed, page, profile, fill }
    }
}

/// A file system on a medium that can lose its power.
pub trait Subject: Sized {
    /// What stays when the file system is gone.
    type Medium: Clone;

    /// A formatted medium.
    fn format(config: &Config, clock: &Arc<Clock>) -> Result<Self::Medium, String>;

    /// Mounts what `medium` holds; `salt` makes this mount's device behave unlike the others'.
    fn mount(medium: Self::Medium, config: &Config, clock: &Arc<Clock>, salt: u64) -> Result<Self, String>;

    /// The operations.
    fn fs(&self) -> &dyn FsOps;

    /// Number of events that the device has seen since it was mounted from its medium.
    fn seq(&self) -> u64;

    /// Background work.
    fn maintain(&self, work: Maintenance) -> fs_core::Result<()>;

    /// Unmounts and mounts again, on the same device.
    fn remount(self) -> Result<Self, String>;

    /// Unmounts.
    fn shutdown(&self) -> Result<(), String>;

    /// After `n` more writes the process hangs: later ones stay in flight.
    fn stall_after(&self, n: u64);

    /// The process hangs.
    fn is_stalled(&self) -> bool;

    /// The process is killed, and another one mounts the same device. `exclusive`: it holds the lock
    /// that proves that the old one's writes have landed; else they may land later.
    fn take_over(self, exclusive: bool) -> Result<Self, String>;

    /// Lets up to `n` writes of a killed process land; how many did.
    fn land_late(&self, n: usize) -> usize;

    /// What a power cut after `cut` events could have left; the choice follows from `seed`.
    fn power_cut(&self, cut: u64, seed: u64) -> Self::Medium;

    /// What is on the medium now.
    fn current(&self) -> Self::Medium;

    /// Sequence numbers that are interesting to cut at (around flushes).
    fn interesting_cuts(&self) -> Vec<u64>;

    /// Sequence numbers of the checkpoints, from the first event to behind the last.
    fn checkpoints(&self) -> Vec<std::ops::Range<u64>>;

    /// Problems that fsck finds on the medium.
    fn fsck(medium: &Self::Medium) -> Result<Vec<String>, String>;

    /// Adds what happened inside to the run's coverage.
    fn cover(&self, coverage: &mut crate::crash::Coverage);
}
