//! `dbfs info`: a volume in a few lines.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::{engine, output};

/// Show what a dbfs volume is: identity, sizes, free space, state.
///
/// The volume must not be mounted. Exit codes: 0 shown, 1 not shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Block device or image file
    volume: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let device = engine::open_to_look(&args.volume)?;
    let failed = || format!("cannot read the volume on {}", args.volume.display());
    if args.json {
        output::json(&fs_core::dump::info_json(&device).with_context(failed)?)?;
    } else {
        output::text(&fs_core::dump::info(&device).with_context(failed)?)?;
    }
    Ok(ExitCode::SUCCESS)
}
