//! MariaDB: sysbench's OLTP loads.

use anyhow::{Context, Result};

use super::super::Effort;
use super::super::device::Device;
use super::super::figures::{Figures, Unit};
use super::super::subject::{Page, Subject};
use super::{Guarded, settings_of, titles_of};
use crate::cmd;
use crate::mariadb::Server;
use crate::workdir::WorkDir;

/// sysbench's scripts, with the titles of their figures.
const SCRIPTS: [(&str, &str); 2] =
    [("oltp_write_only", "sysbench OLTP write-only"), ("oltp_read_write", "sysbench OLTP read-write")];

/// Rows of each of two tables.
const ROWS: u64 = 200_000;

const DATABASE: &str = "sbtest";

/// Runs the loads on a file system.
pub fn run(
    subject: Subject,
    device: &Device,
    work: &WorkDir,
    effort: &Effort,
    figures: &mut Figures,
) -> Result<()> {
    let mut target = subject.target(device, work, Page::MariaDb)?.context("no file system")?;
    target.format()?;
    target.mount()?;
    let mut server = Server::new(target.dir(), work, &[])?;
    server.install()?;
    for (number, guarded) in settings_of(subject).iter().enumerate() {
        let twice = if *guarded == Guarded::ByDatabase { "ON" } else { "OFF" };
        server.set(&[
            &format!("--innodb-doublewrite={twice}"),
            "--innodb-flush-method=O_DIRECT",
            "--innodb-buffer-pool-size=128M",
            "--innodb-log-file-size=64M",
        ]);
        server.start()?;
        if number == 0 {
            server.query(&format!("CREATE DATABASE {DATABASE}"))?;
            cmd::capture(server.sysbench(SCRIPTS[0].0, "innodb", DATABASE, ROWS)?.arg("prepare"))?;
        }
        for (script, title) in SCRIPTS {
            let mut load = server.sysbench(script, "innodb", DATABASE, ROWS)?;
            load.args(["--threads=4", "--report-interval=0"]);
            load.arg(format!("--time={}", effort.database_seconds.ceil()));
            let text = cmd::capture(load.arg("run"))?;
            let rate = parse(&text).with_context(|| format!("sysbench printed no rate:\n{text}"))?;
            for title in titles_of(title, subject, *guarded, "doublewrite") {
                figures.add(&title, Unit::Transactions, subject, rate);
            }
        }
        server.stop()?;
    }
    target.unmount()?;
    target.check()
}

/// A line "    transactions:   1234   (123.40 per sec.)".
fn parse(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("transactions:"))?;
    line.split_once('(')?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_found() {
        let text = "SQL statistics:\n    transactions:      1234   (123.40 per sec.)\n    queries: 5\n";
        assert_eq!(parse(text), Some(123.4));
        assert_eq!(parse("FATAL: no"), None);
    }
}
