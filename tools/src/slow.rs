//! `dbfs slow`: what made the slowest recent syncs slow.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::control::status::SlowSync;
use crate::{names, output, shown, span};

/// Entries of directories that are looked at for the names of the files.
const MOST_NAMES: usize = 200_000;

/// Name the stage that made the slowest recent syncs slow.
///
/// The daemon remembers the 32 slowest fsync, fdatasync and synchronous writes of the last ten minutes,
/// each with the time it spent in every stage.
///
/// Exit codes: 0 shown, 1 not shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// How many to show
    #[arg(short = 'n', long, default_value_t = 10, value_name = "N")]
    number: usize,
    /// Where the volume is mounted, or the volume; may be left out if only one is mounted
    dir: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mount = client::find(args.dir.as_deref())?;
    let Response::Slow { mut syncs } = client::ask_daemon(&mount, &Request::Slow)?.next()? else {
        bail!("the daemon gave another answer than was asked for");
    };
    syncs.truncate(args.number);
    let wanted: BTreeSet<u64> = syncs.iter().map(|s| s.ino).collect();
    // Without names if the mount cannot be read.
    let paths = names::find(&mount.dir, &wanted, MOST_NAMES).unwrap_or_default();
    if args.json {
        let document = |mut s: SlowSync| -> Result<serde_json::Value> {
            s.path = None;
            let path = paths.get(&s.ino);
            let mut value = serde_json::to_value(s)?;
            if let (Some(path), Some(fields)) = (path, value.as_object_mut()) {
                shown::put(fields, "path", path.as_os_str().as_bytes());
            }
            Ok(value)
        };
        let list = syncs.into_iter().map(document).collect::<Result<Vec<_>>>()?;
        output::json_list("syncs", list.into_iter())?;
    } else {
        output::stream(|out| {
            if syncs.is_empty() {
                writeln!(out, "nothing was synced in the last ten minutes")?;
            }
            syncs.iter().try_for_each(|s| {
                let name = paths.get(&s.ino).map(|p| shown::quoted(p.as_os_str().as_bytes()));
                print(out, s, &name.unwrap_or_else(|| format!("inode {}", s.ino)))
            })
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut dyn Write, s: &SlowSync, name: &str) -> io::Result<()> {
    let call = if s.call == "write" { "synchronous write" } else { "fsync" };
    let class = match s.class.as_str() {
        "other" => String::new(),
        class => format!(" ({class})"),
    };
    let total = span::show(s.total_ns);
    writeln!(out, "{total:>9}  {call} of {name}{class}, {} ago", span::show(s.ago_ns))?;
    writeln!(out, "           {}", why(s))?;
    let mut parts: Vec<(u64, &str)> = s.stages.iter().map(|(stage, ns)| (*ns, stage.as_str())).collect();
    parts.push((s.elsewhere_ns, "elsewhere"));
    parts.retain(|(ns, _)| *ns > 0);
    parts.sort_unstable_by(|a, b| b.cmp(a));
    let parts: Vec<String> = parts.iter().map(|(ns, stage)| format!("{stage} {}", span::show(*ns))).collect();
    writeln!(out, "           {}", parts.join(", "))
}

/// In words.
fn why(s: &SlowSync) -> String {
    let (ns, what) = match s.culprit.as_deref() {
        Some(stage) => (s.stages.get(stage).copied().unwrap_or(0), stage),
        None => (s.elsewhere_ns, ""),
    };
    let share = (ns as f64 * 100.0 / s.total_ns.max(1) as f64).round();
    let words = match what {
        "queue" => {
            "waited in the queue: for another commit that was under way, or for room (a checkpoint, writeback); \
             see `dbfs status`, Journal and Checkpoints"
        }
        "lock" => "waited for pages or names that somebody else was changing",
        "load" => "waited for the device to read",
        "data" => "waited for the device to write the data: much was dirty, or the device is slow",
        "journal" => {
            "waited for the device to write the journal and make it durable: the device is slow, or busy with \
             something else"
        }
        "flush" => "waited for the device to flush its cache: the device is slow, or had much to flush",
        "" => "was spent in no stage: the processors were busy, or the daemon was stopped",
        // A daemon that knows more than this program.
        other => other,
    };
    format!("{share} %: {words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_in_words() {
        let mut sync = SlowSync {
            ino: 5,
            path: None,
            call: "fsync".into(),
            class: "log".into(),
            ago_ns: 3_000_000_000,
            total_ns: 10_000_000,
            stages: [("flush".to_owned(), 9_000_000), ("queue".to_owned(), 500_000)].into(),
            elsewhere_ns: 500_000,
            culprit: Some("flush".into()),
        };
        let mut text = Vec::new();
        print(&mut text, &sync, "/mnt/wal").unwrap();
        let text = String::from_utf8(text).unwrap();
        for part in [
            "10.0 ms  fsync of /mnt/wal (log), 3.00 s ago",
            "90 %: waited for the device to flush",
            "flush 9.00 ms, queue 500 us, elsewhere 500 us",
        ] {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
        sync.culprit = None;
        assert!(why(&sync).starts_with("5 %: was spent in no stage"));
    }
}
