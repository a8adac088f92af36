//! Printing results, to readers that may stop reading.

use std::io::{self, BufWriter, Write};

use anyhow::{Context, Result};

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

/// Lets `write` print. A reader that closes the pipe (`| head`) has seen enough; that is no error.
pub fn stream(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot print"),
    }
}
