//! `dbfs ls`: the names in a directory.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use fs_core::api::FileType;

use super::{Entry, Look, describe};
use crate::output;
use crate::shown::{self, Style};

/// List a directory of a volume that is not mounted.
///
/// Names are printed byte by byte; on a terminal they are quoted for a shell where needed. Exit
/// codes: 0 listed, 1 not, or not all of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// With type, permissions, links, owner, size and time (UTC)
    #[arg(short)]
    long: bool,
    /// Names that begin with a dot, too
    #[arg(short, long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Block device or image file
    volume: PathBuf,
    /// A path from the root of the volume
    #[arg(default_value = "/")]
    path: OsString,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let look = Look::open(&args.volume)?;
    let attr = look.find(&args.path, !args.long)?;
    let path = std::os::unix::ffi::OsStrExt::as_bytes(args.path.as_os_str());
    let entries = if attr.kind == FileType::Directory {
        let failed = || format!("cannot list {}", shown::quoted(path));
        let mut entries = look.entries(attr.ino).with_context(failed)?;
        entries.retain(|e| args.all || !e.name.starts_with(b"."));
        entries
    } else {
        vec![Entry { name: path.to_vec(), ino: attr.ino, attr: Ok(attr) }]
    };
    if args.json {
        let object = |e: &Entry| describe::entry_object(&look, "name", &e.name, e);
        output::json_list("entries", entries.iter().map(object))?;
    } else {
        output::stream(|out| entries.iter().try_for_each(|e| line(out, &look, args.long, e)))?;
    }
    let mut code = ExitCode::SUCCESS;
    for entry in &entries {
        if let Err(e) = &entry.attr {
            super::complain("ls", &entry.name, e);
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

fn line(out: &mut dyn Write, look: &Look, long: bool, entry: &Entry) -> io::Result<()> {
    let style = Style::of_stdout();
    match (&entry.attr, long) {
        (Ok(attr), true) => {
            let size = match attr.kind {
                FileType::BlockDevice | FileType::CharDevice => {
                    let (major, minor) = describe::device_numbers(attr.rdev);
                    format!("{major}, {minor}")
                }
                _ => attr.size.to_string(),
            };
            let (mode, time) = (describe::mode(attr), describe::time(attr.mtime));
            write!(out, "{mode} {:>3} {:>5} {:>5} {size:>12} {time} ", attr.nlink, attr.uid, attr.gid)?;
        }
        (Err(_), true) => write!(out, "?????????? {:>50} ", "?")?,
        (_, false) => {}
    }
    out.write_all(&style.bytes(&entry.name))?;
    if let (true, Ok(attr)) = (long, &entry.attr)
        && attr.kind == FileType::Symlink
        && let Ok(target) = look.link_target(attr.ino)
    {
        out.write_all(b" -> ")?;
        out.write_all(&style.bytes(&target))?;
    }
    out.write_all(b"\n")
}
