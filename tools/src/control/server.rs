//! The daemon's side.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufReader};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fs_core::{ScrubStats, Volume};

use super::protocol::{Request, Response, receive, send};

/// Clients at the same time.
const MAX_CLIENTS: usize = 16;

/// A client that neither sends nor takes for so long is let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a client is told how far a scrub is.
const PROGRESS: Duration = Duration::from_millis(500);

/// Serves a volume's socket until it is dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    ended: Arc<AtomicBool>,
}

/// What a connection needs.
struct Service {
    volume: Arc<Volume>,
    clients: AtomicUsize,
    ended: Arc<AtomicBool>,
}

impl Server {
    /// Starts to serve `volume`.
    pub fn start(volume: Arc<Volume>) -> Result<Self> {
        let path = super::socket(&volume.superblock().uuid.to_string())?;
        let listener = listen(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        let ended = Arc::new(AtomicBool::new(false));
        let service = Arc::new(Service { volume, clients: AtomicUsize::new(0), ended: ended.clone() });
        let accept = move || {
            for stream in listener.incoming().flatten() {
                if service.ended.load(Ordering::SeqCst) {
                    break;
                }
                connect(&service, stream);
            }
        };
        thread::Builder::new().name("control".into()).spawn(accept).context("cannot start a thread")?;
        Ok(Self { path, ended })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread, which finds that it is over.
        let _ = UnixStream::connect(&self.path);
        let _ = fs::remove_file(&self.path);
    }
}

fn listen(path: &PathBuf) -> Result<UnixListener> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    if UnixStream::connect(path).is_ok() {
        bail!("another daemon serves this volume");
    }
    // Left behind by a daemon that was killed.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn connect(service: &Arc<Service>, mut stream: UnixStream) {
    if service.clients.fetch_add(1, Ordering::SeqCst) >= MAX_CLIENTS {
        service.clients.fetch_sub(1, Ordering::SeqCst);
        // A client that does not take the answer does not get one.
        let _ = stream.set_write_timeout(Some(PATIENCE));
        let _ = send(&mut stream, &Response::Error { message: "too many clients; try again later".into() });
        return;
    }
    let handled = service.clone();
    let handle = move || {
        if let Err(e) = handled.serve(stream) {
            tracing::debug!("a client of the control socket: {e}");
        }
        handled.clients.fetch_sub(1, Ordering::SeqCst);
    };
    if let Err(e) = thread::Builder::new().name("control client".into()).spawn(handle) {
        service.clients.fetch_sub(1, Ordering::SeqCst);
        tracing::warn!("cannot serve a client of the control socket: {e}");
    }
}

impl Service {
    fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut from = BufReader::new(stream.try_clone()?);
        match receive::<Request>(&mut from) {
            Ok(None) => Ok(()),
            Ok(Some(Request::Status)) => send(&mut stream, &self.status()),
            Ok(Some(Request::Scrub { rate })) => self.scrub(&mut stream, rate),
            Err(e) => send(&mut stream, &Response::Error { message: format!("not a request: {e}") }),
        }
    }

    fn status(&self) -> Response {
        Response::Status {
            uuid: self.volume.superblock().uuid.to_string(),
            epoch: self.volume.epoch().get(),
            failure: self.volume.failure(),
        }
    }

    fn scrub(&self, stream: &mut UnixStream, rate: u32) -> io::Result<()> {
        let bytes_per_second = u64::from(rate.max(1)) << 20;
        let begun = Instant::now();
        let mut told = begun;
        let mut progress = stream.try_clone()?;
        let mut pace = |stats: &ScrubStats| {
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                if send(&mut progress, &Response::Progress { bytes: stats.bytes }).is_err() {
                    return ControlFlow::Break(());
                }
            }
            let due = Duration::from_secs_f64(stats.bytes as f64 / bytes_per_second as f64);
            thread::sleep(due.saturating_sub(begun.elapsed()).min(PATIENCE / 10));
            if self.ended.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut findings = stream.try_clone()?;
        let mut found = |f: fs_core::ScrubFinding| {
            tracing::error!(ino = f.ino.map(fs_core::Ino::get), offset = f.offset, "scrub: {}", f.what);
            let response =
                Response::Finding { ino: f.ino.map(fs_core::Ino::get), offset: f.offset, what: f.what };
            // A client that is gone is noticed with the next progress.
            let _ = send(&mut findings, &response);
        };
        let last = match self.volume.scrub(&mut pace, &mut found) {
            Ok(s) => Response::Scrubbed {
                nodes: s.nodes,
                pages: s.pages,
                bytes: s.bytes,
                findings: s.findings,
                complete: !s.stopped,
            },
            Err(e) => Response::Error { message: e.to_string() },
        };
        send(stream, &last)
    }
}
