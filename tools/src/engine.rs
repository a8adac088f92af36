//! Where the tools meet the engine: opening devices, making and mounting volumes.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use blockdev::{BlockDevice, Engine, FileDevice, OpenError, OpenOptions, Recorder};
use fs_core::env::SystemEnv;
use fs_core::{FormatOptions, MountOptions, Volume};

use crate::observe::metered::{DeviceStats, Metered};
use crate::options::Options;
use crate::{mounts, output, shown};

/// How long `mount` and `fsck` wait for a daemon that is still bringing the last changes home.
pub const DRAIN_TIME: Duration = Duration::from_secs(10);

/// Opens a volume's device, alone for writing or with others for reading. Waits [`DRAIN_TIME`] for a
/// daemon that is about to let go of it, but not for one whose mount is there.
pub fn open_device(path: &Path, read_only: bool, engine: Engine) -> Result<FileDevice> {
    let open = |lock_timeout| {
        FileDevice::open(path, &OpenOptions { read_only, engine, lock_timeout, ..OpenOptions::default() })
    };
    match open(Duration::ZERO) {
        Err(OpenError::InUse { .. }) => {}
        other => return Ok(other?),
    }
    if let Some(mount) = mounts::mount_of(path) {
        bail!(
            "{} is in use: it is mounted on {}; unmount it first",
            path.display(),
            shown::quoted(mount.dir.as_os_str().as_bytes())
        );
    }
    open(DRAIN_TIME).map_err(|error| {
        let in_use = matches!(error, OpenError::InUse { .. });
        let error = anyhow::Error::new(error);
        if in_use { error.context("the volume is mounted or in use; unmount it first") } else { error }
    })
}

/// As [`open_device`], for looking at the volume; says so if a copy of its superblock is not good.
pub fn open_to_look(path: &Path) -> Result<FileDevice> {
    let device = open_device(path, true, Engine::Auto)?;
    // Whatever else is wrong is said by who looks.
    for bad in fs_core::dump::bad_superblocks(&device).unwrap_or_default() {
        output::say(&format!("warning: {bad}; another one is used, see `dbfs fsck -n {}`", path.display()));
    }
    Ok(device)
}

/// Opens the device of a mounted volume for reading, beside its daemon and without a lock. What is read may be
/// older than what the daemon has in memory, or be overwritten meanwhile.
pub fn open_mounted(path: &Path) -> Result<FileDevice> {
    Ok(FileDevice::open(path, &OpenOptions { read_only: true, lock: false, ..OpenOptions::default() })?)
}

/// Opens the device, counting what is asked of it, and puts the recorder before it if `options` ask for it.
pub fn open_for_mount(path: &Path, options: &Options) -> Result<(Arc<dyn BlockDevice>, Arc<DeviceStats>)> {
    let device = open_device(path, options.read_only, options.engine)?;
    if !device.capabilities().direct {
        tracing::warn!("{} is on a file system without O_DIRECT: data is cached twice", path.display());
    }
    let device = Metered::new(device);
    let stats = device.stats();
    match &options.record {
        None => Ok((Arc::new(device), stats)),
        Some(log) => {
            let recorder =
                Recorder::open(device, log).with_context(|| format!("cannot record to {}", log.display()))?;
            Ok((Arc::new(recorder), stats))
        }
    }
}

/// Mounts the volume on `device`: recovery happens here.
pub fn mount(path: &Path, device: Arc<dyn BlockDevice>, options: &Options) -> Result<Arc<Volume>> {
    let mut core =
        MountOptions { read_only: options.read_only, no_atime: options.noatime, ..MountOptions::default() };
    if let Some(bytes) = options.cache {
        core.cache_bytes = bytes;
    }
    if let Some(policy) = options.cache_policy {
        core.cache_policy = policy;
    }
    if let Some(shards) = options.cache_shards {
        core.cache_shards = shards;
    }
    if let Some(age) = options.commit {
        core.dirty_age_ns = age.as_nanos() as u64;
    }
    Volume::mount(device, core, Arc::new(SystemEnv))
        .with_context(|| format!("cannot open the volume on {}", path.display()))
}

/// Makes an empty volume on `device`.
pub fn format(path: &Path, device: &dyn BlockDevice, options: &FormatOptions) -> Result<()> {
    Volume::format(device, options, &SystemEnv)
        .with_context(|| format!("cannot make a volume on {}", path.display()))?;
    Ok(())
}
