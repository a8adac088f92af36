//! Repairing, once a check has found something.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use blockdev::BlockDevice;
use fs_core::env::SystemEnv;
use fs_core::fsck::{CheckOptions, Report, check};
use fs_core::repair::{Plan, RepairOptions, RepairReport, plan};

use super::meter::{self, Meter};
use super::{Args, CANCELLED, CORRECTED, ERRORS_LEFT};
use crate::signals::Signals;
use crate::{FSCK_FAILURE, output, size};

/// What may be repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Check,
    /// What cannot lose anything.
    Safe,
    /// Everything.
    All,
    /// What the user agrees to.
    Ask,
}

/// How far a repair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing is written.
    Before,
    /// It is being written: it is too late to cancel.
    Writing,
    /// It is written; what follows is a check.
    Written,
}

/// Whoever cancels holds it to the end, so that nothing is written any more.
static STAGE: Mutex<Stage> = Mutex::new(Stage::Before);

fn stage() -> MutexGuard<'static, Stage> {
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process with the exit code of fsck(8) when it is interrupted, except while the repair is
/// being written: that takes seconds, and nothing is gained by stopping it.
pub fn watch_interrupts() -> Result<()> {
    let signals = Signals::block_with(&[libc::SIGUSR1, libc::SIGUSR2]).context("cannot block signals")?;
    let watch = move || {
        loop {
            let signal = signals.wait();
            if let "SIGUSR1" | "SIGUSR2" = signal {
                meter::let_out(signal == "SIGUSR1");
                continue;
            }
            let stage = stage();
            let (what, code) = match *stage {
                Stage::Before => ("nothing was written", CANCELLED),
                Stage::Writing => {
                    output::say("\nthe repair is being written; it will be done in a moment");
                    continue;
                }
                Stage::Written => {
                    ("the repair was written; run it again to check that", CORRECTED | CANCELLED)
                }
            };
            output::say(&format!("\nfsck is cancelled by {signal}: {what}"));
            std::process::exit(code.into());
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).context("cannot start a thread")?;
    Ok(())
}

/// What is printed as JSON.
#[derive(serde::Serialize)]
struct Outcome<'a> {
    /// What was found at first.
    check: &'a Report,
    /// What is done about it.
    repair: &'a RepairReport,
    /// It was written.
    written: bool,
    /// What was found then.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<&'a Report>,
}

/// Repairs what `found` has found, as far as `mode` allows.
pub fn run(
    args: &Args,
    mode: Mode,
    device: &Arc<dyn BlockDevice>,
    found: &Report,
    meter: &Meter,
) -> Result<ExitCode> {
    let volume = args.volume.display();
    let show = |what: &str, done, of| meter.show(what, done, of);
    let options = RepairOptions { data: args.data, progress: Some(&show) };
    let planned = plan(device, &options, &SystemEnv);
    meter.clear();
    let planned = planned.with_context(|| format!("cannot repair {volume}; nothing is written"))?;
    let report = planned.report().clone();
    if !args.json {
        output::stream(|out| print(out, &report))?;
    }
    let agreed = planned.is_good() && agrees(mode, &report)?;
    let after = if agreed { Some(write(args, planned, device, meter)?) } else { None };
    if args.json {
        output::json(&Outcome { check: found, repair: &report, written: agreed, after: after.as_ref() })?;
    } else {
        output::stream(|out| print_end(out, args, &report, after.as_ref()))?;
    }
    Ok(ExitCode::from(match &after {
        Some(after) if after.is_clean() => CORRECTED,
        Some(after) if after.read_errors > 0 => FSCK_FAILURE,
        _ => ERRORS_LEFT,
    }))
}

fn write(args: &Args, planned: Plan, device: &Arc<dyn BlockDevice>, meter: &Meter) -> Result<Report> {
    let volume = args.volume.display();
    *stage() = Stage::Writing;
    let written = planned.execute(device.as_ref());
    *stage() = Stage::Written;
    written.with_context(|| format!("cannot write the repair of {volume}; run `dbfs fsck` again"))?;
    meter.show("checking again", 0, 0);
    let after = check(device, &CheckOptions { data: false, progress: None });
    meter.clear();
    after.with_context(|| format!("cannot check {volume} after the repair"))
}

/// The repair may be written. It is written as a whole or not at all.
fn agrees(mode: Mode, report: &RepairReport) -> Result<bool> {
    match mode {
        Mode::Check => Ok(false),
        Mode::All => Ok(true),
        Mode::Safe => Ok(report.classes().keys().all(|c| c.is_safe())),
        Mode::Ask => {
            for (class, n) in report.classes() {
                match ask(&format!("{} ({n} times)", class.question()))? {
                    Answer::Yes => {}
                    Answer::No => return Ok(false),
                    Answer::All => break,
                }
            }
            Ok(true)
        }
    }
}

/// What somebody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
    /// Yes to this and all that follows.
    All,
}

fn ask(question: &str) -> Result<Answer> {
    let mut out = io::stderr();
    loop {
        write!(out, "May I {question}? [y/n/a(ll)] ").context("cannot ask")?;
        out.flush().context("cannot ask")?;
        let mut answer = String::new();
        if io::stdin().lock().read_line(&mut answer).context("cannot read the answer")? == 0 {
            return Ok(Answer::No);
        }
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => return Ok(Answer::Yes),
            "n" | "no" => return Ok(Answer::No),
            "a" | "all" => return Ok(Answer::All),
            _ => {}
        }
    }
}

/// There is somebody to ask.
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

fn print(out: &mut dyn Write, report: &RepairReport) -> io::Result<()> {
    writeln!(out, "what a repair does:")?;
    for action in &report.actions {
        writeln!(out, "  {action}")?;
    }
    if report.more_actions > 0 {
        writeln!(out, "  and {} more", report.more_actions)?;
    }
    if let Some((first, last)) = report.lost_records {
        writeln!(
            out,
            "WARNING: records {first} to {last} of the journal cannot be read. Changes in them had been \
             acknowledged to programs and ARE LOST; files that are known to be concerned are named below"
        )?;
    }
    if !report.damaged.is_empty() {
        writeln!(out, "what cannot be saved as it was:")?;
    }
    for damaged in &report.damaged {
        writeln!(out, "  {damaged}")?;
    }
    if report.more_damaged > 0 {
        writeln!(out, "  and {} more files", report.more_damaged)?;
    }
    for problem in &report.unsolved {
        writeln!(out, "cannot be repaired: {problem}")?;
    }
    Ok(())
}

fn print_end(
    out: &mut dyn Write,
    args: &Args,
    report: &RepairReport,
    after: Option<&Report>,
) -> io::Result<()> {
    let volume = args.volume.display();
    match after {
        None => writeln!(out, "{volume}: NOT REPAIRED, nothing was written"),
        Some(after) if after.is_clean() => {
            let n = report.damaged.len() as u64 + report.more_damaged;
            let files =
                if n == 0 { "nothing is lost".into() } else { format!("{n} files are damaged or lost") };
            writeln!(out, "{volume}: repaired ({} written); {files}", size::show(report.bytes))
        }
        Some(after) => {
            for problem in &after.problems {
                writeln!(out, "{problem}")?;
            }
            writeln!(out, "{volume}: {} PROBLEMS are left", after.problem_count())
        }
    }
}
