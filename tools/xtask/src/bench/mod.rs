//! `cargo xtask bench`: dbfs beside the raw device, ext4, XFS and a no-op FUSE daemon, in turn on one device.

mod bars;
mod databases;
mod device;
mod figures;
mod fio;
mod grow;
mod html;
mod jobs;
mod library;
mod names;
mod report;
mod subject;
mod titles;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::cargo::{self, Profile};
use crate::workdir::WorkDir;
use crate::{deps, paths, privilege, say};
use databases::ControlGroup;
use device::Device;
use figures::Figures;
use report::Run;
use subject::Subject;

/// Options of the benchmark.
#[derive(clap::Args)]
pub struct Args {
    /// Rounds; each figure is the median over them
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Subject::IN_TURN)]
    subjects: Vec<Subject>,
    /// Kinds of jobs
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Group::ALL)]
    jobs: Vec<Group>,
    /// Seconds of each job on a file
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    seconds: f64,
    /// Seconds of the job whose bytes on the device are counted
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    amplification_seconds: f64,
    /// Seconds of each run of a database
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    database_seconds: f64,
    /// MiB of the file that the jobs work on
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..))]
    file_size: u64,
    /// pgbench's scales: one that fits caches, one that does not
    #[arg(long, value_name = "N", num_args = 2, default_values_t = [20, 100])]
    scales: Vec<u32>,
    /// Measure on this block device; ALL THAT IS ON IT IS LOST
    #[arg(long, value_name = "DEVICE", requires = "overwrite")]
    device: Option<PathBuf>,
    /// Yes, what is on the device may be lost
    #[arg(long)]
    overwrite: bool,
    /// GiB of the file below the loop device that is used otherwise
    #[arg(long, value_name = "GIB", default_value_t = 6, value_parser = clap::value_parser!(u64).range(2..))]
    device_size: u64,
    /// Directory of that file, if it should be elsewhere than in /var/tmp; in memory, such as in /dev/shm, a
    /// disk that others use does not disturb
    #[arg(long, value_name = "DIR", conflicts_with = "device")]
    backing: Option<PathBuf>,
    /// Directory of a control group with a limit of memory, to run databases out of cache in
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// A remark for the report, such as what else the machine was doing
    #[arg(long, value_name = "TEXT")]
    remark: Option<String>,
    /// Where the figures go as JSON [default: bench.json in the target directory]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the page with plots goes [default: bench.html in the target directory]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure only the longest pause of writes while the volume grows
    #[arg(long)]
    grow: bool,
}

impl Args {
    /// The path of a file to be measured on.
    fn file(&self, work: &WorkDir, name: &str) -> PathBuf {
        match &self.backing {
            Some(dir) => dir.join(format!("dbfs-bench-{}-{name}.img", std::process::id())),
            None => work.join(&format!("{name}.img")),
        }
    }
}

/// Kinds of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// Direct random reads of 16 and 8 KiB at depth 1, 4 and 16
    Read,
    /// The same with writes
    Write,
    /// Direct random writes that are durable and, where it can be had, atomic
    Sync,
    /// Direct reads and writes of 1 MiB
    Sequential,
    /// What databases do with their logs: writes of 8 KiB, each with fdatasync
    Log,
    /// Bytes that reach the device for each byte of random writes
    Amplification,
    /// create, stat, rename, unlink
    Names,
    /// A mount after a crash
    Recovery,
    /// PostgreSQL
    Pgbench,
    /// MariaDB
    Sysbench,
}

impl Group {
    /// All.
    const ALL: [Group; 10] = [
        Group::Read,
        Group::Write,
        Group::Sync,
        Group::Sequential,
        Group::Log,
        Group::Amplification,
        Group::Names,
        Group::Recovery,
        Group::Pgbench,
        Group::Sysbench,
    ];
}

/// How much is done.
#[derive(Clone, Debug)]
pub struct Effort {
    /// The chosen kinds of jobs.
    groups: Vec<Group>,
    /// Seconds of each job on a file.
    seconds: f64,
    /// Bytes of the file.
    size: u64,
    /// Bytes that a file may get which is appended to.
    room: u64,
    /// Bytes of the file whose random writes are counted on the device, and seconds of that job.
    large: u64,
    long: f64,
    /// Seconds of each run of a database.
    database_seconds: f64,
    /// pgbench's scales, in cache and out of it.
    scales: [u32; 2],
    /// Where databases run that should not fit into memory.
    control_group: Option<ControlGroup>,
}

impl Effort {
    fn new(args: &Args, device: u64) -> Result<Self> {
        const LARGE: u64 = 4 << 30;
        let size = args.file_size << 20;
        ensure!(size <= device / 3, "a file of {} MiB is too large for the device", args.file_size);
        let scales = args.scales.as_slice().try_into().context("two scales are needed")?;
        Ok(Self {
            groups: args.jobs.clone(),
            seconds: args.seconds,
            size,
            room: device / 4,
            large: LARGE.min(device / 3 * 2),
            long: args.amplification_seconds,
            database_seconds: args.database_seconds,
            scales,
            control_group: args.cgroup.clone().map(ControlGroup::new),
        })
    }

    /// Whether a job works on files.
    fn wants_files(&self) -> bool {
        self.groups.iter().any(|group| !matches!(group, Group::Pgbench | Group::Sysbench))
    }

    #[cfg(test)]
    fn for_tests() -> Self {
        Self {
            groups: Group::ALL.to_vec(),
            seconds: 1.0,
            size: 64 << 20,
            room: 64 << 20,
            large: 64 << 20,
            long: 1.0,
            database_seconds: 1.0,
            scales: [1, 2],
            control_group: None,
        }
    }
}

/// Runs the rounds, prints the tables and writes the reports.
pub fn run(args: &Args) -> Result<()> {
    if !privilege::is_prepared() {
        deps::ensure(deps::BENCH)?;
        cargo::build_dbfs(Profile::Release)?;
    }
    privilege::become_root()?;
    let work = WorkDir::new()?;
    if args.grow {
        return grow::run(args.rounds, &work, args.file(&work, "grow"));
    }
    let device = match &args.device {
        Some(path) => Device::of_user(path)?,
        None => {
            say!("writing a file of {} GiB for the loop device", args.device_size);
            Device::over_file(args.file(&work, "device"), args.device_size << 30)?
        }
    };
    let effort = Effort::new(args, device.size())?;
    if effort.groups.contains(&Group::Pgbench) && effort.control_group.is_none() {
        say!("pgbench out of cache is left out: without --cgroup the kernel's page cache has no limit");
    }
    let mut figures = Figures::default();
    for round in 1..=args.rounds {
        for subject in &args.subjects {
            say!("round {round}: {}", subject.name());
            let outcome = subject.measure(&device, &work, &effort, &mut figures);
            outcome.with_context(|| format!("round {round} on {}", subject.name()))?;
        }
    }
    let run = Run { rounds: args.rounds, facts: facts(args, &device, &effort) };
    println!("\n{}", report::text(&figures));
    write(args.json.as_deref(), "bench.json", &format!("{:#}\n", report::json(&run, &figures)))?;
    write(args.html.as_deref(), "bench.html", &html::page(&run, &figures))
}

fn write(path: Option<&Path>, name: &str, text: &str) -> Result<()> {
    let path = match path {
        Some(path) => path.to_path_buf(),
        None => paths::target_dir()?.join(name),
    };
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// What figures depend on.
fn facts(args: &Args, device: &Device, effort: &Effort) -> Vec<(&'static str, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = read("/proc/meminfo").lines().next().unwrap_or_default().replace("MemTotal:", "");
    let kind = match (&args.device, &args.backing) {
        (Some(_), _) => "given by the user".to_owned(),
        (None, None) => "a loop device with direct I/O".to_owned(),
        (None, Some(dir)) => format!("a loop device with direct I/O over {}", dir.display()),
    };
    let mut facts = vec![
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("processors", cpus.to_string()),
        ("memory", memory.trim().to_owned()),
        ("device", format!("{kind}, {} MiB", device.size() >> 20)),
        ("file", format!("{} MiB", effort.size >> 20)),
        ("seconds for each job", effort.seconds.to_string()),
        ("seconds for each run of a database", effort.database_seconds.to_string()),
        ("pgbench's scales", format!("{}, {}", effort.scales[0], effort.scales[1])),
        ("load of the machine at the end", read("/proc/loadavg").trim().to_owned()),
    ];
    facts.extend(args.remark.clone().map(|remark| ("remark", remark)));
    facts
}
