//! How far the work is: a line on the terminal with the time that is left, or lines for a program, as
//! e2fsck(8) writes them.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often it is shown.
const STEP: Duration = Duration::from_millis(200);

/// Time of work below which nothing is said about the rest.
const SURE: Duration = Duration::from_secs(2);

/// Lines for a program are held back, as a signal said (see e2fsck(8), -C).
static QUIET: AtomicBool = AtomicBool::new(false);

/// Lets the lines for a program out, or holds them back.
pub fn let_out(on: bool) {
    QUIET.store(!on, Ordering::Relaxed);
}

/// Where progress goes.
enum Sink {
    Nowhere,
    /// A line on standard error.
    Terminal,
    /// Lines of "pass done of device".
    Program(File, String),
}

/// Shows progress.
pub struct Meter {
    sink: Sink,
    begun: Cell<Instant>,
    shown: Cell<Option<Instant>>,
    /// Work done when it was last shown: less means that something new has begun.
    done: Cell<u64>,
    of: Cell<u64>,
    what: RefCell<String>,
    /// What was done before is counted.
    pass: Cell<u32>,
}

impl Default for Meter {
    /// On standard error, if that is a terminal.
    fn default() -> Self {
        Self::new(if io::stderr().is_terminal() { Sink::Terminal } else { Sink::Nowhere })
    }
}

impl Meter {
    fn new(sink: Sink) -> Self {
        Self {
            sink,
            begun: Cell::new(Instant::now()),
            shown: Cell::default(),
            done: Cell::default(),
            of: Cell::default(),
            what: RefCell::default(),
            pass: Cell::default(),
        }
    }

    /// For a program that reads from `descriptor`, as e2fsck's option -C has it: 0 means the terminal,
    /// a negative one holds the lines back until SIGUSR1 comes. Fails if there is no such descriptor.
    pub fn for_program(descriptor: i32, volume: &Path) -> io::Result<Self> {
        if descriptor == 0 {
            return Ok(Self::default());
        }
        let number = descriptor.checked_abs().ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: it is only duplicated, now, before anything else is opened: it is our caller's, or
        // not open, which is an error.
        let theirs = unsafe { BorrowedFd::borrow_raw(number) };
        let file = rustix::io::fcntl_dupfd_cloexec(theirs, 3)?.into();
        let_out(descriptor > 0);
        Ok(Self::new(Sink::Program(file, volume.display().to_string())))
    }

    /// Shows that `done` of `of` is done (`of` is an estimate, or 0 if not known).
    pub fn show(&self, what: &str, done: u64, of: u64) {
        let is_new = *self.what.borrow() != what;
        if is_new {
            what.clone_into(&mut self.what.borrow_mut());
            self.pass.set(self.pass.get() + 1);
        }
        if done < self.done.replace(done) || is_new {
            self.begun.set(Instant::now());
        }
        self.of.set(of);
        if !is_new && self.shown.get().is_some_and(|at| at.elapsed() < STEP) {
            return;
        }
        self.shown.set(Some(Instant::now()));
        match &self.sink {
            Sink::Nowhere => {}
            Sink::Terminal => {
                let line = line(what, done, of, self.begun.get().elapsed());
                // A progress line that cannot be shown is no reason to stop.
                let _ = write!(io::stderr(), "\r\x1b[K{line}");
            }
            Sink::Program(..) => self.tell(done.min(of), of),
        }
    }

    /// A line for a program. One without an end would look like the end to it.
    fn tell(&self, done: u64, of: u64) {
        if let Sink::Program(to, volume) = &self.sink
            && of > 0
            && !QUIET.load(Ordering::Relaxed)
        {
            // In one piece, and if nobody reads it, that is no reason to stop.
            let _ = (&*to).write_all(format!("{} {done} {of} {volume}\n", self.pass.get()).as_bytes());
        }
    }

    /// What was shown is done: takes the line away.
    pub fn clear(&self) {
        if self.shown.take().is_none() {
            return;
        }
        match &self.sink {
            Sink::Nowhere => {}
            Sink::Terminal => drop(write!(io::stderr(), "\r\x1b[K")),
            Sink::Program(..) => self.tell(self.of.get(), self.of.get()),
        }
    }
}

fn line(what: &str, done: u64, of: u64, spent: Duration) -> String {
    if of == 0 || done == 0 {
        return what.to_owned();
    }
    let share = (done as f64 / of as f64).min(1.0);
    const WIDTH: usize = 30;
    let full = (share * WIDTH as f64) as usize;
    let bar = format!("{}{}", "#".repeat(full), ".".repeat(WIDTH - full));
    let left = Duration::from_secs_f64(spent.as_secs_f64() * (1.0 - share) / share);
    let rest = if spent < SURE { String::new() } else { format!(", about {} left", minutes(left)) };
    format!("{what} [{bar}] {:3.0} %{rest}", share * 100.0)
}

fn minutes(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{}:{:02} min", s / 60, s % 60),
        _ => format!("{}:{:02} h", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(line("reading", 0, 9, SURE), "reading");
        let half = line("reading", 5, 10, Duration::from_secs(100));
        assert_eq!(half, "reading [###############...............]  50 %, about 1:40 min left");
        assert!(line("reading", 20, 10, Duration::from_secs(3)).ends_with("100 %, about 0 s left"));
    }

    #[test]
    fn a_program_gets_lines_and_only_when_it_wants_them() {
        use std::io::Read;
        use std::os::fd::AsRawFd;
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let meter = Meter::for_program(-writer.as_raw_fd(), Path::new("/dev/x")).unwrap();
        drop(writer);
        meter.show("a", 0, 10);
        let_out(true);
        meter.show("b", 1, 10);
        meter.show("b", 2, 10);
        meter.show("c", 5, 0);
        meter.show("d", 20, 10);
        let_out(false);
        meter.show("e", 1, 10);
        let_out(true);
        meter.clear();
        meter.clear();
        drop(meter);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "2 1 10 /dev/x\n4 10 10 /dev/x\n5 10 10 /dev/x\n");
        assert!(Meter::for_program(i32::MIN, Path::new("x")).is_err());
    }
}
