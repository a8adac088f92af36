//! What is on a repaired volume, against what was written.

use std::collections::{BTreeMap, BTreeSet};

use fs_core::api::{FileType, FsOps, IoFlags, Owner};
use fs_core::repair::RepairReport;
use fs_core::{FsError, Ino, Volume};

use super::image::{Aged, Content, File};

/// Where repairs put what has no name.
const LOST_FOUND: &str = "/lost+found";

/// Compares; gives the number of files that are what they were.
pub(super) fn compare(aged: &Aged, volume: &Volume, report: &RepairReport) -> Result<usize, String> {
    let found = walk(volume)?;
    let lost_journal = report.lost_records.is_some();
    let is_excused = |ino: u64| report.names(ino) || (lost_journal && aged.recent.contains(&ino));
    let mut right = 0;
    for (&ino, file) in &aged.files {
        match is_right(volume, ino, file, found.get(&ino), report) {
            Ok(()) => right += 1,
            Err(_) if is_excused(ino) => {}
            Err(e) => return Err(format!("#{ino} {:?}: {e}\n{}", file.paths, super::brief(report))),
        }
    }
    for (ino, paths) in &found {
        let known = aged.files.contains_key(ino) || is_excused(*ino);
        let ours =
            paths.iter().all(|p| p.is_empty() || p.starts_with(LOST_FOUND) && p.matches('/').count() == 1);
        if !known && !ours {
            return Err(format!("#{ino} {paths:?} was never there\n{}", super::brief(report)));
        }
    }
    Ok(right)
}

fn is_right(
    volume: &Volume,
    ino: u64,
    file: &File,
    found: Option<&BTreeSet<String>>,
    report: &RepairReport,
) -> Result<(), String> {
    let Some(paths) = found else { return Err("it is gone".into()) };
    // Names may be missing or elsewhere if a directory above is named as damaged.
    if *paths != file.paths && !report.damaged.iter().any(|d| above(report, d.ino, file)) {
        return Err(format!("its names are {paths:?}"));
    }
    let attr = volume.getattr(Ino(ino)).map_err(|e| e.to_string())?;
    match &file.content {
        Content::Directory if attr.kind == FileType::Directory => Ok(()),
        Content::Link(target) if attr.kind == FileType::Symlink => {
            let is = volume.readlink(Ino(ino)).map_err(|e| e.to_string())?;
            if is == *target { Ok(()) } else { Err("its target is different".into()) }
        }
        Content::File(bytes) if attr.kind == FileType::Regular => {
            let is = content(volume, ino, attr.size)?;
            if is == *bytes { Ok(()) } else { Err(difference(&is, bytes)) }
        }
        _ => Err(format!("it is a {:?}", attr.kind)),
    }
}

fn difference(is: &[u8], was: &[u8]) -> String {
    let at = is.iter().zip(was).position(|(a, b)| a != b);
    format!("it has {} bytes, should have {}; first difference at {at:?}", is.len(), was.len())
}

/// A damaged inode whose names may be those of a directory above the file.
fn above(report: &RepairReport, ino: u64, file: &File) -> bool {
    let damaged = report.damaged.iter().find(|d| d.ino == ino);
    let Some(damaged) = damaged else { return false };
    match damaged.path.as_deref() {
        Some("/") => true,
        Some(path) if path.starts_with(LOST_FOUND) => true,
        Some(path) => file.paths.iter().any(|p| p.starts_with(path)),
        None => true,
    }
}

fn content(volume: &Volume, ino: u64, size: u64) -> Result<Vec<u8>, String> {
    let mut buf = vec![0; size as usize];
    volume.open(Ino(ino)).map_err(|e| e.to_string())?;
    let read = volume.read(Ino(ino), 0, &mut buf, IoFlags::default());
    volume.close(Ino(ino));
    let n = read.map_err(|e| e.to_string())?;
    buf.truncate(n);
    Ok(buf)
}

/// All paths of all inodes.
fn walk(volume: &Volume) -> Result<BTreeMap<u64, BTreeSet<String>>, String> {
    let mut found: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    found.entry(Ino::ROOT.0).or_default().insert(String::new());
    let mut open = vec![(Ino::ROOT, String::new())];
    while let Some((dir, path)) = open.pop() {
        let mut entries = Vec::new();
        let mut take = |e: &fs_core::api::DirEntry| {
            entries.push((e.ino, e.kind, String::from_utf8_lossy(&e.name).into_owned()));
            true
        };
        volume.readdir(dir, 0, &mut take).map_err(|e| format!("readdir {path}: {e}"))?;
        for (ino, kind, name) in entries.into_iter().filter(|(.., name)| name != "." && name != "..") {
            let path = format!("{path}/{name}");
            let at = volume.lookup(dir, name.as_bytes()).map_err(|e| format!("{path}: {e}"))?;
            if at.ino != ino || at.kind != kind {
                return Err(format!("{path} is {} {:?}, its entry says {ino} {kind:?}", at.ino, at.kind));
            }
            if kind == FileType::Directory {
                open.push((ino, path.clone()));
            }
            found.entry(ino.0).or_default().insert(path);
        }
    }
    Ok(found)
}

/// The volume takes changes.
pub(super) fn write_something(volume: &Volume) -> Result<(), String> {
    let owner = Owner { uid: 0, gid: 0, umask: 0 };
    let write = || {
        let ino = volume.create(Ino::ROOT, b"after the repair", 0o644, owner)?.ino;
        volume.write(ino, 0, &[9; 30_000], IoFlags::default())?;
        volume.fsync(ino, false)?;
        volume.close(ino);
        Ok(())
    };
    write().map_err(|e: FsError| format!("writing after the repair: {e}"))
}
