//! `cargo xtask demo`: PostgreSQL on dbfs survives kill -9 of everything.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cargo::{self, Profile};
use crate::pg::{self, Install, Ledger, Server, verify};
use crate::target::{self, Kind, Target, Volume};
use crate::workdir::WorkDir;
use crate::{deps, privilege, say};

/// Options of the demo.
#[derive(clap::Args)]
pub struct Args {
    /// pgbench's scale: 100,000 accounts each
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// Seconds of load, before the kill and in the measured run
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The file system to run on
    #[arg(long, value_enum, default_value_t)]
    target: Kind,
}

/// Sessions that keep a ledger beside pgbench's own.
const LEDGER_CLIENTS: u32 = 4;

/// What the report shows.
struct Report {
    rate: f64,
    acknowledged: u64,
    in_flight: u64,
    transactions: i64,
    mount: Duration,
    start: Duration,
}

/// Runs the demo.
pub fn run(args: &Args) -> Result<()> {
    if !privilege::is_prepared() {
        deps::ensure(deps::POSTGRES)?;
        say!("building dbfs");
    }
    if args.target == Kind::Dbfs {
        cargo::build_dbfs(Profile::Release)?;
    }
    privilege::become_root()?;
    let install = pg::install::find()?;
    let work = WorkDir::new()?;
    let report = play(args, &install, &work)?;
    drop(work);
    print(&install, &report);
    Ok(())
}

fn play(args: &Args, install: &Install, work: &WorkDir) -> Result<Report> {
    say!("making a volume with 8 KiB pages and mounting it");
    let volume = Volume::for_postgres(4 << 30);
    let mut target = target::create(args.target, work, &volume, Profile::Release)?;
    let mut server = Server::new(install, target.dir().join("data"), work)?;
    say!("creating a PostgreSQL {} database on it, full_page_writes=off", install.major());
    server.initdb()?;
    server.start()?;
    pg::bench::init(&server, args.scale)?;
    Ledger::create_table(&server)?;
    say!("pgbench for {} s", args.seconds);
    let rate = pg::bench::run(&server, Duration::from_secs(args.seconds))?;

    let mut ledger = Ledger::default();
    strike(args, target.as_mut(), &mut server, &mut ledger, work)?;

    say!("mounting again and starting PostgreSQL again");
    let begin = Instant::now();
    target.mount().context("the volume does not mount after the kill")?;
    let mount = begin.elapsed();
    server.start().context("PostgreSQL does not start after the kill")?;
    let start = begin.elapsed().saturating_sub(mount);
    let found = ledger.check(&server, u64::MAX)?;
    let transactions = verify::sums(&server)?;
    server.stop()?;
    target.unmount()?;
    say!("checking the volume");
    target.check()?;
    Ok(Report {
        rate,
        acknowledged: found.acknowledged,
        in_flight: found.unacknowledged,
        transactions,
        mount,
        start,
    })
}

/// Load with a ledger, and SIGKILL to everything in the middle of it.
fn strike(
    args: &Args,
    target: &mut dyn Target,
    server: &mut Server,
    ledger: &mut Ledger,
    work: &WorkDir,
) -> Result<()> {
    say!("pgbench and {LEDGER_CLIENTS} clients with a ledger for {} s, then kill -9", args.seconds);
    let pgbench = pg::bench::start(server, work)?;
    let load = ledger.start(server, LEDGER_CLIENTS, 1, &pg::ledger::no_clock())?;
    std::thread::sleep(Duration::from_secs(args.seconds));
    server.kill()?;
    target.crash()?;
    pgbench.kill();
    load.finish(ledger)?;
    say!("killed the daemon and every PostgreSQL process");
    Ok(())
}

fn print(install: &Install, report: &Report) {
    println!();
    println!("PostgreSQL {} on dbfs, full_page_writes=off", install.major());
    println!("  pgbench                         {:>10.0} transactions/s", report.rate);
    println!("  acknowledged before kill -9     {:>10} ledger commits, all there", report.acknowledged);
    println!("  in flight at the kill, kept     {:>10}", report.in_flight);
    println!("  history after recovery          {:>10} transactions", report.transactions);
    println!("  sums of accounts, tellers, branches, history    equal");
    println!("  mount after the kill            {:>10.3} s", report.mount.as_secs_f64());
    println!("  PostgreSQL's own recovery       {:>10.3} s", report.start.as_secs_f64());
    println!("  fsck with all data checksums         clean");
    println!("  left behind                          nothing");
}
