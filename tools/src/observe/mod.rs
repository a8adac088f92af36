//! Looking at a running volume: what the control socket, the metrics and their clients have in common.

pub mod gather;
pub mod http;
pub mod metered;
pub mod metrics;

use std::path::PathBuf;
use std::sync::Arc;

use fs_core::Volume;

use metered::DeviceStats;

/// A volume that this process has mounted, and its device.
#[derive(Debug)]
pub struct Observed {
    /// The volume.
    pub volume: Arc<Volume>,
    /// What its device has been asked for.
    pub device: Arc<DeviceStats>,
    /// Where the volume lives.
    pub path: PathBuf,
    /// Where it is mounted.
    pub dir: PathBuf,
}
