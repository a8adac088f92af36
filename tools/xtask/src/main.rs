//! `cargo xtask`: everything that is done with dbfs from outside of it.
//!
//! The commands install what they lack, build what they need, and clean up behind themselves.

mod bench;
mod buffer;
mod cargo;
mod cleanup;
mod cmd;
mod deb;
mod demo;
mod deps;
mod mariadb;
mod paths;
mod pg;
mod privilege;
mod proc;
mod rng;
mod soak;
mod suites;
mod target;
mod testcmd;
mod tools;
mod workdir;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Demo, tests, soak runs and benchmarks of dbfs")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check for the programs that the other commands need, and install what is missing
    Deps,
    /// Run PostgreSQL on a fresh volume, kill everything in the middle, recover and verify
    Demo(demo::Args),
    /// Run all tests that need no long run
    Test(testcmd::Args),
    /// Run single suites of real programs on a mounted volume
    Suite(suites::Args),
    /// Run random tests with crashes and power cuts for a given time
    Soak(soak::Args),
    /// Build a Debian package
    Deb(deb::Args),
    /// Measure dbfs beside the raw device, ext4, XFS and a FUSE daemon that does nothing
    Bench(bench::Args),
    /// Serve a FUSE file system that stores nothing (for `bench`)
    #[command(hide = true)]
    NoopFuse(target::NoopArgs),
}

fn main() {
    cleanup::install_signal_handler();
    let outcome = run(Cli::parse().command);
    cleanup::yield_to_interrupt();
    if let Err(error) = outcome {
        if !error.is::<suites::Reported>() {
            eprintln!("error: {error:#}");
        }
        std::process::exit(1);
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Deps => deps::ensure(deps::EVERYTHING).and_then(|()| deps::ensure(deps::BENCH)),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => testcmd::run(&args),
        Command::Suite(args) => suites::command(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Deb(args) => deb::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::NoopFuse(args) => target::serve_noop(&args),
    }
}
