//! Printing results, to readers that may stop reading.

use std::io::{self, BufWriter, Write};

use anyhow::{Context, Result};

use crate::shown;

/// Says something to people, on standard error. If nobody hears it, nothing helps.
pub fn say(message: &str) {
    let _ = writeln!(io::stderr(), "{}", shown::message(message));
}

/// Prints what has been done: it counts whether that can be said or not.
pub fn done(message: &str) {
    let _ = writeln!(io::stdout(), "{message}");
}

/// Prints text.
pub fn text(text: &str) -> Result<()> {
    stream(|out| out.write_all(text.as_bytes()))
}

/// Prints JSON for people and programs.
pub fn json(value: &impl serde::Serialize) -> Result<()> {
    stream(|out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        writeln!(out)
    })
}

/// Prints a JSON object with one list, item by item: it may be longer than memory.
pub fn json_list(name: &str, items: impl Iterator<Item = impl serde::Serialize>) -> Result<()> {
    stream(|out| {
        write!(out, "{{\n  {}: [", serde_json::to_string(name)?)?;
        for (i, item) in items.enumerate() {
            out.write_all(if i == 0 { b"\n    " } else { b",\n    " })?;
            serde_json::to_writer(&mut *out, &item)?;
        }
        writeln!(out, "\n  ]\n}}")
    })
}

/// Lets `write` print. A reader that closes the pipe (`| head`) has seen enough; that is no error.
pub fn stream(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot print"),
    }
}
