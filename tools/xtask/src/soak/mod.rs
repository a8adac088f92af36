//! `cargo xtask soak`: random tests for as long as one likes, each replayable from one line.

mod bytes;
mod fuzz;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cargo::{self, Profile};
use crate::rng::Rng;
use crate::suites::{self, Plan, Suite, Tally};
use crate::target::Kind;
use crate::{cmd, paths, privilege, say};

/// Options of the soak run.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    /// How long; the round that is under way then is finished
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Where the choices start from [default: the clock]
    #[arg(long)]
    seed: Option<u64>,
}

/// What runs by itself.
#[derive(clap::Subcommand)]
enum Part {
    /// Run the fuzz targets, each for an hour
    Fuzz(fuzz::Args),
    /// Flip every byte of an aged volume's metadata in turn
    Bytes(bytes::Args),
}

const MINUTE: Duration = Duration::from_secs(60);

/// Suites of real programs: those with a random part, those that take too long for CI, and POSIX behaviour.
const SUITES: [Suite; 7] =
    [Suite::PgKill, Suite::PgCut, Suite::Pjdfstest, Suite::Nfs, Suite::Fsx, Suite::Scale, Suite::Programs];

/// Runs the part that is asked for, or a mixture.
pub fn run(args: &Args) -> Result<()> {
    match &args.part {
        Some(Part::Fuzz(args)) => fuzz::run(args),
        Some(Part::Bytes(args)) => bytes::run(args),
        None => mixture(args),
    }
}

/// Takes turns between the model with its simulated crashes and the suites, with fresh seeds.
fn mixture(args: &Args) -> Result<()> {
    let plan = Plan { kind: Kind::Dbfs, profile: Profile::Dev, full: true, seed: 0 };
    suites::prepare(&plan, &SUITES)?;
    let simulation = Simulation::build()?;
    privilege::become_root()?;
    let start = Instant::now();
    let end = MINUTE * u32::try_from(args.minutes).context("too many minutes")?;
    let mut rng = Rng::new(args.seed.unwrap_or_else(Rng::seed_from_clock));
    let mut tally = Tally::default();
    while start.elapsed() < end {
        let left = (end - start.elapsed()).as_secs().div_ceil(60);
        // A share for each part, even in a short run.
        tally.add(simulation.run("simulated crashes", &[], rng.next_seed(), left.div_ceil(4)));
        tally.add(simulation.run("hostile images", &["--images"], rng.next_seed(), left.div_ceil(4)));
        tally.add(simulation.run("repairs", &["--repairs"], rng.next_seed(), left.div_ceil(8)));
        for suite in SUITES.into_iter().take_while(|_| start.elapsed() < end) {
            let plan = Plan { seed: rng.next_seed(), ..plan };
            let outcome = suites::run(&plan, &[suite]);
            if outcome.failed() > 0 {
                println!("REPLAY: cargo xtask suite {} --full --seed {}", suite.name(), plan.seed);
            }
            tally.add(outcome);
        }
    }
    say!("soaked for {} minutes", start.elapsed().as_secs() / 60);
    tally.finish()
}

/// The program that compares random histories on a simulated device, crashes included, with the model,
/// and that damages, forges and repairs images.
struct Simulation {
    program: std::path::PathBuf,
}

impl Simulation {
    fn build() -> Result<Self> {
        const NAME: &str = "dbfs-soak";
        let target = paths::target_dir()?;
        if !privilege::is_prepared() {
            say!("building {NAME}");
            let mut build = cargo::cargo();
            build.args(["build", "--quiet", "--release", "--package", "dbfs-tests", "--bin", NAME]);
            cmd::run(build.arg("--target-dir").arg(&target))?;
        }
        Ok(Self { program: target.join("release").join(NAME) })
    }

    fn run(&self, what: &str, args: &[&str], seed: u64, minutes: u64) -> Tally {
        println!();
        say!("{what} for {minutes} minutes, seed {seed}");
        let mut tally = Tally::default();
        let outcome = tally.step(&format!("{what}, seed {seed}"), || {
            let mut command = Command::new(&self.program);
            command.args(args).args(["--seed", &seed.to_string(), "--minutes", &minutes.to_string()]);
            cmd::run(&mut command)
        });
        if let Err(error) = outcome {
            // The program has printed the line that replays what failed.
            tally.fail(what, &error);
        }
        tally
    }
}
