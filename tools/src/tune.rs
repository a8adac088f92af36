//! `dbfs tune`: what can be changed of a mount that is live.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::control::client::ask;
use crate::control::protocol::{Request, Response};
use crate::options::cache_size;
use crate::{output, size};

/// Change the size of a mounted volume's page cache, or show it.
///
/// The daemon takes the new size at once; it is forgotten at the unmount (see the mount option cache).
/// Exit codes: 0 done, 1 not done.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Memory that the page cache may take, such as 512M
    #[arg(long, value_name = "SIZE", value_parser = cache_size)]
    cache_size: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Where the volume is mounted
    dir: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let Response::Tuned { cache_bytes, cached_bytes } =
        ask(&args.dir, &Request::Tune { cache_bytes: args.cache_size })?.next()?
    else {
        bail!("the daemon gave another answer; is it of another version?");
    };
    if args.json {
        output::json(&serde_json::json!({ "cache_bytes": cache_bytes, "cached_bytes": cached_bytes }))?;
    } else {
        let (dir, all, used) = (args.dir.display(), size::show(cache_bytes), size::show(cached_bytes));
        output::text(&format!("{dir}: the page cache may take {all}, and has {used} in it\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
