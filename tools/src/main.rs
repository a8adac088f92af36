//! The `dbfs` command: makes, mounts and looks into volumes.

mod daemon;
mod dump;
mod engine;
mod fsck;
mod info;
mod logging;
mod mkfs;
mod mount;
mod mounts;
mod options;
mod output;
mod serve;
mod signals;
mod signatures;
mod size;
mod syslog;
mod umount;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

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
    Info(info::Args),
    Dump(dump::Args),
}

impl Command {
    fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Mkfs(args) => mkfs::run(args),
            Command::Mount(args) => mount::run(args),
            Command::Umount(args) => umount::run(args),
            Command::Fsck(args) => fsck::run(args),
            Command::Info(args) => info::run(args),
            Command::Dump(args) => dump::run(args),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Command::Mkfs(_) => "mkfs",
            Command::Mount(_) => "mount",
            Command::Umount(_) => "umount",
            Command::Fsck(_) => "fsck",
            Command::Info(_) => "info",
            Command::Dump(_) => "dump",
        }
    }

    /// Exit code for a command that could not do its work.
    fn failure(&self) -> u8 {
        match self {
            Command::Mkfs(_) | Command::Info(_) | Command::Dump(_) => 1,
            Command::Mount(_) | Command::Umount(_) => MOUNT_FAILURE,
            Command::Fsck(_) => FSCK_FAILURE,
        }
    }
}

fn main() -> ExitCode {
    let args = with_subcommand(std::env::args_os().collect());
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage(&args, &error),
    };
    match cli.command.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dbfs {}: {error:#}", cli.command.name());
            ExitCode::from(cli.command.failure())
        }
    }
}

/// `mkfs.dbfs`, `mount.dbfs` and `fsck.dbfs`, by which mkfs(8), mount(8) and fsck(8) call us, are
/// `dbfs mkfs` and so on.
fn with_subcommand(mut args: Vec<OsString>) -> Vec<OsString> {
    let called = args.first().and_then(|a| Path::new(a).file_name()).and_then(|n| n.to_str());
    let command = called.and_then(|n| n.strip_suffix(".dbfs")).map(str::to_owned);
    if let Some(command) = command {
        args.insert(1, command.into());
    }
    args
}

/// Shows what clap has to say. Each command has its own exit code for wrong usage.
fn usage(args: &[OsString], error: &clap::Error) -> ExitCode {
    // Nothing helps if even this cannot be printed.
    let _ = error.print();
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let code = match args.get(1).and_then(|a| a.to_str()) {
        _ if asked => 0,
        Some("fsck") => 16,
        Some("mkfs" | "mount" | "umount") => 1,
        _ => 2,
    };
    ExitCode::from(code)
}
