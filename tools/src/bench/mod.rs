//! `dbfs bench`: measurements of dbfs without a mount.

mod cache;
mod hits;
mod io;
mod rng;
mod trace;
mod workload;

use std::process::ExitCode;

use anyhow::Result;

/// Measure parts of dbfs.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Cache(cache::Args),
    Io(io::Args),
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Cache(args) => cache::run(args),
        What::Io(args) => io::run(args),
    }
}
