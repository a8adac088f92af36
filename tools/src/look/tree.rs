//! `dbfs tree`: everything below a directory.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use fs_core::Ino;
use fs_core::api::FileType;

use super::{Entry, Look, complain, describe, join};
use crate::output;
use crate::shown::Style;

/// Show everything below a directory of a volume that is not mounted.
///
/// Exit codes: 0 shown, 1 not, or not all of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON: a list of all entries with their paths
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
    let attr = look.find(&args.path, true)?;
    let root = args.path.as_bytes();
    let mut walk = Walk::new(&look, root, attr.ino, attr.kind);
    if args.json {
        let objects =
            walk.by_ref().map(|step| describe::entry_object(&look, "path", &step.path, &step.entry));
        output::json_list("entries", objects)?;
    } else {
        let style = Style::of_stdout();
        output::stream(|out| {
            out.write_all(&[&style.bytes(root)[..], b"\n"].concat())?;
            walk.by_ref().try_for_each(|step| print(out, &look, style, &step))
        })?;
    }
    Ok(if walk.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(out: &mut dyn Write, look: &Look, style: Style, step: &Step) -> std::io::Result<()> {
    write!(out, "{:width$}", "", width = 2 * step.depth)?;
    out.write_all(&style.bytes(&step.entry.name))?;
    match &step.entry.attr {
        Ok(attr) if attr.kind == FileType::Directory => out.write_all(b"/")?,
        Ok(attr) if attr.kind == FileType::Symlink => {
            if let Ok(target) = look.link_target(attr.ino) {
                out.write_all(&[b" -> ", &style.bytes(&target)[..]].concat())?;
            }
        }
        _ => {}
    }
    out.write_all(b"\n")
}

/// One entry met on the way.
struct Step {
    path: Vec<u8>,
    depth: usize,
    entry: Entry,
}

/// Goes through a tree in the order of names. A directory has one name, so one that is met again
/// is a loop, or as good as one.
struct Walk<'a> {
    look: &'a Look,
    seen: HashSet<Ino>,
    todo: Vec<Step>,
    failed: bool,
}

impl<'a> Walk<'a> {
    fn new(look: &'a Look, root: &[u8], ino: Ino, kind: FileType) -> Self {
        let mut walk = Self { look, seen: HashSet::new(), todo: Vec::new(), failed: false };
        if kind == FileType::Directory {
            walk.enter(root, ino, 1);
        }
        walk
    }

    fn enter(&mut self, path: &[u8], dir: Ino, depth: usize) {
        if !self.seen.insert(dir) {
            return self
                .complain(path, &"this directory was met before: the volume is damaged, see `dbfs fsck -n`");
        }
        match self.look.entries(dir) {
            Ok(entries) => {
                let step = |entry: Entry| Step { path: join(path, &entry.name), depth, entry };
                self.todo.extend(entries.into_iter().rev().map(step));
            }
            Err(e) => self.complain(path, &e),
        }
    }

    fn complain(&mut self, path: &[u8], error: &dyn std::fmt::Display) {
        self.failed = true;
        complain("tree", path, error);
    }
}

impl Iterator for Walk<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let step = self.todo.pop()?;
        match &step.entry.attr {
            Ok(attr) if attr.kind == FileType::Directory => self.enter(&step.path, attr.ino, step.depth + 1),
            Ok(_) => {}
            Err(e) => self.complain(&step.path, e),
        }
        Some(step)
    }
}
