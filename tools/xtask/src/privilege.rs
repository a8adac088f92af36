//! Root, where it is needed: mounts, loop devices, other users.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths;

/// Set for the copy of this program that runs under sudo: the preparations are done.
const PREPARED: &str = "DBFS_XTASK_PREPARED";

/// True if this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// True if an unprivileged run of this program has installed and built everything already.
pub fn is_prepared() -> bool {
    std::env::var_os(PREPARED).is_some()
}

/// Returns if this process is root; else starts this program again through sudo, and does not return
/// unless that fails. Builds are done before, so that they do not end up owned by root.
pub fn become_root() -> Result<()> {
    become_root_with(&[])
}

/// [`become_root`], with further environment variables for the new process.
pub fn become_root_with(variables: &[(&str, &str)]) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let sudo = paths::find_program("sudo")
        .context("this needs root (mounts, loop devices): run it as root, or install sudo")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let error = Command::new(sudo)
        .args(["env", &format!("{PREPARED}=1"), &format!("PATH={path}"), &format!("CARGO={cargo}")])
        .args(variables.iter().map(|(name, value)| format!("{name}={value}")))
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .exec();
    bail!("cannot start sudo: {error}");
}

/// A command that runs as root: itself, or through sudo.
pub fn root_command(program: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let sudo = paths::find_program("sudo")
        .with_context(|| format!("{program} needs root: run this as root, or install sudo"))?;
    let mut command = Command::new(sudo);
    command.arg(program);
    Ok(command)
}
