//! Test programs from crates.io, pinned, in a folder of the target directory.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{cargo, cmd, paths, say};

/// A program and its version.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    name: &'static str,
    version: &'static str,
}

/// The file system exerciser.
pub const FSX: Tool = Tool { name: "fsx", version: "0.3.2" };

/// The POSIX file system test suite.
pub const PJDFSTEST: Tool = Tool { name: "pjdfstest", version: "0.2.2" };

/// Builds fuzz targets.
pub const CARGO_FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2" };

impl Tool {
    /// Where it is, or will be.
    pub fn path(self) -> Result<PathBuf> {
        Ok(self.root()?.join("bin").join(self.name))
    }

    /// Installs it unless exactly this version is there.
    pub fn install(self) -> Result<()> {
        let root = self.root()?;
        if self.path()?.is_file() {
            return Ok(());
        }
        say!("building {} {} from crates.io", self.name, self.version);
        let build = root.join("build");
        // Unoptimized: it is built in a fraction of the time, and waits for the file system anyway.
        let mut install = cargo::cargo();
        install.args(["install", "--quiet", "--locked", "--debug", "--no-track", "--force"]);
        install.arg("--root").arg(&root).arg("--target-dir").arg(&build);
        cmd::run(install.arg(format!("{}@{}", self.name, self.version)))?;
        std::fs::remove_dir_all(&build).context("cannot remove the build's leftovers")
    }

    /// One folder per version, so that a raised version is noticed.
    fn root(self) -> Result<PathBuf> {
        Ok(paths::target_dir()?.join("tools").join(format!("{}-{}", self.name, self.version)))
    }
}
