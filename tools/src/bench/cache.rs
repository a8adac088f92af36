//! `dbfs bench cache`: hit ratios of the replacement policies on synthetic workloads and traces.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use fs_core::cache::policy::{PolicyKind, Replay, S3FifoOptions, TouchOptions};

use super::trace;
use super::workload::{Access, Workload};
use crate::output;

/// Accesses that fill the cache and are not counted, in caches. Those of a trace all count.
const WARM_UP: usize = 20;

/// Compare the page cache's replacement policies by their hit ratios.
///
/// Replays accesses to pages (no data is read) on touch count, S3-FIFO and plain LRU.
/// Without --trace these are synthetic: Zipf 0.99, the same beside full table scans, the same beside a
/// loop, and the transactions of TPC-C. docs/CACHE.md explains them.
/// With --hits: nanoseconds of a hit in a cache of few pages and in one of --frames.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Replay a trace: lines of "inode page"
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Frames of the cache
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    frames: u32,
    /// Accesses of each synthetic workload, in caches
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(21..=10_000))]
    length: u32,
    /// What the synthetic workloads follow from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Try the parameters of touch count and S3-FIFO
    #[arg(long)]
    sweep: bool,
    /// Measure what a hit costs instead
    #[arg(long, conflicts_with_all = ["trace", "sweep", "length"])]
    hits: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a policy made of some accesses.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
struct Hits {
    /// Part of all accesses that were hits.
    all: f64,
    /// The same of those that belong to no scan.
    hot: f64,
}

/// One line of the result.
#[derive(Debug, serde::Serialize)]
struct Row {
    policy: &'static str,
    parameters: String,
    /// In the order of the workloads.
    hits: Vec<Hits>,
    /// Misses for each miss of LRU: the geometric mean over the workloads.
    misses_of_lru: f64,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.hits {
        return super::hits::run(args.frames, args.seed, args.json);
    }
    let frames = args.frames as usize;
    let workloads: Vec<(String, Vec<Access>, usize)> = match &args.trace {
        Some(path) => vec![(path.display().to_string(), trace::read(path)?, 0)],
        None => {
            let make = |w: Workload| w.accesses(frames, args.length as usize * frames, args.seed);
            Workload::ALL.map(|w| (w.name().to_owned(), make(w), WARM_UP * frames)).into()
        }
    };
    let kinds = if args.sweep { sweep() } else { defaults() };
    let replay = |kind| -> Vec<Hits> {
        workloads.iter().map(|(_, accesses, warm_up)| replay(kind, frames, accesses, *warm_up)).collect()
    };
    let lru = replay(PolicyKind::Lru);
    let row = |kind: PolicyKind| {
        let hits = replay(kind);
        let misses_of_lru = misses_of(&hits, &lru);
        Row { policy: kind.name(), parameters: parameters(kind), hits, misses_of_lru }
    };
    let rows: Vec<Row> = kinds.into_iter().map(row).collect();
    let names: Vec<&str> = workloads.iter().map(|(name, ..)| name.as_str()).collect();
    if args.json {
        output::json(&serde_json::json!({ "frames": frames, "workloads": names, "policies": rows }))?;
    } else {
        print(&names, &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn replay(kind: PolicyKind, frames: usize, accesses: &[Access], warm_up: usize) -> Hits {
    let mut cache = Replay::new(kind, frames);
    let (mut hits, mut all, mut hot_hits, mut hot) = (0u64, 0u64, 0u64, 0u64);
    for (i, access) in accesses.iter().enumerate() {
        let hit = cache.access(access.file, access.page);
        if i >= warm_up {
            (hits, all) = (hits + u64::from(hit), all + 1);
            if !access.scan {
                (hot_hits, hot) = (hot_hits + u64::from(hit), hot + 1);
            }
        }
    }
    Hits { all: hits as f64 / all.max(1) as f64, hot: hot_hits as f64 / hot.max(1) as f64 }
}

/// Misses for each miss of `others`: the geometric mean over the workloads.
fn misses_of(hits: &[Hits], others: &[Hits]) -> f64 {
    // A workload without misses must not decide everything.
    let misses = |h: &Hits| (1.0 - h.all).max(1e-6);
    let logs: f64 = hits.iter().zip(others).map(|(a, b)| (misses(a) / misses(b)).ln()).sum();
    (logs / hits.len().max(1) as f64).exp()
}

fn defaults() -> Vec<PolicyKind> {
    vec![
        PolicyKind::Lru,
        PolicyKind::Touch(TouchOptions::default()),
        PolicyKind::S3Fifo(S3FifoOptions::default()),
    ]
}

fn sweep() -> Vec<PolicyKind> {
    let mut kinds = vec![PolicyKind::Lru];
    for threshold in [1, 2, 3] {
        for intervals in [0, 16, 64] {
            for hot_percent in [20, 50, 65, 80] {
                kinds.push(PolicyKind::Touch(TouchOptions { threshold, intervals, hot_percent }));
            }
        }
    }
    for threshold in [1, 2] {
        for intervals in [0, 16, 64] {
            for small_percent in [5, 10, 20] {
                kinds.push(PolicyKind::S3Fifo(S3FifoOptions { small_percent, threshold, intervals }));
            }
        }
    }
    kinds
}

fn parameters(kind: PolicyKind) -> String {
    match kind {
        PolicyKind::Touch(o) => {
            format!("threshold {} intervals {} hot {}%", o.threshold, o.intervals, o.hot_percent)
        }
        PolicyKind::S3Fifo(o) => {
            format!("threshold {} intervals {} small {}%", o.threshold, o.intervals, o.small_percent)
        }
        PolicyKind::Lru => String::new(),
    }
}

fn print(names: &[&str], rows: &[Row]) -> Result<()> {
    output::stream(|out| {
        write!(out, "{:<44}", "hit ratio in %")?;
        names.iter().try_for_each(|name| write!(out, "  {name:>14}"))?;
        writeln!(out, "  misses of LRU's")?;
        for row in rows {
            write!(out, "{:<7} {:<36}", row.policy, row.parameters)?;
            for hits in &row.hits {
                let all = format!("{:.2}", hits.all * 100.0);
                let hot = format!("{:.2}", hits.hot * 100.0);
                let shown = if all == hot { all } else { format!("{all} ({hot})") };
                write!(out, "  {shown:>14}")?;
            }
            writeln!(out, "  {:>15.3}", row.misses_of_lru)?;
        }
        writeln!(out, "In brackets: of the accesses that belong to no scan.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload::{HOT, SCANNED};

    const FRAMES: usize = 1024;

    /// Part of the accesses to a hot table that are hits while a table of twice the cache is read once
    /// beside them, page by page in four pieces, and the same without.
    fn beside_a_scan(kind: PolicyKind, hot_caches: f64) -> (f64, f64) {
        let hot = zipf_of((FRAMES as f64 * hot_caches) as usize, 48 * FRAMES);
        let (warm, measured) = hot.split_at(40 * FRAMES);
        let ratio = |scan: bool| {
            let mut cache = Replay::new(kind, FRAMES);
            for page in warm {
                cache.access(HOT, *page);
            }
            let mut hits = 0;
            for (i, page) in measured.iter().enumerate() {
                hits += usize::from(cache.access(HOT, *page));
                if scan {
                    cache.access(SCANNED, i as u64 / 4);
                }
            }
            hits as f64 / measured.len() as f64
        };
        (ratio(true), ratio(false))
    }

    fn zipf_of(pages: usize, n: usize) -> Vec<u64> {
        let zipf = crate::bench::workload::Zipf::new(pages, 0.99);
        let mut rng = crate::bench::rng::Rng::new(3);
        (0..n).map(|_| zipf.draw(&mut rng) as u64).collect()
    }

    #[test]
    fn a_full_scan_costs_the_hot_set_little() {
        for kind in defaults() {
            for hot_caches in [0.5, 1.0, 10.0] {
                let (with, without) = beside_a_scan(kind, hot_caches);
                let loss = 1.0 - with / without;
                println!("{kind:?}, hot set of {hot_caches} caches: {with:.4} of {without:.4}");
                match kind {
                    // If LRU did not mind either, the test would show nothing.
                    PolicyKind::Lru => assert!(hot_caches < 1.0 || loss > 0.05, "{loss}"),
                    _ => assert!(loss <= 0.05, "{kind:?} loses {loss} with {hot_caches}"),
                }
            }
        }
    }

    #[test]
    fn the_defaults_are_better_than_lru_and_the_default_policy_is_the_best() {
        let workloads = Workload::ALL.map(|w| (w.accesses(FRAMES, 60 * FRAMES, 5), WARM_UP * FRAMES));
        let hits = |kind| workloads.each_ref().map(|(a, warm_up)| replay(kind, FRAMES, a, *warm_up));
        let lru = hits(PolicyKind::Lru);
        let touch = misses_of(&hits(PolicyKind::Touch(TouchOptions::default())), &lru);
        let s3fifo = misses_of(&hits(PolicyKind::S3Fifo(S3FifoOptions::default())), &lru);
        println!("misses of LRU's: touch {touch:.3}, S3-FIFO {s3fifo:.3}");
        assert!(s3fifo < touch && touch < 0.95, "touch {touch}, s3fifo {s3fifo}");
        assert_eq!(PolicyKind::default().name(), "s3fifo");
    }
}
