//! Whole runs for what must not fail.

use super::*;

fn with_cushion(units: usize) -> Config {
    Config { cushion_unit: 4, cushion_units: units, ..config() }
}

/// Two groups, all blocks taken but every second one, and the cushion.
fn broken(units: usize) -> (Allocator, Arc<Disk>) {
    let disk = Disk::new(1024);
    let a = open(1024, with_cushion(units), &disk);
    let groups = a.fill_cushion().unwrap();
    a.reserve_done(&groups).unwrap();
    assert!(a.fill_cushion().unwrap().is_empty());
    a.reserve_done(&[GroupNr(0), GroupNr(1)]).unwrap();
    let mut all = Vec::new();
    while let Ok(run) = a.alloc(&data(1, 1, 1), None) {
        all.push(run);
    }
    all.iter().filter(|run| run.start.0 % 2 == 0).for_each(|run| a.free_unwritten(*run).unwrap());
    (a, disk)
}

#[test]
fn it_serves_those_who_may_use_it_when_nothing_else_does() {
    let (a, _disk) = broken(3);
    assert_eq!(a.cushion_blocks(), 12);
    let free = a.free_blocks();
    assert!(a.alloc(&data(4, 4, 4), None).is_err(), "new data may not");
    let overwrite = Request { last_resort: true, ..data(8, 4, 4) };
    let mut hold = a.hold(8, Purpose::Overwrite).unwrap();
    let run = a.alloc(&overwrite, Some(&mut hold)).unwrap();
    assert_eq!((run.len, hold.blocks(), a.cushion_blocks()), (4, 4, 8));
    assert_eq!(a.free_blocks(), free - 4);
    let node = Request::new(4, 4, 4, Class::Metadata);
    assert!(a.alloc(&node, None).is_ok() && a.alloc(&node, None).is_ok());
    assert!(matches!(a.alloc(&node, None), Err(AllocError::Fragmented)));
    assert_eq!((a.cushion_blocks(), a.free_blocks()), (0, free - 12));
}

#[test]
fn what_is_freed_refills_it_before_anybody_gets_it() {
    let (a, _disk) = broken(2);
    let node = Request::new(4, 4, 4, Class::Metadata);
    let runs = [a.alloc(&node, None).unwrap(), a.alloc(&node, None).unwrap()];
    let (free, available) = (a.free_blocks(), a.available_blocks(Purpose::Essential));
    runs.iter().for_each(|run| a.free_deferred(*run, Lsn(1)).unwrap());
    a.publish(Lsn(1)).unwrap();
    assert_eq!(a.cushion_blocks(), 8);
    assert_eq!((a.free_blocks(), a.available_blocks(Purpose::Essential)), (free + 8, available + 8));
    assert!(a.alloc(&data(4, 4, 4), None).is_err());
    assert!(a.alloc(&node, None).is_ok());
}

#[test]
fn a_part_of_a_run_leaves_the_rest_free() {
    let (a, _disk) = broken(1);
    while a.alloc(&data(1, 1, 1), None).is_ok() {}
    let free = a.free_blocks();
    assert_eq!(free, 4, "the cushion's");
    let overwrite = Request { last_resort: true, ..data(1, 1, 1) };
    let run = a.alloc(&overwrite, Some(&mut a.hold(1, Purpose::Overwrite).unwrap())).unwrap();
    assert_eq!((run.len, a.free_blocks(), a.cushion_blocks()), (1, 3, 0));
    let group = a.geometry().group_of(run.start);
    assert!(a.live_bits(group).is_some(), "counts and bits agree");
    assert_eq!(a.alloc(&data(3, 3, 1), None).unwrap(), BlockRun::new(run.end(), 3));
}

/// Who finds too few runs gives back what he has found: nobody can cut it up then.
#[test]
fn what_is_given_back_unused_refills_it() {
    let (a, _disk) = broken(2);
    let overwrite = Request { last_resort: true, ..data(4, 4, 4) };
    let mut hold = a.hold(12, Purpose::Overwrite).unwrap();
    let free = a.free_blocks();
    let runs: Vec<BlockRun> = (0..2).map(|_| a.alloc(&overwrite, Some(&mut hold)).unwrap()).collect();
    assert!(matches!(a.alloc(&overwrite, Some(&mut hold)), Err(AllocError::Fragmented)));
    runs.iter().for_each(|run| a.return_unwritten(*run, &mut hold).unwrap());
    assert_eq!((hold.blocks(), a.free_blocks(), a.cushion_blocks()), (12, free, 8));
    drop(hold);
    assert!(a.alloc(&data(4, 4, 4), None).is_err(), "new data may not");
    let node = Request::new(4, 4, 4, Class::Metadata);
    let run = a.alloc(&node, None).unwrap();
    a.free_unwritten(run).unwrap();
    assert_eq!((a.free_blocks(), a.cushion_blocks()), (free, 8));
}

#[test]
fn pieces_that_are_whole_again_refill_it() {
    let (a, _disk) = broken(1);
    let free = a.free_blocks();
    while a.alloc(&data(1, 1, 1), None).is_ok() {}
    // A small node takes a part of the run, somebody else the rest.
    let part = Request { last_resort: true, ..data(1, 1, 1) };
    let run = a.alloc(&part, Some(&mut a.hold(1, Purpose::Overwrite).unwrap())).unwrap();
    let rest = a.alloc(&data(3, 3, 1), None).unwrap();
    assert!(!a.refill_cushion());
    a.free_unwritten(run).unwrap();
    assert!(!a.refill_cushion());
    a.free_unwritten(rest).unwrap();
    assert!(a.refill_cushion() && a.refill_cushion());
    assert_eq!((a.cushion_blocks(), a.free_blocks()), (4, 4));
    assert!(a.free_blocks() <= free);
}
