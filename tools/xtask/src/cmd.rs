//! Running a program to its end.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cleanup::Guard;

/// Prints one line about what is going on.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { println!("==> {}", format_args!($($arg)*)) };
}

/// Runs a program with its output shown; an error if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let mut child = spawn(command.stdin(Stdio::null()))?;
    let guard = terminate_on_interrupt(&child)?;
    let status = child.wait()?;
    guard.disarm();
    if !status.success() {
        bail!("{} failed: {status}", describe(command));
    }
    Ok(())
}

/// Runs a program and returns what it printed to stdout; an error, with what it printed, if it fails.
pub fn capture(command: &mut Command) -> Result<String> {
    let (success, text) = capture_any(command)?;
    if !success {
        bail!("{} failed:\n{}", describe(command), text.trim_end());
    }
    Ok(text)
}

/// Runs a program and returns whether it succeeded, with stdout (and stderr after it if it failed).
pub fn capture_any(command: &mut Command) -> Result<(bool, String)> {
    let child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let guard = terminate_on_interrupt(&child)?;
    let output = child.wait_with_output()?;
    guard.disarm();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        text.push_str(&format!("({})\n", output.status));
    }
    Ok((output.status.success(), text))
}

/// Starts a program.
pub fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("cannot start {}", describe(command)))
}

/// Sends SIGTERM to a child if this program is interrupted; to be disarmed when the child has ended.
pub fn terminate_on_interrupt(child: &Child) -> Result<Guard> {
    // A descriptor, not a number: it never means another process.
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    Ok(Guard::new(move || {
        // An error means that it has ended, which is what is wanted.
        let _ = pidfd_send_signal(&process, Signal::TERM);
    }))
}

/// The command line, for messages.
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
