//! `dbfs stat`: the attributes of files.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use fs_core::api::{Attr, FileType};

use super::{Look, describe};
use crate::output;
use crate::shown::{self, Style};

/// Show the attributes of files on a volume that is not mounted. Symbolic links are not followed.
///
/// Exit codes: 0 shown, 1 not, or not all of them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Block device or image file
    volume: PathBuf,
    /// Paths from the root of the volume
    #[arg(default_value = "/")]
    paths: Vec<OsString>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let look = Look::open(&args.volume)?;
    let mut found: Vec<(&[u8], Attr)> = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for path in &args.paths {
        match look.find(path, false) {
            Ok(attr) => found.push((path.as_bytes(), attr)),
            Err(e) => {
                output::say(&format!("dbfs stat: {e:#}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    if args.json {
        let objects = found.iter().map(|(path, attr)| {
            let mut fields = serde_json::Map::new();
            shown::put(&mut fields, "path", path);
            fields.extend(describe::object(&look, attr));
            fields
        });
        output::json_list("files", objects)?;
    } else {
        output::stream(|out| found.iter().try_for_each(|(path, attr)| print(out, &look, path, attr)))?;
    }
    Ok(code)
}

fn print(out: &mut dyn Write, look: &Look, path: &[u8], attr: &Attr) -> io::Result<()> {
    let style = Style::of_stdout();
    out.write_all(b"  path: ")?;
    out.write_all(&style.bytes(path))?;
    if attr.kind == FileType::Symlink
        && let Ok(target) = look.link_target(attr.ino)
    {
        out.write_all(b" -> ")?;
        out.write_all(&style.bytes(&target))?;
    }
    writeln!(out)?;
    writeln!(out, "  type: {}, inode {}, {} links", describe::word(attr.kind), attr.ino, attr.nlink)?;
    writeln!(out, "  size: {} bytes, {} allocated", attr.size, attr.blocks * 512)?;
    if matches!(attr.kind, FileType::BlockDevice | FileType::CharDevice) {
        let (major, minor) = describe::device_numbers(attr.rdev);
        writeln!(out, "device: {major}, {minor}")?;
    }
    writeln!(
        out,
        "  mode: {:04o} ({}), user {}, group {}",
        attr.perm,
        describe::mode(attr),
        attr.uid,
        attr.gid
    )?;
    for (name, t) in
        [("access", attr.atime), ("modify", attr.mtime), ("change", attr.ctime), (" birth", attr.btime)]
    {
        writeln!(out, "{name}: {}.{:09} UTC", describe::time(t), t.nanos)?;
    }
    Ok(())
}
