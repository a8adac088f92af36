//! What a failed read or write must not do to what is there.

use std::sync::Arc;

use blockdev::BlockDevice;
use blockdev::sim::{Effect, Fault, OpKind, SimDevice};
use dbfs_fs_core::api::{FsOps, IoFlags, Owner};
use dbfs_fs_core::env::SystemEnv;
use dbfs_fs_core::{FormatOptions, Ino, MountOptions, Volume};

const OWNER: Owner = Owner::new(1, 2);
const PAGE: usize = 16384;
const DIRECT: IoFlags = IoFlags { direct: true, dsync: false, sync: false, kill_priv: false };

fn new_sim(seed: u64) -> SimDevice {
    let sim = SimDevice::new(64 << 20, seed);
    Volume::format(&sim, &FormatOptions::default(), &SystemEnv).unwrap();
    sim
}

fn mount(sim: &SimDevice) -> Arc<Volume> {
    let device: Arc<dyn BlockDevice> = Arc::new(sim.clone());
    Volume::mount(device, MountOptions::default(), Arc::new(SystemEnv)).unwrap()
}

fn read(v: &Volume, ino: Ino, offset: usize, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    assert_eq!(v.read(ino, offset as u64, &mut buf, IoFlags::default()).unwrap(), len);
    buf
}

/// A buffered write covers one page and needs the old bytes of the next, which cannot be read: the
/// first page is as it was.
#[test]
fn a_write_that_cannot_read_leaves_all_pages_alone() {
    let sim = new_sim(1);
    let v = mount(&sim);
    let ino = v.create(Ino::ROOT, b"f", 0o644, OWNER).unwrap().ino;
    v.write(ino, 0, &vec![7; 2 * PAGE], DIRECT).unwrap();
    v.fsync(ino, true).unwrap();
    sim.inject(Fault::new(Effect::eio()).on(OpKind::Read));
    assert!(v.write(ino, 0, &vec![8; PAGE + 100], IoFlags::default()).is_err());
    assert_eq!(sim.pending_faults(), 0);
    assert_eq!(read(&v, ino, 0, 2 * PAGE), vec![7; 2 * PAGE]);
    v.write(ino, 0, &vec![8; PAGE + 100], IoFlags::default()).unwrap();
    v.fsync(ino, true).unwrap();
    drop(v);
    let v = mount(&sim);
    assert_eq!(read(&v, ino, 0, PAGE + 100), vec![8; PAGE + 100]);
    assert_eq!(read(&v, ino, PAGE + 100, PAGE - 100), vec![7; PAGE - 100]);
}

/// A flush that fails may have lost what was written before it, although the next one succeeds: no
/// root may lead to that.
#[test]
fn no_root_is_written_after_a_failed_flush() {
    for skip in 0..3 {
        let sim = new_sim(2);
        let v = mount(&sim);
        let ino = v.create(Ino::ROOT, b"f", 0o644, OWNER).unwrap().ino;
        v.write(ino, 0, &vec![7; PAGE], DIRECT).unwrap();
        v.fsync(ino, true).unwrap();
        v.write(ino, 0, &vec![8; 2 * PAGE], DIRECT).unwrap();
        sim.inject(Fault::new(Effect::eio()).on(OpKind::Flush).after(skip));
        let failed = v.checkpoint().is_err();
        assert_eq!(failed, sim.pending_faults() == 0, "an error of a flush is never swallowed");
        assert_eq!(v.failure().is_some(), failed);
        if failed {
            assert!(v.write(ino, 0, &vec![9; PAGE], DIRECT).is_err());
            assert!(v.fsync(ino, true).is_err());
        }
        drop(v);
        sim.clear_faults();
        let v = mount(&sim);
        assert_eq!(read(&v, ino, 0, PAGE).len(), PAGE);
    }
}

/// A checkpoint whose node cannot be written is given up; the next one succeeds.
#[test]
fn a_checkpoint_is_tried_again() {
    let sim = new_sim(3);
    let v = mount(&sim);
    let mut files = Vec::new();
    for i in 0..20u8 {
        let ino = v.create(Ino::ROOT, &[b'a' + i], 0o644, OWNER).unwrap().ino;
        v.write(ino, 0, &vec![i; PAGE], DIRECT).unwrap();
        files.push(ino);
    }
    v.commit().unwrap();
    let free = v.statfs().unwrap().bfree;
    sim.inject(Fault::new(Effect::eio()).on(OpKind::Write));
    assert!(v.checkpoint().is_err());
    assert_eq!(sim.pending_faults(), 0);
    assert!(v.failure().is_none(), "only the data of the checkpoint was lost");
    assert!(v.statfs().unwrap().bfree >= free - 64);
    v.checkpoint().unwrap();
    drop(v);
    let v = mount(&sim);
    for (i, ino) in files.iter().enumerate() {
        assert_eq!(read(&v, *ino, 0, PAGE), vec![i as u8; PAGE]);
    }
}
