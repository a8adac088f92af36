//! `dbfs grow`: makes a volume larger, mounted or not.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use blockdev::Engine;
use fs_core::{GrowTo, Grown};

use crate::control::client::ask_daemon;
use crate::control::protocol::{Request, Response};
use crate::options::Options;
use crate::{engine, mounts, output, shown, size};

/// Make a volume larger, mounted or not. Programs that use it go on meanwhile.
///
/// An image file is extended, sparsely; a block device must be made larger first. The new space can be
/// used at once.
///
/// Exit codes: 0 grown, or as large already; 1 not grown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// New size (like 16G) or how much more (like +4G); without it, all of the device or file
    #[arg(long, short = 's', value_name = "[+]SIZE", value_parser = parse_size)]
    size: Option<GrowTo>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Block device or image file, or where it is mounted
    #[arg(value_name = "VOLUME|DIR")]
    place: PathBuf,
}

fn parse_size(text: &str) -> Result<GrowTo, String> {
    match text.strip_prefix('+') {
        Some(more) => size::parse(more).map(GrowTo::By),
        None => size::parse(text).map(GrowTo::Size),
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let to = args.size.unwrap_or(GrowTo::Device);
    let place = &args.place;
    let path = mounts::absolute(place).with_context(|| format!("cannot find {}", place.display()))?;
    let mount = mounts::mounted_on(&path)?.or_else(|| mounts::mount_of(&path));
    let grown = match mount {
        Some(mount) => match ask_daemon(&mount, &Request::Grow { to })?.next()? {
            Response::Grown { old_bytes, new_bytes } => Grown { old_bytes, new_bytes },
            other => bail!("the daemon gave another answer than was asked for: {other:?}"),
        },
        None if path.is_dir() => bail!("no dbfs volume is mounted on {}", place.display()),
        None => grow_unmounted(place, to)?,
    };
    report(args, grown)?;
    Ok(ExitCode::SUCCESS)
}

fn grow_unmounted(volume: &Path, to: GrowTo) -> Result<Grown> {
    let device = Arc::new(engine::open_device(volume, false, Engine::Auto)?);
    let mounted = engine::mount(volume, device, &Options::default())?;
    let grown = mounted.grow(to);
    // Also if it could not grow: the recovery of the mount has to get home.
    let home = mounted.shutdown();
    let grown = grown.with_context(|| format!("cannot make the volume on {} larger", volume.display()))?;
    home.with_context(|| format!("the last changes may not have reached {}", volume.display()))?;
    Ok(grown)
}

fn report(args: &Args, grown: Grown) -> Result<()> {
    let Grown { old_bytes, new_bytes } = grown;
    if args.json {
        let mut fields = serde_json::Map::new();
        shown::put(&mut fields, "volume", args.place.as_os_str().as_encoded_bytes());
        fields.insert("old_bytes".into(), old_bytes.into());
        fields.insert("new_bytes".into(), new_bytes.into());
        return output::json(&fields);
    }
    let (old, new) = (size::show(old_bytes), size::show(new_bytes));
    let place = shown::quoted(args.place.as_os_str().as_encoded_bytes());
    if old_bytes == new_bytes {
        return output::text(&format!("{place}: the volume has {old} already; nothing to do\n"));
    }
    output::text(&format!("{place}: the volume has grown from {old} to {new}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_absolute_or_relative() {
        assert_eq!(parse_size("16G"), Ok(GrowTo::Size(16 << 30)));
        assert_eq!(parse_size("+512M"), Ok(GrowTo::By(512 << 20)));
        for wrong in ["", "+", "-4G", "++1G", "+-1", "max"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
