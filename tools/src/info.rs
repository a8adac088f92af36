//! `dbfs info`: a volume in a few lines.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::mounts::{self, DbfsMount};
use crate::{engine, output, shown};

/// Show what a dbfs volume is: identity, sizes, free space, state.
///
/// Of a mounted volume, free space is what its users have (the reserve is not in it), and what is left to replay
/// after a crash is not shown; see `dbfs status`. Exit codes: 0 shown, 1 not shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Block device or image file, or where it is mounted
    volume: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(mount) = mount_of(&args.volume) {
        show_mounted(args, &mount)?;
        return Ok(ExitCode::SUCCESS);
    }
    let device = engine::open_to_look(&args.volume)?;
    let failed = || format!("cannot read the volume on {}", args.volume.display());
    if args.json {
        output::json(&fs_core::dump::info_json(&device).with_context(failed)?)?;
    } else {
        output::text(&fs_core::dump::info(&device).with_context(failed)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The mount of a volume that is named by itself or by its directory.
fn mount_of(path: &Path) -> Option<DbfsMount> {
    mounts::mount_of(path).or_else(|| mounts::mounted_on(&mounts::absolute(path).ok()?).ok()?)
}

fn show_mounted(args: &Args, mount: &DbfsMount) -> Result<()> {
    let device = engine::open_mounted(&mount.volume)?;
    let mut info = fs_core::dump::info_of_mounted_json(&device)
        .with_context(|| format!("cannot read the volume on {}", mount.volume.display()))?;
    if let Some(fields) = info.as_object_mut() {
        let space =
            rustix::fs::statvfs(&mount.dir).with_context(|| format!("cannot ask {}", mount.dir.display()))?;
        fields.insert("free_bytes".into(), space.f_bavail.saturating_mul(space.f_frsize).into());
        fields.insert("inodes".into(), space.f_files.saturating_sub(space.f_ffree).into());
        shown::put(fields, "mounted_on", mount.dir.as_os_str().as_bytes());
        fields.insert("read_only".into(), mount.read_only.into());
    }
    if args.json { output::json(&info) } else { output::text(&lines(&info)) }
}

/// A line for each field.
fn lines(info: &Value) -> String {
    let line = |(name, value): (&String, &Value)| match value {
        Value::String(text) => format!("{name:<20} {}\n", shown::quoted(text.as_bytes())),
        other => format!("{name:<20} {other}\n"),
    };
    info.as_object().into_iter().flatten().map(line).collect()
}
