//! Many threads on a small volume, whose journal is small too; fsck judges what is left.

use std::sync::Arc;
use std::time::Duration;

use blockdev::{BlockDevice, Capabilities, IoClass, Pending, RamDevice, Request};
use dbfs_fs_core::api::{FsOps, IoFlags, Owner, SetAttr};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::{FormatOptions, FsError, Ino, MountOptions, StopFlag, Volume};

const OWNER: Owner = Owner::new(1, 2);

/// A device whose journal writes take a while, so that threads meet in commits.
#[derive(Debug)]
struct Slow(RamDevice);

impl BlockDevice for Slow {
    fn name(&self) -> Arc<str> {
        self.0.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        if requests.iter().any(|r| r.class == IoClass::Log) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.0.submit(requests)
    }
}

fn new_device() -> Arc<dyn BlockDevice> {
    let device: Arc<dyn BlockDevice> = Arc::new(Slow(RamDevice::new(1 << 30, 512)));
    let options = FormatOptions { journal_bytes: Some(2 << 20), ..FormatOptions::default() };
    Volume::format(device.as_ref(), &options, &SystemEnv).unwrap();
    device
}

fn mount(device: &Arc<dyn BlockDevice>) -> Arc<Volume> {
    Volume::mount(device.clone(), MountOptions::default(), Arc::new(SystemEnv)).unwrap()
}

fn dsync() -> IoFlags {
    IoFlags { dsync: true, ..IoFlags::default() }
}

/// As many threads as a daemon has, each writing the largest writes that go into the journal, or as
/// scattered as can be: the journal never overflows.
#[test]
fn threads_do_not_overflow_a_small_journal() {
    let device = new_device();
    let v = mount(&device);
    let stop = StopFlag::default();
    std::thread::scope(|scope| {
        scope.spawn(|| v.run_background(&stop));
        let writers: Vec<_> = (0..48u64)
            .map(|t| {
                let v = &v;
                scope.spawn(move || -> Result<(), FsError> {
                    let ino = v.create(Ino::ROOT, format!("f{t}").as_bytes(), 0o644, OWNER)?.ino;
                    let data = vec![t as u8; 42_000];
                    for i in 0..30u64 {
                        match (t + i) % 4 {
                            0 => {
                                for page in 0..40 {
                                    v.write(ino, page * 16384 + i, &data[..1], IoFlags::default())?;
                                }
                                v.fsync(ino, true)?;
                            }
                            1 => {
                                let size = Some(i * 5000);
                                v.setattr(ino, &SetAttr { size, ..SetAttr::default() })?;
                            }
                            _ => {
                                v.write(ino, i * 1000, &data, dsync())?;
                            }
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let outcomes: Vec<_> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        stop.stop();
        for outcome in outcomes {
            outcome.unwrap();
        }
    });
    assert_eq!(v.failure(), None);
}

/// Changes that nobody waits for pile up before they are committed, many of them at once; beside
/// them bytes go into the journal that a checkpoint has to write home.
#[test]
fn changes_that_nobody_waits_for_do_not_overflow_a_small_journal() {
    let device = new_device();
    let v = mount(&device);
    let stop = StopFlag::default();
    std::thread::scope(|scope| {
        scope.spawn(|| v.run_background(&stop));
        let writers: Vec<_> = (0..8u64)
            .map(|t| {
                let v = &v;
                scope.spawn(move || -> Result<(), FsError> {
                    let dir = v.mkdir(Ino::ROOT, format!("d{t}").as_bytes(), 0o755, OWNER)?.ino;
                    let wal = v.create(dir, b"wal", 0o644, OWNER)?.ino;
                    for i in 0..1500u64 {
                        let name = format!("a-name-that-is-long-enough-to-fill-records-{i}");
                        let ino = v.create(dir, name.as_bytes(), 0o644, OWNER)?.ino;
                        v.close(ino);
                        if i % 3 != 0 {
                            v.unlink(dir, name.as_bytes())?;
                        }
                        if t == 0 && i % 50 == 0 {
                            for page in 0..100 {
                                v.write(wal, page * 16384 + i, &[1], IoFlags::default())?;
                            }
                            v.fsync(wal, true)?;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let outcomes: Vec<_> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        stop.stop();
        for outcome in outcomes {
            outcome.unwrap();
        }
    });
    assert_eq!(v.failure(), None);
}

/// A byte here and there takes little of the journal, but a checkpoint has to write every page home:
/// that needs more of it.
#[test]
fn scattered_bytes_do_not_overflow_a_small_journal() {
    let device = new_device();
    let v = mount(&device);
    let ino = v.create(Ino::ROOT, b"f", 0o644, OWNER).unwrap().ino;
    for i in 0..350u64 {
        for page in 0..100 {
            v.write(ino, (i * 100 + page) * 32768, &[1], IoFlags::default()).unwrap();
        }
        v.fsync(ino, true).unwrap();
    }
    assert_eq!(v.failure(), None);
    assert!(v.counters().inline_homed > 10_000);
}
