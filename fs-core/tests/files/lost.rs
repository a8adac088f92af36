//! Errors of writes that nobody waits for (contract C1).

use blockdev::sim::{Effect, Fault, OpKind, SimDevice};
use dbfs_fs_core::api::{Fallocate, FsOps};
use dbfs_fs_core::{Ino, Volume};

use crate::rig::*;

/// A file of four pages on the device, none of them cached.
fn cold_file(sim: &SimDevice) -> (std::sync::Arc<Volume>, Ino) {
    let v = mount(sim);
    let ino = v.make_file("f");
    v.put(ino, 0, &pattern(4 * PAGE, 1), DIRECT);
    v.shutdown().unwrap();
    drop(v);
    (mount(sim), ino)
}

/// The kernel writes a part of a page, and the rest cannot be read: the write is lost, and the kernel
/// will not try again.
fn lose(v: &Volume, sim: &SimDevice, ino: Ino, offset: usize, len: usize) {
    sim.inject(Fault::new(Effect::eio()).on(OpKind::Read));
    assert_eq!(errno(v.write_back(ino, offset as u64, &vec![9; len])), libc::EIO);
    assert_eq!(sim.pending_faults(), 0);
}

#[test]
fn a_lost_write_is_reported_until_it_is_written_again() {
    let sim = device(64 << 20);
    let (v, ino) = cold_file(&sim);
    v.open(ino).unwrap();
    lose(&v, &sim, ino, PAGE + 100, 200);
    let other = v.make_file("other");
    for datasync in [true, false, true] {
        assert_eq!(errno(v.fsync(ino, datasync)), libc::EIO);
        assert_eq!(errno(v.sync_all()), libc::EIO);
        v.fsync(other, false).unwrap();
    }
    v.close(ino);
    v.open(ino).unwrap();
    assert_eq!(errno(v.fsync(ino, false)), libc::EIO, "it outlives close and reopen");
    // Other bytes do not help, nor do some of them.
    v.put(ino, 0, &[3; 10], DSYNC);
    v.put(ino, PAGE + 100, &[3; 199], BUFFERED);
    assert_eq!(errno(v.fsync(ino, false)), libc::EIO);
    assert_eq!(errno(v.sync_all()), libc::EIO);
    v.put(ino, PAGE + 299, &[3; 1], DIRECT);
    v.fsync(ino, false).unwrap();
    v.sync_all().unwrap();
    assert_eq!(v.get(ino, PAGE + 100, 200), [3; 200]);
}

#[test]
fn what_is_cut_off_or_punched_is_not_missed() {
    let sim = device(64 << 20);
    let (v, ino) = cold_file(&sim);
    lose(&v, &sim, ino, 2 * PAGE + 10, 10);
    v.resize_to(ino, 2 * PAGE as u64 + 15).unwrap();
    assert_eq!(errno(v.fsync(ino, true)), libc::EIO, "five lost bytes are left");
    v.resize_to(ino, 2 * PAGE as u64 + 10).unwrap();
    v.fsync(ino, true).unwrap();
    drop(v);
    let v = mount(&sim);
    lose(&v, &sim, ino, 10, 10);
    v.fallocate(ino, Fallocate::PunchHole, 0, PAGE as u64).unwrap();
    v.fsync(ino, true).unwrap();
}

#[test]
fn a_remount_or_a_removal_ends_the_report() {
    let sim = device(64 << 20);
    let (v, ino) = cold_file(&sim);
    lose(&v, &sim, ino, 10, 10);
    assert_eq!(errno(v.fsync(ino, true)), libc::EIO);
    v.shutdown().expect("a lost write does not keep the volume mounted");
    drop(v);
    let v = mount(&sim);
    v.fsync(ino, true).unwrap();
    assert_eq!(v.bytes(ino), pattern(4 * PAGE, 1), "the old content is whole");
    drop(v);
    let v = mount(&sim);
    lose(&v, &sim, ino, 10, 10);
    v.unlink(Ino::ROOT, b"f").unwrap();
    v.sync_all().unwrap();
}

/// The inode that knows of a lost write stays in memory, however many others come and go.
#[test]
fn a_lost_write_outlives_the_inode_cache() {
    let sim = device(512 << 20);
    let (v, ino) = cold_file(&sim);
    lose(&v, &sim, ino, 10, 10);
    let dir = v.mkdir(Ino::ROOT, b"many", 0o755, OWNER).unwrap().ino;
    for i in 0..16 * 4096 + 20_000 {
        let kind = dbfs_fs_core::api::FileType::Fifo;
        v.mknod(dir, format!("{i}").as_bytes(), kind, 0o600, 0, OWNER).unwrap();
        if i % 4096 == 0 {
            v.sync_all().unwrap_err();
        }
    }
    assert_eq!(errno(v.fsync(ino, true)), libc::EIO);
}

/// Buffered pages whose writeback fails stay dirty, whatever happens to the file and the cache, and
/// every fsync fails until they are on the device.
#[test]
fn failed_writeback_keeps_the_pages() {
    let sim = device(256 << 20);
    let v = mount(&sim);
    let (ino, big) = (v.make_file("f"), v.make_file("big"));
    for at in (0..32 << 20).step_by(1 << 20) {
        v.put(big, at, &pattern(1 << 20, 5), DIRECT);
    }
    let data = pattern(200 * PAGE, 6);
    v.open(ino).unwrap();
    v.put(ino, 0, &data, BUFFERED);
    // The journal, whose failure would stop the volume, lies before all data.
    let data_area = 24 << 20..256 << 20;
    let fail = || sim.inject(Fault::new(Effect::eio()).on(OpKind::Write).within(data_area.clone()));
    for _ in 0..3 {
        fail();
        assert!(v.writeback_all().is_err());
        fail();
        assert_eq!(errno(v.fsync(ino, true)), libc::EIO);
        assert_eq!(v.failure(), None);
        v.close(ino);
        // The cache holds 8 MiB: everything that may go is gone after this.
        v.bytes(big);
        v.open(ino).unwrap();
        assert!(v.bytes(ino) == data);
    }
    v.fsync(ino, true).unwrap();
    drop(v);
    let cut = after_power_cut(&sim);
    let v = mount(&cut);
    assert!(v.bytes(ino) == data);
}

/// A direct write that fails has told its caller, and has changed nothing.
#[test]
fn a_failed_direct_write_changes_nothing() {
    let sim = device(64 << 20);
    let (v, ino) = cold_file(&sim);
    sim.inject(Fault::new(Effect::eio()).on(OpKind::Write));
    assert_eq!(errno(v.write(ino, 0, &[8; PAGE], DIRECT)), libc::EIO);
    v.fsync(ino, false).unwrap();
    assert_eq!(v.bytes(ino), pattern(4 * PAGE, 1));
    v.shutdown().unwrap();
    drop(v);
    assert_clean(&sim, "at the end");
}
