//! Errors on their way to the kernel, and into the log.

use std::any::Any;
use std::time::{Duration, Instant};

use fs_core::{FsError, Ino};
use fuser::Errno;
use parking_lot::Mutex;

/// So many messages may be logged in one [`WINDOW`]: a volume that has stopped fails every request.
const BURST: u32 = 20;

/// See [`BURST`].
const WINDOW: Duration = Duration::from_secs(10);

/// Logs what no program should ever see, and not too much of it.
#[derive(Default)]
pub(crate) struct ErrorLog(Mutex<Window>);

#[derive(Default)]
struct Window {
    start: Option<Instant>,
    messages: u32,
}

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Log it; before it, so many were kept back.
    Log(u32),
    KeepBack,
}

impl Window {
    fn judge(&mut self, now: Instant) -> Verdict {
        let over = self.start.is_none_or(|s| now.duration_since(s) >= WINDOW);
        let mut kept_back = 0;
        if over {
            kept_back = self.messages.saturating_sub(BURST);
            *self = Self { start: Some(now), messages: 0 };
        }
        self.messages = self.messages.saturating_add(1);
        if self.messages <= BURST { Verdict::Log(kept_back) } else { Verdict::KeepBack }
    }
}

impl ErrorLog {
    /// The errno for `error`. A refusal is an everyday answer, anything else is logged.
    pub(crate) fn errno(&self, what: &str, ino: Ino, error: &FsError) -> Errno {
        if !matches!(error, FsError::Posix(_)) {
            self.log(|| format!("{what} of inode {ino} failed: {error}"));
        }
        Errno::from_i32(error.errno())
    }

    /// The errno for an operation that panicked.
    pub(crate) fn panicked(&self, what: &str, ino: Ino, panic: &(dyn Any + Send)) -> Errno {
        self.log(|| format!("{what} of inode {ino} panicked, answered with EIO: {}", panic_text(panic)));
        Errno::EIO
    }

    fn log(&self, message: impl FnOnce() -> String) {
        let verdict = self.0.lock().judge(Instant::now());
        match verdict {
            Verdict::Log(0) => tracing::error!("{}", message()),
            Verdict::Log(n) => tracing::error!("{} ({n} more errors before this one)", message()),
            Verdict::KeepBack => {}
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(s) = panic.downcast_ref::<&str>() {
        s
    } else if let Some(s) = panic.downcast_ref::<String>() {
        s
    } else {
        "(no message)"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut window = Window::default();
        let start = Instant::now();
        let logged = (0..100).filter(|_| window.judge(start) == Verdict::Log(0)).count();
        assert_eq!(logged, BURST as usize);
        assert_eq!(window.judge(start + WINDOW), Verdict::Log(80));
        assert_eq!(window.judge(start + WINDOW), Verdict::Log(0));
    }

    #[test]
    fn texts_of_panics() {
        assert_eq!(panic_text(&"static"), "static");
        assert_eq!(panic_text(&String::from("made")), "made");
        assert_eq!(panic_text(&5), "(no message)");
    }
}
