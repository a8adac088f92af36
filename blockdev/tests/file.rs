//! What is particular to image files: opening, locking, engines, odd sizes.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use dbfs_blockdev::sim::Rng;
use dbfs_blockdev::{
    AlignedBuf, BlockDevice, Direct, Engine, ErrorKind, FileDevice, IoClass, OpenError, OpenOptions, Pending,
    RamDevice, Request,
};
use tempfile::TempDir;

const BLOCK: usize = 4096;

fn image(size: u64) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    File::create(&path).unwrap().set_len(size).unwrap();
    (dir, path)
}

/// For opens that must be refused.
fn no_wait() -> OpenOptions {
    OpenOptions { lock_timeout: Duration::ZERO, ..OpenOptions::default() }
}

/// For opens that must succeed. Other tests of this process start programs, and between fork and exec a child
/// shares every descriptor, so a lock that was just given up may be held for a moment longer.
fn patient() -> OpenOptions {
    OpenOptions { lock_timeout: Duration::from_secs(60), ..OpenOptions::default() }
}

fn read_only() -> OpenOptions {
    OpenOptions { read_only: true, ..patient() }
}

fn filled(byte: u8) -> AlignedBuf {
    AlignedBuf::from_slice(&[byte; BLOCK])
}

#[test]
fn a_writer_is_alone_and_readers_share() {
    let (_dir, path) = image(1 << 20);
    let writer = FileDevice::open(&path, &patient()).unwrap();
    assert!(writer.capabilities().exclusive);
    for options in [no_wait(), OpenOptions { read_only: true, ..no_wait() }] {
        let error = FileDevice::open(&path, &options).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("in use by process") && text.contains(&std::process::id().to_string()),
            "{text}"
        );
    }
    drop(writer);
    let readers =
        [FileDevice::open(&path, &read_only()).unwrap(), FileDevice::open(&path, &read_only()).unwrap()];
    assert!(!readers[0].capabilities().exclusive);
    assert!(matches!(FileDevice::open(&path, &no_wait()), Err(OpenError::InUse { .. })));
    drop(readers);
    FileDevice::open(&path, &patient()).unwrap();
}

#[test]
fn waits_for_the_lock_as_long_as_it_is_told() {
    let (_dir, path) = image(1 << 20);
    let writer = FileDevice::open(&path, &patient()).unwrap();
    let (opening, opened) = mpsc::channel();
    let waiter = thread::spawn(move || {
        opening.send(()).unwrap();
        FileDevice::open(&path, &patient()).map(|d| d.capabilities().exclusive)
    });
    opened.recv().unwrap();
    drop(writer);
    assert!(waiter.join().unwrap().unwrap());
}

#[test]
fn the_lock_is_given_up_with_the_last_request_and_not_passed_on() {
    for engine in [Engine::Auto, Engine::Pread] {
        let (_dir, path) = image(1 << 20);
        let options = OpenOptions { engine, ..patient() };
        let writer = FileDevice::open(&path, &options).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let write = |b: u64| Request::write(b * 4096, vec![filled(7)], false, IoClass::Data);
        drop(writer.submit((0..200).map(write).collect()));
        drop(writer);
        let next = FileDevice::open(&path, &options).expect("the child must not hold the lock");
        for block in 0..200 {
            let buf = next.read_at(block * 4096, filled(0), IoClass::Data).unwrap();
            assert_eq!(buf[..], filled(7)[..], "drop waits for what is in flight");
        }
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}

#[test]
fn a_reader_cannot_write() {
    let (_dir, path) = image(1 << 20);
    let device = FileDevice::open(&path, &read_only()).unwrap();
    assert!(!device.capabilities().discard);
    let error = device.write_at(0, filled(1), false, IoClass::Data).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    let pending = device.submit(vec![Request::write(0, vec![filled(1)], false, IoClass::Data)]);
    assert!(pending.into_iter().all(|p| p.wait().result.is_err()));
    assert_eq!(device.read_at(0, filled(1), IoClass::Data).unwrap()[..], filled(0)[..]);
}

#[test]
fn what_is_no_device_is_not_opened() {
    let (dir, _path) = image(0);
    let wrong =
        |p: &std::path::Path| matches!(FileDevice::open(p, &no_wait()), Err(OpenError::WrongType { .. }));
    assert!(wrong(dir.path()) && wrong("/dev/null".as_ref()));
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(wrong(&fifo));
    let error = FileDevice::open(dir.path().join("none"), &no_wait()).unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");
}

#[test]
fn size_follows_the_file_in_whole_sectors() {
    let (_dir, path) = image((1 << 20) + 100);
    let device = FileDevice::open(&path, &patient()).unwrap();
    assert_eq!(device.capabilities().size_bytes, 1 << 20);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(2 << 20).unwrap();
    let end = (2 << 20) - BLOCK as u64;
    assert!(device.write_at(end, filled(1), false, IoClass::Data).is_err());
    assert_eq!(device.refresh_size().unwrap().size_bytes, 2 << 20);
    device.write_at(end, filled(1), false, IoClass::Data).unwrap();
    // The file shrinks behind our back: a read is short, not an endless loop.
    file.set_len(1 << 20).unwrap();
    for read in [
        device.execute(Request::read(end, vec![filled(0)], IoClass::Data)),
        device.submit(vec![Request::read(end, vec![filled(0)], IoClass::Data)]).remove(0).wait(),
    ] {
        assert_eq!(read.result.unwrap_err().kind, ErrorKind::Short);
    }
}

#[test]
fn buffered_io_is_flagged() {
    let (_dir, path) = image(1 << 20);
    let buffered = OpenOptions { direct: Direct::Off, ..patient() };
    assert!(!FileDevice::open(&path, &buffered).unwrap().capabilities().direct);
    let required = OpenOptions { direct: Direct::Require, ..patient() };
    match FileDevice::open(&path, &required) {
        Ok(device) => assert!(device.capabilities().direct),
        Err(error) => assert!(matches!(error, OpenError::NoDirectIo { .. }), "{error}"),
    }
}

/// Fills the ring over and over from several threads, with waiters that did not submit.
#[test]
fn requests_may_be_waited_for_by_other_threads_and_outlive_their_submitter() {
    let (_dir, path) = image(64 << 20);
    for engine in [Engine::Auto, Engine::Pread] {
        let device = Arc::new(FileDevice::open(&path, &OpenOptions { engine, ..patient() }).unwrap());
        let (send, receive) = mpsc::sync_channel::<Vec<Pending>>(4);
        let submitters: Vec<_> = (0..3u64)
            .map(|t| {
                let (device, send) = (device.clone(), send.clone());
                thread::spawn(move || {
                    for round in 0..8u64 {
                        let write = |i: u64| {
                            let data = vec![filled((t * 8 + round) as u8)];
                            Request::write(
                                ((t * 8 + round) * 400 + i) * 4096,
                                data,
                                i.is_multiple_of(50),
                                IoClass::Background,
                            )
                        };
                        let mut batch: Vec<Request> = (0..400).map(write).collect();
                        batch.push(Request::flush());
                        let mut pending = device.submit(batch);
                        let mine = pending.split_off(200);
                        send.send(pending).unwrap();
                        mine.into_iter().for_each(|p| p.wait().result.unwrap());
                    }
                })
            })
            .collect();
        drop(send);
        let waiter =
            thread::spawn(move || receive.into_iter().flatten().map(|p| p.wait().result.unwrap()).count());
        submitters.into_iter().for_each(|s| s.join().unwrap());
        assert_eq!(waiter.join().unwrap(), 3 * 8 * 200);
        let read = |i: u64| Request::read(i * 4096, vec![filled(0)], IoClass::Data);
        for (i, pending) in device.submit((0..9600).map(read).collect()).into_iter().enumerate() {
            let done = pending.wait();
            done.result.unwrap();
            assert_eq!(done.bufs[0][..], filled((i / 400) as u8)[..]);
        }
    }
}

/// The same random requests on a file, through each engine, and on a RAM device.
#[test]
fn every_engine_agrees_with_memory() {
    for (engine, direct) in
        [(Engine::Auto, Direct::Auto), (Engine::Auto, Direct::Off), (Engine::Pread, Direct::Auto)]
    {
        let (_dir, path) = image(8 << 20);
        let file = FileDevice::open(&path, &OpenOptions { engine, direct, ..patient() }).unwrap();
        let ram = RamDevice::new(8 << 20, file.capabilities().logical_sector);
        for seed in 0..40 {
            assert_eq!(run_random(&file, seed), run_random(&ram, seed), "{engine:?} {direct:?} seed {seed}");
        }
    }
}

/// Two phases of requests that do not overlap within a phase; returns everything observable.
fn run_random(device: &dyn BlockDevice, seed: u64) -> Vec<(bool, Vec<u8>)> {
    let sector = u64::from(device.capabilities().logical_sector);
    let size = device.capabilities().size_bytes;
    let mut rng = Rng::new(seed);
    let mut seen = Vec::new();
    for phase in 0..2 {
        let mut requests = Vec::new();
        let mut offset = rng.below(16) * sector;
        while offset < size + 4096 && requests.len() < 24 {
            let bufs: Vec<AlignedBuf> = (0..rng.below(4))
                .map(|_| {
                    AlignedBuf::from_slice(&vec![rng.next_u64() as u8; (rng.below(20) * sector) as usize])
                })
                .collect();
            let len: u64 = bufs.iter().map(|b| b.len() as u64).sum();
            let odd = if rng.chance(0.05) { 7 } else { 0 };
            requests.push(match phase {
                0 => Request::write(offset + odd, bufs, rng.chance(0.1), IoClass::Data),
                _ => Request::read(offset + odd, bufs, IoClass::Data),
            });
            offset += len + rng.below(200) * sector;
        }
        for pending in device.submit(requests) {
            let done = pending.wait();
            seen.push((done.result.is_ok(), done.bufs.iter().flat_map(|b| b.to_vec()).collect()));
        }
    }
    seen
}

/// Makes the kernel answer `errno` to a system call of this thread, if `flags` (its sixth argument)
/// has the given bits, or always if they are 0.
fn forbid(syscall: libc::c_long, flags: u32, errno: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |code: u32, k: u32, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    // Offsets in `struct seccomp_data`: the number at 0, the low half of the last argument at 56.
    let mut filter = [
        statement(load, 0),
        jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, syscall as u32, 0, 3),
        statement(load, 56),
        jump(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, flags, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    if flags == 0 {
        filter[3] = jump(libc::BPF_JMP | libc::BPF_JA, 0, 0, 0);
    }
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: prctl copies the program, which lives until it returns; both settings concern only
    // the calling thread.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn where_io_uring_is_refused_threads_take_over() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::ENOMEM] {
        let (_dir, path) = image(1 << 20);
        let test = move || {
            forbid(libc::SYS_io_uring_setup, 0, errno);
            let required = OpenOptions { engine: Engine::Uring, ..patient() };
            let error = FileDevice::open(&path, &required).unwrap_err();
            assert!(error.to_string().contains("io_uring"), "{error}");
            let device = FileDevice::open(&path, &patient()).unwrap();
            assert_eq!(device.engine(), Engine::Pread);
            let write = Request::write(4096, vec![filled(3)], true, IoClass::Data);
            device.submit(vec![write]).remove(0).wait().result.unwrap();
            assert_eq!(device.read_at(4096, filled(0), IoClass::Data).unwrap()[..], filled(3)[..]);
        };
        thread::spawn(test).join().unwrap();
    }
}

#[test]
fn only_durable_writes_ask_the_kernel_for_it() {
    let (_dir, path) = image(1 << 20);
    let test = move || {
        forbid(libc::SYS_pwritev2, libc::RWF_DSYNC as u32, libc::ENOSPC);
        let device = FileDevice::open(&path, &patient()).unwrap();
        device.write_at(0, filled(1), false, IoClass::Data).unwrap();
        let error = device.write_at(4096, filled(1), true, IoClass::Data).unwrap_err();
        assert_eq!((error.kind, error.errno), (ErrorKind::NoSpace, libc::ENOSPC));
    };
    thread::spawn(test).join().unwrap();
}

#[test]
fn a_failed_flush_is_reported() {
    let (_dir, path) = image(1 << 20);
    let test = move || {
        forbid(libc::SYS_fdatasync, 0, libc::EIO);
        let device = FileDevice::open(&path, &patient()).unwrap();
        let error = device.flush().unwrap_err();
        assert_eq!((error.op, error.kind, error.errno), ("flush", ErrorKind::Io, libc::EIO));
    };
    thread::spawn(test).join().unwrap();
}
