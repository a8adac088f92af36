//! `dbfs scrub`: verifies a mounted volume.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::control::client::ask;
use crate::control::protocol::{Request, Response};
use crate::{names, output, shown, size};

/// Exit codes, those of fsck(8).
const CLEAN: u8 = 0;
const ERRORS_FOUND: u8 = 4;
/// It could not be done.
pub const FAILURE: u8 = 8;

/// Verify a mounted volume: all metadata and all data, read from the device.
///
/// The volume can be used meanwhile; nothing is changed. Prints what is wrong, by path.
///
/// Exit codes: 0 all is right, 4 something is wrong, 8 not all could be verified.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// MiB to read in a second, at most
    #[arg(long, value_name = "MIB/S", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Where the volume is mounted
    dir: PathBuf,
}

/// Something wrong.
#[derive(Debug, serde::Serialize)]
struct Finding {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ino: Option<u64>,
    offset: u64,
    what: String,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut answers = ask(&args.dir, &Request::Scrub { rate: args.rate })?;
    let mut findings = Vec::new();
    let last = loop {
        match answers.next()? {
            Response::Finding { ino, offset, what } => {
                findings.push(Finding { path: None, ino, offset, what });
            }
            last @ Response::Scrubbed { .. } => break last,
            _ => {}
        }
    };
    name(&args.dir, &mut findings)
        .with_context(|| format!("cannot look for names in {}", args.dir.display()))?;
    let Response::Scrubbed { nodes, pages, bytes, complete, .. } = last else {
        unreachable!("the loop ends with it")
    };
    if args.json {
        let report = serde_json::json!({
            "findings": findings, "nodes": nodes, "pages": pages, "bytes": bytes, "complete": complete,
        });
        output::json(&report)?;
    } else {
        output::stream(|out| {
            for f in &findings {
                match (&f.path, f.ino) {
                    (Some(path), _) => {
                        write!(out, "{} at offset {}: ", shown::quoted(path.as_bytes()), f.offset)?
                    }
                    (None, Some(ino)) => write!(out, "inode {ino} at offset {}: ", f.offset)?,
                    (None, None) => {}
                }
                writeln!(out, "{}", shown::message(&f.what))?;
            }
            let dir = args.dir.display();
            writeln!(out, "{dir}: {nodes} nodes and {pages} pages read, {}", size::show(bytes))?;
            match findings.len() {
                0 if complete => writeln!(out, "{dir}: clean"),
                0 => writeln!(out, "{dir}: ended before all was read"),
                n => writeln!(out, "{dir}: {n} PROBLEMS; see `dbfs fsck` when it is unmounted"),
            }
        })?;
    }
    Ok(ExitCode::from(match (findings.is_empty(), complete) {
        (false, _) => ERRORS_FOUND,
        (true, true) => CLEAN,
        (true, false) => FAILURE,
    }))
}

/// Looks for the names of the files that findings are about, on the mount.
fn name(dir: &Path, findings: &mut [Finding]) -> Result<()> {
    let wanted = findings.iter().filter_map(|f| f.ino).collect();
    let paths = names::find(dir, &wanted, usize::MAX)?;
    for finding in findings {
        let path = finding.ino.and_then(|ino| paths.get(&ino));
        finding.path = path.map(|p| p.to_string_lossy().into_owned());
    }
    Ok(())
}
