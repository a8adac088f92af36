//! `dbfs df`: how full volumes are.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use fs_core::api::FsOps;
use serde_json::{Map, Value};

use crate::look::Look;
use crate::mounts::{self, DbfsMount};
use crate::shown::{self, Style};
use crate::{output, size};

/// Show how full volumes are, mounted or not.
///
/// Exit codes: 0 shown, 1 not, or not all of them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Block devices, image files, or files and directories of mounted volumes; without any, all that
    /// are mounted
    #[arg(value_name = "VOLUME|DIR")]
    places: Vec<PathBuf>,
}

/// The numbers of one volume, in bytes.
struct Usage {
    volume: PathBuf,
    dir: Option<PathBuf>,
    size: u64,
    free: u64,
    available: u64,
    inodes: u64,
}

impl Usage {
    fn used(&self) -> u64 {
        self.size.saturating_sub(self.free)
    }

    /// Percent of what users may use, rounded up as df does.
    fn percent(&self) -> u64 {
        let all = u128::from(self.used()) + u128::from(self.available);
        (u128::from(self.used()) * 100).div_ceil(all.max(1)) as u64
    }

    fn object(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        shown::put(&mut fields, "volume", self.volume.as_os_str().as_bytes());
        if let Some(dir) = &self.dir {
            shown::put(&mut fields, "mounted_on", dir.as_os_str().as_bytes());
        }
        let numbers = [
            ("size_bytes", self.size),
            ("used_bytes", self.used()),
            ("free_bytes", self.free),
            ("available_bytes", self.available),
            ("used_percent", self.percent()),
            ("inodes", self.inodes),
        ];
        fields.extend(numbers.map(|(name, value)| (name.to_owned(), value.into())));
        fields
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mounted = mounts::dbfs_mounts().context("cannot read the table of mounts")?;
    let places: Vec<PathBuf> = match args.places.as_slice() {
        [] => mounted.iter().map(|m| m.dir.clone()).collect(),
        named => named.to_vec(),
    };
    let mut found = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for place in &places {
        match usage(place, &mounted) {
            Ok(usage) => found.push(usage),
            // It was in the table, and was unmounted before it was asked.
            Err(_) if args.places.is_empty() && is_gone(place) => {}
            Err(e) => {
                output::say(&format!("dbfs df: {e:#}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    if args.json {
        output::json_list("volumes", found.iter().map(Usage::object))?;
    } else if !found.is_empty() {
        output::stream(|out| print(out, &found))?;
    }
    Ok(code)
}

fn is_gone(dir: &Path) -> bool {
    mounts::dbfs_mounts().is_ok_and(|mounted| mounted.iter().all(|m| m.dir != dir))
}

fn usage(place: &Path, mounted: &[DbfsMount]) -> Result<Usage> {
    let shown = place.display();
    let path = mounts::absolute(place).with_context(|| format!("cannot find {shown}"))?;
    let holds = |m: &&DbfsMount| m.volume == path;
    let below = || mounted.iter().rev().filter(|m| path.starts_with(&m.dir));
    let mount = mounted.iter().rfind(holds).or_else(|| below().max_by_key(|m| m.dir.as_os_str().len()));
    let Some(mount) = mount else {
        if path.is_dir() {
            bail!(
                "{shown} is not on a mounted dbfs volume; `dbfs df` without arguments lists those that are"
            );
        }
        return unmounted(place);
    };
    let vfs =
        rustix::fs::statvfs(&mount.dir).with_context(|| format!("cannot ask {}", mount.dir.display()))?;
    Ok(Usage {
        volume: mount.volume.clone(),
        dir: Some(mount.dir.clone()),
        size: vfs.f_blocks * vfs.f_frsize,
        free: vfs.f_bfree * vfs.f_frsize,
        available: vfs.f_bavail * vfs.f_frsize,
        inodes: vfs.f_files - vfs.f_ffree,
    })
}

fn unmounted(volume: &Path) -> Result<Usage> {
    let look = Look::open(volume)?;
    let s = look.volume().statfs().with_context(|| format!("cannot read {}", volume.display()))?;
    let unit = u64::from(s.block_size);
    Ok(Usage {
        volume: volume.to_path_buf(),
        dir: None,
        size: s.blocks * unit,
        free: s.bfree * unit,
        available: s.bavail * unit,
        inodes: s.files - s.ffree,
    })
}

fn print(out: &mut dyn Write, found: &[Usage]) -> io::Result<()> {
    let style = Style::of_stdout();
    writeln!(
        out,
        "{:>10} {:>10} {:>10} {:>4} {:>10}  Volume, mounted on",
        "Size", "Used", "Free", "Use%", "Files"
    )?;
    for u in found {
        let (all, used, free) = (size::show(u.size), size::show(u.used()), size::show(u.available));
        write!(out, "{all:>10} {used:>10} {free:>10} {:>3}% {:>10}  ", u.percent(), u.inodes)?;
        out.write_all(&style.bytes(u.volume.as_os_str().as_bytes()))?;
        if let Some(dir) = &u.dir {
            out.write_all(b", ")?;
            out.write_all(&style.bytes(dir.as_os_str().as_bytes()))?;
        }
        writeln!(out)?;
    }
    Ok(())
}
