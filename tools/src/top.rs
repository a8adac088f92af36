//! `dbfs top`: what a mounted volume is doing now.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use crossterm::style::Print;
use crossterm::terminal::{self, Clear, ClearType};
use crossterm::{cursor, execute, queue};

use crate::control::client::{self, Answers};
use crate::control::protocol::{Request, Response};
use crate::control::status::{Latency, Status};
use crate::signals::Signals;
use crate::{output, shown, size, span, status};

/// How often keys are looked at.
const KEYS: Duration = Duration::from_millis(50);

/// Show live what a mounted volume is doing: operations and bytes a second, latencies, cache, journal.
///
/// All rates and latencies are those of the last interval. Keys: q, Esc or Ctrl-C to quit.
///
/// Exit codes: 0 done, 1 it could not be shown (any more).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds from one picture to the next
    #[arg(short, long, default_value_t = 1.0, value_name = "SECONDS", value_parser = interval)]
    interval: f64,
    /// Print the pictures one after the other, for scripts
    #[arg(short, long)]
    batch: bool,
    /// So many pictures, then end
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    number: Option<u64>,
    /// One picture: the same as -b -n 1
    #[arg(long, conflicts_with = "number")]
    once: bool,
    /// Where the volume is mounted, or the volume; may be left out if only one is mounted
    dir: Option<PathBuf>,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.1..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("it must be from 0.1 to 3600".into()) }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let batch = args.batch || args.once;
    if !batch && !io::stdout().is_terminal() {
        bail!("standard output is no terminal; use -b");
    }
    let mount = client::find(args.dir.as_deref())?;
    // Before any thread is started.
    let signals = (!batch).then(Signals::block).transpose().context("cannot block signals")?;
    let every_ms = (args.interval * 1000.0) as u32;
    let mut pictures = Pictures::start(client::ask_daemon(&mount, &Request::Watch { every_ms })?)?;
    let most = if args.once { Some(1) } else { args.number };
    let most = most.unwrap_or(u64::MAX);
    match signals {
        None => {
            for i in 0..most {
                let picture = pictures.next()?;
                let gap = if i > 0 { "\n" } else { "" };
                output::text(&format!("{gap}{}\n", picture.join("\n")))?;
            }
        }
        Some(signals) => live(signals, pictures, most)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Pictures of a volume, as lines.
struct Pictures {
    answers: Answers,
    last: Status,
}

impl Pictures {
    fn start(mut answers: Answers) -> Result<Self> {
        let last = next_status(&mut answers)?;
        Ok(Self { answers, last })
    }

    /// The next one; blocks for the interval.
    fn next(&mut self) -> Result<Vec<String>> {
        let now = next_status(&mut self.answers)?;
        let lines = picture(&self.last, &now);
        self.last = now;
        Ok(lines)
    }
}

fn next_status(answers: &mut Answers) -> Result<Status> {
    match answers.next()? {
        Response::Status(status) => Ok(*status),
        _ => bail!("the daemon gave another answer than was asked for"),
    }
}

/// What happened between two moments.
fn picture(before: &Status, now: &Status) -> Vec<String> {
    let seconds = (now.measured_ns as f64 / 1e9).max(1e-9);
    let rate = |n: u64| n as f64 / seconds;
    let bytes = |now: u64, before: u64| format!("{}/s", size::show(rate(now.saturating_sub(before)) as u64));
    let mut lines = vec![format!(
        "dbfs top: {} on {}, mounted for {}, over {}",
        shown::quoted(now.volume.as_bytes()),
        shown::quoted(now.mounted_on.as_bytes()),
        span::clock(now.uptime_ns),
        span::show(now.measured_ns)
    )];
    let asked = now.calls.iter().filter(|c| c.class == "all").map(|c| c.latency.count).sum();
    let device = |name: &str| {
        let find = |s: &Status| s.device.requests.iter().find(|r| r.name == name).map_or(0, |r| r.bytes);
        bytes(find(now), find(before))
    };
    lines.push(format!(
        "{:<12} {:.0} calls/s, {:.0} commits/s",
        "Operations",
        rate(asked),
        rate(commits(before, now))
    ));
    lines.push(format!(
        "{:<12} read {}, written {}; device: read {}, written {}",
        "Bytes",
        bytes(now.bytes_read, before.bytes_read),
        bytes(now.bytes_written, before.bytes_written),
        device("read"),
        device("write")
    ));
    let wanted = ["State", "Space", "Cache", "Journal", "Checkpoints", "Errors"];
    let summary = status::summary(now).into_iter().filter(|(name, _)| wanted.contains(name));
    lines.extend(summary.map(|(name, text)| format!("{name:<12} {text}")));
    lines.push(String::new());
    let row = |name: &str, l: &Latency| {
        let [p50, p95, p99, max] = match l.count {
            0 => ["-"; 4].map(String::from),
            _ => [l.p50_ns, l.p95_ns, l.p99_ns, l.max_ns].map(span::show),
        };
        format!("{name:<12} {:>10.1} {p50:>10} {p95:>10} {p99:>10} {max:>10}", rate(l.count))
    };
    let heading = |title: &str| {
        format!("{title:<12} {:>10} {:>10} {:>10} {:>10} {:>10}", "a second", "p50", "p95", "p99", "max")
    };
    lines.push(heading("Call"));
    lines.extend(now.calls.iter().filter(|t| t.class == "all").map(|t| row(&t.name, &t.latency)));
    lines.push(heading("Stage"));
    lines.extend(now.stages.iter().filter(|t| t.class == "all").map(|t| row(&t.name, &t.latency)));
    lines.push(heading("Device"));
    lines
        .extend(now.device.requests.iter().filter(|r| r.name != "discard").map(|r| row(&r.name, &r.latency)));
    lines
}

fn commits(before: &Status, now: &Status) -> u64 {
    now.journal.commits.saturating_sub(before.journal.commits)
}

/// A terminal in raw mode, with a screen of our own. Dropping it gives the terminal back as it was.
struct Screen;

impl Screen {
    fn open() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        let screen = Screen;
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    fn draw(&self, lines: &[String]) -> io::Result<()> {
        let (columns, rows) = terminal::size()?;
        let mut out = io::stdout().lock();
        for (row, line) in (0..rows).zip(lines) {
            let visible: String = line.chars().take(columns.into()).collect();
            queue!(out, cursor::MoveTo(0, row), Print(visible), Clear(ClearType::UntilNewLine))?;
        }
        if lines.len() < usize::from(rows) {
            queue!(out, cursor::MoveTo(0, lines.len() as u16), Clear(ClearType::FromCursorDown))?;
        }
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing helps if the terminal does not take it.
        let _ = execute!(io::stdout(), cursor::Show, terminal::LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

fn live(signals: Signals, mut pictures: Pictures, most: u64) -> Result<()> {
    let told = Arc::new(AtomicBool::new(false));
    let teller = told.clone();
    let wait = move || {
        signals.wait();
        teller.store(true, Ordering::SeqCst);
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
    let (sender, coming) = mpsc::channel();
    let watch = move || while sender.send(pictures.next()).is_ok() {};
    thread::Builder::new().name("watch".into()).spawn(watch).context("cannot start a thread")?;
    let screen = Screen::open().context("cannot use the terminal")?;
    screen.draw(&["dbfs top: measuring...".into()]).context("cannot draw")?;
    // The terminal is back before an error is printed.
    show(&screen, &coming, &told, most)
}

fn show(screen: &Screen, coming: &Receiver<Result<Vec<String>>>, told: &AtomicBool, most: u64) -> Result<()> {
    let mut lines = Vec::new();
    let mut drawn = 0;
    while !told.load(Ordering::SeqCst) && drawn < most {
        match coming.try_recv() {
            Ok(picture) => {
                lines = picture?;
                screen.draw(&lines).context("cannot draw")?;
                drawn += 1;
            }
            Err(TryRecvError::Disconnected) => bail!("the connection to the daemon has ended"),
            Err(TryRecvError::Empty) => {}
        }
        if event::poll(KEYS).context("cannot read the terminal")? {
            match event::read().context("cannot read the terminal")? {
                Event::Key(key) if quits(&key) => break,
                Event::Resize(..) => screen.draw(&lines).context("cannot draw")?,
                _ => {}
            }
        }
    }
    Ok(())
}

fn quits(key: &KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    matches!(key.code, KeyCode::Char('q' | 'Q') | KeyCode::Esc) || (control && key.code == KeyCode::Char('c'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::Timed;

    #[test]
    fn rates_are_those_of_the_interval() {
        let latency =
            Latency { count: 30, sum_ns: 3, p50_ns: 1000, p95_ns: 2000, p99_ns: 3000, max_ns: 4000 };
        let timed = Timed { name: "fsync".into(), class: "all".into(), latency };
        let before = Status { bytes_written: 1 << 20, ..Status::default() };
        let now = Status {
            mounted_on: "/mnt\u{1b}[2J".into(),
            measured_ns: 2_000_000_000,
            bytes_written: 5 << 20,
            calls: vec![timed],
            ..before.clone()
        };
        let text = picture(&before, &now).join("\n");
        for part in ["15 calls/s", "written 2 MiB/s", "fsync              15.0    1.00 us", "\\x1b[2J"] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn intervals_are_bounded() {
        assert_eq!(interval("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "NaN", "1e9", "x"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
