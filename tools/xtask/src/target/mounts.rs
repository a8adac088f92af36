//! The kernel's table of mounts.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};

/// The mount points of this process's name space, in mount order.
pub fn list() -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect())
}

/// True if something is mounted at `dir`.
pub fn is_mounted(dir: &Path) -> Result<bool> {
    Ok(list()?.iter().any(|mounted| mounted == dir))
}

/// Removes a mount whether or not it is busy or its server is alive.
pub fn detach(dir: &Path) -> Result<()> {
    unmount(dir, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {}", dir.display()))
}

/// Removes every mount at or below `dir`, the youngest first.
pub fn unmount_below(dir: &Path) -> Result<()> {
    for mounted in list()?.iter().rev().filter(|mounted| mounted.starts_with(dir)) {
        detach(mounted)?;
    }
    Ok(())
}

/// mountinfo writes blanks and backslashes as octal escapes.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_become_bytes() {
        assert_eq!(unescape("/a\\040b"), PathBuf::from("/a b"));
        assert_eq!(unescape("/a\\134\\011"), PathBuf::from("/a\\\t"));
        assert_eq!(unescape("/plain\\"), PathBuf::from("/plain\\"));
    }
}
