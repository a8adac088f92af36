//! Jobs for fio(1).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{cmd, paths};

/// A job on one file or device.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// "randread", "randwrite", "read", "write".
    pub rw: &'a str,
    /// Bytes of each request.
    pub block: u64,
    /// Threads.
    pub threads: u32,
    /// Requests that each of them has in flight.
    pub depth: u32,
    /// Bytes of the file or device that are used.
    pub size: u64,
    /// Past the page cache.
    pub direct: bool,
    /// How writes are made durable.
    pub sync: Sync,
    /// How long.
    pub seconds: f64,
}

/// How writes are made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Not at all.
    None,
    /// `O_DSYNC`.
    Dsync,
    /// `fdatasync` after each.
    Fdatasync,
}

impl Job<'_> {
    /// Runs it on a file (made if it is not there, and extended as it is written) or device; operations per
    /// second.
    pub fn run(&self, path: &Path) -> Result<f64> {
        let mut fio = self.command(path)?;
        let text = cmd::capture(&mut fio)?;
        parse(&text).with_context(|| format!("{} printed no rate:\n{text}", cmd::describe(&fio)))
    }

    fn command(&self, path: &Path) -> Result<Command> {
        let mut fio = Command::new(paths::program("fio")?);
        // A request that waits for nothing but itself needs no queue.
        let engine = if self.depth == 1 { "psync" } else { "io_uring" };
        fio.args(["--name=job", "--thread", "--group_reporting", "--time_based", "--output-format=json"]);
        fio.args(["--fallocate=none", "--norandommap", "--randrepeat=0"]);
        fio.arg(format!("--filename={}", path.display()));
        fio.arg(format!("--rw={}", self.rw)).arg(format!("--ioengine={engine}"));
        fio.arg(format!("--bs={}", self.block)).arg(format!("--size={}", self.size));
        fio.arg(format!("--iodepth={}", self.depth)).arg(format!("--numjobs={}", self.threads));
        fio.arg(format!("--runtime={}ms", (self.seconds * 1e3) as u64));
        fio.arg(format!("--direct={}", u8::from(self.direct)));
        match self.sync {
            Sync::None => {}
            Sync::Dsync => drop(fio.arg("--sync=dsync")),
            Sync::Fdatasync => drop(fio.arg("--fdatasync=1")),
        }
        Ok(fio)
    }
}

/// The rate of reads and writes in fio's report, which may have notes before it.
fn parse(text: &str) -> Option<f64> {
    let json: Value = serde_json::from_str(&text[text.find('{')?..]).ok()?;
    let job = &json["jobs"][0];
    let rate = job["read"]["iops"].as_f64()? + job["write"]["iops"].as_f64()?;
    (rate > 0.0).then_some(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_found() {
        let text = r#"fio: a note
            { "jobs": [ { "read": { "iops": 0.0 }, "write": { "iops": 1234.5 } } ] }"#;
        assert_eq!(parse(text), Some(1234.5));
        assert_eq!(parse(r#"{ "jobs": [ { "read": { "iops": 0 }, "write": { "iops": 0 } } ] }"#), None);
        assert_eq!(parse("fio: failed"), None);
    }
}
