//! The system's log, for daemons.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Where the system's logger listens.
const SOCKET: &str = "/dev/log";

/// Messages of daemons, in syslog(3)'s numbers.
const FACILITY_DAEMON: u8 = 3;

/// A connection to the system's log.
pub struct Syslog {
    socket: UnixDatagram,
}

impl Syslog {
    /// Connects; fails where there is no system log.
    pub fn connect() -> io::Result<Self> {
        Self::connect_to(SOCKET)
    }

    fn connect_to(path: &str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // A logger that has fallen behind must not stop the file system that it logs to.
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }
}

fn severity(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// One message.
pub struct Entry<'a> {
    log: &'a Syslog,
    severity: u8,
}

impl Write for Entry<'_> {
    /// Takes a whole message, as the formatter hands it over. One that cannot be sent is lost.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let priority = FACILITY_DAEMON << 3 | self.severity;
        let mut message = format!("<{priority}>dbfs[{}]: ", std::process::id()).into_bytes();
        message.extend_from_slice(text.trim_ascii_end());
        let _ = self.log.socket.send(&message);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Entry<'a>;

    fn make_writer(&'a self) -> Entry<'a> {
        Entry { log: self, severity: severity(&Level::INFO) }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Entry<'a> {
        Entry { log: self, severity: severity(meta.level()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_with_their_level() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let logger = UnixDatagram::bind(&path).unwrap();
        let log = Syslog::connect_to(path.to_str().unwrap()).unwrap();
        let subscriber = tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(log).finish();
        tracing::subscriber::with_default(subscriber, || tracing::error!("it burns"));
        let mut buf = [0; 200];
        let n = logger.recv(&mut buf).unwrap();
        let text = String::from_utf8_lossy(&buf[..n]).into_owned();
        assert!(text.starts_with("<27>dbfs[") && text.ends_with("it burns"), "{text}");
        // Nobody listens any more: the message is lost, and nothing else.
        drop(logger);
        let log = Syslog { socket: UnixDatagram::unbound().unwrap() };
        assert_eq!(log.make_writer().write(b"gone").unwrap(), 4);
    }
}
