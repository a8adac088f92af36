//! `dbfs bench cache --hits`: what a hit in the page cache costs.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use blockdev::RamDevice;
use fs_core::api::{FsOps, IoFlags, Owner};
use fs_core::cache::HitProbe;
use fs_core::env::SystemEnv;
use fs_core::{FormatOptions, Ino, MountOptions, PageSize, Volume};

use super::rng::Rng;
use crate::output;

/// The page size that the figures are for, in bytes.
const PAGE: usize = 16384;
/// Measurements, of which the median counts.
const ROUNDS: usize = 41;
/// Pages looked up in a measurement.
const PINS: usize = 20_000;
/// Pages copied in a measurement.
const COPIES: usize = 2_000;
/// Pages that stay in the processor's caches.
const FEW: u32 = 64;
/// Largest cache to measure on, in pages (1 GiB).
const MOST: u32 = 1 << 16;

/// Medians, in nanoseconds each.
#[derive(Debug, serde::Serialize)]
struct Figures {
    /// Pages, asked for in random order.
    pages: u32,
    /// To find a page, pin it, and give the pin back.
    pin: f64,
    /// The same in each of two threads at the same time.
    pin_two_threads: f64,
    /// To copy a page's memory.
    memcpy: f64,
    /// What a copy of a page that is found in the cache takes longer than that.
    copy_out: f64,
    /// What a buffered read of a page from a mounted volume takes longer than that.
    read: f64,
}

/// Measures with few pages and with `frames`.
pub fn run(frames: u32, seed: u64, json: bool) -> Result<ExitCode> {
    let figures: Vec<Figures> = [FEW, frames.clamp(FEW, MOST)]
        .into_iter()
        .map(|pages| measure(pages, &mut Rng::new(seed)))
        .collect::<Result<_>>()?;
    if json {
        output::json(&serde_json::json!({ "page_bytes": PAGE, "figures": figures }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::stream(|out| {
        writeln!(
            out,
            "{:>8}  {:>8}  {:>12}  {:>8}  {:>9}  {:>9}",
            "pages", "pin ns", "2 threads ns", "memcpy ns", "+hit ns", "+read ns"
        )?;
        for f in &figures {
            writeln!(
                out,
                "{:>8}  {:>8.1}  {:>12.1}  {:>9.1}  {:>9.1}  {:>9.1}",
                f.pages, f.pin, f.pin_two_threads, f.memcpy, f.copy_out, f.read
            )?;
        }
        writeln!(
            out,
            "Medians of {ROUNDS} rounds. +hit, +read: what a copy of {PAGE} bytes out of the cache, and a \
             buffered read of a mounted volume, take longer than a memcpy of the same memory."
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn measure(pages: u32, rng: &mut Rng) -> Result<Figures> {
    let probe = HitProbe::new(PageSize::new(PAGE as u32).context("no such page size")?, pages);
    let (volume, ino) = volume(pages)?;
    let (mut pin, mut two, mut memcpy, mut copy_out, mut read) = (vec![], vec![], vec![], vec![], vec![]);
    let mut buf = vec![0; PAGE];
    for _ in 0..ROUNDS {
        let order: Vec<u64> = (0..PINS).map(|_| rng.below(pages.into())).collect();
        pin.push(time(&order, |page| probe.pin(page)));
        two.push(time_two(&order, |page| probe.pin(page)));
        let order = &order[..COPIES];
        let plain = probe.with_memory(|memory| {
            time(order, |page| {
                black_box(&mut buf[..]).copy_from_slice(memory[page as usize]);
                true
            })
        });
        let found = time(order, |page| probe.copy_out(page, black_box(&mut buf)));
        let offset = |page: u64| page * PAGE as u64;
        let volume_read = time(order, |page| {
            volume.read(ino, offset(page), black_box(&mut buf), IoFlags::default()).is_ok()
        });
        memcpy.push(plain);
        copy_out.push(found - plain);
        read.push(volume_read - plain);
    }
    ensure!(volume.counters().cache_misses == 0, "the volume's pages have not stayed in its cache");
    Ok(Figures {
        pages,
        pin: median(pin),
        pin_two_threads: median(two),
        memcpy: median(memcpy),
        copy_out: median(copy_out),
        read: median(read),
    })
}

/// A mounted volume in memory whose one file is in the cache.
fn volume(pages: u32) -> Result<(Arc<Volume>, Ino)> {
    let bytes = u64::from(pages) * PAGE as u64;
    let device = RamDevice::new((bytes * 2).max(256 << 20), 4096);
    Volume::format(&device, &FormatOptions::default(), &SystemEnv)?;
    let cache_bytes = (bytes * 2).max(64 << 20) as usize;
    let options = MountOptions { cache_bytes, ..MountOptions::default() };
    let volume = Volume::mount(Arc::new(device), options, Arc::new(SystemEnv))?;
    let ino = volume.create(Ino::ROOT, b"f", 0o600, Owner::new(0, 0))?.ino;
    for page in 0..u64::from(pages) {
        volume.write(ino, page * PAGE as u64, &[page as u8; PAGE], IoFlags::default())?;
    }
    volume.sync_all()?;
    Ok((volume, ino))
}

/// Nanoseconds for each page.
fn time(order: &[u64], mut f: impl FnMut(u64) -> bool) -> f64 {
    let start = Instant::now();
    let found = order.iter().filter(|page| f(**page)).count();
    let taken = start.elapsed();
    assert_eq!(found, order.len(), "all pages are there");
    taken.as_nanos() as f64 / order.len() as f64
}

/// The same in two threads at once: the mean of both.
fn time_two(order: &[u64], f: impl Fn(u64) -> bool + Sync) -> f64 {
    let start = Barrier::new(2);
    let (f, start) = (&f, &start);
    let one = move || {
        start.wait();
        time(order, f)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(one);
        let here = one();
        (here + other.join().expect("all pages are there")) / 2.0
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_measured() {
        let figures = measure(FEW, &mut Rng::new(1)).unwrap();
        assert!(figures.pin > 0.0 && figures.pin_two_threads > 0.0 && figures.memcpy > 0.0, "{figures:?}");
        assert!(figures.copy_out.is_finite() && figures.read.is_finite(), "{figures:?}");
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![5.0, 1.0, 3.0]), 3.0);
    }
}
