//! A recorded history gives the images that the simulator would, and survives a kill.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dbfs_blockdev::recorder::{Base, Log, RecordKind, SeqFile, rebuild};
use dbfs_blockdev::sim::{CutOptions, Effect, Fault, OpKind, Rng, SimDevice, Survivors};
use dbfs_blockdev::{
    AlignedBuf, BlockDevice, ErrorKind, FileDevice, IoClass, OpenOptions, RamDevice, Recorder, Request,
};
use tempfile::TempDir;

const BLOCK: usize = 4096;
const SIZE: u64 = 4 << 20;

fn dir() -> (TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (log, out) = (dir.path().join("log"), dir.path().join("image"));
    (dir, log, out)
}

fn filled(byte: u8, blocks: usize) -> AlignedBuf {
    AlignedBuf::from_slice(&vec![byte; blocks * BLOCK])
}

fn put(device: &dyn BlockDevice, block: u64, byte: u8, fua: bool) {
    device.write_at(block * BLOCK as u64, filled(byte, 1), fua, IoClass::Data).unwrap();
}

fn options(seed: u64) -> CutOptions {
    CutOptions { torn: None, in_flight: false, ..CutOptions::seeded(seed) }
}

/// One step of a random history; some requests are left without being waited for.
fn step(device: &dyn BlockDevice, rng: &mut Rng, byte: u8) {
    let data = || vec![filled(byte, 1), filled(byte ^ 0x80, 1)];
    let offset = rng.below(device.capabilities().size_bytes / 4096 - 1) * 4096;
    match rng.below(12) {
        0..=5 => drop(device.execute(Request::write(offset, data(), false, IoClass::Data))),
        6 => drop(device.execute(Request::write(offset, data(), true, IoClass::Log))),
        7 => drop(device.submit(vec![Request::write(offset, data(), false, IoClass::Background)])),
        8 => device.mark("a mark"),
        10 => {
            // Done before the flush is, but not before it was submitted: not covered.
            let write = device.submit(vec![Request::write(offset, data(), false, IoClass::Data)]);
            let flush = device.submit(vec![Request::flush()]);
            write.into_iter().chain(flush).for_each(|p| drop(p.wait()));
        }
        9 => {
            let write = |i: u64| Request::write(i * 65536, data(), i == 2, IoClass::Data);
            let pending = device.submit((0..4).map(write).collect());
            pending.into_iter().for_each(|p| drop(p.wait()));
        }
        _ => drop(device.flush()),
    }
}

#[test]
fn a_rebuilt_image_is_what_the_simulator_builds() {
    const SMALL: u64 = 512 << 10;
    for seed in 0..8 {
        let (_dir, log, out) = dir();
        // In order, as the log has it: which of two writes to one place came last must agree.
        let sim_options = dbfs_blockdev::sim::SimOptions {
            shuffle: false,
            ..dbfs_blockdev::sim::SimOptions::new(SMALL, seed)
        };
        let sim = SimDevice::with_options(sim_options);
        sim.inject(Fault::new(Effect::eio()).on(OpKind::Flush).after(9));
        let recorder = Recorder::open(sim.clone(), &log).unwrap();
        let mut rng = Rng::new(seed);
        let mut moments = vec![];
        for byte in 0..100 {
            step(&recorder, &mut rng, byte);
            moments.push((sim.seq(), recorder.seq()));
        }
        drop(recorder);
        let log = Log::open(&log).unwrap();
        for (i, (sim_cut, log_cut)) in moments.into_iter().enumerate().step_by(9) {
            for image_seed in 0..5 {
                let options = options(image_seed * 100 + i as u64);
                rebuild(&log, &Base::Zeroed, log_cut, &options, &out).unwrap();
                let expected = sim.image_at(sim_cut, &options).read(0, SMALL as usize);
                assert!(fs::read(&out).unwrap() == expected, "seed {seed}, moment {i}, {options:?}");
            }
        }
    }
}

#[test]
fn torn_and_failed_writes_mix_old_and_new() {
    let (_dir, log, out) = dir();
    let sim = SimDevice::new(SIZE, 1);
    let recorder = Recorder::open(sim.clone(), &log).unwrap();
    recorder.write_at(0, filled(1, 4), false, IoClass::Data).unwrap();
    recorder.flush().unwrap();
    recorder.write_at(0, filled(2, 2), false, IoClass::Data).unwrap();
    sim.inject(Fault::new(Effect::eio()));
    recorder.write_at(8192, filled(3, 2), true, IoClass::Data).unwrap_err();
    let log = Log::open(&log).unwrap();
    let mut seen = BTreeMap::new();
    for seed in 0..50 {
        let options =
            CutOptions { seed, torn: Some(512), survivors: Survivors::Random(0.8), in_flight: true };
        rebuild(&log, &Base::Zeroed, u64::MAX, &options, &out).unwrap();
        let image = fs::read(&out).unwrap();
        for (sector, bytes) in image[..4 * BLOCK].chunks(512).enumerate() {
            assert!(bytes.iter().all(|b| *b == bytes[0]), "torn within a sector");
            seen.entry(sector).or_insert_with(Vec::new).push(bytes[0]);
        }
    }
    for (sector, bytes) in seen {
        let new = if sector < 16 { 2 } else { 3 };
        assert!(bytes.contains(&1) && bytes.contains(&new), "sector {sector}: {bytes:?}");
        assert!(bytes.iter().all(|b| *b == 1 || *b == new));
    }
}

#[test]
fn requests_that_were_refused_are_in_no_image() {
    let (_dir, log, out) = dir();
    let recorder = Recorder::open(RamDevice::new(SIZE, 4096), &log).unwrap();
    for (offset, len) in [(SIZE, BLOCK), (512, BLOCK), (0, 512)] {
        let buf = AlignedBuf::from_slice(&vec![9; len]);
        let error = recorder.write_at(offset, buf, false, IoClass::Data).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Misaligned);
    }
    let sim = SimDevice::new(SIZE, 1);
    let fenced = Recorder::open(sim.handle(false), out.with_extension("log")).unwrap();
    fenced.inner().fence();
    fenced.write_at(0, filled(9, 1), false, IoClass::Data).unwrap_err();
    for log in [log, out.with_extension("log")] {
        let keep = CutOptions::plain(Survivors::KeepAll);
        rebuild(&Log::open(log).unwrap(), &Base::Zeroed, u64::MAX, &keep, &out).unwrap();
        assert!(fs::read(&out).unwrap() == vec![0; SIZE as usize]);
    }
}

#[test]
fn the_log_tells_what_happened() {
    let (_dir, path, _out) = dir();
    let recorder = Recorder::open(RamDevice::new(SIZE, 512), &path).unwrap();
    let seq = SeqFile::open(recorder.seq_file()).unwrap();
    assert_eq!((seq.get(), recorder.seq()), (1, 1));
    put(&recorder, 3, 7, true);
    recorder.mark("checkpoint begin");
    recorder.flush().unwrap();
    assert_eq!(seq.get(), 6);
    let read = fs::read(recorder.seq_file()).unwrap();
    assert_eq!(read, 6u64.to_le_bytes());
    let log = Log::open(&path).unwrap();
    let records: Vec<_> = log.iter().collect();
    assert_eq!(records.iter().map(|r| r.seq).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(records[1].kind, RecordKind::Write { offset: 3 * 4096, len: 4096, fua: true });
    assert_eq!(log.payload(&records[1]).unwrap(), [7; BLOCK]);
    assert!(matches!(records[2].kind, RecordKind::Done { of: 1, .. }));
    assert_eq!(log.name(&records[3]).unwrap(), "checkpoint begin");
    assert_eq!(records[4].kind, RecordKind::Flush);
}

#[test]
fn a_base_image_shows_where_nothing_was_written_and_growth_is_followed() {
    let (dir, log, out) = dir();
    let base = dir.path().join("base");
    let file = File::create(&base).unwrap();
    file.set_len(SIZE).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[5; 8192], 1 << 20).unwrap();
    let ram = RamDevice::new(SIZE, 512);
    let recorder = Recorder::open(ram.clone(), &log).unwrap();
    put(&recorder, 256, 6, true);
    let small = recorder.seq();
    ram.grow(2 * SIZE);
    recorder.refresh_size().unwrap();
    put(&recorder, SIZE / 4096, 7, true);
    let log = Log::open(&log).unwrap();
    let base = Base::Image(base);
    let summary = rebuild(&log, &base, u64::MAX, &options(1), &out).unwrap();
    assert_eq!((summary.durable, summary.survived, summary.dropped), (2, 0, 0));
    let image = fs::read(&out).unwrap();
    assert_eq!(image.len() as u64, 2 * SIZE);
    assert_eq!((image[1 << 20], image[(1 << 20) + 4096], image[SIZE as usize]), (6, 5, 7));
    assert!(image[..1 << 20].iter().all(|b| *b == 0));
    rebuild(&log, &base, small, &options(1), &out).unwrap();
    assert_eq!(fs::metadata(&out).unwrap().len(), SIZE);
}

#[test]
fn damage_ends_the_log_and_never_panics() {
    let (_dir, path, out) = dir();
    let recorder = Recorder::open(RamDevice::new(SIZE, 512), &path).unwrap();
    (0..20).for_each(|i| put(&recorder, i, i as u8, i % 3 == 0));
    drop(recorder);
    let good = fs::read(&path).unwrap();
    let count = Log::open(&path).unwrap().iter().count();
    assert_eq!(count, 41);
    let mut rng = Rng::new(3);
    for round in 0..200 {
        let mut bad = good.clone();
        if round % 2 == 0 {
            bad.truncate(rng.below(good.len() as u64) as usize);
        } else {
            let at = rng.below(good.len() as u64) as usize;
            bad[at] ^= 1 << rng.below(8);
        }
        fs::write(&path, &bad).unwrap();
        let log = Log::open(&path).unwrap();
        assert!(log.iter().count() <= count);
        // Either the damage is behind the end, or a payload is bad, or the image is a prefix.
        if let Ok(summary) = rebuild(&log, &Base::Zeroed, u64::MAX, &options(1), &out) {
            assert!(summary.records <= 41);
            let image = fs::read(&out).unwrap();
            for (block, bytes) in image.chunks(BLOCK).enumerate() {
                assert!(bytes[0] == 0 || bytes[0] == block as u8);
                assert!(bytes.iter().all(|b| *b == bytes[0]));
            }
        }
    }
}

/// A process was killed with writes in flight. Its successor sees what has landed, relies on it
/// after a flush, and so must every image from then on.
#[test]
fn a_reopened_log_settles_what_was_in_flight() {
    let (_dir, log, out) = dir();
    let sim = SimDevice::new(SIZE, 1);
    let recorder = Recorder::open(sim.clone(), &log).unwrap();
    put(&recorder, 0, 1, true);
    drop(recorder.submit(vec![Request::write(4096, vec![filled(2, 1)], false, IoClass::Data)]));
    sim.hold_writes_after(0);
    drop(recorder.submit(vec![Request::write(8192, vec![filled(3, 1)], false, IoClass::Data)]));
    sim.fence();
    let last = recorder.seq();
    drop(recorder);
    // The kill left half a record.
    File::options().append(true).open(&log).unwrap().write_all(&[0xAA; 30_000]).unwrap();
    let recorder = Recorder::open(sim.handle(true), &log).unwrap();
    assert!(recorder.seq() > last);
    let before_flush = recorder.seq();
    recorder.flush().unwrap();
    put(&recorder, 4, 9, true);
    let log_len = fs::metadata(&log).unwrap().len();
    let log = Log::open(&log).unwrap();
    let records_len: u64 = log.iter().map(|r| 48 + log.payload(&r).unwrap().len() as u64).sum();
    assert_eq!(log_len, records_len, "nothing is left of the damage");
    let mut seen = Vec::new();
    for seed in 0..60 {
        rebuild(&log, &Base::Zeroed, before_flush, &options(seed), &out).unwrap();
        let image = fs::read(&out).unwrap();
        seen.push((image[4096], image[8192]));
        rebuild(&log, &Base::Zeroed, u64::MAX, &options(seed), &out).unwrap();
        let image = fs::read(&out).unwrap();
        assert!(image == sim.current().read(0, SIZE as usize));
        assert_eq!([image[0], image[4096], image[8192], image[16384]], [1, 2, 0, 9]);
    }
    assert!(seen.contains(&(0, 0)) && seen.contains(&(2, 0)), "not durable before the flush");
    let seqs: Vec<u64> = log.iter().map(|r| r.seq).collect();
    assert!(seqs.is_sorted_by(|a, b| a < b));
}

const CHILD_DIR: &str = "BLOCKDEV_RECORDER_CHILD_DIR";

/// Not a test of its own: the process that `a_killed_process_leaves_a_usable_log` kills.
#[test]
#[ignore = "run by another test as a child process"]
fn recording_child() {
    let Some(dir) = std::env::var_os(CHILD_DIR).map(PathBuf::from) else { return };
    let device = FileDevice::open(dir.join("device"), &OpenOptions::default()).unwrap();
    let recorder = Recorder::open(device, dir.join("log")).unwrap();
    let seq = SeqFile::open(recorder.seq_file()).unwrap();
    let mut rng = Rng::new(u64::from(std::process::id()));
    // The first half of the device is written at random, the second holds the promises.
    let first = fs::read_to_string(dir.join("next")).unwrap().parse::<u64>().unwrap();
    for n in first.. {
        let write = |b: u64| Request::write(b * 4096, vec![filled(n as u8, 1)], false, IoClass::Data);
        drop(recorder.submit((0..3).map(|_| write(rng.below(512))).collect()));
        let promise = Request::write((512 + n % 512) * 4096, vec![filled(n as u8, 1)], false, IoClass::Log);
        recorder.submit(vec![promise]).remove(0).wait().result.unwrap();
        let before = seq.get();
        recorder.flush().unwrap();
        println!("\npromise {n} {before} {}", seq.get());
    }
}

/// Runs the child until it has made `promises` promises, kills it; returns them:
/// (number, sequence number before and after its flush).
fn record_and_kill(dir: &Path, promises: usize) -> Vec<(u64, u64, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "recording_child", "--ignored", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut made = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["promise", n, before, after] = words[..] {
            made.push((n.parse().unwrap(), before.parse().unwrap(), after.parse().unwrap()));
        }
        if made.len() == promises {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    made
}

#[test]
fn a_killed_process_leaves_a_usable_log() {
    let (dir, log, out) = dir();
    File::create(dir.path().join("device")).unwrap().set_len(SIZE).unwrap();
    let mut promises: Vec<(u64, u64, u64)> = Vec::new();
    for run in 0..4 {
        let next = promises.last().map_or(0, |(n, ..)| n + 1);
        fs::write(dir.path().join("next"), next.to_string()).unwrap();
        let made = record_and_kill(dir.path(), 30 + run);
        assert!(made.len() >= 30 + run, "the child died early");
        promises.extend(made);
    }
    let log = Log::open(&log).unwrap();
    let mut rng = Rng::new(1);
    let end = log.iter().last().unwrap().seq + 1;
    for (_, before, after) in &promises {
        assert!(before < after && *after <= end, "a promise is in the log before it is made");
    }
    for seed in 0..25 {
        let cut = if seed == 0 { u64::MAX } else { rng.below(end + 1) };
        rebuild(&log, &Base::Zeroed, cut, &CutOptions::seeded(seed), &out).unwrap();
        let image = fs::read(&out).unwrap();
        for (n, _, after) in &promises {
            let at = (512 + n % 512) as usize * BLOCK;
            if *after <= cut {
                assert!(image[at..at + BLOCK] == filled(*n as u8, 1)[..], "cut {cut} lost promise {n}");
            }
        }
    }
}
