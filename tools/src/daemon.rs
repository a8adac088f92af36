//! Becoming a daemon: the command returns when the mount is live, or with the reason why it is not.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use rustix::pipe::PipeFlags;

/// First byte of a message that brings good news.
const LIVE: u8 = b'+';

/// Which side of the fork this is.
pub enum Side {
    /// The command that the user waits for, with what the daemon said.
    Command(Result<()>),
    /// The daemon.
    Daemon(Report),
}

/// The daemon's way to tell the waiting command how it went.
pub struct Report(Option<File>);

impl Report {
    /// For a daemon that runs in the foreground: nobody waits.
    pub fn to_nobody() -> Self {
        Self(None)
    }

    /// The mount is live: lets the command return and the terminal go.
    pub fn live(&mut self) -> io::Result<()> {
        let Some(mut pipe) = self.0.take() else { return Ok(()) };
        detach_from_terminal()?;
        pipe.write_all(&[LIVE])
    }

    /// The mount failed. False if nobody waits any more (or nobody ever did).
    pub fn failed(&mut self, error: &anyhow::Error) -> bool {
        self.0.take().is_some_and(|mut pipe| pipe.write_all(format!("{error:#}").as_bytes()).is_ok())
    }
}

/// Forks twice, so that the daemon is nobody's child and can never get a terminal.
///
/// Must be called before any thread is started.
pub fn daemonize() -> Result<Side> {
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe to the daemon")?;
    if fork()? {
        drop(writer);
        return Ok(Side::Command(listen(reader)));
    }
    drop(reader);
    rustix::process::setsid().context("cannot start a session for the daemon")?;
    if fork()? {
        std::process::exit(0);
    }
    close_all_but(&writer);
    Ok(Side::Daemon(Report(Some(writer.into()))))
}

/// Closes what the process has been given beside standard input and outputs: a file that a script has open must not
/// stay so, and keep its file system busy, for as long as the volume is mounted. Linux before 5.9 cannot.
fn close_all_but(pipe: &OwnedFd) {
    let pipe = pipe.as_raw_fd() as u32;
    for (first, last) in [(3, pipe.saturating_sub(1)), (pipe.max(2) + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: nothing in this process has a descriptor yet but the pipe: it has done nothing but to read its
            // options.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// True in the parent.
fn fork() -> Result<bool> {
    // SAFETY: the process has one thread, so the child may do everything that the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(anyhow!(io::Error::last_os_error()).context("cannot fork the daemon")),
        0 => Ok(false),
        _ => Ok(true),
    }
}

/// Waits for the daemon's word. The end of the pipe without one means that it died.
fn listen(reader: OwnedFd) -> Result<()> {
    let mut message = Vec::new();
    File::from(reader).read_to_end(&mut message).context("cannot hear from the daemon")?;
    match message.as_slice() {
        [LIVE] => Ok(()),
        [] => Err(anyhow!("the daemon died before the mount was live; see its log, or use --foreground")),
        text => Err(anyhow!(String::from_utf8_lossy(text).into_owned())),
    }
}

/// Standard input and outputs go nowhere from now on, and no directory is kept busy.
fn detach_from_terminal() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    std::env::set_current_dir("/")
}
