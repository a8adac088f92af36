//! The `dbfs` command: makes, mounts and looks into volumes.

mod bench;
mod control;
mod daemon;
mod df;
mod dump;
mod engine;
mod explain;
mod fsck;
mod generate;
mod grow;
mod helpers;
mod info;
mod logging;
mod look;
mod mkfs;
mod mount;
mod mounts;
mod names;
mod notify;
mod observe;
mod options;
mod output;
mod remount;
mod scrub;
mod serve;
mod shown;
mod signals;
mod signatures;
mod size;
mod slow;
mod span;
mod status;
mod syslog;
mod top;
mod tune;
mod umount;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

/// Page frames are aligned to 4 KiB and live long, between small objects that do not: glibc's allocator
/// leaves holes that fit neither, and needs four times the memory for a million small files.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of a failed mount or unmount, as mount(8) has it.
const MOUNT_FAILURE: u8 = 32;

/// Exit code of a check that could not be done, as fsck(8) has it.
const FSCK_FAILURE: u8 = 8;

/// A file system for databases.
#[derive(Debug, Parser)]
#[command(name = "dbfs", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Mkfs(mkfs::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    Fsck(fsck::Args),
    Scrub(scrub::Args),
    Grow(grow::Args),
    Status(status::Args),
    Top(top::Args),
    Slow(slow::Args),
    Explain(explain::Args),
    Tune(tune::Args),
    Info(info::Args),
    Df(df::Args),
    Ls(look::ls::Args),
    Tree(look::tree::Args),
    Stat(look::stat::Args),
    Cat(look::cat::Args),
    Cp(look::cp::Args),
    Dump(dump::Args),
    Bench(bench::Args),
    #[command(hide = true)]
    Generate(generate::Args),
}

impl Command {
    fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Mkfs(args) => mkfs::run(args),
            Command::Mount(args) => mount::run(args),
            Command::Umount(args) => umount::run(args),
            Command::Fsck(args) => fsck::run(args),
            Command::Scrub(args) => scrub::run(args),
            Command::Grow(args) => grow::run(args),
            Command::Status(args) => status::run(args),
            Command::Top(args) => top::run(args),
            Command::Slow(args) => slow::run(args),
            Command::Explain(args) => explain::run(args),
            Command::Tune(args) => tune::run(args),
            Command::Info(args) => info::run(args),
            Command::Df(args) => df::run(args),
            Command::Ls(args) => look::ls::run(args),
            Command::Tree(args) => look::tree::run(args),
            Command::Stat(args) => look::stat::run(args),
            Command::Cat(args) => look::cat::run(args),
            Command::Cp(args) => look::cp::run(args),
            Command::Dump(args) => dump::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Generate(args) => generate::run(args),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Command::Mkfs(_) => "mkfs",
            Command::Mount(_) => "mount",
            Command::Umount(_) => "umount",
            Command::Fsck(_) => "fsck",
            Command::Scrub(_) => "scrub",
            Command::Grow(_) => "grow",
            Command::Status(_) => "status",
            Command::Top(_) => "top",
            Command::Slow(_) => "slow",
            Command::Explain(_) => "explain",
            Command::Tune(_) => "tune",
            Command::Info(_) => "info",
            Command::Df(_) => "df",
            Command::Ls(_) => "ls",
            Command::Tree(_) => "tree",
            Command::Stat(_) => "stat",
            Command::Cat(_) => "cat",
            Command::Cp(_) => "cp",
            Command::Dump(_) => "dump",
            Command::Bench(_) => "bench",
            Command::Generate(_) => "generate",
        }
    }

    /// Exit code for a command that could not do its work.
    fn failure(&self) -> u8 {
        match self {
            Command::Mount(_) | Command::Umount(_) => MOUNT_FAILURE,
            Command::Fsck(_) => FSCK_FAILURE,
            Command::Scrub(_) => scrub::FAILURE,
            _ => 1,
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some((name, helper)) = args.first().and_then(|program| helpers::called_as(Path::new(program))) {
        return helper.run(name, &args);
    }
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage(&args, &error),
    };
    match cli.command.run() {
        Ok(code) => code,
        Err(error) => {
            output::say(&format!("dbfs {}: {error:#}", cli.command.name()));
            ExitCode::from(cli.command.failure())
        }
    }
}

/// Shows what clap has to say. Each command has its own exit code for wrong usage.
fn usage(args: &[OsString], error: &clap::Error) -> ExitCode {
    // Nothing helps if even this cannot be printed.
    let _ = error.print();
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let code = match args.get(1).and_then(|a| a.to_str()) {
        _ if asked => 0,
        Some("fsck") => fsck::USAGE,
        Some("mkfs" | "mount" | "umount" | "grow") => 1,
        _ => 2,
    };
    ExitCode::from(code)
}
