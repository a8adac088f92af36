//! The one loop device that all subjects are measured on.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cleanup::Guard;
use crate::rng::Rng;
use crate::{cmd, paths};

/// A loop device with direct I/O over a file that is written in full, so that no measurement pays for the
/// allocation of blocks in the file below.
pub struct LoopDevice {
    path: PathBuf,
    _guard: Guard,
}

impl LoopDevice {
    /// Makes `file` and attaches it.
    pub fn new(file: PathBuf, size: u64) -> Result<Self> {
        fill(&file, size)?;
        let losetup = paths::program("losetup")?;
        let mut attach = Command::new(&losetup);
        let name = cmd::capture(attach.args(["--find", "--show", "--direct-io=on"]).arg(&file))?;
        let path = PathBuf::from(name.trim());
        let guard = Guard::new({
            let path = path.clone();
            move || {
                if let Err(error) = cmd::capture(Command::new(&losetup).arg("-d").arg(&path)) {
                    eprintln!("warning: {error:#}");
                }
            }
        });
        refuse_discards(&path)?;
        Ok(Self { path, _guard: guard })
    }

    /// Its device node.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Writes bytes that no layer below can compress away.
fn fill(path: &Path, size: u64) -> Result<()> {
    let mut rng = Rng::new(1);
    let block: Vec<u8> = (0..1 << 17).flat_map(|_| rng.next().to_le_bytes()).collect();
    let mut file = File::create(path)?;
    let mut left = size;
    while left > 0 {
        let length = left.min(block.len() as u64);
        file.write_all(&block[..usize::try_from(length)?])?;
        left -= length;
    }
    file.sync_all().context("cannot write the device's file")
}

/// A discard would punch holes into the file, and later writes would pay for filling them.
fn refuse_discards(device: &Path) -> Result<()> {
    let name = device.file_name().context("a device without a name")?;
    let setting = Path::new("/sys/block").join(name).join("queue/discard_max_bytes");
    std::fs::write(&setting, "0").with_context(|| format!("cannot write {}", setting.display()))
}
