//! `dbfs status`: how a mounted volume is doing.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::control::status::{Latency, Status, Timed};
use crate::mounts::DbfsMount;
use crate::{output, shown, size, span};

/// Show how a mounted volume is doing: space, cache, journal, latencies, errors.
///
/// Latencies are since the mount, by call and by stage of it, and by class of file: `log` for what is
/// written in sequence and synced again and again, `data` for pages that are overwritten here and there.
/// `dbfs top` shows them of the last seconds.
///
/// Exit codes: 0 shown, 1 not shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Where the volume is mounted, or the volume; may be left out if only one is mounted
    dir: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mount = client::find(args.dir.as_deref())?;
    let Response::Status(status) = client::ask_daemon(&mount, &Request::Status)?.next()? else {
        bail!("the daemon gave another answer than was asked for");
    };
    if args.json {
        output::json(&document(&status, &mount)?)?;
    } else {
        output::stream(|out| print(out, &status, &mount))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The status with exact names.
fn document(status: &Status, mount: &DbfsMount) -> Result<serde_json::Value> {
    let mut document = serde_json::to_value(status)?;
    if let Some(fields) = document.as_object_mut() {
        shown::put(fields, "volume", mount.volume.as_os_str().as_bytes());
        shown::put(fields, "mounted_on", mount.dir.as_os_str().as_bytes());
    }
    Ok(document)
}

fn print(out: &mut dyn Write, s: &Status, mount: &DbfsMount) -> io::Result<()> {
    let [volume, dir] = [&mount.volume, &mount.dir].map(|p| shown::quoted(p.as_os_str().as_bytes()));
    let up = span::clock(s.uptime_ns);
    writeln!(out, "{volume} on {dir}: dbfs {}, process {}, mounted for {up}", s.version, s.pid)?;
    for (name, text) in summary(s) {
        writeln!(out, "{name:<12} {text}")?;
    }
    writeln!(out)?;
    table(out, "Calls", &s.calls)?;
    writeln!(out)?;
    table(out, "Stages", &s.stages)?;
    writeln!(out)?;
    heading(out, "Device")?;
    for kind in s.device.requests.iter().filter(|k| k.latency.count > 0) {
        row(out, &kind.name, &kind.latency)?;
    }
    Ok(())
}

/// The lines of figures, each with its name.
pub fn summary(s: &Status) -> Vec<(&'static str, String)> {
    let label = if s.label.is_empty() {
        String::new()
    } else {
        format!(", label {}", shown::quoted(s.label.as_bytes()))
    };
    let state = match &s.failure {
        Some(why) => format!("STOPPED, read-only until it is mounted again: {}", shown::message(why)),
        None if s.read_only => "read-only".into(),
        None => "reads and writes".into(),
    };
    let used = s.space.size_bytes.saturating_sub(s.space.free_bytes);
    vec![
        ("Volume", format!("{}{label}, epoch {}, pages of {}", s.uuid, s.epoch, size::show(s.page_bytes))),
        ("State", state),
        (
            "Space",
            format!(
                "{} of {} used, {} available, {} inodes",
                size::show(used),
                size::show(s.space.size_bytes),
                size::show(s.space.available_bytes),
                s.space.inodes
            ),
        ),
        ("Cache", cache(s)),
        ("Journal", journal(s)),
        ("Checkpoints", checkpoints(s)),
        ("Device", device(s)),
        ("Errors", errors(s)),
    ]
}

fn cache(s: &Status) -> String {
    let c = &s.cache;
    let asked = c.hits + c.misses;
    let hits = if asked == 0 {
        "no reads yet".into()
    } else {
        format!("{:.1} % hits", c.hits as f64 * 100.0 / asked as f64)
    };
    format!(
        "{} of {}, {} dirty, {} on the device in the journal only, {hits}",
        size::show(c.resident_bytes),
        size::show(c.capacity_bytes),
        size::show(c.dirty_bytes),
        size::show(c.journal_only_bytes)
    )
}

fn journal(s: &Status) -> String {
    let j = &s.journal;
    let group = (j.commits + j.shared_commits) as f64 / j.commits.max(1) as f64;
    format!(
        "{} of {} in use, durable up to record {} ({} behind), {} commits, {group:.2} calls each",
        size::show(j.used_bytes),
        size::show(j.size_bytes),
        j.durable_lsn,
        j.applied_lsn.saturating_sub(j.durable_lsn),
        j.commits
    )
}

fn checkpoints(s: &Status) -> String {
    let c = &s.checkpoints;
    let mut text = format!(
        "{} completed, the tree has all up to record {}, {} of the journal since",
        c.completed,
        s.journal.checkpoint_lsn,
        size::show(s.journal.since_checkpoint_bytes)
    );
    if c.duration.count > 0 {
        text += &format!(
            "; took {} (p50), {} (max)",
            span::show(c.duration.p50_ns),
            span::show(c.duration.max_ns)
        );
    }
    if let Some(running) = c.running_ns {
        text += &format!("; one has been running for {}", span::show(running));
    }
    text
}

fn device(s: &Status) -> String {
    let d = &s.device;
    let cached = if d.direct { "past the host's cache" } else { "THROUGH THE HOST'S CACHE" };
    let volatile = if d.volatile_write_cache { "volatile" } else { "no volatile" };
    format!(
        "{}, sectors of {}, {cached}, {volatile} write cache, {} requests under way, {} of them waiting",
        size::show(d.size_bytes),
        size::show(d.sector_bytes),
        d.in_flight,
        d.waiting
    )
}

fn errors(s: &Status) -> String {
    let e = &s.errors;
    let all = [
        (e.checksum_errors, "pages did not match their checksum"),
        (e.files_with_lost_writes, "files have lost a write of a mapped page"),
        (e.device_errors, "requests failed by the device"),
        (e.quarantined_blocks, "blocks out of use as a write to them failed"),
    ];
    let some: Vec<String> =
        all.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    if some.is_empty() { "none since the mount".into() } else { format!("{}; see the log", some.join(", ")) }
}

/// The title of a table of latencies.
pub fn heading(out: &mut dyn Write, title: &str) -> io::Result<()> {
    writeln!(out, "{title:<18} {:>12} {:>10} {:>10} {:>10} {:>10}", "count", "p50", "p95", "p99", "max")
}

/// A line of it.
pub fn row(out: &mut dyn Write, name: &str, l: &Latency) -> io::Result<()> {
    let [p50, p95, p99, max] = [l.p50_ns, l.p95_ns, l.p99_ns, l.max_ns].map(span::show);
    writeln!(out, "{name:<18} {:>12} {p50:>10} {p95:>10} {p99:>10} {max:>10}", l.count)
}

fn table(out: &mut dyn Write, title: &str, list: &[Timed]) -> io::Result<()> {
    heading(out, title)?;
    for timed in list.iter().filter(|t| t.latency.count > 0) {
        match timed.class.as_str() {
            "all" => row(out, &timed.name, &timed.latency)?,
            // Only one class, and nothing known of it: the line above says it all.
            "other" if is_only_class(list, timed) => {}
            class => row(out, &format!("  {class}"), &timed.latency)?,
        }
    }
    Ok(())
}

fn is_only_class(list: &[Timed], timed: &Timed) -> bool {
    !list.iter().any(|t| t.name == timed.name && !matches!(t.class.as_str(), "all" | "other"))
}
