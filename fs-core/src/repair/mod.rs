//! Repairing a volume.
//!
//! The repair is made on a [shadow](shadow) of the device, checked there, and only then written: copy
//! on write, into blocks that neither the volume nor anything that a later repair could want uses;
//! then a flush, and then the root of a new epoch. So an interrupted repair has changed nothing.
//!
//! 1. [State](state): the root that leads to the least loss, and the journal behind it.
//! 2. [Salvage](salvage): lost nodes are rebuilt, or their items come from the root before, or from
//!    what lies about on the volume.
//! 3. [Gather](gather), [decide](decide), [fix](fix): what does not agree is made to agree.
//! 4. [Write](write): a checkpoint of a new epoch, with an empty journal.
//!
//! Memory: some 150 bytes for each inode; a bit for each block in use, four times (128 MiB a TiB);
//! the new and changed nodes. If a root is lost and nothing proves what it was, that is all metadata
//! (about 1.2 GiB a TiB of randomly written data).

mod decide;
mod fix;
mod gather;
mod replay;
mod report;
mod salvage;
mod scan;
mod shadow;
mod space;
mod state;
#[cfg(test)]
mod tests;
mod walk;
mod write;
mod xattrs;

use std::sync::Arc;

use blockdev::{AlignedBuf, BlockDevice, IoClass, Request};

pub use report::{Action, Class, Damaged, MAX_LISTED, RepairReport};

use crate::env::Env;
use crate::error::{FsError, Result};
use crate::format::Superblock;
use crate::fsck::{BlockSet, CheckOptions, check_and_name, misplaced_slots, read_copy};
use crate::types::{BlockNr, BlockRun, Epoch, Ino, NODE_BLOCKS};
use crate::volume::{Draining, check_all, read_superblock};
use fix::{Fix, Moment};
use gather::Gather;
use report::Log;
use shadow::Shadow;
use space::FreeSpace;
use state::{Damage, State};
use write::Totals;

/// Blocks written in one request at most, and requests in flight.
const WRITE_BLOCKS: usize = 64;
const IN_FLIGHT: usize = 32;

/// Told what is being done, how far it is, and how far it will go.
pub type ProgressFn<'a> = dyn Fn(&str, u64, u64) + 'a;

/// What to repair, and how.
#[derive(Clone, Copy, Default)]
pub struct RepairOptions<'a> {
    /// Verify all data, and look at all blocks for roots newer than the one that counts. If metadata
    /// is lost, this is done anyway.
    pub data: bool,
    /// Told now and then how far it is.
    pub progress: Option<&'a ProgressFn<'a>>,
}

impl std::fmt::Debug for RepairOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RepairOptions").field("data", &self.data).finish_non_exhaustive()
    }
}

struct Progress<'a>(Option<&'a ProgressFn<'a>>);

impl Progress<'_> {
    fn show(&self, what: &str, done: u64, of: u64) {
        if let Some(show) = self.0 {
            show(what, done, of);
        }
    }
}

/// A repair that is ready to be written.
#[derive(Debug)]
pub struct Plan {
    report: RepairReport,
    /// What is not the root, in the order of the blocks.
    blocks: Vec<(BlockNr, AlignedBuf)>,
    /// The root's two slots, in the order in which they are written.
    slots: Vec<(BlockNr, AlignedBuf)>,
    /// What follows when the new root is there: superblocks, and root slots that have no business where they are.
    rest: Vec<(BlockNr, AlignedBuf)>,
}

/// Works out how to repair the volume on `device`, and checks that the result would be good. Reads
/// only; blocks for as long as reading all metadata (and, if metadata is lost, all data) takes.
///
/// Fails if there is no superblock to begin with, or not enough free space; with
/// [`FsError::Unreadable`] if the device fails any read, even if it does not a moment later: a repair
/// would give up what is there.
pub fn plan(device: &Arc<dyn BlockDevice>, options: &RepairOptions<'_>, env: &dyn Env) -> Result<Plan> {
    let shadow = Arc::new(Shadow::new(device.clone()));
    let plan = plan_on(&shadow, options, env);
    // Nothing counts that a failed read has led to, not even an error.
    shadow.refuse_unreadable()?;
    plan
}

fn plan_on(shadow: &Arc<Shadow>, options: &RepairOptions<'_>, env: &dyn Env) -> Result<Plan> {
    let (sb, _) = read_superblock(shadow.as_ref())?;
    let progress = Progress(options.progress);
    let view: Arc<dyn BlockDevice> = shadow.clone();
    let mut log = Log::default();
    let state = state::find(shadow, &sb, options.data, &progress, &mut log)?;
    let total_blocks = state.recovered.slot.total_blocks;
    let mut rest = bad_superblocks(shadow.as_ref(), &sb, total_blocks, &mut log);
    shadow.refuse_unreadable()?;
    let slots = rebuild(&view, &sb, &state, options, env, &progress, &mut log)?;
    let misplaced = empty_misplaced(view.as_ref(), &sb, &mut log)?;
    shadow.refuse_unreadable()?;
    progress.show("checking the repaired volume", 0, 1);
    let inodes: Vec<Ino> = log.inodes().into_iter().map(Ino).collect();
    let (checked, names) = check_and_name(&view, &CheckOptions::default(), &inodes)?;
    let mut report = log.finish(&|ino| names.path(Ino(ino)));
    report.unsolved = checked.problems;
    let rebuilt =
        |at: &BlockNr| state.rebuilt.iter().any(|n| (n.0..n.0 + u64::from(NODE_BLOCKS)).contains(&at.0));
    let written = shadow.take().into_iter().filter(|(at, _)| !rebuilt(at));
    let (emptied, written): (Vec<_>, Vec<_>) = written.partition(|(at, _)| misplaced.contains(at));
    rest.extend(emptied);
    let (slots, blocks): (Vec<_>, Vec<_>) = written.into_iter().partition(|(at, _)| slots.contains(at));
    report.bytes = (blocks.len() + slots.len() + rest.len()) as u64 * crate::BLOCK_SIZE as u64;
    Ok(Plan { report, blocks, slots, rest })
}

/// The device has nodes or records of an epoch later than that of the root that counts: the root of
/// that epoch is lost. Reads the whole device. Fails as [`plan`] does if the device fails a read.
pub fn has_newer_state(device: &Arc<dyn BlockDevice>, progress: Option<&ProgressFn<'_>>) -> Result<bool> {
    let shadow = Arc::new(Shadow::new(device.clone()));
    let newer = read_superblock(shadow.as_ref())
        .and_then(|(sb, _)| state::has_newer(&shadow, &sb, &Progress(progress)));
    shadow.refuse_unreadable()?;
    newer
}

impl Plan {
    /// What it does, and what cannot be saved.
    pub fn report(&self) -> &RepairReport {
        &self.report
    }

    /// Hands over the report.
    pub fn into_report(self) -> RepairReport {
        self.report
    }

    /// Everything would be right afterwards.
    pub fn is_good(&self) -> bool {
        self.report.unsolved.is_empty()
    }

    /// Writes it. A power cut before the end leaves the volume as it was, or repaired. Refused if
    /// something would still be wrong. The device must not have changed since the plan was made.
    pub fn execute(self, device: &dyn BlockDevice) -> Result<()> {
        if !self.is_good() {
            return Err(FsError::Volume(
                "the repair would not make the volume whole; nothing is written".into(),
            ));
        }
        write_all(device, self.blocks)?;
        device.flush()?;
        // One after the other: one of them is whole at any time (rule R2).
        for (at, buf) in self.slots {
            device.write_at(at.offset(), buf, false, IoClass::Log)?;
            device.flush()?;
        }
        for (at, buf) in self.rest {
            device.write_at(at.offset(), buf, false, IoClass::Log)?;
        }
        device.flush()?;
        Ok(())
    }
}

fn write_all(device: &dyn BlockDevice, blocks: Vec<(BlockNr, AlignedBuf)>) -> Result<()> {
    let mut requests: Vec<(u64, Vec<AlignedBuf>)> = Vec::new();
    let mut next = None;
    for (at, buf) in blocks {
        match requests.last_mut() {
            Some((_, bufs)) if next == Some(at) && bufs.len() < WRITE_BLOCKS => bufs.push(buf),
            _ => requests.push((at.offset(), vec![buf])),
        }
        next = Some(at.plus(1));
    }
    let mut requests = requests.into_iter().peekable();
    while requests.peek().is_some() {
        let some = requests.by_ref().take(IN_FLIGHT);
        let some = some.map(|(at, bufs)| Request::write(at, bufs, false, IoClass::Background)).collect();
        check_all(device.execute_all(some))?;
    }
    Ok(())
}

/// Copies of the superblock that are damaged, with what belongs there.
fn bad_superblocks(
    device: &dyn BlockDevice,
    sb: &Superblock,
    total_blocks: u64,
    log: &mut Log,
) -> Vec<(BlockNr, AlignedBuf)> {
    let mut bad = Vec::new();
    for copy in sb.copies_at(total_blocks) {
        if !matches!(read_copy(device, copy), Ok(other) if other == *sb) {
            log.act(Class::Superblock, None, || format!("the copy at block {copy} is written again"));
            bad.push((copy, sb.encode(copy)));
        }
    }
    bad
}

/// Empties, on the shadow, valid root slots in places where no epoch writes them: the new root leads to all that they
/// could. Gives their blocks.
fn empty_misplaced(view: &dyn BlockDevice, sb: &Superblock, log: &mut Log) -> Result<Vec<BlockNr>> {
    let misplaced = misplaced_slots(view, sb)?;
    for at in &misplaced {
        log.act(Class::Root, None, || {
            format!("the root slot at block {at} does not belong there; it is emptied")
        });
        view.write_at(at.offset(), AlignedBuf::zeroed(crate::BLOCK_SIZE), false, IoClass::Log)?;
    }
    Ok(misplaced)
}

/// Makes the repaired volume on the shadow. Gives the places of its root.
fn rebuild(
    view: &Arc<dyn BlockDevice>,
    sb: &Superblock,
    state: &State,
    options: &RepairOptions<'_>,
    env: &dyn Env,
    progress: &Progress<'_>,
    log: &mut Log,
) -> Result<[BlockNr; 2]> {
    let recovered = &state.recovered;
    let total_blocks = recovered.slot.total_blocks;
    let data = options.data || state.is_lossy;
    let gather = Gather::new(view.as_ref(), sb, total_blocks, &recovered.patches, data, progress);
    let mut facility = gather.run(&state.source, &recovered.delta, &recovered.pending, &state.kept);
    let page_blocks = sb.page_size.blocks();
    if facility.conflicts.len() > 0 {
        let claims = gather::claims(&state.source, &recovered.delta, page_blocks, &facility.conflicts);
        for claim in gather::losers(view, claims, &facility.nodes) {
            facility.bad_pages.insert((claim.ino, claim.page), "its blocks belong to something else");
        }
    }
    let mut space = FreeSpace::new(sb, total_blocks, untouchable(view.as_ref(), &facility, state));
    let totals =
        Totals { epoch: state.next_epoch, lsn: state.next_lsn, next_ino: Ino(0), inodes: 0, total_blocks };
    let moved = write::write_home(view, sb, &mut facility, &recovered.patches, totals.lsn, &mut space, log)?;
    name_bad_pages(sb, &facility, log);
    let decisions = decide::decide(&facility, recovered.next_ino, &state.loss, log);
    for ino in facility.orphans.keys().filter(|i| !decisions.gone.contains(i)) {
        log.act(Class::Orphans, Some(ino.0), || "it is taken off the list of orphans".into());
    }
    let at = Moment { now: env.now(), lsn: totals.lsn };
    let fix = Fix::new(sb, &facility, &decisions, &state.loss, moved, at, log);
    let fixed = fix.run(&state.source, &recovered.delta);
    if decisions.inodes != recovered.inodes {
        log.act(Class::Counters, None, || {
            format!("the number of inodes {} becomes {}", recovered.inodes, decisions.inodes)
        });
    }
    let totals = Totals { next_ino: decisions.next_ino, inodes: decisions.inodes, ..totals };
    let target = write::Target { device: view, sb, totals, draining: draining(view.as_ref(), state) };
    write::write_state(target, &state.source, &state.rewrite, fixed, &facility, &mut space, log)
}

/// Blocks that must not be written: all that the volume uses, and all that another attempt at
/// repairing it could use.
fn untouchable(device: &dyn BlockDevice, facility: &gather::Facility, state: &State) -> BlockSet {
    let mut set = BlockSet::default();
    let mut add = |run: BlockRun| set.add(run);
    facility.used.for_each(&mut add);
    facility.nodes.for_each(&mut add);
    state.kept.iter().chain(&state.wanted).copied().for_each(&mut add);
    // Where epochs before may still be writing (rule R2).
    let len = state.recovered.superblock.group_blocks;
    for group in draining(device, state).groups() {
        add(BlockRun::new(BlockNr(group.0 * u64::from(len)), len));
    }
    set
}

fn draining(device: &dyn BlockDevice, state: &State) -> Draining {
    Draining::new(&state.recovered, device.capabilities().exclusive)
}

fn name_bad_pages(sb: &Superblock, facility: &gather::Facility, log: &mut Log) {
    let bytes = sb.page_size.bytes() as u64;
    for (&(ino, page), why) in &facility.bad_pages {
        let at = sb.page_size.start_of(page);
        log.act(Class::Data, Some(ino.0), || format!("the page at offset {at} becomes a hole: {why}"));
        log.hole(ino.0, at, bytes);
    }
}

/// The epoch that a repair writes: later than all that was seen, and not before a row that would look
/// like that of an epoch whose roots were lost. If there is one, its own row has no damage: a slot that the
/// repair leaves torn beside it would look like that, too, and no ticket says that nothing was served.
fn epoch_after(seen: Epoch, sb: &Superblock, damage: &Damage) -> Epoch {
    let rows = u64::from(sb.slot_rows);
    let first = seen.0 + 1;
    let fits = |e: &u64| !damage.looks_lost((e + 1) % rows);
    let mut epochs = (first..first + rows).filter(fits);
    let any = epochs.clone().next().unwrap_or(first);
    Epoch(epochs.find(|e| !damage.is_at(e % rows)).unwrap_or(any))
}
