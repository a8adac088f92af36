//! pgbench.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Server;
use crate::cmd;
use crate::proc::Proc;
use crate::workdir::WorkDir;

/// Sessions of a pgbench run.
const CLIENTS: &str = "4";

/// Fills pgbench's tables: 100,000 accounts (about 15 MB) for each unit of `scale`.
pub fn init(server: &Server, scale: u32) -> Result<()> {
    cmd::capture(pgbench(server).args(["-i", "-q", "-s", &scale.to_string(), "postgres"]))?;
    Ok(())
}

/// Runs the TPC-B-like load for `time` and returns its transactions per second.
pub fn run(server: &Server, time: Duration) -> Result<f64> {
    let seconds = time.as_secs().max(1).to_string();
    let text = cmd::capture(pgbench(server).args(["-n", "-c", CLIENTS, "-T", &seconds, "postgres"]))?;
    parse_tps(&text).with_context(|| format!("pgbench printed no rate:\n{text}"))
}

/// Starts the load in the background, to run until it is killed or loses its server.
pub fn start(server: &Server, work: &WorkDir) -> Result<Proc> {
    const LONG: &str = "86400";
    let mut command = pgbench(server);
    command.args(["-n", "-c", CLIENTS, "-T", LONG, "postgres"]);
    Proc::spawn(&mut command, &work.join("pgbench.log"))
}

fn pgbench(server: &Server) -> Command {
    let mut command = server.install().command("pgbench");
    command.args(server.client_args());
    command
}

fn parse_tps(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("tps = "))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_found() {
        let text = "latency average = 1 ms\ntps = 1234.5 (without initial connection time)\n";
        assert_eq!(parse_tps(text), Some(1234.5));
        assert_eq!(parse_tps("pgbench: error"), None);
    }
}
