//! Running a program to its end.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Prints one line about what is going on.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { println!("==> {}", format_args!($($arg)*)) };
}

/// Runs a program with its output shown; an error if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", describe(command)))?;
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
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        text.push_str(&format!("({})\n", output.status));
    }
    Ok((output.status.success(), text))
}

/// The command line, for messages.
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
