//! Telling systemd how the daemon is (`Type=notify`, sd_notify(3)).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// Where systemd listens; only set for services that it expects to hear from.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// The mount is live.
pub fn ready(status: &str) {
    tell(&format!("READY=1\nSTATUS={status}"));
}

/// Everything is being brought home, which may take its time.
pub fn stopping(status: &str) {
    tell(&format!("STOPPING=1\nSTATUS={status}"));
}

/// Says it if systemd listens. A daemon that cannot be heard is no worse, so that is only logged.
fn tell(text: &str) {
    let Some(socket) = std::env::var_os(VARIABLE) else { return };
    if let Err(e) = send(&socket, text) {
        tracing::warn!("cannot tell systemd about the mount through {}: {e}", Path::new(&socket).display());
    }
}

/// The address is a path, or a name behind an `@`.
fn send(socket: &OsStr, text: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_at_paths_and_abstract_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("dbfs-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let listeners = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&abstract_name).unwrap()),
        ];
        for (address, listener) in listeners {
            send(&address, "READY=1").unwrap();
            let mut buf = [0; 20];
            let n = listener.recv(&mut buf).unwrap();
            assert_eq!(&buf[..n], b"READY=1");
        }
        assert!(send(OsStr::new("/nowhere/at/all"), "x").is_err());
    }
}
