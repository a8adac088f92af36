//! Mounts of users other than root, through FUSE's set-user-id helper `fusermount3`.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::config::MountConfig;

/// The helper; package `fuse3`.
const PROGRAM: &str = "fusermount3";

/// Tells the helper which of its descriptors is the socket that takes the mounted device.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";

/// Lets users other than root use `allow_other` if it has a line `user_allow_other`.
const CONFIG: &str = "/etc/fuse.conf";

/// Mounts on `dir` and returns the device to serve. EPERM if the user may not, with the helper's
/// words; blocks until the helper is done.
pub fn mount(dir: &Path, config: &MountConfig) -> io::Result<OwnedFd> {
    if config.allow_other && !others_allowed(&std::fs::read(CONFIG).unwrap_or_default()) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "users other than root may use allow_other only if {CONFIG} has a line \
                 \"user_allow_other\": have it added, or leave allow_other out"
            ),
        ));
    }
    let (ours, theirs) = UnixStream::pair()?;
    let child = Command::new(PROGRAM)
        .arg("-o")
        .arg(options(config))
        .arg("--")
        .arg(dir)
        .env(SOCKET_VARIABLE, "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(not_started)?;
    let device = receive(&ours);
    let output = child.wait_with_output()?;
    match device? {
        Some(device) if output.status.success() => Ok(device),
        _ => Err(refused(&output.stderr)),
    }
}

/// Unmounts `dir`; `lazy`: even if it is in use, its users then keep what they have open. EBUSY if it
/// is in use.
pub fn unmount(dir: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new(PROGRAM);
    // The messages are looked at, so they must not be translated.
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(dir).env("LC_ALL", "C");
    let output = command.stdin(Stdio::null()).output().map_err(not_started)?;
    if output.status.success() {
        return Ok(());
    }
    if String::from_utf8_lossy(&output.stderr).contains("resource busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Err(refused(&output.stderr))
}

fn not_started(e: io::Error) -> io::Error {
    io::Error::new(
        e.kind(),
        format!("cannot run {PROGRAM}, which users other than root need: {e}; install package fuse3"),
    )
}

fn refused(stderr: &[u8]) -> io::Error {
    let said = String::from_utf8_lossy(stderr);
    let said = match said.trim() {
        "" => format!("{PROGRAM} refused and does not say why"),
        text => text.to_owned(),
    };
    io::Error::new(io::ErrorKind::PermissionDenied, said)
}

/// The options in the helper's form: names and values may hold anything but need `,` and `\` escaped.
fn options(config: &MountConfig) -> OsString {
    let mut list = b"subtype=dbfs,fsname=".to_vec();
    list.extend_from_slice(escape(&config.source).as_bytes());
    let flags = [
        (config.read_only, "ro"),
        (config.allow_other, "allow_other"),
        (config.default_permissions, "default_permissions"),
        (config.nodev, "nodev"),
        (config.nosuid, "nosuid"),
        (config.noexec, "noexec"),
        (config.noatime, "noatime"),
        (config.sync, "sync"),
    ];
    for (_, name) in flags.into_iter().filter(|(on, _)| *on) {
        list.push(b',');
        list.extend_from_slice(name.as_bytes());
    }
    OsString::from_vec(list)
}

fn escape(value: &OsStr) -> OsString {
    let escaped = value.as_bytes().iter().flat_map(|&b| {
        let special = matches!(b, b',' | b'\\');
        special.then_some(b'\\').into_iter().chain([b])
    });
    OsString::from_vec(escaped.collect())
}

/// A line that holds this word and nothing else, as libfuse reads it.
fn others_allowed(config: &[u8]) -> bool {
    config.split(|&b| b == b'\n').any(|line| line.trim_ascii() == b"user_allow_other")
}

/// The descriptor that the helper sends; `None` if it ends without one.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        let mut data = [IoSliceMut::new(&mut byte)];
        match recvmsg(socket, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let rights = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(rights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_strange_sources() {
        let mut config = MountConfig::new(OsStr::from_bytes(b"/a,b\\c\xff"));
        config.allow_other = false;
        config.read_only = true;
        assert_eq!(
            options(&config).as_bytes(),
            b"subtype=dbfs,fsname=/a\\,b\\\\c\xff,ro,default_permissions"
        );
    }

    #[test]
    fn only_the_word_alone_lets_others_in() {
        assert!(others_allowed(b"# x\n  user_allow_other \nmount_max = 5\n"));
        assert!(!others_allowed(b"#user_allow_other\nuser_allow_other=1\n"));
    }
}
