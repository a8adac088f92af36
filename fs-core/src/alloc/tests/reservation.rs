//! Reserved, excluded, kept as room, grown (rule R2).

use super::*;

fn suggested(result: std::result::Result<BlockRun, AllocError>) -> Vec<GroupNr> {
    match result {
        Err(AllocError::NeedReservation { suggested }) => suggested,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_given_before_a_reservation() {
    let disk = Disk::new(2048);
    let a = open(2048, config(), &disk);
    let groups = suggested(a.alloc(&data(4, 4, 4), None));
    assert_eq!(suggested(a.alloc(&data(8, 1, 1), None)), groups, "all get the same answer");
    assert_eq!(a.available_blocks(Purpose::User), 2040, "refused requests claim nothing");
    a.reserve_done(&groups).unwrap();
    assert_eq!(a.reserved_groups(), groups);
    let run = a.alloc(&data(4, 4, 4), None).unwrap();
    assert!(groups.contains(&a.geometry().group_of(run.start)));
    a.reserve_done(&groups).unwrap();
    assert_eq!(a.reserved_groups(), groups, "once is enough");
    assert!(a.reserve_done(&[GroupNr(4)]).is_err(), "there is no such group");
}

#[test]
fn reservations_follow_until_the_volume_is_full() {
    let disk = Disk::new(4096);
    let a = open(4096, config(), &disk);
    let mut blocks = 0;
    loop {
        match a.alloc(&data(50, 1, 1), None) {
            Ok(run) => blocks += run.len as u64,
            Err(AllocError::NeedReservation { suggested }) => a.reserve_done(&suggested).unwrap(),
            Err(AllocError::Full) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((blocks, a.reserved_groups().len()), (4088, 8));
}

#[test]
fn only_groups_that_help_are_suggested() {
    let disk = Disk::new(4096);
    disk.set(run(8, 512 * 3 - 8), true);
    for block in 512 * 4..512 * 7 {
        disk.set(run(block, 1), block % 2 == 0);
    }
    let a = open(4096, config(), &disk);
    assert_eq!(suggested(a.alloc(&data(64, 64, 1), None)), [GroupNr(3)]);
    a.reserve_done(&[GroupNr(3)]).unwrap();
    a.alloc(&data(512, 512, 1), None).unwrap();
    assert_eq!(suggested(a.alloc(&data(64, 64, 1), None)), [GroupNr(7)]);
    a.reserve_done(&[GroupNr(7)]).unwrap();
    a.alloc(&data(512, 512, 1), None).unwrap();
    assert!(matches!(a.alloc(&data(2, 2, 1), None), Err(AllocError::Full | AllocError::Fragmented)));
    assert_eq!(suggested(a.alloc(&data(1, 1, 1), None)).len(), 2);
}

#[test]
fn a_large_request_is_not_cut_to_pieces_while_there_are_fresh_groups() {
    let disk = Disk::new(2048);
    for unit in 2..384 {
        disk.set(run(unit * 4, 4), unit % 2 == 0);
    }
    let a = open(2048, config(), &disk);
    a.reserve_done(&[GroupNr(0), GroupNr(1)]).unwrap();
    let large = data(256, 4, 4);
    let groups = suggested(a.alloc(&large, None));
    assert_eq!(groups, [GroupNr(3)], "the other one is no better than what there is");
    assert_eq!(a.alloc(&data(16, 4, 4), None).unwrap().len, 4, "a small one takes what it gets");
    a.reserve_done(&groups).unwrap();
    assert_eq!(a.alloc(&large, None).unwrap().len, 256);
    assert_eq!(a.alloc(&large, None).unwrap().len, 256);
    let loads = disk.loads.load(Ordering::Relaxed);
    for _ in 0..100 {
        assert_eq!(a.alloc(&large, None).unwrap().len, 4);
    }
    assert!(disk.loads.load(Ordering::Relaxed) <= loads + 1, "the vain hunt is not repeated");
}

#[test]
fn nearly_full_groups_are_the_last_resort() {
    let disk = Disk::new(2048);
    disk.set(run(8, 2000), true);
    let a = open(2048, config(), &disk);
    assert_eq!(suggested(a.alloc(&data(1, 1, 1), None)), [GroupNr(3)]);
    disk.set(run(8, 2040), true);
    let b = open(2048, config(), &disk);
    assert!(matches!(b.alloc(&data(1, 1, 1), None), Err(AllocError::Full)));
}

#[test]
fn more_is_asked_for_ahead_of_time() {
    let disk = Disk::new(4096);
    let a = open(4096, Config { low_water_blocks: 100, batch_blocks: 1024, ..config() }, &disk);
    let groups = a.needs_more().unwrap();
    assert_eq!(groups.len(), 3, "504 + 512 blocks are not enough");
    a.reserve_done(&groups).unwrap();
    assert_eq!(a.needs_more(), None);
    let mut hold = a.hold(1440, Purpose::User).unwrap();
    while a.alloc(&data(48, 1, 1), Some(&mut hold)).is_ok() && hold.blocks() > 0 {}
    assert!(a.needs_more().is_some());
    assert!(!a.needs_more().unwrap().contains(&groups[0]));
}

#[test]
fn excluded_groups_are_never_used() {
    let disk = Disk::new(4096);
    let a = Allocator::new(geometry(4096), config(), disk).unwrap();
    let old: Vec<GroupNr> = (0..7).map(GroupNr).collect();
    a.exclude(&old).unwrap();
    a.set_free(4088).unwrap();
    assert_eq!((a.free_blocks(), a.available_blocks(Purpose::User)), (4088, 512));
    assert_eq!(suggested(a.alloc(&data(4, 4, 4), None)), [GroupNr(7)]);
    assert!(a.reserve_done(&[GroupNr(3)]).is_err());
    a.reserve_done(&[GroupNr(7)]).unwrap();
    assert!(a.exclude(&[GroupNr(7)]).is_err(), "in use");
    while let Ok(run) = a.alloc(&data(64, 1, 1), None) {
        assert!(run.start.0 >= 7 * 512);
    }
    assert!(matches!(a.hold(1, Purpose::Essential), Err(AllocError::Full)));
    a.readmit(&old[..2]).unwrap();
    assert_eq!(a.available_blocks(Purpose::User), 1016);
    assert!(!suggested(a.alloc(&data(4, 4, 4), None)).is_empty());
}

#[test]
fn frees_in_excluded_groups_are_not_for_users() {
    let disk = Disk::new(2048);
    disk.set(run(600, 100), true);
    let a = Allocator::new(geometry(2048), config(), disk).unwrap();
    a.exclude(&[GroupNr(1)]).unwrap();
    a.set_free(1940).unwrap();
    a.free_deferred(run(600, 100), Lsn(1)).unwrap();
    a.publish(Lsn(1)).unwrap();
    assert_eq!((a.free_blocks(), a.available_blocks(Purpose::User)), (2040, 2040 - 512));
    a.readmit(&[GroupNr(1)]).unwrap();
    assert_eq!(a.available_blocks(Purpose::User), 2040);
}

#[test]
fn room_stays_for_a_take_over() {
    let disk = Disk::new(8192);
    disk.set(run(15 * 512, 400), true);
    let a = open(8192, Config { takeover_groups: 2, ..config() }, &disk);
    assert_eq!(a.room_groups(), [GroupNr(14), GroupNr(13)], "15 is too full");
    assert_eq!(a.available_blocks(Purpose::User), a.free_blocks() - 1024);
    assert!(a.reserve_done(&[GroupNr(13)]).is_err());
    loop {
        match a.alloc(&data(64, 1, 1), None) {
            Ok(run) => {
                assert!(![13, 14].contains(&(run.start.0 / 512)));
                disk.set(run, true);
            }
            Err(AllocError::NeedReservation { suggested }) => a.reserve_done(&suggested).unwrap(),
            Err(_) => break,
        }
    }
    assert_eq!(a.free_blocks(), 1024);
    assert_eq!(a.reserved_groups().len(), 14);
    // The next epoch finds space although every group this one used is excluded.
    let next = Allocator::new(geometry(8192), config(), disk.clone()).unwrap();
    next.exclude(&a.reserved_groups()).unwrap();
    next.set_free(1024).unwrap();
    assert_eq!(suggested(next.alloc(&data(64, 64, 1), None)).len(), 1);
}

#[test]
fn a_full_volume_has_no_room_to_keep_and_room_can_be_given_up() {
    let disk = Disk::new(4096);
    disk.set(run(8, 4088), true);
    disk.set(run(700, 10), false);
    disk.set(run(1600, 300), false);
    let a = open(4096, Config { takeover_groups: 2, ..config() }, &disk);
    assert_eq!(a.room_groups(), [GroupNr(3)]);
    assert!(a.release_room() && !a.release_room());
    assert_eq!(a.room_groups(), []);
    let tiny = open(3 * 512, Config { takeover_groups: 2, ..config() }, &Disk::new(3 * 512));
    assert_eq!(tiny.room_groups(), [], "never more than a quarter of the volume");
}

#[test]
fn room_is_replaced_when_excluded() {
    let a = open(8192, Config { takeover_groups: 1, ..config() }, &Disk::new(8192));
    assert_eq!(a.room_groups(), [GroupNr(15)]);
    a.exclude(&[GroupNr(15)]).unwrap();
    assert_eq!(a.room_groups(), [GroupNr(14)]);
    assert_eq!(a.available_blocks(Purpose::User), 8184 - 1024);
    a.readmit(&[GroupNr(15)]).unwrap();
    assert_eq!(a.available_blocks(Purpose::User), 8184 - 512);
}

#[test]
fn unusable_groups_are_passed_over() {
    let disk = Disk::new(2048);
    let a = open(2048, config(), &disk);
    disk.broken.lock().extend([GroupNr(0), GroupNr(1)]);
    assert_eq!(suggested(a.alloc(&data(4, 4, 4), None)), [GroupNr(2)]);
    a.reserve_done(&[GroupNr(2), GroupNr(3)]).unwrap();
    let mut error = None;
    while error.is_none() {
        error = a.alloc(&data(64, 4, 4), None).err();
    }
    assert!(matches!(error, Some(AllocError::Failed(FsError::Corrupt { .. }))), "not a lack of space");
}

#[test]
fn a_volume_grows() {
    let disk = Disk::new(0);
    let a = open(1000, Config { takeover_groups: 0, ..config() }, &disk);
    a.reserve_done(&[GroupNr(0), GroupNr(1)]).unwrap();
    while a.alloc(&data(64, 1, 1), None).is_ok() {}
    assert!(a.grow(999).is_err());
    a.grow(1000).unwrap();
    assert_eq!(a.free_blocks(), 0);
    a.grow(1010).unwrap();
    assert_eq!((a.free_blocks(), a.reserved_free_blocks()), (10, 10));
    assert_eq!(a.alloc(&data(64, 1, 1), None).unwrap(), run(1000, 10));
    a.grow(2100).unwrap();
    assert_eq!((a.free_blocks(), a.reserved_free_blocks()), (1090, 14));
    assert_eq!(a.alloc(&data(64, 1, 1), None).unwrap(), run(1010, 14));
    assert_eq!(suggested(a.alloc(&data(512, 512, 1), None)).len(), 1);
    assert_eq!(a.count_free().unwrap(), 1076);
    assert_eq!(a.available_blocks(Purpose::User), 1076);
    assert!(a.grow(u64::MAX).is_err());
    assert!(a.free_deferred(run(2099, 2), Lsn(1)).is_err());
}

#[test]
fn growth_reaches_groups_that_are_not_loaded() {
    let disk = Disk::new(0);
    let a = open(1000, config(), &disk);
    assert_eq!(a.survey(GroupNr(1), None).unwrap().free, 488);
    a.grow(1500).unwrap();
    assert_eq!(a.survey(GroupNr(1), None).unwrap().free, 512);
    a.reserve_done(&[GroupNr(1), GroupNr(2)]).unwrap();
    assert_eq!(a.reserved_free_blocks(), 1500 - 512);
}

/// The place of the superblock's third copy stays out of use, wherever it is.
#[test]
fn a_growing_volume_leaves_the_fixed_block_alone() {
    // In the tail of the last group, at its end, and at the start of a group that is new.
    for old in [1000, 1023, 1024] {
        for loaded in [false, true] {
            let disk = Disk::new(0);
            let fixed = Geometry { fixed_block: Some(BlockNr(old)), ..geometry(old) };
            let a = Allocator::new(fixed, config(), disk.clone()).unwrap();
            a.set_free(a.count_free().unwrap()).unwrap();
            if loaded {
                a.reserve_done(&[GroupNr(0), GroupNr(1)]).unwrap();
            }
            a.grow(old + 1).unwrap();
            assert_eq!(a.free_blocks(), old - 8);
            a.grow(2100).unwrap();
            assert_eq!((a.free_blocks(), a.count_free().unwrap()), (2100 - 8 - 1, 2100 - 8 - 1));
            a.reserve_done(&(0..5).map(GroupNr).collect::<Vec<_>>()).unwrap();
            let mut given = 0;
            while let Ok(run) = a.alloc(&data(64, 1, 1), None) {
                assert!(!blocks(run).contains(&old), "{run:?}");
                given += u64::from(run.len);
            }
            assert_eq!(given, 2100 - 8 - 1);
            assert!(a.free_deferred(run(old - 1, 2), Lsn(1)).is_err(), "nobody can have it");
        }
    }
}

#[test]
fn petabytes_cost_little_until_used() {
    struct Blank(AtomicU64);
    impl GroupLoader for Blank {
        fn load(&self, _: GroupNr) -> crate::Result<GroupBits> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(vec![0; MAX_GROUP_BLOCKS as usize / 64].into())
        }
    }
    let total = 1 << 38;
    let geometry = Geometry { total_blocks: total, group_blocks: MAX_GROUP_BLOCKS, ..geometry(total) };
    let loader = Arc::new(Blank(AtomicU64::new(0)));
    let a = Allocator::new(geometry, Config::for_volume(&geometry), loader.clone()).unwrap();
    a.mark_used(run(total - 100, 50)).unwrap();
    a.set_free(total - 8 - 50).unwrap();
    a.reserve_done(&suggested(a.alloc(&data(256, 256, 4), None))).unwrap();
    a.alloc(&data(256, 256, 4), None).unwrap();
    a.grow(total * 2).unwrap();
    assert!(loader.0.load(Ordering::Relaxed) < 40);
}
