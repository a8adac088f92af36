//! SIGTERM and SIGINT (and others if wanted), taken by a thread of their own.

use std::io;
use std::mem::MaybeUninit;

/// Blocks the signals in this thread and in all that it will start, until [`Signals::wait`] takes
/// them. SIGHUP is ignored: the terminal that a daemon was started from may go.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Must be called before any other thread is started.
    pub fn block() -> io::Result<Self> {
        Self::block_with(&[])
    }

    /// As [`Signals::block`], with `more` of SIGUSR1 and SIGUSR2.
    pub fn block_with(more: &[libc::c_int]) -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initialises the set, which is valid for the other calls then; the
        // signal numbers exist; SIG_IGN runs no code.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for &signal in [libc::SIGTERM, libc::SIGINT].iter().chain(more) {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
                0 => Ok(Self(set)),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }

    /// Waits for one of the signals and returns its name.
    pub fn wait(&self) -> &'static str {
        let mut signal = 0;
        loop {
            // SAFETY: the set is initialised, and the result is a plain number.
            let error = unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
            match (error, signal) {
                (0, libc::SIGTERM) => return "SIGTERM",
                (0, libc::SIGINT) => return "SIGINT",
                (0, libc::SIGUSR1) => return "SIGUSR1",
                (0, libc::SIGUSR2) => return "SIGUSR2",
                _ => {}
            }
        }
    }
}
