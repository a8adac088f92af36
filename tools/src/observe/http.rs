//! Metrics over HTTP/1.1: `GET /metrics` and nothing else, on a TCP address or a Unix socket.
//!
//! Whoever can reach it may be hostile: a request has a few KiB and a few seconds, connections are few, and
//! each is closed after its answer.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::{Observed, metrics};

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 8;
/// Longest request in bytes, and its most headers.
const MAX_REQUEST: usize = 8 << 10;
const MAX_HEADERS: usize = 64;
/// What a connection may take from its beginning to its end.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a failed accept (no descriptor left): the next one is tried.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Address {
    /// Parses "9187" or ":9187" (on the loopback interface), "ADDRESS:PORT", or a path.
    pub fn parse(text: &str) -> Result<Self> {
        if text.contains('/') {
            let path = std::path::absolute(text).with_context(|| format!("{text:?} is no path"))?;
            return Ok(Address::Unix(path));
        }
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let local = text.strip_prefix("localhost:").or(text.strip_prefix(':')).unwrap_or(text);
        match (local.parse::<u16>(), text.parse::<SocketAddr>()) {
            (Ok(port), _) => Ok(Address::Tcp(loopback(port))),
            (_, Ok(address)) => Ok(Address::Tcp(address)),
            _ => bail!(
                "{text:?} is neither a port (on the loopback interface), nor IP:PORT, nor the path of a socket"
            ),
        }
    }
}

/// A listening socket that nobody serves yet.
#[derive(Debug)]
pub struct Bound {
    listener: Listener,
    /// With the port that was chosen, if it was left open.
    address: Address,
    file: SocketFile,
}

/// The file of a Unix socket, removed when this is dropped.
#[derive(Debug)]
struct SocketFile(Option<PathBuf>);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // It may be gone already.
            let _ = fs::remove_file(path);
        }
    }
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn accept(&self) -> io::Result<Box<dyn Connection>> {
        Ok(match self {
            Listener::Tcp(listener) => Box::new(listener.accept()?.0),
            Listener::Unix(listener) => Box::new(listener.accept()?.0),
        })
    }
}

/// A connection of either kind.
trait Connection: Read + Write + Send {
    /// How long a read or write may take.
    fn set_timeout(&self, time: Duration) -> io::Result<()>;
}

impl Connection for TcpStream {
    fn set_timeout(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time)).and(self.set_write_timeout(Some(time)))
    }
}

impl Connection for UnixStream {
    fn set_timeout(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time)).and(self.set_write_timeout(Some(time)))
    }
}

/// Takes the address. A socket that was left behind is replaced.
pub fn bind(address: &Address) -> Result<Bound> {
    match address {
        Address::Tcp(wanted) => {
            let failed = || format!("cannot serve metrics on {wanted}");
            let listener = TcpListener::bind(wanted).with_context(failed)?;
            let address = Address::Tcp(listener.local_addr().with_context(failed)?);
            Ok(Bound { listener: Listener::Tcp(listener), address, file: SocketFile(None) })
        }
        Address::Unix(path) => {
            let listener =
                bind_unix(path).with_context(|| format!("cannot serve metrics on {}", path.display()))?;
            let file = SocketFile(Some(path.clone()));
            Ok(Bound { listener: Listener::Unix(listener), address: address.clone(), file })
        }
    }
}

fn bind_unix(path: &Path) -> Result<UnixListener> {
    if let Ok(meta) = fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            bail!("there is something that is not a socket");
        }
        if UnixStream::connect(path).is_ok() {
            bail!("somebody listens there already");
        }
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: Address,
    ended: Arc<AtomicBool>,
    _file: SocketFile,
}

impl Bound {
    /// Starts to serve.
    pub fn serve(self, observed: Arc<Observed>) -> Result<Server> {
        match &self.address {
            Address::Tcp(at) => tracing::info!("metrics are on http://{at}/metrics"),
            Address::Unix(path) => tracing::info!("metrics are on the socket {}", path.display()),
        }
        let Bound { listener, address, file } = self;
        let ended = Arc::new(AtomicBool::new(false));
        let server = Server { address, ended: ended.clone(), _file: file };
        let open = Arc::new(AtomicUsize::new(0));
        let accept = move || {
            while !ended.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok(_) if ended.load(Ordering::SeqCst) => break,
                    Ok(connection) => connect(connection, &open, &observed),
                    Err(e) => {
                        tracing::debug!("a client of the metrics: {e}");
                        thread::sleep(ACCEPT_AGAIN);
                    }
                }
            }
        };
        thread::Builder::new().name("metrics".into()).spawn(accept).context("cannot start a thread")?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread, which finds that it is over.
        match &self.address {
            Address::Tcp(at) => drop(TcpStream::connect_timeout(at, ACCEPT_AGAIN)),
            Address::Unix(path) => drop(UnixStream::connect(path)),
        }
    }
}

/// One of the connections that are open.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn connect(mut connection: Box<dyn Connection>, open: &Arc<AtomicUsize>, observed: &Arc<Observed>) {
    let before = open.fetch_add(1, Ordering::SeqCst);
    let place = Place(open.clone());
    if before >= MAX_CONNECTIONS {
        // It fits the socket's buffer: nobody is waited for.
        let _ = connection.set_timeout(ACCEPT_AGAIN);
        let _ = connection.write_all(&response(Answer::Busy, ""));
        return;
    }
    let observed = observed.clone();
    let serve = move || {
        let _place = place;
        if let Err(e) = serve(connection.as_mut(), || metrics::render(&observed)) {
            tracing::debug!("a client of the metrics: {e}");
        }
    };
    if let Err(e) = thread::Builder::new().name("metrics client".into()).spawn(serve) {
        tracing::warn!("cannot serve a client of the metrics: {e}");
    }
}

/// What a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Metrics { body: bool },
    BadRequest,
    NotFound,
    WrongMethod,
    TooLong,
    Busy,
}

/// Answers one request.
fn serve(connection: &mut dyn Connection, render: impl FnOnce() -> String) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let Some(answer) = receive(connection, deadline)? else { return Ok(()) };
    let text = match answer {
        Answer::Metrics { .. } => render(),
        _ => String::new(),
    };
    let bytes = response(answer, &text);
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        connection.set_timeout(left(deadline)?)?;
        match connection.write(rest)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => rest = &rest[n..],
        }
    }
    connection.flush()
}

/// The time until the deadline; an error behind it.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Reads the head of a request; `None`: the client has ended without one.
fn receive(connection: &mut dyn Connection, deadline: Instant) -> io::Result<Option<Answer>> {
    let mut head = [0; MAX_REQUEST];
    let mut len = 0;
    while len < head.len() {
        connection.set_timeout(left(deadline)?)?;
        match connection.read(&mut head[len..])? {
            0 => return Ok(None),
            n => len += n,
        }
        if let Some(answer) = judge(&head[..len]) {
            return Ok(Some(answer));
        }
    }
    Ok(Some(Answer::TooLong))
}

/// What the request gets, once it is complete.
fn judge(head: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Some(Answer::TooLong),
        Err(_) => return Some(Answer::BadRequest),
    }
    let path = request.path.unwrap_or_default();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    Some(match (path, request.method) {
        ("/metrics", Some("GET")) => Answer::Metrics { body: true },
        ("/metrics", Some("HEAD")) => Answer::Metrics { body: false },
        ("/metrics", _) => Answer::WrongMethod,
        _ => Answer::NotFound,
    })
}

fn response(answer: Answer, text: &str) -> Vec<u8> {
    let (status, body) = match answer {
        Answer::Metrics { .. } => ("200 OK", text),
        Answer::BadRequest => ("400 Bad Request", "not a request\n"),
        Answer::NotFound => ("404 Not Found", "there is only /metrics\n"),
        Answer::WrongMethod => ("405 Method Not Allowed", "GET it\n"),
        Answer::TooLong => ("431 Request Header Fields Too Large", "the request is too long\n"),
        Answer::Busy => ("503 Service Unavailable", "too many connections\n"),
    };
    let kind = match answer {
        Answer::Metrics { .. } => "text/plain; version=0.0.4; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    };
    let allow = if answer == Answer::WrongMethod { "Allow: GET, HEAD\r\n" } else { "" };
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    if answer != (Answer::Metrics { body: false }) {
        bytes.extend_from_slice(body.as_bytes());
    }
    bytes
}

/// For mount options.
pub fn option(value: &str) -> Result<Address> {
    if value.is_empty() {
        return Err(anyhow!("give a port, IP:PORT, or the path of a socket"));
    }
    Address::parse(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |a: &str| Address::Tcp(a.parse().unwrap());
        for (text, address) in [
            ("9187", tcp("127.0.0.1:9187")),
            (":9187", tcp("127.0.0.1:9187")),
            ("localhost:1", tcp("127.0.0.1:1")),
            ("0.0.0.0:80", tcp("0.0.0.0:80")),
            ("[::1]:80", tcp("[::1]:80")),
            ("/run/x.sock", Address::Unix("/run/x.sock".into())),
        ] {
            assert_eq!(option(text).unwrap(), address, "{text}");
        }
        for text in ["", "x", "70000", "1.2.3.4", "host.example:80", ":", "::1"] {
            assert!(option(text).is_err(), "{text}");
        }
    }

    #[test]
    fn requests_are_judged() {
        let cases: [(&[u8], Option<Answer>); 9] = [
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Some(Answer::Metrics { body: true })),
            (b"HEAD /metrics?a=b HTTP/1.0\r\n\r\n", Some(Answer::Metrics { body: false })),
            (b"GET /metrics HTTP/1.1\r\nHost", None),
            (b"", None),
            (b"POST /metrics HTTP/1.1\r\n\r\n", Some(Answer::WrongMethod)),
            (b"GET /metrics/../etc HTTP/1.1\r\n\r\n", Some(Answer::NotFound)),
            (b"GET http://x/metrics HTTP/1.1\r\n\r\n", Some(Answer::NotFound)),
            (b"\x16\x03\x01\x02\x00\x01\x00", Some(Answer::BadRequest)),
            (b"GET /metrics HTTP/9\r\n\r\n", Some(Answer::BadRequest)),
        ];
        for (head, answer) in cases {
            assert_eq!(judge(head), answer, "{}", head.escape_ascii());
        }
        let many = [b"GET / HTTP/1.1\r\n".as_slice(), &b"a: b\r\n".repeat(MAX_HEADERS + 1), b"\r\n"].concat();
        assert_eq!(judge(&many), Some(Answer::TooLong));
    }

    #[test]
    fn a_request_that_never_ends_is_cut() {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        let writer = thread::spawn(move || {
            client.write_all(&vec![b'a'; 2 * MAX_REQUEST]).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).map(|_| answer)
        });
        serve(&mut server, || unreachable!("no metrics for that")).unwrap();
        drop(server);
        // What was not read may make the kernel drop the answer.
        if let Ok(answer) = writer.join().unwrap() {
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        }
    }
}
