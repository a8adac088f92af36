//! Power cuts under PostgreSQL: what was acknowledged before the cut is there after it.
//!
//! The daemon runs on a recorder, which logs every write and flush. Ledger clients note the recorder's
//! sequence number around each commit. From the log, images are rebuilt that a power cut at a random
//! number could have left, with a random part of the unflushed writes lost or torn; each is checked,
//! mounted, recovered by PostgreSQL and compared with the ledger.

mod moments;
mod recording;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use blockdev::recorder::{Base, Log, Summary, rebuild};
use blockdev::sim::CutOptions;

use super::{Plan, Tally};
use crate::cargo;
use crate::pg::ledger::Found;
use crate::pg::{self, Install, Server, verify};
use crate::rng::Rng;
use crate::target::{Dbfs, DbfsOptions, Kind, Target, Volume};
use crate::workdir::WorkDir;
use moments::{Moment, Moments};
use recording::Recording;

/// Bytes of the volume: every image is a (sparse) copy.
const SIZE: u64 = 1 << 30;

/// How much is done.
#[derive(Clone, Copy, Debug)]
struct Amount {
    recordings: u64,
    cuts: u64,
    /// Of the cuts of one recording, how many fall into a checkpoint.
    in_checkpoint: u64,
}

/// In CI: 10 cuts, 4 of them in a checkpoint.
const SHORT: Amount = Amount { recordings: 2, cuts: 5, in_checkpoint: 2 };

/// In full: 40 cuts, 12 of them in a checkpoint.
const FULL: Amount = Amount { recordings: 4, cuts: 10, in_checkpoint: 3 };

/// What all cuts found.
#[derive(Debug, Default)]
struct Counts {
    cuts: u64,
    in_checkpoint: u64,
    acknowledged: u64,
    unacknowledged: u64,
    writes_lost: u64,
}

/// Records, cuts and verifies.
pub fn run(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    if plan.kind != Kind::Dbfs {
        bail!("only dbfs can run on a recorder");
    }
    let amount = if plan.full { FULL } else { SHORT };
    let program = cargo::build_dbfs(plan.profile)?;
    let install = pg::install::find()?;
    let mut rng = Rng::new(plan.seed);
    let mut counts = Counts::default();
    for number in 1..=amount.recordings {
        let recording = Recording::make(&program, &install, work, rng.next())
            .with_context(|| format!("recording {number} (seed {})", plan.seed))?;
        println!("     recording {number}: {recording}");
        let cutter = Cutter { program: &program, install: &install, work, recording: &recording };
        cutter.cut_all(amount, number, &mut rng, tally, &mut counts)?;
    }
    println!(
        "     {} cuts, {} of them in a checkpoint; {} writes lost; {} acknowledged commits, all there; {} more",
        counts.cuts, counts.in_checkpoint, counts.writes_lost, counts.acknowledged, counts.unacknowledged
    );
    Ok(())
}

/// Makes and judges the images of one recording.
struct Cutter<'a> {
    program: &'a PathBuf,
    install: &'a Install,
    work: &'a WorkDir,
    recording: &'a Recording,
}

impl Cutter<'_> {
    fn cut_all(
        &self,
        amount: Amount,
        number: u64,
        rng: &mut Rng,
        tally: &mut Tally,
        counts: &mut Counts,
    ) -> Result<()> {
        let log = Log::open(self.recording.log())?;
        let moments = Moments::read(&log, self.recording.started())?;
        for cut in 1..=amount.cuts {
            let wanted = cut <= amount.in_checkpoint;
            let moment = if wanted { moments.in_checkpoint(rng)? } else { moments.anywhere(rng) };
            let options = CutOptions::seeded(rng.next());
            let name = format!("power cut {number}.{cut} {moment}");
            let (summary, found) = tally.step(&name, || {
                self.judge(&log, &moment, &options).with_context(|| format!("{moment}, {options:?}"))
            })?;
            println!(
                "     {} unflushed writes lost, {} kept; {} acknowledged commits there, {} more",
                summary.dropped, summary.survived, found.acknowledged, found.unacknowledged
            );
            counts.cuts += 1;
            counts.in_checkpoint += u64::from(moment.in_checkpoint);
            counts.acknowledged += found.acknowledged;
            counts.unacknowledged += found.unacknowledged;
            counts.writes_lost += summary.dropped;
        }
        Ok(())
    }

    /// Rebuilds one image, and checks that nothing promised is missing in it.
    fn judge(&self, log: &Log, moment: &Moment, options: &CutOptions) -> Result<(Summary, Found)> {
        let image = self.work.join("cut.img");
        let base = Base::Image(self.recording.base().to_path_buf());
        let summary = rebuild(log, &base, moment.cut, options, &image).context("cannot rebuild the image")?;
        let dir = self.work.dir("mnt-cut", None)?;
        let volume = Volume::for_postgres(SIZE);
        let log = self.work.join("dbfs-cut.log");
        let mut target = Dbfs::new(DbfsOptions::new(self.program.clone(), image, dir, volume, log));
        target.check().context("fsck -n of the image")?;
        target.mount().context("the image does not mount")?;
        let mut server = Server::new(self.install, target.dir().join("data"), self.work)?;
        server.start().context("PostgreSQL does not start on the image")?;
        let found = self.recording.ledger().check_or_save(&server, moment.cut)?;
        verify::sums(&server)?;
        server.stop()?;
        target.unmount()?;
        target.check().context("fsck -n after recovery")?;
        Ok((summary, found))
    }
}
