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
use fs_core::{FsError, GrowTo, Grown, Ino, ScrubStats};

use super::protocol::{Request, Response, receive, send};
use super::status::{Explained, Extent};
use crate::observe::Observed;
use crate::options::check_cache;
use crate::size;

/// Clients at the same time.
const MAX_CLIENTS: usize = 16;

/// A client that neither sends nor takes for so long is let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// After a failed accept (no descriptor left), the next one is tried after this.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// How often a client is told how far a scrub is.
const PROGRESS: Duration = Duration::from_millis(500);

/// How often the status may be asked for by those who watch it.
const WATCH_MIN: Duration = Duration::from_millis(100);
const WATCH_MAX: Duration = Duration::from_secs(3600);

/// Serves a volume's socket until it is dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    ended: Arc<AtomicBool>,
}

/// What a connection needs.
struct Service {
    observed: Arc<Observed>,
    clients: AtomicUsize,
    ended: Arc<AtomicBool>,
}

impl Server {
    /// Starts to serve a volume.
    pub fn start(observed: Arc<Observed>) -> Result<Self> {
        let path = super::socket(&observed.volume.superblock().uuid.to_string())?;
        let listener = listen(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        let ended = Arc::new(AtomicBool::new(false));
        let service = Arc::new(Service { observed, clients: AtomicUsize::new(0), ended: ended.clone() });
        let accept = move || {
            for stream in listener.incoming() {
                if service.ended.load(Ordering::SeqCst) {
                    break;
                }
                match stream {
                    Ok(stream) => connect(&service, stream),
                    Err(e) => {
                        tracing::debug!("a client of the control socket: {e}");
                        thread::sleep(ACCEPT_AGAIN);
                    }
                }
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

fn error(message: &str) -> Response {
    Response::Error { message: message.into() }
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

/// One of the clients that are served.
struct Place(Arc<Service>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::SeqCst);
    }
}

fn connect(service: &Arc<Service>, mut stream: UnixStream) {
    let before = service.clients.fetch_add(1, Ordering::SeqCst);
    let place = Place(service.clone());
    if before >= MAX_CLIENTS {
        // A client that does not take the answer does not get one.
        let _ = stream.set_write_timeout(Some(PATIENCE));
        let _ = send(&mut stream, &Response::Error { message: "too many clients; try again later".into() });
        return;
    }
    let handle = move || {
        if let Err(e) = place.0.serve(stream) {
            tracing::debug!("a client of the control socket: {e}");
        }
    };
    if let Err(e) = thread::Builder::new().name("control client".into()).spawn(handle) {
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
            Ok(Some(Request::Status)) => {
                send(&mut stream, &Response::Status(Box::new(self.observed.status(None).0)))
            }
            Ok(Some(Request::Watch { every_ms })) => self.watch(&mut stream, every_ms),
            Ok(Some(Request::Slow)) => {
                send(&mut stream, &Response::Slow { syncs: self.observed.slow_syncs() })
            }
            Ok(Some(Request::Explain { ino, extents })) => self.explain(&mut stream, Ino(ino), extents),
            Ok(Some(Request::Scrub { rate })) => self.scrub(&mut stream, rate),
            Ok(Some(Request::Tune { cache_bytes })) => send(&mut stream, &self.tune(cache_bytes)),
            Ok(Some(Request::Grow { to })) => send(&mut stream, &self.grow(to)),
            Err(e) => send(&mut stream, &Response::Error { message: format!("not a request: {e}") }),
        }
    }

    /// Sends the status again and again, until the client or the volume ends.
    fn watch(&self, stream: &mut UnixStream, every_ms: u32) -> io::Result<()> {
        let every = Duration::from_millis(every_ms.into()).clamp(WATCH_MIN, WATCH_MAX);
        let (mut status, mut moment) = self.observed.status(None);
        while !self.ended.load(Ordering::SeqCst) {
            send(stream, &Response::Status(Box::new(status)))?;
            self.sleep(every);
            (status, moment) = self.observed.status(Some(&moment));
        }
        Ok(())
    }

    /// Sleeps, but not when all is to end.
    fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.ended.load(Ordering::SeqCst) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(WATCH_MIN));
        }
    }

    fn explain(&self, stream: &mut UnixStream, ino: Ino, extents: u64) -> io::Result<()> {
        let volume = &self.observed.volume;
        let mut left = extents;
        let mut failed = None;
        let explained = volume.explain(ino, &mut |extent| {
            if self.ended.load(Ordering::SeqCst) {
                return ControlFlow::Break(());
            }
            if left == 0 {
                return ControlFlow::Continue(());
            }
            left -= 1;
            let line = Extent {
                offset: extent.offset,
                physical: extent.blocks.start.offset(),
                length: extent.blocks.bytes() as u64,
                encoding: "plain".into(),
                unwritten: extent.unwritten,
            };
            match send(&mut *stream, &Response::Extent(line)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    failed = Some(e);
                    ControlFlow::Break(())
                }
            }
        });
        if let Some(e) = failed {
            return Err(e);
        }
        let last = match explained {
            Ok(e) => Response::Explained(Explained {
                size: e.size,
                class: e.class.map_or("other", |c| c.name()).into(),
                opens: e.opens,
                page_bytes: volume.page_size().bytes() as u64,
                extents: e.extents,
                adjacent: e.adjacent,
                written_bytes: e.written_bytes,
                unwritten_bytes: e.unwritten_bytes,
                mapped_pages: e.mapped_pages,
                cached_pages: e.cached_pages,
                dirty_pages: e.dirty_pages,
                journal_only_pages: e.journal_only_pages,
            }),
            Err(FsError::Posix(libc::EINVAL)) => error("it is not a regular file"),
            Err(FsError::Posix(libc::ESTALE)) => error("there is no such file any more"),
            Err(FsError::Posix(libc::ECANCELED)) => error("the volume is being unmounted"),
            Err(e) => error(&e.to_string()),
        };
        send(stream, &last)
    }

    fn tune(&self, cache_bytes: Option<u64>) -> Response {
        if let Some(bytes) = cache_bytes {
            if let Err(message) = check_cache(bytes) {
                return error(&message);
            }
            self.observed.volume.set_cache_bytes(bytes as usize);
            tracing::info!("the page cache may take {} now", size::show(bytes));
        }
        let cache = self.observed.volume.status().cache;
        Response::Tuned { cache_bytes: cache.capacity, cached_bytes: cache.resident }
    }

    fn grow(&self, to: GrowTo) -> Response {
        match self.observed.volume.grow(to) {
            Ok(Grown { old_bytes, new_bytes }) => {
                if new_bytes > old_bytes {
                    tracing::info!("the volume has grown from {old_bytes} to {new_bytes} bytes");
                }
                Response::Grown { old_bytes, new_bytes }
            }
            Err(e) => {
                tracing::warn!("the volume cannot grow: {e}");
                error(&format!("the volume cannot grow: {e}"))
            }
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
        let last = match self.observed.volume.scrub(&mut pace, &mut found) {
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
