//! Calls to cargo.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cmd, paths, privilege};

/// How dbfs is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// With assertions, for tests.
    Dev,
    /// For the demo and for measurements.
    Release,
}

/// A cargo command in the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::workspace());
    command
}

/// Builds the `dbfs` program (unless that was done before sudo) and returns its path.
pub fn build_dbfs(profile: Profile) -> Result<PathBuf> {
    let (flag, folder) = match profile {
        Profile::Dev => (None, "debug"),
        Profile::Release => (Some("--release"), "release"),
    };
    let target = paths::target_dir()?;
    if !privilege::is_prepared() {
        let mut build = cargo();
        build.args(["build", "--quiet", "--package", "dbfs-tools", "--bin", "dbfs"]).args(flag);
        cmd::run(build.arg("--target-dir").arg(&target)).context("cannot build dbfs")?;
    }
    Ok(target.join(folder).join("dbfs"))
}
