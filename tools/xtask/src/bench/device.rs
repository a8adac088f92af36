//! The one device that all subjects are measured on.

use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;

use crate::cleanup::Guard;
use crate::rng::Rng;
use crate::{cmd, paths};

/// A block device.
pub struct Device {
    path: PathBuf,
    size: u64,
    /// Detaches it, and then removes the file below.
    _guards: Option<(Guard, Guard)>,
}

impl Device {
    /// A loop device with direct I/O over the new file `file`, which is written in full, so that no
    /// measurement pays for the allocation of blocks in the file system below.
    pub fn over_file(file: PathBuf, size: u64) -> Result<Self> {
        let remove = removal(&file);
        fill(&file, size)?;
        let losetup = paths::program("losetup")?;
        let mut attach = Command::new(&losetup);
        let name = cmd::capture(attach.args(["--find", "--show", "--direct-io=on"]).arg(&file))?;
        let path = PathBuf::from(name.trim());
        let detach = Guard::new({
            let path = path.clone();
            // Not through `cmd`, whose own guard would wait for the interrupt that runs this one.
            move || match Command::new(&losetup).arg("-d").arg(&path).status() {
                Ok(status) if status.success() => {}
                outcome => eprintln!("warning: {} is still attached ({outcome:?})", path.display()),
            }
        });
        refuse_discards(&path)?;
        Ok(Self { path, size, _guards: Some((detach, remove)) })
    }

    /// A device of the user's, whose content is lost. Refused while the kernel uses it.
    pub fn of_user(path: &Path) -> Result<Self> {
        let kind =
            std::fs::metadata(path).with_context(|| format!("cannot find {}", path.display()))?.file_type();
        ensure!(kind.is_block_device(), "{} is no block device", path.display());
        let mut options = File::options();
        let exclusive = i32::try_from(OFlags::EXCL.bits())?;
        let mut device = options
            .read(true)
            .write(true)
            .custom_flags(exclusive)
            .open(path)
            .with_context(|| format!("cannot have {} for ourselves", path.display()))?;
        let size = device.seek(SeekFrom::End(0))?;
        Ok(Self { path: path.to_path_buf(), size, _guards: None })
    }

    /// Its device node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Removes a file when it is not used any more.
pub fn removal(file: &Path) -> Guard {
    let file = file.to_path_buf();
    Guard::new(move || match std::fs::remove_file(&file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            eprintln!("warning: cannot remove {}: {error}", file.display());
        }
        _ => {}
    })
}

/// Writes bytes that no layer below can compress away.
fn fill(path: &Path, size: u64) -> Result<()> {
    let mut rng = Rng::new(1);
    let block: Vec<u8> = (0..1 << 17).flat_map(|_| rng.next().to_le_bytes()).collect();
    let mut file = File::create_new(path)?;
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
