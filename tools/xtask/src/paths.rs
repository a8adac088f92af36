//! Where things are: the workspace, its target directory, programs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// Cargo's target directory: this program runs from `<target>/<profile>/xtask`.
pub fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find this program's own path")?;
    let dir = exe.ancestors().nth(2).context("this program runs from an unexpected place")?;
    Ok(dir.to_path_buf())
}

/// The folder with configuration and allow-lists of the program-based tests.
pub fn external_tests() -> PathBuf {
    workspace().join("tests/external")
}

/// Finds `program` as a shell would, and in the system directories an ordinary user's PATH lacks.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// [`find_program`], with an error that names the program.
pub fn program(name: &str) -> Result<PathBuf> {
    find_program(name).with_context(|| format!("{name} is not installed"))
}
