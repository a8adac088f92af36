//! `dbfs explain`: where a file of a mounted volume lies.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::control::status::{Explained, Extent};
use crate::mounts::{self, DbfsMount};
use crate::{output, shown, size};

/// Show where a file of a mounted volume lies: its extents, fragmentation, and share in the cache.
///
/// Who runs it must be allowed to read the file, and to speak to the daemon: its owner, or root.
///
/// Exit codes: 0 shown, 1 not shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// How many extents to list; all are counted
    #[arg(long, default_value_t = 100, value_name = "N")]
    extents: u64,
    /// A file on a mounted volume
    path: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (mount, ino) = find(&args.path)?;
    let mut answers = client::ask_daemon(&mount, &Request::Explain { ino, extents: args.extents })?;
    let mut extents = Vec::new();
    let explained = loop {
        match answers.next()? {
            Response::Extent(extent) => extents.push(extent),
            Response::Explained(explained) => break explained,
            _ => bail!("the daemon gave another answer than was asked for"),
        }
    };
    if args.json {
        let mut fields = Map::new();
        shown::put(&mut fields, "path", args.path.as_os_str().as_bytes());
        fields.insert("ino".into(), ino.into());
        fields.insert("extents".into(), serde_json::to_value(&extents)?);
        fields.insert("more_extents".into(), (explained.extents > extents.len() as u64).into());
        fields.extend(figures(&explained));
        output::json(&Value::Object(fields))?;
    } else {
        output::stream(|out| print(out, &args.path, ino, &explained, &extents))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The mount that a file is on, and the file's number. It is opened: who may not read it learns nothing.
fn find(path: &Path) -> Result<(DbfsMount, u64)> {
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .with_context(|| format!("cannot open {shown}"))?;
    let meta = file.metadata().with_context(|| format!("cannot look at {shown}"))?;
    if !meta.is_file() {
        bail!("{shown} is not a regular file");
    }
    let whole = path.canonicalize().with_context(|| format!("cannot find {shown}"))?;
    let mounted = mounts::dbfs_mounts().context("cannot read the table of mounts")?;
    let below = mounted.into_iter().rev().filter(|m| whole.starts_with(&m.dir));
    let mount = below.max_by_key(|m| m.dir.as_os_str().len());
    let on_it = |m: &DbfsMount| std::fs::metadata(&m.dir).is_ok_and(|d| d.dev() == meta.dev());
    match mount.filter(on_it) {
        Some(mount) => Ok((mount, meta.ino())),
        None => bail!("{shown} is not on a mounted dbfs volume"),
    }
}

/// Of the borders between pages, those where no seek is needed, as a share of all.
fn contiguous(e: &Explained) -> f64 {
    let seeks = e.extents.saturating_sub(1 + e.adjacent);
    1.0 - seeks as f64 / e.mapped_pages.saturating_sub(1).max(1) as f64
}

/// `part` of `all`, as a share; all of nothing is 0.
fn share(part: u64, all: u64) -> f64 {
    part as f64 / all.max(1) as f64
}

fn figures(e: &Explained) -> Map<String, Value> {
    let figures = json!({
        "size": e.size,
        "class": e.class,
        "opens": e.opens,
        "page_bytes": e.page_bytes,
        "written_bytes": e.written_bytes,
        "unwritten_bytes": e.unwritten_bytes,
        "fragmentation": {
            "extents": e.extents,
            "seeks": e.extents.saturating_sub(1 + e.adjacent),
            "average_extent_bytes": (e.written_bytes + e.unwritten_bytes) / e.extents.max(1),
            "contiguous_share": contiguous(e),
        },
        "cache": {
            "pages": e.mapped_pages,
            "cached_pages": e.cached_pages,
            "cached_share": share(e.cached_pages, e.mapped_pages),
            "dirty_pages": e.dirty_pages,
            "dirty_bytes": e.dirty_pages * e.page_bytes,
            "journal_only_pages": e.journal_only_pages,
            "journal_only_bytes": e.journal_only_pages * e.page_bytes,
        },
    });
    match figures {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn print(out: &mut dyn Write, path: &Path, ino: u64, e: &Explained, extents: &[Extent]) -> io::Result<()> {
    let class = match e.class.as_str() {
        "log" => ", written as a log is",
        "data" => ", written as the pages of a database are",
        _ => "",
    };
    writeln!(
        out,
        "{}: inode {ino}, {}, {} written, {} reserved{class}, open {} times",
        shown::quoted(path.as_os_str().as_bytes()),
        size::show(e.size),
        size::show(e.written_bytes),
        size::show(e.unwritten_bytes),
        e.opens
    )?;
    let average = (e.written_bytes + e.unwritten_bytes) / e.extents.max(1);
    writeln!(
        out,
        "Fragments   {} extents of {} on average, {} seeks; {:.1} % of the pages follow the one before",
        e.extents,
        size::show(average),
        e.extents.saturating_sub(1 + e.adjacent),
        contiguous(e) * 100.0
    )?;
    writeln!(
        out,
        "Cache       {} of {} pages ({:.1} %), {} dirty, {} with bytes that are on the device in the journal only",
        e.cached_pages,
        e.mapped_pages,
        share(e.cached_pages, e.mapped_pages) * 100.0,
        e.dirty_pages,
        e.journal_only_pages
    )?;
    if !extents.is_empty() {
        writeln!(out, "{:>16} {:>16} {:>12}", "offset", "on the device", "bytes")?;
    }
    for x in extents {
        let unwritten = if x.unwritten { "  unwritten" } else { "" };
        let encoding =
            if x.encoding == "plain" { String::new() } else { format!("  {}", shown::message(&x.encoding)) };
        writeln!(out, "{:>16} {:>16} {:>12}{encoding}{unwritten}", x.offset, x.physical, x.length)?;
    }
    match e.extents.saturating_sub(extents.len() as u64) {
        0 => Ok(()),
        more => writeln!(out, "{more} more; --extents N lists more of them"),
    }
}
