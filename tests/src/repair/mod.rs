//! Repair under damage: an aged volume, seeded damage to its metadata, `fsck -y`, and a comparison of
//! every file that is not named as damaged with what had been written.
//!
//! A soak calls [`run`] with one seed after the other; a failure's text has the seed.

mod compare;
mod damage;
mod image;
mod unreadable;

use std::sync::{Arc, OnceLock};

use blockdev::sim::{CutOptions, SimDevice};
use blockdev::{BlockDevice, RamDevice};
use fs_core::env::SystemEnv;
use fs_core::fsck::{CheckOptions, check};
use fs_core::repair::{RepairOptions, RepairReport, plan};
use fs_core::{MountOptions, Volume};

pub use damage::Damage;
pub use image::Aged;
pub use unreadable::{run_unreadable, unreadable_places};

use crate::rng::Rng;

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Something was wrong and is repaired.
    pub repaired: bool,
    /// Files that the repair has named as not being what they were.
    pub named: usize,
    /// Acknowledged records of the journal were lost.
    pub journal_cut: bool,
    /// Files that were compared and are what they were.
    pub compared: usize,
    /// Power cuts in the middle of the repair.
    pub cuts: u32,
    /// Only claim tickets were damaged or forged.
    pub tickets_only: bool,
}

/// The volume that all runs start with.
fn aged() -> &'static Aged {
    static AGED: OnceLock<Aged> = OnceLock::new();
    AGED.get_or_init(Aged::make)
}

/// Damages a copy of the aged volume as `seed` says, repairs it, and checks everything.
pub fn run(seed: u64) -> Result<Outcome, String> {
    let aged = aged();
    let mut rng = Rng::new(seed);
    let device = aged.image.clone().into_sim(seed);
    let damage = Damage::choose(aged, &mut rng);
    damage.apply(&device);
    let outcome = run_damaged(aged, device, seed, &mut rng).and_then(|mut outcome| {
        outcome.tickets_only = damage.is_tickets_only();
        let lossless = outcome.named == 0 && !outcome.journal_cut && outcome.compared == aged.files.len();
        if outcome.tickets_only && !lossless {
            return Err(format!("no ticket holds any file, but: {outcome:?} of {}", aged.files.len()));
        }
        Ok(outcome)
    });
    outcome.map_err(|e| format!("seed {seed}: {damage:?}: {e}"))
}

/// Repairs a damaged copy of the aged volume, and checks everything.
fn run_damaged(aged: &Aged, device: SimDevice, seed: u64, rng: &mut Rng) -> Result<Outcome, String> {
    let before = Before { mounts: mounts(device.current().into_ram()), events: device.seq() };
    let report = repair(Arc::new(device.clone()))?;
    let mut outcome = Outcome {
        repaired: !report.actions.is_empty(),
        named: report.damaged.len(),
        journal_cut: report.lost_records.is_some(),
        ..Outcome::default()
    };
    let repaired = device.current();
    outcome.compared = examine(aged, repaired.into_ram(), &report)?;
    for _ in 0..if rng.one_in(4) { 2 } else { 0 } {
        outcome.cuts += 1;
        interrupt(aged, &device, before, (outcome.compared, &report), seed, rng)?;
    }
    Ok(outcome)
}

/// The volume before its repair.
#[derive(Clone, Copy)]
struct Before {
    /// It can be mounted as it is.
    mounts: bool,
    /// Events of the device up to then.
    events: u64,
}

fn mounts(ram: RamDevice) -> bool {
    let options = MountOptions { cache_bytes: 8 << 20, read_only: true, ..MountOptions::default() };
    Volume::mount(Arc::new(ram), options, Arc::new(SystemEnv)).is_ok()
}

/// Cuts the power in the middle of the repair; what is left can be mounted if it could before, and be repaired as well as
/// before.
fn interrupt(
    aged: &Aged,
    device: &SimDevice,
    before: Before,
    without: (usize, &RepairReport),
    seed: u64,
    rng: &mut Rng,
) -> Result<(), String> {
    // Half of them among the last few writes, which are those of the root's slots.
    let events = device.seq();
    let last = if rng.one_in(2) { 8 } else { events - before.events };
    let cut = events - rng.below(last.min(events - before.events) + 1);
    let options = CutOptions::seeded(rng.next_u64());
    let image = device.image_at(cut, &options);
    let at = |e: String| format!("cut at {cut} of {}..{events}: {e}", before.events);
    if before.mounts && !mounts(image.clone().into_ram()) {
        return Err(at("it cannot be mounted any more".into()));
    }
    let again: SimDevice = image.into_sim(seed);
    let mut report = repair(Arc::new(again.clone())).map_err(at)?;
    // If the power went at the end, the first one has done and said everything.
    report.damaged.extend(without.1.damaged.iter().cloned());
    report.lost_records = report.lost_records.or(without.1.lost_records);
    let compared = examine(aged, again.current().into_ram(), &report).map_err(at)?;
    // The damage itself is not there if the cut came before it.
    if compared < without.0 {
        return Err(at(format!("{compared} files are right, without it {}", without.0)));
    }
    Ok(())
}

/// Repairs whatever is wrong, as `fsck -y --data` does.
fn repair(device: Arc<dyn BlockDevice>) -> Result<RepairReport, String> {
    let options = RepairOptions { data: true, progress: None };
    let plan = plan(&device, &options, &SystemEnv).map_err(|e| format!("no plan: {e}"))?;
    if !plan.is_good() {
        return Err(format!("problems would be left: {}", brief(plan.report())));
    }
    let report = plan.report().clone();
    plan.execute(device.as_ref()).map_err(|e| format!("cannot write the repair: {e}"))?;
    Ok(report)
}

/// The volume is clean, can be mounted and written, and has what it should.
fn examine(aged: &Aged, ram: RamDevice, report: &RepairReport) -> Result<usize, String> {
    let device: Arc<dyn BlockDevice> = Arc::new(ram);
    clean(&device, "after the repair", report)?;
    let options = MountOptions { cache_bytes: 8 << 20, ..MountOptions::default() };
    let volume =
        Volume::mount(device.clone(), options, Arc::new(SystemEnv)).map_err(|e| format!("mount: {e}"))?;
    let compared = compare::compare(aged, volume.as_ref(), report)?;
    compare::write_something(volume.as_ref())?;
    volume.checkpoint().map_err(|e| format!("checkpoint: {e}"))?;
    volume.shutdown().map_err(|e| format!("shutdown: {e}"))?;
    drop(volume);
    clean(&device, "after it was mounted", report)?;
    Ok(compared)
}

fn clean(device: &Arc<dyn BlockDevice>, when: &str, repair: &RepairReport) -> Result<(), String> {
    let report = check(device, &CheckOptions { data: true, progress: None }).map_err(|e| e.to_string())?;
    if report.is_clean() {
        return Ok(());
    }
    let problems: Vec<String> = report.problems.iter().map(|p| format!("{:?}: {p}", p.kind)).collect();
    Err(format!("not clean {when}: {problems:#?}\n{}", brief(repair)))
}

/// The beginnings of a report's lists.
pub(crate) fn brief(report: &RepairReport) -> String {
    fn some<T: ToString>(items: &[T]) -> String {
        items.iter().take(12).map(|item| format!("  {}\n", item.to_string())).collect()
    }
    format!(
        "unsolved:\n{}actions:\n{}damaged:\n{}",
        some(&report.unsolved),
        some(&report.actions),
        some(&report.damaged)
    )
}
