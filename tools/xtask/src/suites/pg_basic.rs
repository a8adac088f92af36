//! A database is made, loaded and checked with PostgreSQL's own tools.

use std::time::Duration;

use anyhow::Result;

use super::{Plan, Tally, close};
use crate::pg::{self, Server, verify};
use crate::target::Volume;
use crate::workdir::WorkDir;

/// Runs the steps in order.
pub fn run(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    let (scale, seconds) = if plan.full { (50, 60) } else { (5, 10) };
    let mut target = plan.create(work, &Volume::for_postgres(4 << 30))?;
    let mut server = Server::new(&pg::install::find()?, target.dir().join("data"), work)?;
    tally.step("initdb", || server.initdb())?;
    server.start()?;
    tally.step("pgbench -i", || pg::bench::init(&server, scale))?;
    let rate = tally.step("pgbench", || pg::bench::run(&server, Duration::from_secs(seconds)))?;
    println!("     {rate:.0} transactions/s");
    tally.step("sums", || verify::sums(&server))?;
    tally.step("pg_amcheck", || verify::amcheck(&server))?;
    server.stop()?;
    tally.step("pg_checksums", || verify::page_checksums(&server))?;
    target.unmount()?;
    target.mount()?;
    server.start()?;
    tally.step("sums after a clean remount", || verify::sums(&server))?;
    server.stop()?;
    close(target.as_mut(), tally)
}
