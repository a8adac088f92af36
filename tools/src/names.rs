//! The names of files that are known by number.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Looks for a path of each inode in `wanted` on the mount at `dir`, in at most `most` entries of
/// directories. A directory that cannot be read, or is gone, hides the names in it.
pub fn find(dir: &Path, wanted: &BTreeSet<u64>, most: usize) -> io::Result<BTreeMap<u64, PathBuf>> {
    let device = std::fs::metadata(dir)?.dev();
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    let mut left = most;
    while let Some(at) = open.pop().filter(|_| found.len() < wanted.len() && left > 0) {
        let Ok(entries) = std::fs::read_dir(&at) else { continue };
        for entry in entries.flatten().take(left) {
            left -= 1;
            if wanted.contains(&entry.ino()) {
                found.entry(entry.ino()).or_insert_with(|| entry.path());
            }
            let on_it = |e: &std::fs::DirEntry| e.metadata().is_ok_and(|m| m.dev() == device);
            if entry.file_type().is_ok_and(|t| t.is_dir()) && on_it(&entry) {
                open.push(entry.path());
            }
        }
    }
    Ok(found)
}
