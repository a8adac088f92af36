//! Freed, in limbo, in quarantine, marked, held.

use super::*;

fn corrupt<T>(result: crate::Result<T>) -> bool {
    matches!(result, Err(FsError::Corrupt { what: "allocation bitmap", .. }))
}

/// Fills the rest of the volume and says whether a block of `run` was given.
fn gives(a: &Allocator, target: BlockRun) -> bool {
    let mut found = false;
    while let Ok(run) = a.alloc(&data(64, 1, 1), None) {
        found |= run.start < target.end() && target.start < run.end();
    }
    found
}

#[test]
fn freed_blocks_wait_for_their_record() {
    let (a, _disk) = empty(2);
    let (one, two) = (a.alloc(&data(8, 8, 4), None).unwrap(), a.alloc(&data(8, 8, 4), None).unwrap());
    a.free_deferred(one, Lsn(10)).unwrap();
    a.free_deferred(two, Lsn(11)).unwrap();
    assert_eq!((a.limbo_blocks(), a.free_blocks()), (16, 1024 - 8 - 16));
    assert_eq!(a.publish(Lsn(9)).unwrap(), 0);
    assert!(!gives(&a, one) && a.free_blocks() == 0);
    assert_eq!(a.publish(Lsn(10)).unwrap(), 8);
    assert_eq!((a.limbo_blocks(), a.free_blocks()), (8, 8));
    assert_eq!(a.alloc(&data(64, 1, 1), None).unwrap(), one);
    assert!(!gives(&a, two));
    a.set_followers(Some(Lsn(10)));
    assert_eq!(a.publish(Lsn(20)).unwrap(), 0, "a follower may still read it");
    a.set_followers(None);
    assert_eq!(a.publish(Lsn(20)).unwrap(), 8);
    assert!(gives(&a, two));
}

#[test]
fn what_is_recalled_is_in_use_again() {
    let (a, _disk) = empty(2);
    let one = a.alloc(&data(8, 8, 4), None).unwrap();
    let two = a.alloc(&data(8, 8, 4), None).unwrap();
    a.free_deferred(one, Lsn(10)).unwrap();
    a.free_deferred(two, Lsn(10)).unwrap();
    assert!(corrupt(a.recall(one, Lsn(11))) && corrupt(a.recall(run(one.start.0, 4), Lsn(10))));
    a.recall(one, Lsn(10)).unwrap();
    assert!(corrupt(a.recall(one, Lsn(10))));
    assert_eq!(a.limbo_blocks(), 8);
    assert_eq!(a.publish(Lsn(20)).unwrap(), 8);
    assert!(!gives(&a, one));
    a.free_deferred(one, Lsn(21)).unwrap();
    assert_eq!(a.publish(Lsn(21)).unwrap(), 8);
    assert_eq!(a.alloc(&data(64, 1, 1), None).unwrap(), one);
}

/// A group that is loaded only later: its bits may have been looked at while the run was free.
#[test]
fn what_is_recalled_is_in_use_where_nothing_is_loaded() {
    let disk = Disk::new(2048);
    disk.set(run(600, 10), true);
    let a = open(2048, config(), &disk);
    a.free_deferred(run(600, 10), Lsn(1)).unwrap();
    disk.set(run(600, 10), false);
    a.recall(run(600, 10), Lsn(1)).unwrap();
    a.reserve_done(&(0..2048 / u64::from(GROUP)).map(GroupNr).collect::<Vec<_>>()).unwrap();
    assert!(!gives(&a, run(600, 10)));
    assert!(a.free_blocks() < 2048 / 2, "the others are given");
}

#[test]
fn freed_blocks_wait_for_io_in_flight() {
    let (a, _disk) = empty(1);
    let run = a.alloc(&data(504, 504, 1), None).unwrap();
    let reading = a.io_guard();
    a.free_deferred(run, Lsn(1)).unwrap();
    assert_eq!(a.publish(Lsn(1)).unwrap(), 0);
    let later = a.io_guard();
    drop(reading);
    assert_eq!(a.publish(Lsn(1)).unwrap(), 504);
    drop(later);
}

#[test]
fn frees_can_be_checked_where_nothing_is_loaded() {
    let disk = Disk::new(2048);
    disk.set(run(600, 10), true);
    let a = open(2048, Config { check_frees: true, ..config() }, &disk);
    assert!(corrupt(a.free_deferred(run(605, 10), Lsn(1))));
    assert!(corrupt(a.free_deferred(run(4000, 10), Lsn(1))));
    a.free_deferred(run(600, 10), Lsn(1)).unwrap();
    assert_eq!(a.publish(Lsn(1)).unwrap(), 10);
    assert!(corrupt(a.free_deferred(run(600, 1), Lsn(2))));
    assert_eq!(a.free_blocks(), 2040);
}

#[test]
fn unwritten_blocks_return_at_once() {
    let (a, _disk) = empty(2);
    let run = a.alloc(&data(100, 100, 1), None).unwrap();
    a.free_unwritten(run).unwrap();
    assert_eq!((a.free_blocks(), a.limbo_blocks()), (1016, 0));
    assert_eq!(a.available_blocks(Purpose::User), 1016);
}

#[test]
fn every_double_free_is_refused_and_changes_nothing() {
    let (a, _disk) = empty(4);
    let r = a.alloc(&data(100, 100, 1), None).unwrap();
    let inner = BlockRun::new(r.start.plus(40), 3);
    a.free_deferred(inner, Lsn(1)).unwrap();
    let before = (a.free_blocks(), a.limbo_blocks());
    assert!(corrupt(a.free_deferred(r, Lsn(2))), "part of it is in limbo");
    assert!(corrupt(a.free_unwritten(inner)));
    assert!(corrupt(a.quarantine(inner)));
    assert!(corrupt(a.free_deferred(run(r.end().0, 1), Lsn(2))), "free already");
    assert!(corrupt(a.free_unwritten(run(r.end().0 - 1, 2))), "half free");
    assert!(corrupt(a.free_deferred(run(0, 1), Lsn(2))), "fixed structures");
    assert!(corrupt(a.free_deferred(run(2047, 2), Lsn(2))), "beyond the end");
    assert!(corrupt(a.free_deferred(run(u64::MAX, 2), Lsn(2))));
    assert!(corrupt(a.free_deferred(run(r.start.0, 0), Lsn(2))), "empty");
    assert_eq!((a.free_blocks(), a.limbo_blocks()), before);
    a.publish(Lsn(1)).unwrap();
    assert!(corrupt(a.free_deferred(inner, Lsn(3))), "came free meanwhile");
    assert!(corrupt(a.free_unwritten(inner)));
    assert_eq!(a.free_blocks(), before.0 + 3);
}

#[test]
fn quarantine_lasts() {
    let (a, _disk) = empty(2);
    let bad = a.alloc(&data(8, 8, 4), None).unwrap();
    a.quarantine(bad).unwrap();
    assert_eq!(a.quarantined_blocks(), 8);
    assert!(corrupt(a.free_deferred(bad, Lsn(1))));
    assert!(corrupt(a.free_unwritten(bad)));
    a.publish(Lsn(100)).unwrap();
    assert!(!gives(&a, bad));
}

#[test]
fn quarantine_holds_where_nothing_is_loaded() {
    let disk = Disk::new(1024);
    let a = open(1024, config(), &disk);
    a.quarantine(run(600, 8)).unwrap();
    a.reserve_done(&[GroupNr(0), GroupNr(1)]).unwrap();
    assert!(!gives(&a, run(600, 8)));
}

#[test]
fn marks_apply_when_the_group_is_loaded() {
    let disk = Disk::new(2048);
    let a = Allocator::new(geometry(2048), config(), disk.clone()).unwrap();
    a.mark_used(run(500, 30)).unwrap();
    a.mark_used(run(510, 40)).unwrap();
    assert_eq!(disk.loads.load(Ordering::Relaxed), 0, "marking needs no load");
    let free = a.count_free().unwrap();
    assert_eq!(free, 2048 - 8 - 50);
    a.set_free(free).unwrap();
    assert!(a.mark_used(run(600, 1)).is_err(), "too late");
    a.reserve_done(&[GroupNr(0), GroupNr(1), GroupNr(2), GroupNr(3)]).unwrap();
    assert_eq!(a.reserved_free_blocks(), free);
    a.free_deferred(run(500, 50), Lsn(1)).unwrap();
    a.publish(Lsn(1)).unwrap();
    assert_eq!(a.reserved_free_blocks(), 2040);
}

#[test]
fn marks_in_loaded_groups_keep_the_counts() {
    let disk = Disk::new(2048);
    let a = Allocator::new(geometry(2048), config(), disk.clone()).unwrap();
    a.exclude(&[GroupNr(2)]).unwrap();
    a.mark_used(run(1100, 10)).unwrap();
    a.mark_used(run(1105, 10)).unwrap();
    let free = a.count_free().unwrap();
    assert_eq!(free, 2040 - 15);
    a.set_free(free).unwrap();
    assert_eq!(a.available_blocks(Purpose::User), free - (512 - 15));
    a.readmit(&[GroupNr(2)]).unwrap();
    assert_eq!(a.available_blocks(Purpose::User), free);
}

#[test]
fn limbo_counts_as_used_at_load() {
    let disk = Disk::new(1024);
    disk.set(run(600, 20), true);
    let a = open(1024, config(), &disk);
    a.free_deferred(run(600, 20), Lsn(5)).unwrap();
    disk.set(run(600, 20), false);
    a.reserve_done(&[GroupNr(0), GroupNr(1)]).unwrap();
    assert_eq!(a.free_blocks(), a.reserved_free_blocks());
    assert!(!gives(&a, run(600, 20)));
    a.publish(Lsn(5)).unwrap();
    assert_eq!(a.alloc(&data(64, 1, 1), None).unwrap(), run(600, 20));
}

#[test]
fn frees_published_before_the_load_show_in_it() {
    let disk = Disk::new(1024);
    disk.set(run(505, 20), true);
    let a = open(1024, config(), &disk);
    let before = a.free_blocks();
    a.free_deferred(run(505, 20), Lsn(5)).unwrap();
    disk.set(run(505, 20), false);
    assert_eq!(a.publish(Lsn(5)).unwrap(), 20);
    assert_eq!(a.free_blocks(), before + 20);
    a.reserve_done(&[GroupNr(0), GroupNr(1)]).unwrap();
    assert_eq!(a.reserved_free_blocks(), before + 20);
}

#[test]
fn marked_blocks_freed_before_the_load_are_free_in_it() {
    let disk = Disk::new(1024);
    let a = Allocator::new(geometry(1024), config(), disk).unwrap();
    a.mark_used(run(600, 20)).unwrap();
    a.free_deferred(run(604, 4), Lsn(1)).unwrap();
    assert!(corrupt(a.mark_used(run(605, 1))));
    a.set_free(a.count_free().unwrap()).unwrap();
    a.publish(Lsn(1)).unwrap();
    a.reserve_done(&[GroupNr(0), GroupNr(1)]).unwrap();
    assert_eq!(a.reserved_free_blocks(), 1016 - 16);
    assert_eq!(a.free_blocks(), 1016 - 16);
}

/// A loader during whose work something else happens.
struct Meanwhile {
    disk: Arc<Disk>,
    act: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl GroupLoader for Meanwhile {
    fn load(&self, group: GroupNr) -> crate::Result<GroupBits> {
        let bits = self.disk.load(group);
        let act = self.act.lock().take();
        if let Some(act) = act {
            act();
        }
        bits
    }
}

fn with_meanwhile() -> (Arc<Allocator>, Arc<Meanwhile>) {
    let disk = Disk::new(1024);
    disk.set(run(600, 20), true);
    let loader = Arc::new(Meanwhile { disk, act: Mutex::new(None) });
    let a = Arc::new(Allocator::new(geometry(1024), config(), loader.clone()).unwrap());
    a.set_free(1016 - 20).unwrap();
    (a, loader)
}

#[test]
fn a_free_published_during_the_load_is_not_lost() {
    let (a, loader) = with_meanwhile();
    let other = a.clone();
    *loader.act.lock() = Some(Box::new(move || {
        other.free_deferred(run(600, 10), Lsn(1)).unwrap();
        other.free_deferred(run(610, 10), Lsn(2)).unwrap();
        other.publish(Lsn(1)).unwrap();
    }));
    a.reserve_done(&[GroupNr(1)]).unwrap();
    assert_eq!(a.reserved_free_blocks(), 512 - 10);
    a.publish(Lsn(2)).unwrap();
    assert_eq!(a.reserved_free_blocks(), 512);
    assert_eq!(a.free_blocks(), 1016);
}

#[test]
fn a_free_during_a_survey_is_not_forgotten() {
    let (a, loader) = with_meanwhile();
    loader.disk.set(run(512, 512), true);
    let other = (a.clone(), loader.clone());
    *loader.act.lock() = Some(Box::new(move || {
        other.0.free_deferred(run(512, 512), Lsn(1)).unwrap();
        other.1.disk.set(run(512, 512), false);
        other.0.publish(Lsn(1)).unwrap();
    }));
    a.survey(GroupNr(1), None).unwrap();
    assert_eq!(a.survey(GroupNr(1), None).unwrap().free, 512);
}

#[test]
fn allocation_goes_on_during_a_load() {
    let (a, loader) = with_meanwhile();
    a.reserve_done(&[GroupNr(1)]).unwrap();
    let other = a.clone();
    *loader.act.lock() = Some(Box::new(move || {
        other.alloc(&data(4, 4, 4), None).unwrap();
    }));
    a.reserve_done(&[GroupNr(0)]).unwrap();
    assert!(loader.act.lock().is_none());
    assert_eq!(a.stats().allocations, 1);
}

#[test]
fn a_failed_load_can_be_repeated() {
    let disk = Disk::new(1024);
    let a = open(1024, config(), &disk);
    disk.broken.lock().push(GroupNr(1));
    assert!(a.reserve_done(&[GroupNr(1)]).is_err());
    assert_eq!(a.reserved_groups(), []);
    disk.broken.lock().clear();
    a.reserve_done(&[GroupNr(1)]).unwrap();
    assert_eq!(a.reserved_free_blocks(), 512);
}

#[test]
fn a_loader_with_the_wrong_number_of_words_is_refused() {
    struct Short;
    impl GroupLoader for Short {
        fn load(&self, _: GroupNr) -> crate::Result<GroupBits> {
            Ok(Box::new([0; 7]))
        }
    }
    let a = Allocator::new(geometry(1024), config(), Arc::new(Short)).unwrap();
    a.set_free(100).unwrap();
    assert!(corrupt(a.reserve_done(&[GroupNr(1)])));
    assert!(corrupt(a.count_free()));
}

#[test]
fn holds_guarantee_space() {
    let (a, _disk) = empty(2);
    let mut hold = a.hold(16, Purpose::User).unwrap();
    assert_eq!((a.held_blocks(), a.available_blocks(Purpose::User)), (16, 1000));
    let mut taken = 0;
    while let Ok(run) = a.alloc(&data(64, 1, 1), None) {
        taken += run.len;
    }
    assert_eq!((taken, a.free_blocks()), (1000, 16), "what is held stays free");
    assert!(matches!(a.hold(1, Purpose::Essential), Err(AllocError::Full)));
    let run = a.alloc(&data(64, 1, 1), Some(&mut hold)).unwrap();
    assert_eq!((hold.blocks() + run.len as u64, a.free_blocks()), (16, 16 - run.len as u64));
    let too_much = a.alloc(&data(64, 17, 1), Some(&mut hold));
    assert!(matches!(too_much, Err(AllocError::Failed(FsError::Posix(libc::EINVAL)))));
    let rest = hold.blocks();
    drop(hold);
    assert_eq!((a.held_blocks(), a.available_blocks(Purpose::User)), (0, rest));
}

#[test]
fn a_hold_of_another_volume_is_refused() {
    let ((a, _), (b, _)) = (empty(2), empty(2));
    let mut hold = b.hold(16, Purpose::User).unwrap();
    assert!(a.alloc(&data(4, 4, 4), Some(&mut hold)).is_err());
    assert_eq!(hold.blocks(), 16);
}

#[test]
fn users_leave_the_reserve() {
    let disk = Disk::new(1024);
    let a = open(1024, Config { reserve_blocks: 100, ..config() }, &disk);
    a.reserve_done(&[GroupNr(0), GroupNr(1)]).unwrap();
    while a.alloc(&data(64, 1, 1), None).is_ok() {}
    assert_eq!((a.free_blocks(), a.available_blocks(Purpose::User)), (100, 0));
    assert_eq!(a.available_blocks(Purpose::Essential), 100);
    while a.alloc(&Request::new(4, 1, 1, Class::Metadata), None).is_ok() {}
    assert_eq!(a.free_blocks(), 0);
}

#[test]
fn full_groups_are_unloaded_and_come_back() {
    let total = 8 * GROUP as u64;
    let disk = Disk::new(total);
    let a = open(total, Config { max_loaded_groups: 2, ..config() }, &disk);
    a.reserve_done(&(0..8).map(GroupNr).collect::<Vec<_>>()).unwrap();
    let mut runs = Vec::new();
    while let Ok(run) = a.alloc(&data(64, 1, 1), None) {
        runs.push(run);
    }
    assert_eq!(a.needs_more(), None);
    assert_eq!(a.stats().group_unloads, 6);
    assert!(a.alloc(&data(1, 1, 1), None).is_err());
    a.quarantine(runs[0]).unwrap();
    for &run in &runs[1..] {
        a.free_deferred(run, Lsn(1)).unwrap();
    }
    a.publish(Lsn(1)).unwrap();
    assert_eq!(disk.loads.load(Ordering::Relaxed), 16, "counted and loaded once each, never again");
    assert_eq!(a.free_blocks(), total - 8 - runs[0].len as u64);
    assert_eq!(a.reserved_free_blocks(), a.free_blocks());
    assert!(!gives(&a, runs[0]));
    assert_eq!(a.free_blocks(), 0);
}

#[test]
fn discards_hold_their_blocks_and_forget_the_reused() {
    let disk = Disk::new(1024);
    let a = open(1024, Config { discard_queue: 2, ..config() }, &disk);
    a.reserve_done(&[GroupNr(1)]).unwrap();
    let take = || a.alloc(&data(16, 16, 4), None).unwrap();
    let runs = [take(), take(), take()];
    for run in runs {
        a.free_deferred(run, Lsn(1)).unwrap();
    }
    assert_eq!(a.take_discardable(10), []);
    a.publish(Lsn(1)).unwrap();
    assert_eq!(a.alloc(&data(16, 16, 4).near(runs[1].start), None).unwrap(), runs[1]);
    let free = a.free_blocks();
    assert_eq!(a.take_discardable(10), [runs[2]], "the oldest fell off the queue, one is in use");
    assert_eq!((a.free_blocks(), a.available_blocks(Purpose::User)), (free - 16, free - 16));
    a.free_unwritten(runs[2]).unwrap();
    assert_eq!((a.free_blocks(), a.available_blocks(Purpose::User)), (free, free));
    assert_eq!(a.take_discardable(10), []);
}
