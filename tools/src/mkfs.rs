//! `dbfs mkfs`: makes a volume.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use blockdev::{BlockDevice, FileDevice, OpenError, OpenOptions};
use fs_core::{FormatOptions, PageSize};
use rustix::fs::{FallocateFlags, FlockOperation};

use crate::{engine, output, signatures, size};

/// Make a dbfs volume on a block device or in an image file.
///
/// Exit codes: 0 the volume is made, 1 it is not.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Size of an image file to create (like 512M, 8G, 1T); sparse
    #[arg(long, value_parser = size::parse)]
    size: Option<u64>,
    /// Page size: the unit of caching and checksums, at least the database's page (4K to 64K)
    #[arg(long, default_value = "16K", value_parser = parse_page_size)]
    page_size: PageSize,
    /// Name of the volume, up to 63 bytes
    #[arg(long, short = 'L', default_value = "")]
    label: String,
    /// Overwrite what is on the device, even if the kernel is using it
    #[arg(long, short = 'f', visible_short_alias = 'F')]
    force: bool,
    /// Say nothing if all goes well
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Block device or image file
    volume: PathBuf,
    /// Size of an image file, as mkfs(8) passes it: in KiB, or with a unit
    #[arg(value_name = "SIZE", value_parser = parse_kib, conflicts_with = "size")]
    blocks: Option<u64>,
}

impl Args {
    fn size(&self) -> Option<u64> {
        self.size.or(self.blocks)
    }
}

/// Without a unit, sizes behind the device are in KiB (mkfs(8), mke2fs(8)).
fn parse_kib(text: &str) -> Result<u64, String> {
    let unit = if text.bytes().all(|b| b.is_ascii_digit()) { "K" } else { "" };
    size::parse(&format!("{text}{unit}"))
}

fn parse_page_size(text: &str) -> Result<PageSize, String> {
    let bytes = size::parse(text)?;
    let page = u32::try_from(bytes).ok().and_then(PageSize::new);
    page.ok_or_else(|| format!("{text} is no page size; there are 4K, 8K, 16K, 32K and 64K"))
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let created = prepare_file(args)?;
    let made = make(args);
    if made.is_err() && created {
        // What made it fail is what the user needs to hear of.
        let _ = std::fs::remove_file(&args.volume);
    }
    made.map(|()| ExitCode::SUCCESS)
}

fn make(args: &Args) -> Result<()> {
    let device = open(args)?;
    let old = signatures::find(&device)?;
    if let (Some(what), false) = (old, args.force) {
        bail!("{} holds something: {what}; --force overwrites it", args.volume.display());
    }
    if old.is_some() {
        signatures::wipe(&device)?;
    }
    let root_owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let options = FormatOptions {
        page_size: args.page_size,
        label: args.label.clone(),
        root_owner,
        ..FormatOptions::default()
    };
    engine::format(&args.volume, &device, &options)?;
    if args.quiet {
        return Ok(());
    }
    output::done(&format!(
        "{}: dbfs volume of {}, pages of {}",
        args.volume.display(),
        size::show(device.capabilities().size_bytes),
        size::show(args.page_size.bytes() as u64)
    ));
    Ok(())
}

/// Creates the image file if it does not exist; true if it did not.
fn prepare_file(args: &Args) -> Result<bool> {
    let volume = args.volume.display();
    let meta = match std::fs::metadata(&args.volume) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let Some(size) = args.size() else {
                bail!("{volume} does not exist; --size creates an image file");
            };
            let file = File::create_new(&args.volume).with_context(|| format!("cannot create {volume}"))?;
            return match set_size(&file, size) {
                Ok(()) => Ok(true),
                Err(e) => {
                    let _ = std::fs::remove_file(&args.volume);
                    Err(anyhow!(e).context(format!("cannot give {volume} a size of {}", size::show(size))))
                }
            };
        }
        Err(e) => return Err(anyhow!(e).context(format!("cannot open {volume}"))),
    };
    let Some(size) = args.size() else { return Ok(false) };
    if !meta.is_file() {
        bail!("{volume} is not an image file; --size is only for those");
    }
    if meta.len() == 0 {
        let file = File::options().write(true).open(&args.volume)?;
        set_size(&file, size).with_context(|| format!("cannot give {volume} a size"))?;
    } else if meta.len() != size {
        bail!("{volume} exists with a size of {}; remove it or leave --size out", size::show(meta.len()));
    }
    Ok(false)
}

fn set_size(file: &File, size: u64) -> io::Result<()> {
    file.set_len(size)?;
    // Space for the start of the volume, to learn now that there is none at all.
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, size.min(1 << 20)) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Opens the device for nobody but us. If forced, past the kernel's claim (a mount, RAID), but never
/// past another program's lock: a daemon would go on writing into the new volume.
fn open(args: &Args) -> Result<FileDevice> {
    let claimed = FileDevice::open(&args.volume, &OpenOptions::default());
    let held = match claimed {
        Err(e @ OpenError::InUse { .. }) => e,
        other => return Ok(other?),
    };
    if !args.force {
        return Err(anyhow!(held).context("stop what uses it first"));
    }
    if is_locked(&args.volume)? {
        return Err(anyhow!(held).context("a program has locked it, and --force does not help against that"));
    }
    Ok(FileDevice::open(&args.volume, &OpenOptions { lock: false, ..OpenOptions::default() })?)
}

fn is_locked(path: &Path) -> Result<bool> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(e) => Err(anyhow!(e).context(format!("cannot lock {}", path.display()))),
    }
}
