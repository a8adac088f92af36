//! What the simulator promises to the tests that rely on it.

use std::collections::{BTreeMap, BTreeSet};

use dbfs_blockdev::sim::{
    CutOptions, Discarded, Effect, EventKind, Fault, Image, Leaves, OpKind, Outcome, POISON, Rng, SimDevice,
    SimOptions, Survivors,
};
use dbfs_blockdev::{AlignedBuf, BlockDevice, ErrorKind, IoClass, Op, Request};

const BLOCK: usize = 4096;
const SIZE: u64 = 64 << 20;

fn filled(byte: u8, blocks: usize) -> AlignedBuf {
    AlignedBuf::from_slice(&vec![byte; blocks * BLOCK])
}

fn put(device: &SimDevice, block: u64, byte: u8) {
    device.write_at(block * BLOCK as u64, filled(byte, 1), false, IoClass::Data).expect("write");
}

fn put_fua(device: &SimDevice, block: u64, byte: u8) {
    device.write_at(block * BLOCK as u64, filled(byte, 1), true, IoClass::Log).expect("write");
}

fn discard(device: &SimDevice, block: u64, blocks: u64) {
    let op = Op::Discard { offset: block * BLOCK as u64, len: blocks * BLOCK as u64 };
    device.execute(Request { op, class: IoClass::Background }).result.expect("discard");
}

/// The distinct bytes of a block.
fn bytes(image: &Image, block: u64) -> BTreeSet<u8> {
    image.read(block * BLOCK as u64, BLOCK).into_iter().collect()
}

fn one_byte(image: &Image, block: u64) -> u8 {
    let all = bytes(image, block);
    assert_eq!(all.len(), 1, "block {block} is torn: {all:?}");
    *all.first().expect("one")
}

/// All outcomes that `blocks` can have at a cut, over many seeds, without tearing.
fn outcomes(device: &SimDevice, cut: u64, blocks: &[u64]) -> BTreeSet<Vec<u8>> {
    let image = |seed| {
        let options = CutOptions { torn: None, ..CutOptions::seeded(seed) };
        let image = device.image_at(cut, &options);
        blocks.iter().map(|b| one_byte(&image, *b)).collect()
    };
    (0..400).map(image).collect()
}

fn set<const N: usize>(items: [&[u8]; N]) -> BTreeSet<Vec<u8>> {
    items.into_iter().map(<[u8]>::to_vec).collect()
}

#[test]
fn what_was_flushed_is_never_lost_and_the_rest_is_any_subset() {
    let device = SimDevice::new(SIZE, 7);
    put(&device, 0, 1);
    device.flush().unwrap();
    put(&device, 1, 2);
    put(&device, 2, 3);
    let all = set([&[1, 0, 0], &[1, 2, 0], &[1, 0, 3], &[1, 2, 3]]);
    assert_eq!(outcomes(&device, device.seq(), &[0, 1, 2]), all);
    device.flush().unwrap();
    assert_eq!(outcomes(&device, device.seq(), &[0, 1, 2]), set([&[1, 2, 3]]));
}

#[test]
fn an_old_version_never_comes_back_over_a_durable_one() {
    let device = SimDevice::new(SIZE, 7);
    put(&device, 0, 1);
    put(&device, 5, 9);
    put_fua(&device, 0, 2);
    assert_eq!(outcomes(&device, device.seq(), &[0, 5]), set([&[2, 0], &[2, 9]]));
    put(&device, 0, 3);
    put(&device, 0, 4);
    assert_eq!(outcomes(&device, device.seq(), &[0]), set([&[2], &[3], &[4]]));
}

#[test]
fn fua_is_about_itself_only() {
    let device = SimDevice::new(SIZE, 3);
    put(&device, 0, 1);
    put_fua(&device, 1, 2);
    assert_eq!(outcomes(&device, device.seq(), &[0, 1]), set([&[0, 2], &[1, 2]]));
}

#[test]
fn cuts_in_the_past_see_the_past() {
    let device = SimDevice::new(SIZE, 3);
    put(&device, 0, 1);
    let before_flush = device.seq();
    device.flush().unwrap();
    let after_flush = device.seq();
    put(&device, 0, 2);
    device.flush().unwrap();
    assert_eq!(outcomes(&device, before_flush, &[0]), set([&[0], &[1]]));
    // The second write is in flight at this cut.
    assert_eq!(outcomes(&device, after_flush, &[0]), set([&[1], &[2]]));
    let quiet = |seed| CutOptions { in_flight: false, torn: None, ..CutOptions::seeded(seed) };
    assert!((0..100).all(|seed| one_byte(&device.image_at(after_flush, &quiet(seed)), 0) == 1));
}

#[test]
fn a_flush_does_not_cover_what_was_not_waited_for() {
    let device = SimDevice::new(SIZE, 3);
    let early = device.submit(vec![Request::write(0, vec![filled(1, 1)], false, IoClass::Data)]);
    device.flush().unwrap();
    assert_eq!(outcomes(&device, device.seq(), &[0]), set([&[0], &[1]]));
    early.into_iter().for_each(|p| p.wait().result.unwrap());
    assert_eq!(outcomes(&device, device.seq(), &[0]), set([&[0], &[1]]), "still not covered");
    device.flush().unwrap();
    assert_eq!(outcomes(&device, device.seq(), &[0]), set([&[1]]));
}

#[test]
fn a_flush_does_not_cover_its_own_batch() {
    let device = SimDevice::new(SIZE, 3);
    let batch = vec![Request::write(0, vec![filled(1, 1)], false, IoClass::Data), Request::flush()];
    device.submit(batch).into_iter().for_each(|p| p.wait().result.unwrap());
    assert_eq!(outcomes(&device, device.seq(), &[0]), set([&[0], &[1]]));
}

#[test]
fn all_requests_of_a_batch_may_be_in_flight_at_a_cut_within_it() {
    let device = SimDevice::new(SIZE, 3);
    put(&device, 9, 9);
    device.flush().unwrap();
    let start = device.seq();
    let write = |b: u64| Request::write(b * BLOCK as u64, vec![filled(b as u8, 1)], true, IoClass::Log);
    device.submit((1..=3).map(write).collect()).into_iter().for_each(|p| p.wait().result.unwrap());
    for cut in start..start + 3 {
        assert_eq!(outcomes(&device, cut, &[1, 2, 3]).len(), 8, "cut {cut}");
    }
    assert_eq!(outcomes(&device, start + 3, &[1, 2, 3, 9]), set([&[1, 2, 3, 9]]));
}

#[test]
fn torn_writes_tear_at_sectors_and_respect_the_atomic_unit() {
    let tear = |options: SimOptions, torn: u32| {
        let device = SimDevice::with_options(options);
        device.write_at(0, filled(1, 4), false, IoClass::Data).unwrap();
        let mut sizes = BTreeSet::new();
        for seed in 0..200 {
            let cut =
                CutOptions { seed, torn: Some(torn), survivors: Survivors::Random(1.0), in_flight: true };
            let data = device.image_at(1, &cut).read(0, 4 * BLOCK);
            let changes = (1..data.len()).filter(|i| data[*i] != data[*i - 1]);
            sizes.extend(changes);
        }
        sizes
    };
    let small = SimOptions::new(SIZE, 1);
    assert_eq!(tear(small.clone(), 512), (1..32).map(|i| i * 512).collect());
    assert_eq!(tear(small.clone(), 4096), (1..4).map(|i| i * 4096).collect());
    let four_k = SimOptions { logical_sector: 4096, atomic_write_unit: 4096, ..small.clone() };
    assert_eq!(tear(four_k, 512), (1..4).map(|i| i * 4096).collect());
    let atomic = SimOptions { atomic_write_unit: 16384, ..small };
    assert_eq!(tear(atomic, 512), BTreeSet::new());
}

#[test]
fn the_same_seed_gives_the_same_history_and_the_same_images() {
    let run = |seed: u64| {
        let device = SimDevice::new(SIZE, seed);
        device.inject(Fault::new(Effect::eio()).on(OpKind::Write).after(20));
        random_history(&device, 99, 200);
        let end = device.seq();
        let image = |cut| device.image_at(cut, &CutOptions::seeded(cut)).read(0, 64 * BLOCK);
        (0..end).step_by(17).map(image).collect::<Vec<_>>()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

/// Writes, FUA writes, flushes, discards and batches over 64 blocks; errors are expected.
fn random_history(device: &SimDevice, seed: u64, steps: u64) {
    let mut rng = Rng::new(seed);
    for step in 0..steps {
        let block = rng.below(64) * BLOCK as u64;
        let data = vec![filled(step as u8, 1)];
        let batch = match rng.below(10) {
            0..=5 => vec![Request::write(block, data, false, IoClass::Data)],
            6 => vec![Request::write(block, data, true, IoClass::Log)],
            7 => vec![Request::flush()],
            8 => (0..4).map(|i| Request::write(i * 65536, data.clone(), i == 3, IoClass::Log)).collect(),
            _ => {
                let op = Op::Discard { offset: block, len: 8192.min(64 * BLOCK as u64 - block) };
                vec![Request { op, class: IoClass::Background }]
            }
        };
        for pending in device.submit(batch) {
            let _ = pending.wait().result;
        }
    }
}

/// Every image is compared with an independent, slow computation of what each block may hold.
#[test]
fn images_hold_per_block_a_version_since_the_last_durable_one() {
    for seed in 0..20 {
        let options = SimOptions { discarded: Discarded::Poison, ..SimOptions::new(SIZE, seed) };
        let device = SimDevice::with_options(options);
        random_history(&device, seed, 300);
        let events = device.events();
        for cut in (0..=device.seq()).step_by(13) {
            let allowed = allowed_versions(&events, cut);
            for image_seed in 0..4 {
                let options = CutOptions { torn: None, ..CutOptions::seeded(image_seed * 1000 + cut) };
                let image = device.image_at(cut, &options);
                for (block, versions) in &allowed {
                    let got = one_byte(&image, *block);
                    assert!(
                        versions.contains(&got),
                        "seed {seed} cut {cut} block {block}: {got} not in {versions:?}"
                    );
                }
            }
        }
    }
}

fn allowed_versions(events: &[dbfs_blockdev::sim::Event], cut: u64) -> BTreeMap<u64, BTreeSet<u8>> {
    let flushed = events
        .iter()
        .filter(|e| matches!(e.kind, EventKind::Flush { honest: true }) && e.seq < cut)
        .map(|e| e.submitted_at)
        .max();
    let mut allowed: BTreeMap<u64, BTreeSet<u8>> = (0..64).map(|b| (b, BTreeSet::from([0]))).collect();
    for event in events.iter().filter(|e| e.submitted_at <= cut) {
        let Some(range) = event.kind.range() else { continue };
        let (byte, fua) = match &event.kind {
            EventKind::Write { data, fua, .. } => (data[0], *fua),
            _ => (POISON, false),
        };
        let acked = event.acked_at.expect("everything was waited for");
        let durable = (fua && acked <= cut) || flushed.is_some_and(|at| acked <= at);
        for block in range.start / 4096..range.end / 4096 {
            let versions = allowed.get_mut(&block).expect("block in range");
            // A hole stays a hole: poison shows only where something was written.
            if durable && byte != POISON {
                versions.clear();
            }
            versions.insert(byte);
        }
    }
    allowed
}

#[test]
fn lying_flush_loses_data_until_an_honest_one() {
    let device = SimDevice::new(SIZE, 1);
    put(&device, 0, 1);
    device.inject(Fault::new(Effect::Lie));
    device.flush().expect("it says it did");
    assert_eq!(outcomes(&device, device.seq(), &[0]), set([&[0], &[1]]));
    assert_eq!(device.pending_faults(), 0);
    device.flush().unwrap();
    assert_eq!(outcomes(&device, device.seq(), &[0]), set([&[1]]));
}

#[test]
fn after_a_failed_flush_the_next_one_does_not_help() {
    let device = SimDevice::new(SIZE, 1);
    put(&device, 0, 1);
    device.flush().unwrap();
    put(&device, 1, 2);
    device.inject(Fault::new(Effect::eio()).on(OpKind::Flush));
    assert_eq!(device.flush().unwrap_err().kind, ErrorKind::Io);
    put(&device, 2, 3);
    device.flush().unwrap();
    assert_eq!(outcomes(&device, device.seq(), &[0, 1, 2]), set([&[1, 0, 3], &[1, 2, 3]]));
}

#[test]
fn failed_writes_leave_old_new_or_a_mixture() {
    for (leaves, expect) in [(Leaves::Old, set([&[1]])), (Leaves::New, set([&[1], &[2]]))] {
        let device = SimDevice::new(SIZE, 1);
        put(&device, 0, 1);
        device.flush().unwrap();
        device.inject(Fault::new(Effect::Fail { kind: ErrorKind::NoSpace, leaves }));
        let error = device.write_at(0, filled(2, 1), false, IoClass::Data).unwrap_err();
        assert_eq!((error.kind, error.errno), (ErrorKind::NoSpace, libc::ENOSPC));
        device.flush().unwrap();
        assert_eq!(outcomes(&device, device.seq(), &[0]), expect);
    }
    let device = SimDevice::new(SIZE, 1);
    put(&device, 0, 1);
    device.flush().unwrap();
    device.inject(Fault::new(Effect::short()).on(OpKind::Write));
    assert_eq!(device.write_at(0, filled(2, 1), true, IoClass::Data).unwrap_err().kind, ErrorKind::Short);
    let seen: BTreeSet<_> =
        (0..100).flat_map(|seed| bytes(&device.image_at(u64::MAX, &CutOptions::seeded(seed)), 0)).collect();
    assert_eq!(seen, BTreeSet::from([1, 2]), "FUA or not, a failed write is nothing to rely on");
    put_fua(&device, 0, 3);
    assert_eq!(outcomes(&device, device.seq(), &[0]), set([&[3]]), "until it is overwritten");
}

#[test]
fn faults_count_and_select() {
    let device = SimDevice::new(SIZE, 1);
    device.inject(Fault::new(Effect::enospc()).on(OpKind::Write).after(2).times(2));
    let write = |d: &SimDevice, b: u64| d.write_at(b * 4096, filled(1, 1), false, IoClass::Data).is_ok();
    let ok: Vec<bool> = (0..6).map(|b| write(&device, b)).collect();
    assert_eq!(ok, [true, true, false, false, true, true]);
    device.inject(Fault::new(Effect::eio()).within(8192..12288).forever());
    assert!(write(&device, 1) && !write(&device, 2) && write(&device, 3) && !write(&device, 2));
    assert!(device.read_at(8192, filled(0, 1), IoClass::Data).is_err());
    assert!(device.flush().is_ok(), "a range never matches a flush");
    device.clear_faults();
    assert!(write(&device, 2));
    let before = device.counters();
    assert_eq!((before.writes, before.reads, before.flushes), (11, 1, 1));
}

#[test]
fn lost_and_misdirected_writes_and_rot() {
    let device = SimDevice::new(SIZE, 1);
    device.inject(Fault::new(Effect::Lose));
    put(&device, 0, 1);
    device.inject(Fault::new(Effect::Misdirect(7 * 4096)));
    put(&device, 1, 2);
    device.inject(Fault::new(Effect::Misdirect(SIZE - 512)));
    put(&device, 2, 3);
    device.flush().unwrap();
    device.rot(7 * 4096, 0x80);
    for image in [device.current(), device.image_at(u64::MAX, &CutOptions::plain(Survivors::DropAll))] {
        assert_eq!((one_byte(&image, 0), one_byte(&image, 1), one_byte(&image, 2)), (0, 0, 0));
        assert_eq!(image.read(7 * 4096, 2), [0x82, 2]);
        assert_eq!(image.read(SIZE - 512, 512), [3; 512]);
    }
    let outcomes: Vec<_> = device
        .events()
        .into_iter()
        .filter_map(|e| if let EventKind::Write { outcome, .. } = e.kind { Some(outcome) } else { None })
        .collect();
    assert_eq!(outcomes[0], Outcome::Lost);
    assert_eq!(outcomes[1], Outcome::Misdirected(7 * 4096));
}

#[test]
fn a_flipped_bit_on_the_way_is_not_on_the_medium() {
    let device = SimDevice::new(SIZE, 1);
    device.inject(Fault::new(Effect::FlipBit));
    let ones = |buf: AlignedBuf| buf.iter().map(|b| b.count_ones()).sum::<u32>();
    assert_eq!(ones(device.read_at(0, filled(0, 2), IoClass::Data).unwrap()), 1);
    assert_eq!(ones(device.read_at(0, filled(0, 2), IoClass::Data).unwrap()), 0);
}

#[test]
fn held_writes_land_late_on_top_of_the_new_owners() {
    let old = SimDevice::new(SIZE, 1);
    put(&old, 0, 1);
    old.flush().unwrap();
    old.hold_writes_after(1);
    put(&old, 1, 1);
    assert!(old.write_at(0, filled(2, 1), false, IoClass::Data).is_err());
    assert!(old.write_at(4096, filled(2, 1), false, IoClass::Data).is_err());
    assert!(old.flush().is_err() && old.read_at(0, filled(0, 1), IoClass::Data).is_err());
    let new = old.handle(false);
    assert_eq!((old.held(), new.held()), (2, 0));
    put(&new, 0, 3);
    new.flush().unwrap();
    assert_eq!(one_byte(&new.current(), 0), 3);
    assert_eq!(old.release_late(usize::MAX), 2);
    assert_eq!((one_byte(&new.current(), 0), one_byte(&new.current(), 1)), (2, 2));
    assert_eq!(outcomes(&new, new.seq(), &[0]), set([&[2], &[3]]));
    let late = new.events().iter().filter(|e| matches!(e.kind, EventKind::Write { late: true, .. })).count();
    assert_eq!(late, 2);
}

#[test]
fn taking_the_lock_drains_the_old_owner_and_a_fence_drops_its_writes() {
    let old = SimDevice::new(SIZE, 1);
    old.hold_writes_after(0);
    assert!(old.write_at(0, filled(2, 1), false, IoClass::Data).is_err());
    let new = old.handle(true);
    assert!(new.capabilities().exclusive && old.held() == 0);
    assert_eq!(one_byte(&new.current(), 0), 2, "it landed before the lock was given");

    assert!(old.write_at(4096, filled(2, 1), false, IoClass::Data).is_err());
    old.fence();
    assert_eq!(old.release_late(9), 0);
    let error = old.write_at(4096, filled(2, 1), false, IoClass::Data).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert_eq!(one_byte(&new.current(), 1), 0);
    put(&new, 1, 1);
}

#[test]
fn a_device_without_a_cache_keeps_what_it_acknowledged() {
    let options = SimOptions { volatile_write_cache: false, ..SimOptions::new(SIZE, 1) };
    let device = SimDevice::with_options(options);
    put(&device, 0, 1);
    assert_eq!(outcomes(&device, 1, &[0]), set([&[1]]));
    assert_eq!(outcomes(&device, 0, &[0]), set([&[0], &[1]]));
}

#[test]
fn discards_read_as_anything_and_may_be_undone_by_a_cut() {
    let device = SimDevice::new(SIZE, 1);
    (0..64).for_each(|b| put(&device, b, 1));
    device.flush().unwrap();
    discard(&device, 0, 64);
    let now = device.current();
    let seen: BTreeSet<u8> = (0..64).map(|b| one_byte(&now, b)).collect();
    assert_eq!(seen, BTreeSet::from([0, 1, POISON]));
    let undone = device.image_at(u64::MAX, &CutOptions::plain(Survivors::DropAll));
    assert!((0..64).all(|b| one_byte(&undone, b) == 1));
    put(&device, 3, 9);
    device.flush().unwrap();
    let durable = device.image_at(u64::MAX, &CutOptions::plain(Survivors::DropAll));
    assert_eq!(one_byte(&durable, 3), 9);
    assert!((4..64).all(|b| one_byte(&durable, b) == one_byte(&now, b)));
}

#[test]
fn marks_are_in_the_log_and_images_can_be_cut_again() {
    let device = SimDevice::new(SIZE, 1);
    put(&device, 0, 1);
    device.mark("checkpoint begin");
    device.mark_number(42);
    device.flush().unwrap();
    let kinds = device.events_since(1).into_iter().map(|e| e.kind).collect::<Vec<_>>();
    assert!(matches!(&kinds[0], EventKind::Name(name) if &**name == "checkpoint begin"));
    assert!(matches!(kinds[1], EventKind::Mark(42)));
    assert_eq!(kinds.len(), 3);

    let second = device.image_at(u64::MAX, &CutOptions::seeded(1)).into_sim(2);
    assert_eq!(second.seq(), 0);
    put(&second, 0, 2);
    assert_eq!(outcomes(&second, 1, &[0]), set([&[1], &[2]]));
    assert_eq!(one_byte(&device.current(), 0), 1, "the first is not disturbed");
    let ram = second.current().into_ram();
    assert_eq!(ram.read_at(0, filled(0, 1), IoClass::Data).unwrap()[0], 2);
}

#[test]
fn a_device_can_grow_and_be_saved() {
    let device = SimDevice::new(SIZE, 1);
    device.grow(2 * SIZE);
    assert_eq!(device.refresh_size().unwrap().size_bytes, 2 * SIZE);
    device.write_at(2 * SIZE - 4096, filled(5, 1), false, IoClass::Data).unwrap();
    let file = tempfile::tempfile().unwrap();
    device.current().save(&file).unwrap();
    let back = Image::load(&file, SimOptions::new(0, 3)).unwrap();
    assert_eq!(back.read(2 * SIZE - 4096, 4096), [5; 4096]);
    assert_eq!(back.into_sim(1).capabilities().size_bytes, 2 * SIZE);
}

/// A history of the size the crash tests use must be cheap to cut (this is thousands of images).
#[test]
fn many_images_of_a_long_history() {
    let device = SimDevice::new(SIZE, 1);
    let mut rng = Rng::new(4);
    for step in 0..1000 {
        device.write_at(rng.below(16000) * 4096, filled(step as u8, 1), false, IoClass::Data).unwrap();
        if step % 10 == 9 {
            device.flush().unwrap();
        }
    }
    let full = device.current().read(0, SIZE as usize);
    let mut dropped = 0;
    for seed in 0..1000 {
        let image = device.image_at(rng.below(device.seq() + 1), &CutOptions::seeded(seed));
        dropped += usize::from(image.read(0, 4096) != full[..4096]);
    }
    assert!(dropped < 1000);
    assert_eq!(device.image_at(u64::MAX, &CutOptions::seeded(1)).read(0, SIZE as usize), full);
}
