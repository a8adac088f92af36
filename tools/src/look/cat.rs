//! `dbfs cat`: the content of files.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use fs_core::api::{Attr, FileType};

use super::{Look, ReadError};
use crate::{output, shown};

/// Largest file that is printed as JSON, in bytes.
const JSON_MAX: u64 = 64 << 20;

/// Print files of a volume that is not mounted.
///
/// Exit codes: 0 printed, 1 not, or not all of them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON (files of up to 64 MiB)
    #[arg(long)]
    json: bool,
    /// Block device or image file
    volume: PathBuf,
    /// Paths from the root of the volume
    #[arg(required = true)]
    paths: Vec<OsString>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let look = Look::open(&args.volume)?;
    let mut code = ExitCode::SUCCESS;
    let mut objects = Vec::new();
    for path in &args.paths {
        let done = look.find(path, true).and_then(|attr| {
            let attr = regular(path.as_bytes(), attr)?;
            if args.json {
                objects.push(object(&look, path.as_bytes(), &attr)?);
                return Ok(());
            }
            print(&look, path.as_bytes(), &attr)
        });
        if let Err(e) = done {
            output::say(&format!("dbfs cat: {e:#}"));
            code = ExitCode::FAILURE;
        }
    }
    if args.json {
        output::json_list("files", objects.into_iter())?;
    }
    Ok(code)
}

fn regular(path: &[u8], attr: Attr) -> Result<Attr> {
    if attr.kind != FileType::Regular {
        bail!("{} is a {}, not a file", shown::quoted(path), super::describe::word(attr.kind));
    }
    Ok(attr)
}

fn print(look: &Look, path: &[u8], attr: &Attr) -> Result<()> {
    let mut outcome = Ok(());
    output::stream(|out| {
        let mut at = 0;
        let read = look.read(attr, |offset, bytes| {
            zeros(out, offset - at)?;
            at = offset + bytes.len() as u64;
            out.write_all(bytes)
        });
        match read {
            Err(ReadError::Taker(e)) => Err(e),
            Ok(()) => zeros(out, attr.size.saturating_sub(at)),
            other => {
                outcome = other;
                Ok(())
            }
        }
    })?;
    read_outcome(path, outcome)
}

/// What a hole reads as.
fn zeros(out: &mut dyn io::Write, count: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(count), out).map(drop)
}

fn read_outcome(path: &[u8], outcome: Result<(), ReadError>) -> Result<()> {
    let error = match outcome {
        Ok(()) => return Ok(()),
        Err(ReadError::Volume(e)) => anyhow!(e),
        Err(ReadError::Taker(e)) => anyhow!(e),
    };
    Err(error).with_context(|| format!("cannot read {}", shown::quoted(path)))
}

fn object(look: &Look, path: &[u8], attr: &Attr) -> Result<serde_json::Map<String, serde_json::Value>> {
    if attr.size > JSON_MAX {
        bail!("{} has more than 64 MiB: print it without --json", shown::quoted(path));
    }
    let mut content = Vec::new();
    let take = |offset: u64, bytes: &[u8]| -> io::Result<()> {
        content.resize(offset as usize, 0);
        content.extend_from_slice(bytes);
        Ok(())
    };
    read_outcome(path, look.read(attr, take))?;
    content.resize(attr.size as usize, 0);
    let mut fields = serde_json::Map::new();
    shown::put(&mut fields, "path", path);
    fields.insert("size".into(), attr.size.into());
    shown::put(&mut fields, "content", &content);
    Ok(fields)
}
