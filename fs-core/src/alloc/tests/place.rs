//! Where allocations go.

use super::*;

#[test]
fn bad_requests_are_refused() {
    let (a, _disk) = empty(4);
    for (want, min, align) in
        [(0, 0, 1), (4, 0, 1), (4, 5, 1), (4, 4, 3), (4, 4, 0), (600, 513, 1), (4, 4, 1024)]
    {
        let result = a.alloc(&data(want, min, align), None);
        assert!(
            matches!(result, Err(AllocError::Failed(FsError::Posix(libc::EINVAL)))),
            "{want} {min} {align}"
        );
    }
    assert_eq!(a.available_blocks(Purpose::User), a.free_blocks());
}

#[test]
fn bad_geometries_are_refused() {
    let good = geometry(4096);
    good.validate().unwrap();
    let bad = [
        Geometry { group_blocks: 256, ..good },
        Geometry { group_blocks: 1000, ..good },
        Geometry { group_blocks: 65536, ..good },
        Geometry { total_blocks: 8, ..good },
        Geometry { total_blocks: MAX_BLOCKS + 1, ..good },
        Geometry { total_blocks: MAX_BLOCKS, ..good },
    ];
    for geometry in bad {
        assert!(Allocator::new(geometry, config(), Disk::new(0)).is_err(), "{geometry:?}");
    }
    Geometry { total_blocks: MAX_BLOCKS, group_blocks: MAX_GROUP_BLOCKS, ..good }.validate().unwrap_err();
    let largest = MAX_GROUPS * MAX_GROUP_BLOCKS as u64;
    Geometry { total_blocks: largest, group_blocks: MAX_GROUP_BLOCKS, ..good }.validate().unwrap();
}

#[test]
fn the_goal_comes_first_then_its_group() {
    let (a, _disk) = empty(4);
    let near = |at| data(16, 4, 4).near(BlockNr(at));
    assert_eq!(a.alloc(&near(1100), None).unwrap(), run(1100, 16));
    assert_eq!(a.alloc(&near(1116), None).unwrap(), run(1116, 16));
    // Taken: the next place behind it in the same group.
    assert_eq!(a.alloc(&near(1100), None).unwrap(), run(1132, 16));
    // A goal out of range is as good as none.
    assert_eq!(a.alloc(&near(1 << 60), None).unwrap().len, 16);
}

#[test]
fn a_run_at_the_goal_may_be_shorter() {
    let (a, _disk) = empty(4);
    assert_eq!(a.alloc(&data(8, 8, 1).near(BlockNr(1030)), None).unwrap(), run(1030, 8));
    assert_eq!(a.alloc(&data(16, 1, 1).near(BlockNr(1024)), None).unwrap(), run(1024, 6));
    // Too short a one is passed over.
    assert_eq!(a.alloc(&data(8, 8, 1).near(BlockNr(1040)), None).unwrap(), run(1040, 8));
    assert_eq!(a.alloc(&data(64, 1, 1).near(BlockNr(1038)), None).unwrap(), run(1048, 64));
}

#[test]
fn blocks_before_the_first_and_behind_the_last_are_never_given() {
    let total = 3 * GROUP as u64 + 100;
    let a = open(total, config(), &Disk::new(total));
    a.reserve_done(&[GroupNr(0), GroupNr(1), GroupNr(2), GroupNr(3)]).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    while let Ok(run) = a.alloc(&data(7, 1, 1), None) {
        for block in blocks(run) {
            assert!((8..total).contains(&block) && seen.insert(block));
        }
    }
    assert_eq!(seen.len() as u64, total - 8);
    assert_eq!((a.free_blocks(), a.reserved_free_blocks()), (0, 0));
}

#[test]
fn whole_groups_can_be_had() {
    let (a, _disk) = empty(4);
    let whole = data(GROUP, GROUP, GROUP);
    let mut starts: Vec<u64> = (0..3).map(|_| a.alloc(&whole, None).unwrap().start.0).collect();
    starts.sort_unstable();
    assert_eq!(starts, [512, 1024, 1536]);
    assert!(matches!(a.alloc(&whole, None), Err(AllocError::Full)), "8 blocks are missing");
    assert!(matches!(a.alloc(&data(504, 504, 1), None).unwrap(), BlockRun { start: BlockNr(8), len: 504 }));
}

#[test]
fn wanting_more_than_a_group_gives_a_group() {
    let (a, _disk) = empty(4);
    assert_eq!(a.alloc(&data(100_000, 1, 1).near(BlockNr(512)), None).unwrap(), run(512, 512));
}

/// A volume where every aligned unit of four has one block in use, but for one.
fn splintered() -> (Allocator, Arc<Disk>) {
    let total = 8 * GROUP as u64;
    let disk = Disk::new(total);
    for unit in 2..total / 4 {
        disk.set(run(unit * 4 + unit % 4, 1), unit != 777);
    }
    let a = open(total, config(), &disk);
    a.reserve_done(&(0..8).map(GroupNr).collect::<Vec<_>>()).unwrap();
    (a, disk)
}

#[test]
fn the_last_aligned_unit_is_found() {
    let (a, _disk) = splintered();
    assert_eq!(a.alloc(&data(64, 4, 4), None).unwrap(), run(777 * 4, 4));
    assert!(matches!(a.alloc(&data(64, 4, 4), None), Err(AllocError::Fragmented)));
    assert!((3..=4).contains(&a.alloc(&data(64, 3, 1), None).unwrap().len));
}

#[test]
fn a_failed_search_is_repeated_only_where_something_came_free() {
    let (a, _disk) = splintered();
    a.alloc(&data(4, 4, 4), None).unwrap();
    a.alloc(&data(4, 4, 4), None).unwrap_err();
    let unit = 300u64;
    a.free_deferred(run(unit * 4 + unit % 4, 1), Lsn(1)).unwrap();
    a.alloc(&data(4, 4, 4), None).unwrap_err();
    a.publish(Lsn(1)).unwrap();
    assert_eq!(a.alloc(&data(4, 4, 4), None).unwrap(), run(unit * 4, 4));
}

#[test]
fn small_allocations_leave_whole_units_to_others() {
    let (a, _disk) = empty(1);
    let mut used = Vec::new();
    for _ in 0..40 {
        used.push(a.alloc(&data(1, 1, 1), None).unwrap());
    }
    for run in used.iter().skip(1).step_by(2) {
        a.free_unwritten(*run).unwrap();
    }
    let units = (a.free_blocks() - 20) / 4;
    for _ in 0..20 {
        a.alloc(&data(1, 1, 1), None).unwrap();
    }
    for _ in 0..units {
        a.alloc(&data(4, 4, 4), None).unwrap();
    }
    assert_eq!(a.free_blocks(), 0);
}

#[test]
fn lanes_and_classes_start_apart() {
    let (a, _disk) = empty(32);
    let mut groups = std::collections::BTreeSet::new();
    for class in [Class::Data, Class::Metadata] {
        for lane in 0..4 {
            let request = Request { lane, ..Request::new(4, 4, 4, class) };
            groups.insert(a.geometry().group_of(a.alloc(&request, None).unwrap().start));
        }
    }
    assert_eq!(groups.len(), 8);
}

#[test]
fn a_lane_fills_its_group_in_order() {
    let (a, _disk) = empty(8);
    let runs: Vec<BlockRun> = (0..50).map(|_| a.alloc(&data(4, 4, 4), None).unwrap()).collect();
    assert!(runs.windows(2).all(|pair| pair[0].end() == pair[1].start));
}

#[test]
fn counters_count() {
    let (a, _disk) = empty(2);
    a.alloc(&data(4, 4, 4), None).unwrap();
    let run = a.alloc(&data(5, 5, 1), None).unwrap();
    a.free_deferred(run, Lsn(1)).unwrap();
    assert!(a.hold(10_000, Purpose::User).is_err());
    a.publish(Lsn(1)).unwrap();
    let stats = a.stats();
    assert_eq!((stats.allocations, stats.allocated_blocks, stats.reused_blocks), (2, 9, 5));
    assert_eq!((stats.group_loads, stats.limbo_waits, stats.cas_retries), (2, 1, 0));
}
