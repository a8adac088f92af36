//! `cargo xtask bench --grow`: how long a write waits at most while the volume grows.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::device;
use super::figures::median;
use crate::buffer::Buffer;
use crate::cargo::{self, Profile};
use crate::rng::Rng;
use crate::target::{Dbfs, DbfsOptions, Target, Volume};
use crate::workdir::WorkDir;
use crate::{cmd, say};

/// Size of the file that is overwritten, and of the writes.
const SPAN: u64 = 256 << 20;
const SIZE: u64 = 16 << 10;
/// How long each load runs, and how often the volume grows meanwhile.
const TIME: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_secs(2);
/// How much the longest pause may be above that of the same load without a grow.
const BAR_MS: f64 = 10.0;

/// Longest and 99.9th percentile of the times of a load's writes, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Pauses {
    longest: f64,
    p999: f64,
    writes: usize,
}

/// Runs the load `rounds` times with and without grows in turn on a volume in the new file `image`, and prints the
/// medians.
pub fn run(rounds: u32, work: &WorkDir, image: PathBuf) -> Result<()> {
    let _removal = device::removal(&image);
    let program = cargo::build_dbfs(Profile::Release)?;
    let dir = work.dir("mnt", None)?;
    let volume = Volume { size: 1 << 30, page_size: 16 << 10 };
    let options = DbfsOptions::new(program.clone(), image, dir, volume, work.join("dbfs.log"));
    let mut target = Dbfs::new(options);
    target.format()?;
    target.mount()?;
    let file = File::options().read(true).write(true).create_new(true).open(target.dir().join("file"))?;
    let mut buffer = Buffer::new(1 << 20);
    (0..SPAN).step_by(1 << 20).try_for_each(|at| file.write_all_at(buffer.bytes(), at))?;
    file.sync_all()?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        // Which one comes first changes: what one leaves behind should not count for the other only.
        for grows in [round % 2 == 0, round % 2 != 0] {
            let pauses = load(&file, round.into(), grows.then_some((&program, target.dir())))?;
            let name = if grows { "with grows" } else { "without" };
            say!("round {round}, {name}: longest {:.2} ms, {} writes", pauses.longest, pauses.writes);
            if grows { with.push(pauses) } else { without.push(pauses) }
        }
    }
    drop(file);
    target.unmount()?;
    target.check()?;
    print(&without, &with);
    Ok(())
}

/// Random synced overwrites, one after the other; a program and a directory: the volume grows meanwhile.
fn load(file: &File, seed: u64, grow: Option<(&PathBuf, &Path)>) -> Result<Pauses> {
    std::thread::scope(|scope| {
        let start = Instant::now();
        let grower =
            grow.map(|(program, dir)| scope.spawn(move || grow_again_and_again(program, dir, start)));
        let mut rng = Rng::new(seed);
        let mut buffer = Buffer::new(usize::try_from(SIZE)?);
        let mut times = Vec::new();
        while start.elapsed() < TIME {
            let begun = Instant::now();
            file.write_all_at(buffer.bytes(), rng.range(0, SPAN / SIZE) * SIZE)?;
            file.sync_data()?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        match grower.map(std::thread::ScopedJoinHandle::join) {
            Some(Err(_)) => bail!("the thread that grows the volume panicked"),
            Some(Ok(outcome)) => outcome?,
            None => {}
        }
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        Ok(Pauses { longest: at(1.0), p999: at(0.999), writes: times.len() })
    })
}

fn grow_again_and_again(program: &Path, dir: &Path, start: Instant) -> Result<()> {
    let times = TIME.as_secs() / EVERY.as_secs();
    for n in 1..times {
        std::thread::sleep((EVERY * u32::try_from(n)?).saturating_sub(start.elapsed()));
        cmd::capture(Command::new(program).args(["grow", "--size", "+64M"]).arg(dir))?;
    }
    Ok(())
}

fn print(without: &[Pauses], with: &[Pauses]) {
    let of = |rounds: &[Pauses], f: fn(&Pauses) -> f64| median(&rounds.iter().map(f).collect::<Vec<_>>());
    println!("\n16 KiB random write + fdatasync, medians in ms   longest     99.9%");
    for (name, rounds) in [("without a grow", without), ("while the volume grows", with)] {
        println!("{name:<46}{:>10.2}{:>10.2}", of(rounds, |p| p.longest), of(rounds, |p| p.p999));
    }
    let more = of(with, |p| p.longest) - of(without, |p| p.longest);
    let word = if more <= BAR_MS { "met" } else { "MISSED" };
    println!("longer by {more:.2} ms; bar {BAR_MS} ms: {word}");
}
