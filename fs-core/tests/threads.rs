//! Many threads on a small volume, whose journal is small too; fsck judges what is left.

use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};
use dbfs_fs_core::api::{FsOps, IoFlags, Owner, SetAttr};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::{FormatOptions, FsError, Ino, MountOptions, StopFlag, Volume};

const OWNER: Owner = Owner { uid: 1, gid: 2 };

fn new_device() -> Arc<dyn BlockDevice> {
    let device: Arc<dyn BlockDevice> = Arc::new(RamDevice::new(64 << 20, 512));
    Volume::format(device.as_ref(), &FormatOptions::default(), &SystemEnv).unwrap();
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
        let writers: Vec<_> = (0..24u64)
            .map(|t| {
                let v = &v;
                scope.spawn(move || -> Result<(), FsError> {
                    let ino = v.create(Ino::ROOT, format!("f{t}").as_bytes(), 0o644, OWNER)?.ino;
                    let data = vec![t as u8; 42_000];
                    for i in 0..60u64 {
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
