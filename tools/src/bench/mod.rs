//! `dbfs bench`: measurements of parts of dbfs that need no volume.

mod cache;
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
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Cache(args) => cache::run(args),
    }
}
