//! Sizes: a large file overwritten at random and a directory of very many files. Metadata and memory
//! stay bounded; the times are printed, `cargo xtask bench` compares them.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;

use super::{Plan, Tally};
use crate::buffer::Buffer;
use crate::cargo;
use crate::rng::Rng;
use crate::target::{Dbfs, DbfsOptions, Kind, Target, Volume};
use crate::workdir::WorkDir;

const PAGE: u64 = 16 << 10;
const MIB: u64 = 1 << 20;

/// Pages per fsync.
const BATCH: usize = 32;

/// Live metadata that a GiB of randomly overwritten data may have.
const METADATA_PER_GIB: u64 = 3 * MIB / 2;

/// What the daemon may have resident. Its caches hold 256 MiB of pages and 64 MiB of tree nodes; changes in
/// memory are merged at 64 MiB, while as many new ones arrive; the rest is inodes (65,536 at most), buffers,
/// bitmaps, and what the allocator keeps.
const MEMORY: u64 = 768 * MIB;

/// How much is done.
struct Amount {
    file: u64,
    files: u64,
    /// Files that are removed with `rm -rf`, and how deep the tree beside them is.
    removed: u64,
    deep: u64,
}

const SHORT: Amount = Amount { file: 256 * MIB, files: 40_000, removed: 5_000, deep: 200 };
const FULL: Amount = Amount { file: 4096 * MIB, files: 1_000_000, removed: 100_000, deep: 1000 };

/// Runs all parts, each on a new volume.
pub fn run(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    if plan.kind != Kind::Dbfs {
        bail!("only dbfs tells how much metadata it has");
    }
    let amount = if plan.full { FULL } else { SHORT };
    let mut volume = mounted(plan, work, "overwrite", 2 * amount.file + 1024 * MIB)?;
    let name = format!("{} MiB overwritten at random", amount.file / MIB);
    tally.step(&name, || overwrite(&mut volume, amount.file, plan.seed))?;
    let mut volume = mounted(plan, work, "files", 16 << 30)?;
    tally
        .step(&format!("{} files in a directory", amount.files), || many_files(&mut volume, amount.files))?;
    // A small file takes a page, an inode and a name.
    let mut volume = mounted(plan, work, "removal", amount.removed * 20 * 1024 + 128 * MIB)?;
    let name = format!("rm -rf of {} files on a full volume", amount.removed);
    tally.step(&name, || removal(&mut volume, amount.removed, amount.deep))
}

fn mounted(plan: &Plan, work: &WorkDir, name: &str, size: u64) -> Result<Dbfs> {
    let program = cargo::build_dbfs(plan.profile)?;
    let volume = Volume { size, page_size: PAGE as u32 };
    let (image, log) = (work.join(&format!("{name}.img")), work.join(&format!("{name}.log")));
    let mut dbfs = Dbfs::new(DbfsOptions::new(program, image, work.dir(name, None)?, volume, log));
    dbfs.format()?;
    dbfs.mount()?;
    Ok(dbfs)
}

fn overwrite(volume: &mut Dbfs, size: u64, seed: u64) -> Result<()> {
    let path = volume.dir().join("table");
    let flags = OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new().read(true).write(true).create(true).custom_flags(flags).open(path)?;
    lay_out(&file, size)?;
    let order = shuffled(size / PAGE, seed);
    let start = Instant::now();
    overwrite_each(&file, &order)?;
    let each = start.elapsed().as_secs_f64() * 1e6 / order.len() as f64;
    verify(&file, size)?;
    drop(file);
    let memory = volume.peak_memory()?;
    volume.unmount()?;
    let metadata = volume.metadata_bytes()?;
    println!(
        "     {each:.0} us per page, {} KiB of metadata, {} KiB per GiB, at most {} MiB of memory",
        metadata >> 10,
        (metadata >> 10) * 1024 * MIB / size,
        memory / MIB
    );
    ensure!(
        metadata * 1024 * MIB <= METADATA_PER_GIB * size,
        "more metadata than {METADATA_PER_GIB} per GiB"
    );
    ensure!(memory <= MEMORY, "the daemon had more than {} MiB of memory", MEMORY / MIB);
    volume.check()
}

fn lay_out(file: &File, size: u64) -> Result<()> {
    let mut buffer = Buffer::new(MIB as usize);
    for offset in (0..size).step_by(MIB as usize) {
        file.write_all_at(buffer.bytes(), offset)?;
    }
    file.sync_all().context("cannot lay the file out")
}

fn overwrite_each(file: &File, order: &[u64]) -> Result<()> {
    let mut buffer = Buffer::new(PAGE as usize);
    for batch in order.chunks(BATCH) {
        for page in batch {
            mark(buffer.bytes(), *page);
            file.write_all_at(buffer.bytes(), page * PAGE)?;
        }
        file.sync_data()?;
    }
    Ok(())
}

/// Writes the page's number into its first and last bytes.
fn mark(page: &mut [u8], number: u64) {
    let bytes = number.to_le_bytes();
    page[..8].copy_from_slice(&bytes);
    page[PAGE as usize - 8..].copy_from_slice(&bytes);
}

fn verify(file: &File, size: u64) -> Result<()> {
    let mut buffer = Buffer::new(MIB as usize);
    let mut expected = vec![0x5a; PAGE as usize];
    for offset in (0..size).step_by(MIB as usize) {
        file.read_exact_at(buffer.bytes(), offset)?;
        for (page, number) in buffer.bytes().chunks(PAGE as usize).zip(offset / PAGE..) {
            mark(&mut expected, number);
            ensure!(page == expected, "page {number} has other bytes than were written");
        }
    }
    Ok(())
}

/// The numbers below `count`, each once, in a random order.
fn shuffled(count: u64, seed: u64) -> Vec<u64> {
    let mut rng = Rng::new(seed);
    let mut order: Vec<u64> = (0..count).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, rng.range(0, i as u64 + 1) as usize);
    }
    order
}

/// Creates, looks up after a remount, lists and removes small files in one directory.
fn many_files(volume: &mut Dbfs, count: u64) -> Result<()> {
    let dir = volume.dir().join("dir");
    fs::create_dir(&dir)?;
    timed("create and write", count, |i| small_file(&dir, i))?;
    let memory = volume.peak_memory()?;
    println!("     at most {} MiB of memory", memory / MIB);
    ensure!(memory <= MEMORY, "the daemon had more than {} MiB of memory", MEMORY / MIB);
    volume.unmount()?;
    println!("     {} MiB of metadata", volume.metadata_bytes()? / MIB);
    volume.mount()?;
    timed("open and read", count, |i| {
        let found = fs::read(dir.join(file_name(i)))?;
        ensure!(found == i.to_le_bytes(), "file {i} has other bytes than were written");
        Ok(())
    })?;
    let listed = fs::read_dir(&dir)?.try_fold(0, |n, entry| entry.map(|_| n + 1))?;
    ensure!(listed == count, "{listed} of {count} files are listed");
    timed("unlink", count, |i| Ok(fs::remove_file(dir.join(file_name(i)))?))?;
    fs::remove_dir(&dir)?;
    volume.unmount()?;
    volume.check()
}

/// Removes a large and a deep tree from a volume that has no space left.
fn removal(volume: &mut Dbfs, files: u64, depth: u64) -> Result<()> {
    let free = free_blocks(volume.dir())?;
    let tree = volume.dir().join("tree");
    for i in 0..files {
        if i % 1000 == 0 {
            fs::create_dir_all(tree.join((i / 1000).to_string()))?;
        }
        small_file(&tree.join((i / 1000).to_string()), i)?;
    }
    let deep = tree.join("deep");
    fs::create_dir_all(deep.join("d/".repeat(depth as usize)))?;
    fill(&volume.dir().join("filler"))?;
    let removed = Command::new("rm").arg("-rf").arg(&tree).status()?;
    ensure!(removed.success() && !tree.try_exists()?, "rm -rf failed: {removed}");
    let memory = volume.peak_memory()?;
    ensure!(memory <= MEMORY, "the daemon had more than {} MiB of memory", MEMORY / MIB);
    fs::remove_file(volume.dir().join("filler"))?;
    volume.unmount()?;
    volume.check()?;
    volume.mount()?;
    let left = free_blocks(volume.dir())?;
    // Nodes of the emptied directory tree may stay.
    ensure!(left + MIB / 4096 >= free, "{free} blocks were free before, {left} afterwards");
    volume.unmount()
}

/// Writes until there is no space left.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let bytes = vec![7; MIB as usize];
    loop {
        match file.write(&bytes) {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) => break,
            Err(e) => return Err(e).context("cannot fill the volume"),
        }
    }
    file.sync_all().context("cannot sync the full volume")
}

/// Free blocks of 4 KiB of the file system at `dir`.
fn free_blocks(dir: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bfree * stat.f_frsize / 4096)
}

fn file_name(i: u64) -> String {
    format!("a small file with number {i}")
}

fn small_file(dir: &Path, i: u64) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(dir.join(file_name(i)))?;
    Ok(file.write_all(&i.to_le_bytes())?)
}

/// Does `each` for every number below `count`, and prints the mean time of each fifth.
fn timed(what: &str, count: u64, mut each: impl FnMut(u64) -> Result<()>) -> Result<()> {
    let mut line = format!("     {what}, us each:");
    for part in 0..5 {
        let (first, end) = (count * part / 5, count * (part + 1) / 5);
        let start = Instant::now();
        (first..end).try_for_each(&mut each)?;
        line += &format!(" {:.1}", start.elapsed().as_secs_f64() * 1e6 / (end - first).max(1) as f64);
    }
    println!("{line}");
    Ok(())
}
