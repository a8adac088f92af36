//! PostgreSQL: pgbench's TPC-B-like load.

use std::time::Duration;

use anyhow::{Context, Result};

use super::super::device::Device;
use super::super::figures::{Figures, Unit};
use super::super::subject::{Page, Subject};
use super::super::{Effort, titles};
use super::{ControlGroup, Guarded, settings_of, titles_of};
use crate::pg::{self, Server};
use crate::workdir::WorkDir;

/// The same for all: checkpoints come by time, and nothing else comes in between.
const SETTINGS: &str = "
max_wal_size = 4GB
min_wal_size = 1GB
autovacuum = off
";

/// Runs the loads on a file system: the one that should not fit into memory only where memory is limited.
pub fn run(
    subject: Subject,
    device: &Device,
    work: &WorkDir,
    effort: &Effort,
    figures: &mut Figures,
) -> Result<()> {
    let [small, large] = effort.scales;
    load(
        &Load { title: titles::PGBENCH_IN_CACHE, scale: small, buffers: "512MB", group: None },
        subject,
        device,
        work,
        effort,
        figures,
    )?;
    let Some(group) = &effort.control_group else { return Ok(()) };
    let title = titles::PGBENCH_OUT_OF_CACHE;
    let large = Load { title, scale: large, buffers: "128MB", group: Some(group) };
    load(&large, subject, device, work, effort, figures)
}

/// A load.
struct Load<'a> {
    title: &'a str,
    scale: u32,
    buffers: &'a str,
    group: Option<&'a ControlGroup>,
}

fn load(
    load: &Load<'_>,
    subject: Subject,
    device: &Device,
    work: &WorkDir,
    effort: &Effort,
    figures: &mut Figures,
) -> Result<()> {
    let mut target = subject.target(device, work, Page::Postgres)?.context("no file system")?;
    target.format()?;
    target.mount()?;
    if let (Some(group), Some(daemon)) = (load.group, target.daemon()) {
        group.take(daemon)?;
    }
    let mut server = Server::new(&pg::install::find()?, target.dir().join("data"), work)?;
    server.initdb()?;
    let checkpoints = (effort.database_seconds / 2.0).clamp(30.0, 300.0) as u64;
    server.configure(&format!(
        "{SETTINGS}shared_buffers = {}\ncheckpoint_timeout = {checkpoints}s\n",
        load.buffers
    ))?;
    for (number, guarded) in settings_of(subject).iter().enumerate() {
        let pages = if *guarded == Guarded::ByDatabase { "on" } else { "off" };
        server.configure(&format!("full_page_writes = {pages}\n"))?;
        server.start()?;
        if let Some(group) = load.group {
            group.take(server.pid()?)?;
        }
        if number == 0 {
            pg::bench::init(&server, load.scale)?;
        }
        server.connect()?.query("CHECKPOINT")?;
        let rate = pg::bench::run(&server, Duration::from_secs_f64(effort.database_seconds))?;
        for title in titles_of(load.title, subject, *guarded, "full_page_writes=on") {
            figures.add(&title, Unit::Transactions, subject, rate);
        }
        server.stop()?;
    }
    target.unmount()?;
    target.check()
}
