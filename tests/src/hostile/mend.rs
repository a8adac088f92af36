//! Repair of damaged images: afterwards all is well, and what is not named as damaged is what it was.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};
use fs_core::fsck::{CheckOptions, check};
use fs_core::repair::{Class, RepairOptions, RepairReport, plan};

use super::probe::{Content, Entry, guarded, read_all};
use crate::clock::Clock;

/// What became of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mended {
    /// It was made, and all is well.
    Repaired,
    /// It could not be made, and nothing was written.
    Refused(String),
}

/// Repairs a copy of the image and looks at the result. With `want`, every file that the repair does not
/// name, and that is not among `touched`, must be as it was there, unless acknowledged changes are named as lost. Whether it could
/// be repaired. `Err`: a panic, a volume that is still wrong, or a file that is not what it was.
pub fn mend(image: &RamDevice, want: Option<&Content>, touched: &HashSet<u64>) -> Result<Mended, String> {
    let device = image.snapshot();
    let report = match guarded("a repair", || Ok(repair(&device)))? {
        Ok(report) => report,
        Err(why) => return Ok(Mended::Refused(why)),
    };
    let shared: Arc<dyn BlockDevice> = Arc::new(device.clone());
    let options = CheckOptions { data: true, ..CheckOptions::default() };
    let checked = guarded("the fsck after a repair", || check(&shared, &options).map_err(|e| e.to_string()))?;
    if !checked.is_clean() {
        return Err(format!("after a repair fsck finds {:?}", checked.problems));
    }
    let content = guarded("reading after a repair", || read_all(&device).map_err(|e| e.to_string()))?;
    if content.errors > 0 {
        return Err("after a repair there are errors".into());
    }
    match want {
        Some(want) if report.lost_records.is_none() && report.more_damaged == 0 => {
            compare(&content, want, touched, &report)
        }
        _ => Ok(()),
    }
    .map(|()| Mended::Repaired)
}

/// `Err`: it cannot be repaired, and nothing was written.
fn repair(device: &RamDevice) -> Result<RepairReport, String> {
    let shared: Arc<dyn BlockDevice> = Arc::new(device.clone());
    let options = RepairOptions { data: true, progress: None };
    let plan = plan(&shared, &options, &Clock::new(9)).map_err(|e| e.to_string())?;
    let report = plan.report().clone();
    plan.execute(device).map_err(|e| format!("{e}: {}", crate::repair::brief(&report)))?;
    Ok(report)
}

/// Files and links by inode.
fn by_inode(content: &Content) -> BTreeMap<u64, &Entry> {
    content.entries.values().flatten().map(|e| (e.ino.0, e)).collect()
}

fn compare(
    content: &Content,
    want: &Content,
    touched: &HashSet<u64>,
    report: &RepairReport,
) -> Result<(), String> {
    let named: HashSet<u64> = report.damaged.iter().map(|d| d.ino).chain(touched.iter().copied()).collect();
    let got = by_inode(content);
    // An inode and its only name can be in the same node: then nothing is left that could name it.
    let nodes_lost = report.classes().contains_key(&Class::Tree);
    for (ino, want) in by_inode(want).into_iter().filter(|(ino, _)| !named.contains(ino)) {
        let Some(got) = got.get(&ino) else {
            if nodes_lost {
                continue;
            }
            return Err(format!("inode {ino} is gone and not named as lost: {report:?}"));
        };
        let kind = |e: &Entry| e.attr.as_ref().ok().map(|a| (a.0, a.1, a.3, a.4, a.5));
        if kind(got) != kind(want) || got.target != want.target || got.data != want.data {
            return Err(format!("inode {ino} is not what it was, and not named as damaged"));
        }
    }
    Ok(())
}
