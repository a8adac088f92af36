//! Data that went bad on the device: its own file says so, and nothing else suffers (contract C7).

use std::sync::Arc;

use blockdev::BlockDevice;
use blockdev::sim::SimDevice;
use dbfs_fs_core::api::{FsOps, IoFlags, Owner};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::{FormatOptions, FsError, Ino, MountOptions, StopFlag, Volume};

const OWNER: Owner = Owner::new(1, 2);
const PAGE: usize = 16384;
const SIZE: u64 = 64 << 20;
const DIRECT: IoFlags = IoFlags { direct: true, dsync: false, sync: false, kill_priv: false };
const DSYNC: IoFlags = IoFlags { direct: false, dsync: true, sync: false, kill_priv: false };

fn new_sim() -> SimDevice {
    let sim = SimDevice::new(SIZE, 1);
    Volume::format(&sim, &FormatOptions::default(), &SystemEnv).unwrap();
    sim
}

fn mount(sim: &SimDevice) -> Arc<Volume> {
    let device: Arc<dyn BlockDevice> = Arc::new(sim.clone());
    Volume::mount(device, MountOptions::default(), Arc::new(SystemEnv)).unwrap()
}

/// Flips a bit in every block that is full of `byte`.
fn rot(sim: &SimDevice, byte: u8) {
    let image = sim.current();
    let mut hits = 0;
    for at in (0..SIZE).step_by(4096) {
        if image.read(at, 4096).iter().all(|b| *b == byte) {
            sim.rot(at + 77, 1);
            hits += 1;
        }
    }
    assert!(hits > 0);
}

fn read(v: &Volume, ino: Ino) -> Result<Vec<u8>, FsError> {
    let mut buf = vec![0; PAGE];
    v.read(ino, 0, &mut buf, IoFlags::default()).map(|_| buf)
}

/// What was acknowledged is soon known to be durable, even if nothing follows and nothing was freed:
/// from then on bad data is an error of its file, no reason to drop the commit.
#[test]
fn an_idle_volume_does_not_forget_an_acknowledged_commit() {
    let sim = new_sim();
    let v = mount(&sim);
    let stop = StopFlag::default();
    let ino = std::thread::scope(|scope| {
        scope.spawn(|| v.run_background(&stop));
        let ino = v.create(Ino::ROOT, b"f", 0o644, OWNER).unwrap().ino;
        v.write(ino, 0, &vec![0xa5; PAGE], DIRECT).unwrap();
        v.fsync(ino, false).unwrap();
        let records = v.counters().records;
        for _ in 0..1000 {
            if v.counters().records > records {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        stop.stop();
        ino
    });
    drop(v);
    rot(&sim, 0xa5);
    let v = mount(&sim);
    assert_eq!(v.lookup(Ino::ROOT, b"f").unwrap().size, PAGE as u64);
    assert!(matches!(read(&v, ino), Err(FsError::DataChecksum { .. })));
}

/// Bytes in the journal for a page that has gone bad: the page is lost, but checkpoints go on, and
/// writing the whole page anew heals it.
#[test]
fn a_bad_page_with_bytes_in_the_journal_does_not_stop_checkpoints() {
    let sim = new_sim();
    let v = mount(&sim);
    let good = v.create(Ino::ROOT, b"good", 0o644, OWNER).unwrap().ino;
    let bad = v.create(Ino::ROOT, b"bad", 0o644, OWNER).unwrap().ino;
    v.write(good, 0, &vec![1; PAGE], DIRECT).unwrap();
    v.write(bad, 0, &vec![0xa5; PAGE], DIRECT).unwrap();
    v.checkpoint().unwrap();
    v.write(good, 10, &[2; 10], DSYNC).unwrap();
    v.write(bad, 10, &[3; 10], DSYNC).unwrap();
    drop(v);
    rot(&sim, 0xa5);
    for _ in 0..2 {
        let v = mount(&sim);
        v.checkpoint().unwrap();
        let mut want = vec![1; PAGE];
        want[10..20].fill(2);
        assert_eq!(read(&v, good).unwrap(), want);
        assert!(matches!(read(&v, bad), Err(FsError::DataChecksum { .. })));
        v.write(good, 100, &[1; 10], DSYNC).unwrap();
    }
    let v = mount(&sim);
    v.write(bad, 0, &vec![4; PAGE], DSYNC).unwrap();
    v.checkpoint().unwrap();
    drop(v);
    assert_eq!(read(&mount(&sim), bad).unwrap(), vec![4; PAGE]);
}
