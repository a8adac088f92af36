//! The tests themselves; each gets a fresh device that reads as zeroes.

use std::sync::Arc;
use std::thread;

use dbfs_blockdev::sim::Rng;
use dbfs_blockdev::{AlignedBuf, BlockDevice, ErrorKind, IoClass, Op, Request};

type Device = Arc<dyn BlockDevice>;

const BLOCK: usize = 4096;

/// Bytes that tell where and when they were written.
const CLASSES: [IoClass; 4] = [IoClass::Log, IoClass::Data, IoClass::ReadAhead, IoClass::Background];

fn pattern(len: usize, tag: u64) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    let mut rng = Rng::derived(tag, 77);
    for chunk in buf.chunks_mut(8) {
        chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]);
    }
    buf
}

fn read(device: &Device, offset: u64, len: usize) -> AlignedBuf {
    device.read_at(offset, AlignedBuf::zeroed(len), IoClass::Data).expect("read")
}

fn write(device: &Device, offset: u64, buf: &AlignedBuf) {
    device.write_at(offset, buf.clone(), false, IoClass::Data).expect("write");
}

fn discard(device: &Device, offset: u64, len: u64) {
    let request = Request { op: Op::Discard { offset, len }, class: IoClass::Background };
    device.execute(request).result.expect("discard");
}

pub fn reads_what_it_wrote(device: Device) {
    let caps = device.capabilities();
    let last = caps.size_bytes - BLOCK as u64;
    for (tag, offset) in [0, BLOCK as u64, 1 << 20, last].into_iter().enumerate() {
        write(&device, offset, &pattern(BLOCK, tag as u64));
    }
    for (tag, offset) in [0, BLOCK as u64, 1 << 20, last].into_iter().enumerate() {
        assert_eq!(read(&device, offset, BLOCK)[..], pattern(BLOCK, tag as u64)[..]);
    }
    assert!(read(&device, 2 << 20, BLOCK).iter().all(|b| *b == 0));
    write(&device, 0, &pattern(BLOCK, 99));
    assert_eq!(read(&device, 0, BLOCK)[..], pattern(BLOCK, 99)[..]);
}

pub fn vectored_in_order(device: Device) {
    let parts: Vec<AlignedBuf> = (0..5).map(|i| pattern(BLOCK * (i + 1), i as u64)).collect();
    let flat: Vec<u8> = parts.iter().flat_map(|p| p.to_vec()).collect();
    let done = device.execute(Request::write(8192, parts.clone(), false, IoClass::Data));
    done.result.expect("write");
    assert_eq!(done.bufs.len(), parts.len(), "the buffers come back");
    assert!(done.bufs.iter().zip(&parts).all(|(a, b)| a[..] == b[..]));
    assert_eq!(read(&device, 8192, flat.len())[..], flat[..]);

    let bufs = vec![AlignedBuf::zeroed(3 * BLOCK), AlignedBuf::zeroed(BLOCK), AlignedBuf::zeroed(2 * BLOCK)];
    let done = device.execute(Request::read(8192 + BLOCK as u64, bufs, IoClass::Data));
    done.result.expect("read");
    let got: Vec<u8> = done.bufs.iter().flat_map(|p| p.to_vec()).collect();
    assert_eq!(got[..], flat[BLOCK..7 * BLOCK]);
}

fn rejected(device: &Device, op: Op) {
    let bufs = match &op {
        Op::Read { bufs, .. } | Op::Write { bufs, .. } => bufs.len(),
        _ => 0,
    };
    let done = device.execute(Request { op, class: IoClass::Data });
    let error = done.result.expect_err("must be rejected");
    assert_eq!(error.kind, ErrorKind::Misaligned, "{error}");
    assert_eq!(done.bufs.len(), bufs, "the buffers come back");
}

pub fn misaligned_is_rejected(device: Device) {
    write(&device, 0, &pattern(BLOCK, 1));
    let buf = |len| vec![AlignedBuf::zeroed(len)];
    for (offset, len) in [(1, BLOCK), (256, BLOCK), (0, 100), (0, BLOCK - 1), (0, 256)] {
        rejected(&device, Op::Write { offset, bufs: buf(len), fua: false });
        rejected(&device, Op::Read { offset, bufs: buf(len) });
    }
    assert_eq!(read(&device, 0, BLOCK)[..], pattern(BLOCK, 1)[..], "nothing was touched");
}

pub fn beyond_the_end_is_rejected(device: Device) {
    let size = device.capabilities().size_bytes;
    let two = || vec![AlignedBuf::zeroed(BLOCK), AlignedBuf::from_slice(&[5; BLOCK])];
    for offset in [size, size - BLOCK as u64, !0xFFF, 1 << 62] {
        rejected(&device, Op::Write { offset, bufs: two(), fua: false });
        rejected(&device, Op::Read { offset, bufs: two() });
    }
    assert!(read(&device, size - BLOCK as u64, BLOCK).iter().all(|b| *b == 0), "nothing was touched");
    assert_eq!(device.refresh_size().expect("refresh").size_bytes, size, "and nothing grew");
    if device.capabilities().discard {
        rejected(&device, Op::Discard { offset: size, len: BLOCK as u64 });
        rejected(&device, Op::Discard { offset: 0, len: size + BLOCK as u64 });
    }
}

pub fn batches_complete_in_request_order(device: Device) {
    let writes =
        (0..64).map(|i| Request::write(i * BLOCK as u64, vec![pattern(BLOCK, i)], i % 7 == 0, IoClass::Data));
    for pending in device.submit(writes.collect()) {
        pending.wait().result.expect("write");
    }
    let mut reads: Vec<Request> = (0..64)
        .map(|i| Request::read(i * BLOCK as u64, vec![AlignedBuf::zeroed(BLOCK)], IoClass::ReadAhead))
        .collect();
    reads.push(Request::read(1, vec![AlignedBuf::zeroed(BLOCK)], IoClass::Data));
    let mut pending = device.submit(reads);
    assert_eq!(pending.len(), 65);
    let bad = pending.pop().expect("65 entries").wait();
    assert_eq!(bad.result.expect_err("misaligned").kind, ErrorKind::Misaligned);
    // Waiting in another order than submitting must not matter.
    for (i, pending) in pending.into_iter().enumerate().rev() {
        let done = pending.wait();
        done.result.expect("read");
        assert_eq!(done.bufs[0][..], pattern(BLOCK, i as u64)[..]);
    }
}

pub fn threads_with_disjoint_ranges(device: Device) {
    let stripe = device.capabilities().size_bytes / 4;
    thread::scope(|scope| {
        for t in 0..4u64 {
            let device = device.clone();
            scope.spawn(move || {
                let base = t * stripe;
                let mut rng = Rng::new(t);
                let mut model = vec![None; 128];
                for step in 0..200u64 {
                    let slot = rng.below(128);
                    let offset = base + slot * BLOCK as u64;
                    if rng.chance(0.6) {
                        let tag = t << 32 | step;
                        write(&device, offset, &pattern(BLOCK, tag));
                        model[slot as usize] = Some(tag);
                    } else {
                        check(&read(&device, offset, BLOCK), model[slot as usize]);
                    }
                    if step % 50 == 0 {
                        device.flush().expect("flush");
                    }
                }
                for (slot, tag) in model.into_iter().enumerate() {
                    check(&read(&device, base + (slot * BLOCK) as u64, BLOCK), tag);
                }
            });
        }
    });
}

fn check(got: &AlignedBuf, tag: Option<u64>) {
    match tag {
        Some(tag) => assert_eq!(got[..], pattern(got.len(), tag)[..]),
        None => assert!(got.iter().all(|b| *b == 0)),
    }
}

pub fn dropped_requests_still_run(device: Device) {
    let writes =
        (0..16).map(|i| Request::write(i * 8192, vec![pattern(8192, i)], false, IoClass::Background));
    drop(device.submit(writes.collect()));
    let reads = (0..16).map(|i| Request::read(i * 8192, vec![AlignedBuf::zeroed(8192)], IoClass::Data));
    drop(device.submit(reads.collect()));
    // They were never waited for, so all one can say is that nothing else is disturbed.
    write(&device, 1 << 20, &pattern(BLOCK, 5));
    device.flush().expect("flush");
    assert_eq!(read(&device, 1 << 20, BLOCK)[..], pattern(BLOCK, 5)[..]);
}

pub fn flush_and_fua_succeed(device: Device) {
    device.flush().expect("flush of nothing");
    device.write_at(0, pattern(BLOCK, 1), true, IoClass::Log).expect("fua write");
    write(&device, 4096, &pattern(BLOCK, 2));
    device.flush().expect("flush");
    assert_eq!(read(&device, 0, BLOCK)[..], pattern(BLOCK, 1)[..]);
    assert_eq!(read(&device, 4096, BLOCK)[..], pattern(BLOCK, 2)[..]);
}

pub fn discard_then_write(device: Device) {
    if !device.capabilities().discard {
        let request = Request { op: Op::Discard { offset: 0, len: 4096 }, class: IoClass::Background };
        let error = device.execute(request).result.expect_err("not supported");
        assert_eq!(error.kind, ErrorKind::Refused);
        return;
    }
    write(&device, 0, &pattern(1 << 20, 3));
    discard(&device, 4096, (1 << 20) - 8192);
    assert_eq!(read(&device, 0, BLOCK)[..], pattern(1 << 20, 3)[..BLOCK], "outside the range");
    let end = (1 << 20) - BLOCK;
    assert_eq!(read(&device, end as u64, BLOCK)[..], pattern(1 << 20, 3)[end..], "outside the range");
    write(&device, 8192, &pattern(BLOCK, 4));
    assert_eq!(read(&device, 8192, BLOCK)[..], pattern(BLOCK, 4)[..]);
    discard(&device, 0, device.capabilities().size_bytes);
    write(&device, 0, &pattern(BLOCK, 6));
    assert_eq!(read(&device, 0, BLOCK)[..], pattern(BLOCK, 6)[..]);
}

pub fn empty_requests(device: Device) {
    assert!(device.submit(Vec::new()).is_empty());
    let done = device.execute(Request::read(0, Vec::new(), IoClass::Data));
    assert!(done.result.is_ok() && done.bufs.is_empty());
    let done = device.execute(Request::write(0, vec![AlignedBuf::zeroed(0)], false, IoClass::Data));
    assert!(done.result.is_ok() && done.bufs.len() == 1);
}

/// Random vectored reads and writes, several in flight, against a vector of bytes.
pub fn random_operations_match_a_model(device: Device) {
    const SPAN: usize = 2 << 20;
    let sector = device.capabilities().logical_sector as usize;
    let mut model = vec![0u8; SPAN];
    let mut rng = Rng::new(0xD1CE);
    for round in 0..60u64 {
        // Disjoint slices of the span, so that requests in flight together do not overlap.
        let slice = SPAN / 8;
        let mut requests = Vec::new();
        for lane in (0..8).filter(|_| rng.chance(0.7)).collect::<Vec<_>>() {
            let sectors = rng.below((slice / sector / 4) as u64) as usize + 1;
            let start = lane * slice + rng.below((slice / sector - sectors) as u64) as usize * sector;
            let cuts = [sectors / 3, sectors - sectors / 3];
            let lens = cuts.iter().filter(|n| **n > 0).map(|n| n * sector);
            let class = CLASSES[rng.below(4) as usize];
            if rng.chance(0.5) {
                let bufs: Vec<_> = lens.map(|len| pattern(len, round << 8 | len as u64)).collect();
                let flat: Vec<u8> = bufs.iter().flat_map(|b| b.to_vec()).collect();
                model[start..start + flat.len()].copy_from_slice(&flat);
                requests.push(Request::write(start as u64, bufs, rng.chance(0.2), class));
            } else {
                let bufs = lens.map(AlignedBuf::zeroed).collect();
                requests.push(Request::read(start as u64, bufs, class));
            }
        }
        let reads: Vec<Option<u64>> = requests
            .iter()
            .map(|r| if let Op::Read { offset, .. } = r.op { Some(offset) } else { None })
            .collect();
        for (pending, offset) in device.submit(requests).into_iter().zip(reads) {
            let done = pending.wait();
            done.result.expect("request");
            if let Some(offset) = offset {
                let flat: Vec<u8> = done.bufs.iter().flat_map(|b| b.to_vec()).collect();
                assert_eq!(flat[..], model[offset as usize..][..flat.len()]);
            }
        }
    }
    assert_eq!(read(&device, 0, SPAN)[..], model[..]);
}

pub fn large_transfers(device: Device) {
    let big = pattern(9 << 20, 1);
    write(&device, 4096, &big);
    assert_eq!(read(&device, 4096, big.len())[..], big[..]);
    // More buffers than one system call takes (IOV_MAX is 1024).
    let bufs: Vec<AlignedBuf> = (0..1500).map(|i| pattern(BLOCK, i)).collect();
    device.execute(Request::write(16 << 20, bufs, false, IoClass::Data)).result.expect("write");
    let bufs = (0..1500).map(|_| AlignedBuf::zeroed(BLOCK)).collect();
    let done = device.execute(Request::read(16 << 20, bufs, IoClass::Data));
    done.result.expect("read");
    for (i, buf) in done.bufs.iter().enumerate() {
        assert_eq!(buf[..], pattern(BLOCK, i as u64)[..]);
    }
}

/// Requests outlive the handle that submitted them.
pub fn dropped_device_with_requests_in_flight(device: Device) {
    let requests = (0..32).map(|i| Request::write(i * 65536, vec![pattern(65536, i)], false, IoClass::Data));
    let mut pending = device.submit(requests.collect());
    let reads =
        (0..8).map(|i| Request::read((i + 200) * 65536, vec![AlignedBuf::zeroed(65536)], IoClass::Data));
    pending.extend(device.submit(reads.collect()));
    drop(device);
    let tail = pending.split_off(20);
    drop(tail);
    for pending in pending {
        pending.wait().result.expect("write");
    }
}
