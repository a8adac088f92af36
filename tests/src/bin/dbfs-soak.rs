//! Runs ever new histories with power cuts until its time is up; prints one line for a failure.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use dbfs_tests::crash::{Coverage, Plan};
use dbfs_tests::hostile::drive::{self, Mode};
use dbfs_tests::hostile::{memory, targets};
use dbfs_tests::run::Failure;
use dbfs_tests::runner::{run_plan, shrink_plan};
use dbfs_tests::subjects::Engine;
use parking_lot::Mutex;

#[global_allocator]
static MEMORY: memory::Counting = memory::Counting;

/// Histories of random operations with power cuts, against the reference model.
#[derive(Parser)]
struct Args {
    /// First seed; the others follow it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to run
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Number of histories, instead of a time
    #[arg(long)]
    histories: Option<u64>,
    /// Operations of a history
    #[arg(long, default_value_t = 220)]
    ops: usize,
    /// Power cuts of a history
    #[arg(long, default_value_t = 6)]
    cuts: usize,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Run this one history, print its operations, and shrink it if it fails
    #[arg(long)]
    replay: Option<u64>,
    /// Instead of histories: damaged and forged images
    #[arg(long)]
    images: bool,
    /// Instead of histories: each byte of metadata flipped in turn, from number --from up to --to, and repaired
    #[arg(long, conflicts_with = "images")]
    every_byte: bool,
    /// See --every-byte
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// See --every-byte [default: one round]
    #[arg(long)]
    to: Option<u64>,
    /// Print how many bytes --every-byte has
    #[arg(long)]
    count_bytes: bool,
    /// Instead of histories: damaged volumes, repaired
    #[arg(long, conflicts_with = "images")]
    repairs: bool,
    /// Run this one image, KIND:NUMBER
    #[arg(long)]
    image: Option<String>,
    /// Write inputs for the fuzz targets into directories below this one
    #[arg(long)]
    corpus: Option<std::path::PathBuf>,
    /// Go on after a failure
    #[arg(long)]
    keep_going: bool,
    /// Break the rule with this number (see mutants.md), to see whether and when it is noticed
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutant: Option<u8>,
    /// Attempts at making a failing history shorter
    #[arg(long, default_value_t = 400)]
    shrink: usize,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    #[cfg(feature = "mutants")]
    fs_core::mutants::set(args.mutant.and_then(fs_core::mutants::Mutant::from_number));
    let fine = match (args.replay, &args.image, &args.corpus) {
        (Some(seed), ..) => replay(seed, &args),
        (_, Some(image), _) => run_image(image),
        (_, _, Some(dir)) => write_corpus(dir),
        _ if args.count_bytes => {
            println!("{}", drive::bytes_in_all());
            true
        }
        _ if args.every_byte => every_byte(args.from, args.to.unwrap_or(args.from + drive::bytes_in_all())),
        _ if args.images => drive::soak(args.seed, Instant::now() + minutes(&args)) == 0,
        _ if args.repairs => soak_repairs(&args),
        _ => soak(&args),
    };
    if fine { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE }
}

fn minutes(args: &Args) -> Duration {
    Duration::from_secs_f64(args.minutes * 60.0)
}

/// Repairs one volume after the other; prints each that is not right afterwards.
fn soak_repairs(args: &Args) -> bool {
    let until = Instant::now() + minutes(args);
    let mut fine = true;
    let mut seed = args.seed;
    while (fine || args.keep_going) && args.histories.map_or(Instant::now() < until, |n| seed < args.seed + n)
    {
        if let Err(e) = dbfs_tests::repair::run(seed) {
            fine = false;
            println!("REPLAY: dbfs-soak --repairs --seed {seed} --histories 1: {}", e.replace('\n', "; "));
        }
        seed += 1;
    }
    println!("{} damaged volumes", seed - args.seed);
    fine
}

/// Prints what became of the images in a form for programs, see `cargo xtask soak bytes`.
fn every_byte(from: u64, to: u64) -> bool {
    let (counts, failed) = drive::every_byte(from, to);
    let drive::Counts { cases, refused, errors, reported, repaired } = counts;
    println!(
        "COUNTS cases={cases} refused={refused} errors={errors} reported={reported} repaired={repaired} failed={failed}"
    );
    failed == 0
}

fn run_image(image: &str) -> bool {
    let parts = image.split_once(':').and_then(|(kind, n)| Some((Mode::from_name(kind)?, n.parse().ok()?)));
    let Some((mode, number)) = parts else {
        eprintln!(
            "{image:?} is not of the form KIND:NUMBER; kinds: {}",
            Mode::ALL.map(Mode::name).join(", ")
        );
        return false;
    };
    match drive::case(mode, number) {
        Ok(outcome) => println!("{outcome:?}"),
        Err(e) => {
            println!("{}", drive::failure_line(mode, number, &e));
            return false;
        }
    }
    true
}

fn write_corpus(dir: &std::path::Path) -> bool {
    let write = || -> std::io::Result<()> {
        for (i, (target, bytes)) in targets::corpus().into_iter().enumerate() {
            std::fs::create_dir_all(dir.join(target))?;
            std::fs::write(dir.join(target).join(format!("aged-{i:04}")), bytes)?;
        }
        Ok(())
    };
    write().inspect_err(|e| eprintln!("{}: {e}", dir.display())).is_ok()
}

fn replay(seed: u64, args: &Args) -> bool {
    let plan = Plan::from_seed(seed, args.ops, args.cuts);
    println!("{:?}", plan.config);
    let failure = match run_plan::<Engine>(&plan) {
        Ok(coverage) => {
            print!("history {seed} passes\n{coverage}");
            return true;
        }
        Err(failure) => failure,
    };
    println!("{failure}\nshrinking...");
    // Panics are part of the search now, their messages would bury the result.
    std::panic::set_hook(Box::new(|_| {}));
    let shrunk = shrink_plan::<Engine>(&plan, failure, args.shrink);
    shrunk.ops.iter().enumerate().for_each(|(i, op)| println!("{i:>4} {op:?}"));
    println!("{}", shrunk.failure);
    false
}

/// What the threads share.
struct Soak {
    next: AtomicU64,
    done: AtomicU64,
    failed: AtomicBool,
    coverage: Mutex<Coverage>,
}

fn soak(args: &Args) -> bool {
    let until = Instant::now() + minutes(args);
    let soak = Soak {
        next: AtomicU64::new(args.seed),
        done: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        coverage: Mutex::default(),
    };
    let more = |seed: u64| match args.histories {
        Some(n) => seed < args.seed + n,
        None => Instant::now() < until,
    };
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| run_some(&soak, args, more));
        }
    });
    print!("{}", soak.coverage.lock());
    println!("{} histories", soak.done.load(Ordering::SeqCst));
    !soak.failed.load(Ordering::SeqCst)
}

fn run_some(soak: &Soak, args: &Args, more: impl Fn(u64) -> bool) {
    while args.keep_going || !soak.failed.load(Ordering::SeqCst) {
        let seed = soak.next.fetch_add(1, Ordering::SeqCst);
        if !more(seed) {
            return;
        }
        match run_plan::<Engine>(&Plan::from_seed(seed, args.ops, args.cuts)) {
            Ok(coverage) => soak.coverage.lock().merge(&coverage),
            Err(failure) => {
                soak.failed.store(true, Ordering::SeqCst);
                println!("{}", one_line(seed, args, &failure));
            }
        }
        soak.done.fetch_add(1, Ordering::SeqCst);
    }
}

fn one_line(seed: u64, args: &Args, failure: &Failure) -> String {
    let text = failure.to_string().replace('\n', " | ");
    let how = format!("--replay {seed} --ops {} --cuts {}", args.ops, args.cuts);
    format!("FAILED seed {seed}: {text} (replay: cargo run -p dbfs-tests --bin dbfs-soak -- {how})")
}
