//! The names by which mount(8), umount(8), mkfs(8) and fsck(8) call us: `mount.dbfs` and the like, each
//! with the arguments that its caller passes.

mod fsck;
mod mount;
mod umount;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::{FSCK_FAILURE, MOUNT_FAILURE, fsck as check, mkfs, output};

/// Exit code of wrong usage, as mount(8) and mkfs have it.
const USAGE: u8 = 1;

/// What we are called as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    /// `mkfs.dbfs`.
    Mkfs,
    /// `fsck.dbfs`, `fsck.fuse.dbfs`.
    Fsck,
    /// `mount.dbfs`, `mount.fuse.dbfs`.
    Mount,
    /// `umount.dbfs`, `umount.fuse.dbfs`.
    Umount,
}

/// Every name that is a helper's, for the package.
pub const NAMES: [(&str, Helper); 7] = [
    ("mkfs.dbfs", Helper::Mkfs),
    ("fsck.dbfs", Helper::Fsck),
    // For lines of fstab with that type.
    ("fsck.fuse.dbfs", Helper::Fsck),
    ("mount.dbfs", Helper::Mount),
    ("mount.fuse.dbfs", Helper::Mount),
    ("umount.dbfs", Helper::Umount),
    ("umount.fuse.dbfs", Helper::Umount),
];

/// The helper that `program` (argv[0]) names; `None` for `dbfs` itself.
pub fn called_as(program: &Path) -> Option<(&'static str, Helper)> {
    let name = program.file_name()?;
    NAMES.into_iter().find(|(known, _)| name == *known)
}

#[derive(Parser)]
#[command(name = "mkfs.dbfs", version)]
struct Mkfs {
    #[command(flatten)]
    args: mkfs::Args,
}

impl Helper {
    /// Does what the caller asks for of `name`.
    pub fn run(self, name: &'static str, args: &[OsString]) -> ExitCode {
        match self {
            Helper::Mkfs => run::<Mkfs>(name, args, USAGE, 1, |a| mkfs::run(&a.args)),
            Helper::Fsck => run::<fsck::Args>(name, args, check::USAGE, FSCK_FAILURE, fsck::run),
            Helper::Mount => run::<mount::Args>(name, args, USAGE, MOUNT_FAILURE, mount::run),
            Helper::Umount => run::<umount::Args>(name, args, USAGE, MOUNT_FAILURE, umount::run),
        }
    }

    /// Its command line, for manual pages and completions.
    pub fn command(self) -> clap::Command {
        match self {
            Helper::Mkfs => Mkfs::command(),
            Helper::Fsck => fsck::Args::command(),
            Helper::Mount => mount::Args::command(),
            Helper::Umount => umount::Args::command(),
        }
    }
}

/// Parses `args` and runs; `usage` and `failure` are the exit codes of what goes wrong.
fn run<A: Parser>(
    name: &'static str,
    args: &[OsString],
    usage: u8,
    failure: u8,
    work: impl FnOnce(&A) -> Result<ExitCode>,
) -> ExitCode {
    let parsed = A::command()
        .name(name)
        .bin_name(name)
        .try_get_matches_from(args)
        .and_then(|matches| A::from_arg_matches(&matches));
    match parsed {
        Err(error) => {
            // Nothing helps if even this cannot be printed.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            ExitCode::from(if asked { 0 } else { usage })
        }
        Ok(args) => work(&args).unwrap_or_else(|error| {
            output::say(&format!("{name}: {error:#}"));
            ExitCode::from(failure)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_wherever_the_program_is() {
        assert_eq!(called_as(Path::new("/sbin/mount.fuse.dbfs")), Some(("mount.fuse.dbfs", Helper::Mount)));
        assert_eq!(called_as(Path::new("mkfs.dbfs")), Some(("mkfs.dbfs", Helper::Mkfs)));
        assert_eq!(called_as(Path::new("/usr/bin/dbfs")), None);
        assert_eq!(called_as(Path::new("mount.sshfs")), None);
    }

    #[test]
    fn definitions_are_sound() {
        NAMES.iter().for_each(|(_, helper)| helper.command().debug_assert());
    }
}
