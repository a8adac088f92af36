//! The daemon: one volume behind one mount, from recovery to the last checkpoint.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use dbfs_fuse::Unmounter;
use fs_core::{StopFlag, Volume};

use crate::control;
use crate::daemon::Report;
use crate::engine;
use crate::notify;
use crate::observe::{Observed, http};
use crate::options::Options;
use crate::signals::Signals;

/// How long programs may go on using a mount that is told to end.
const GRACE: Duration = Duration::from_secs(2);

/// Mounts, serves until the mount is gone, and brings everything home. Blocks for all that time.
pub fn serve(path: &Path, dir: &Path, options: &Options, report: &mut Report) -> Result<()> {
    let signals = Signals::block().context("cannot block signals")?;
    be_an_io_flusher();
    // Before the recovery: a wrong address is told at once.
    let metrics = options.metrics.as_ref().map(http::bind).transpose()?;
    let (device, stats) = engine::open_for_mount(path, options)?;
    let volume = engine::mount(path, device, options)?;
    let observed =
        Arc::new(Observed { volume: volume.clone(), device: stats, path: path.into(), dir: dir.into() });
    let served = serve_volume(&observed, options, report, signals, metrics);
    notify::stopping(&format!("bringing the last changes to {}", path.display()));
    // Also after an error: what has been acknowledged must get home.
    let home = volume.shutdown().with_context(|| {
        format!("the last changes may not have reached {}; see `dbfs fsck -n`", path.display())
    });
    tracing::info!("{} is unmounted from {}", path.display(), dir.display());
    served.and(home)
}

fn serve_volume(
    observed: &Arc<Observed>,
    options: &Options,
    report: &mut Report,
    signals: Signals,
    metrics: Option<http::Bound>,
) -> Result<()> {
    let Observed { volume, path, dir, .. } = &**observed;
    let mounted = dbfs_fuse::mount(volume.clone(), dir, &options.mount_config(path))
        .with_context(|| format!("cannot mount on {}", dir.display()))?;
    let unmounter = mounted.unmounter();
    if !mounted.features().direct_handles {
        tracing::info!("files are opened cached: the kernel is older than 6.6, or the mount asks for it");
    }
    watch_signals(signals, unmounter.clone())?;
    let stop = Arc::new(StopFlag::default());
    let background = start_background(volume.clone(), stop.clone(), unmounter)?;
    let control = control::server::Server::start(observed.clone());
    if let Err(e) = &control {
        tracing::warn!("commands that need the daemon will not work: {e:#}");
    }
    let metrics = metrics.map(|bound| bound.serve(observed.clone())).transpose()?;
    report.live().context("cannot tell that the mount is live")?;
    let live = format!("{} is mounted on {}", path.display(), dir.display());
    notify::ready(&live);
    tracing::info!("{live}");

    let served = mounted.run().with_context(|| format!("serving {} failed", dir.display()));
    drop((control, metrics));
    stop.stop();
    let ended = background.join().map_err(|_| anyhow!("the background thread panicked")).and_then(|r| r);
    served.and(ended)
}

/// Lives until the process ends.
fn watch_signals(signals: Signals, unmounter: Unmounter) -> Result<()> {
    let watch = move || {
        loop {
            tracing::info!("unmounting because of {}", signals.wait());
            if let Err(e) = unmounter.unmount(GRACE) {
                tracing::error!("cannot unmount: {e}");
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watch).context("cannot start a thread")?;
    Ok(())
}

/// Runs the volume's background work. A volume without it would come to a halt when its journal is
/// full, so its death ends the mount.
fn start_background(
    volume: Arc<Volume>,
    stop: Arc<StopFlag>,
    unmounter: Unmounter,
) -> Result<JoinHandle<Result<()>>> {
    let work = move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| volume.run_background(&stop)));
        if outcome.is_ok() {
            return Ok(());
        }
        tracing::error!("the volume's background work has died; unmounting");
        unmounter.unmount(GRACE).context("cannot unmount after the background work had died")?;
        Err(anyhow!("the volume's background work has died; see the log"))
    };
    thread::Builder::new().name("background".into()).spawn(work).context("cannot start a thread")
}

/// Tells the kernel that memory for this process must not be made by writing through this process.
fn be_an_io_flusher() {
    /// From linux/prctl.h.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: plain numbers. It needs a privilege; without it the daemon is only less safe when
    // memory runs out.
    let failed = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } != 0;
    if failed {
        tracing::debug!("not an I/O flusher: {}", std::io::Error::last_os_error());
    }
}
