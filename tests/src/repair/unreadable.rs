//! A device that fails reads: what is there must not be taken for lost. The repair refuses, writes
//! nothing, and everything is there when the device reads again.

use std::sync::Arc;

use blockdev::sim::{Effect, Fault, OpKind, SimDevice};
use blockdev::{BlockDevice, ErrorKind};
use fs_core::env::SystemEnv;
use fs_core::fsck::{CheckOptions, Report, check};
use fs_core::repair::{RepairOptions, RepairReport, has_newer_state, plan};
use fs_core::{BLOCK_SIZE, BlockNr, FsError};

use super::damage::{Map, map_of};
use super::{Damage, aged, brief, examine, run_damaged};
use crate::rng::Rng;

/// All reads that touch the block fail.
fn bad_sector(device: &SimDevice, at: BlockNr) {
    let range = at.offset()..at.offset() + BLOCK_SIZE as u64;
    device.inject(Fault::new(Effect::eio()).on(OpKind::Read).within(range).forever());
}

/// One of each kind of block that a repair goes by, by name.
fn places(map: &Map) -> Vec<(String, BlockNr)> {
    let mut places: Vec<(String, BlockNr)> = Vec::new();
    for level in 0..3 {
        let mut of_level = map.nodes.iter().filter(|(l, _)| *l == level).map(|(_, at)| *at);
        let first = of_level.next().expect("three levels");
        places.push((format!("first block of a node of level {level}"), first));
        places.push((
            format!("third block of a node of level {level}"),
            of_level.next_back().unwrap_or(first).plus(2),
        ));
    }
    places.extend(map.superblocks.iter().map(|at| (format!("superblock at {at}"), *at)));
    let mut one = |what: &str, at: BlockNr| places.push((what.to_owned(), at));
    one("newest root slot", map.slots[0]);
    one("other root slot", map.slots[1]);
    one("ticket", map.ticket);
    one("journal", map.journal[0]);
    one("journal, further on", map.journal[7]);
    one("pending list", map.pending[0]);
    one("bitmap node", map.bitmaps[0]);
    one("data", map.data[map.data.len() / 2]);
    places
}

/// A repair of a good volume with a bad sector in each kind of place, and one that comes and goes.
pub fn unreadable_places() -> Vec<Result<(), String>> {
    let map = map_of(aged());
    let mut outcomes: Vec<_> =
        places(map).into_iter().map(|(what, at)| place(at).map_err(|e| format!("{what}: {e}"))).collect();
    outcomes.push(transient());
    outcomes.push(still_there());
    outcomes
}

fn place(at: BlockNr) -> Result<(), String> {
    let device = aged().image.clone().into_sim(1);
    bad_sector(&device, at);
    let report = checked(&device)?;
    if report.read_errors == 0 {
        return Err(format!("the check says {:#?}", report.problems));
    }
    if let Some(p) = report.problems.iter().find(|p| !format!("{:?}", p.kind).starts_with("Device")) {
        return Err(format!("the check takes it for damage: {:?} {p}", p.kind));
    }
    refused(&device, Some(at))
}

/// Whatever could not be read is there when the device reads again: nothing was written meanwhile.
fn still_there() -> Result<(), String> {
    let device = aged().image.clone().into_sim(1);
    let before = device.seq();
    for (_, at) in places(map_of(aged())).into_iter().step_by(5) {
        bad_sector(&device, at);
        refused(&device, Some(at))?;
        device.clear_faults();
    }
    if device.seq() != before {
        return Err("something was written".into());
    }
    let view: Arc<dyn BlockDevice> = Arc::new(device.clone());
    if !checked(&device)?.is_clean() || has_newer_state(&view, None).map_err(|e| e.to_string())? {
        return Err("not clean when the device reads again".into());
    }
    let compared = examine(aged(), device.current().into_ram(), &RepairReport::default())?;
    if compared == aged().files.len() { Ok(()) } else { Err(format!("only {compared} files are right")) }
}

/// Whichever read fails, once: the next try succeeds, and the repair is refused all the same.
fn transient() -> Result<(), String> {
    let device = aged().image.clone().into_sim(1);
    let before = device.counters().reads;
    planned(&device).map_err(|e| format!("no plan of a good volume: {e}"))?;
    let reads = device.counters().reads - before;
    let mut rng = Rng::new(3);
    let some = (0..6).map(|_| rng.below(reads)).chain([0, 1, reads - 1]);
    for n in some {
        device.inject(Fault::new(Effect::eio()).on(OpKind::Read).after(n));
        refused(&device, None).map_err(|e| format!("read {n} of {reads} fails once: {e}"))?;
        device.clear_faults();
    }
    // A place beyond the end is damage, not a device that fails.
    let outside = Effect::Fail { kind: ErrorKind::Misaligned, leaves: blockdev::sim::Leaves::Old };
    let (_, node) = map_of(aged()).nodes[0];
    let range = node.offset()..node.offset() + 1;
    device.inject(Fault::new(outside).on(OpKind::Read).within(range).forever());
    match planned(&device) {
        Ok(report) if !report.actions.is_empty() => Ok(()),
        other => Err(format!("what is outside of the device: {other:?}")),
    }
}

/// As [`run`](super::run), with a device that fails reads at first.
pub fn run_unreadable(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let device = aged().image.clone().into_sim(seed);
    let damage = Damage::choose(aged(), &mut rng);
    damage.apply(&device);
    let at = rng.pick(&places(map_of(aged()))).clone();
    bad_sector(&device, at.1);
    let mut all = || {
        checked(&device)?;
        refused(&device, Some(at.1))?;
        device.clear_faults();
        run_damaged(aged(), device.clone(), seed, &mut rng)
    };
    all().map(drop).map_err(|e| format!("seed {seed}: {damage:?}, {} unreadable: {e}", at.0))
}

fn checked(device: &SimDevice) -> Result<Report, String> {
    let view: Arc<dyn BlockDevice> = Arc::new(device.clone());
    check(&view, &CheckOptions { data: true, progress: None }).map_err(|e| format!("no check: {e}"))
}

fn planned(device: &SimDevice) -> Result<RepairReport, FsError> {
    let view: Arc<dyn BlockDevice> = Arc::new(device.clone());
    plan(&view, &RepairOptions { data: true, progress: None }, &SystemEnv).map(|p| p.into_report())
}

/// The repair is refused, names the block, and nothing is written.
fn refused(device: &SimDevice, at: Option<BlockNr>) -> Result<(), String> {
    let before = device.seq();
    let error = match planned(device) {
        Ok(report) => return Err(format!("a repair is planned: {}", brief(&report))),
        Err(error) => error,
    };
    let FsError::Unreadable { blocks, .. } = &error else { return Err(format!("not refused, but: {error}")) };
    if at.is_some_and(|at| !blocks.iter().any(|run| (run.start.0..run.end().0).contains(&at.0))) {
        return Err(format!("block {at:?} is not named: {error}"));
    }
    if device.seq() != before {
        return Err("something was written".into());
    }
    let text = error.to_string();
    let offset = blocks[0].start.offset().to_string();
    if !text.contains("ddrescue") || !text.contains(&format!("bytes {offset} to")) {
        return Err(format!("it says: {text}"));
    }
    Ok(())
}
