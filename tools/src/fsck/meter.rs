//! A line on the terminal that shows how far the work is, and how long it will take.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often it is shown.
const STEP: Duration = Duration::from_millis(200);

/// Time of work below which nothing is said about the rest.
const SURE: Duration = Duration::from_secs(2);

/// Shows progress, if standard error is a terminal.
pub struct Meter {
    terminal: bool,
    begun: Cell<Instant>,
    shown: Cell<Option<Instant>>,
    /// Work done when it was last shown: less means that something new has begun.
    done: Cell<u64>,
}

impl Default for Meter {
    fn default() -> Self {
        let terminal = io::stderr().is_terminal();
        Self { terminal, begun: Cell::new(Instant::now()), shown: Cell::default(), done: Cell::new(0) }
    }
}

impl Meter {
    /// Shows that `done` of `of` is done (`of` is an estimate, or 0 if not known).
    pub fn show(&self, what: &str, done: u64, of: u64) {
        if done < self.done.replace(done) {
            self.begun.set(Instant::now());
        }
        if !self.terminal || self.shown.get().is_some_and(|at| at.elapsed() < STEP) {
            return;
        }
        self.shown.set(Some(Instant::now()));
        let line = line(what, done, of, self.begun.get().elapsed());
        // A progress line that cannot be shown is no reason to stop.
        let _ = write!(io::stderr(), "\r\x1b[K{line}");
    }

    /// Takes the line away.
    pub fn clear(&self) {
        if self.shown.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
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
}
