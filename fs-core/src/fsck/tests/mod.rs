//! The check finds what is wrong, and nothing else.

mod clean;
mod damage;
mod problems;
pub(crate) mod rig;
mod structures;
mod workload;

use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};

use super::{CheckOptions, Report, check};
use crate::env::SystemEnv;
use crate::format::Superblock;
use crate::types::PageSize;
use crate::volume::{FormatOptions, MountOptions, Volume};

/// A new volume of `mib` MiB in memory.
fn new_volume(mib: u64, page_size: u32) -> Arc<dyn BlockDevice> {
    let device: Arc<dyn BlockDevice> = Arc::new(RamDevice::new(mib << 20, 512));
    let page_size = PageSize::new(page_size).unwrap();
    let options = FormatOptions { page_size, label: "test".into(), ..FormatOptions::default() };
    Volume::format(device.as_ref(), &options, &SystemEnv).unwrap();
    device
}

/// The superblock of a volume of 64 MiB.
pub(crate) fn superblock() -> Superblock {
    crate::volume::read_superblock(new_volume(64, 16384).as_ref()).unwrap().0
}

fn mount(device: &Arc<dyn BlockDevice>) -> Arc<Volume> {
    let options = MountOptions { cache_bytes: 4 << 20, ..MountOptions::default() };
    Volume::mount(device.clone(), options, Arc::new(SystemEnv)).unwrap()
}

/// A whole check, data included.
fn full_check(device: &Arc<dyn BlockDevice>) -> Report {
    check(device, &CheckOptions { data: true, progress: None }).unwrap()
}

fn assert_clean(device: &Arc<dyn BlockDevice>, when: &str) -> Report {
    let report = full_check(device);
    let texts: Vec<String> = report.problems.iter().map(|p| format!("{:?}: {p}", p.kind)).collect();
    assert!(report.is_clean(), "{when}: {texts:#?}");
    report
}
