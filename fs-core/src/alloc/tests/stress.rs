//! Threads that allocate and free at once.

use std::sync::atomic::{AtomicU32, AtomicUsize};

use super::*;

/// A small generator, so that each thread's choices follow from its seed.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Who owns each block, and which record freed it last.
struct Owners {
    owner: Vec<AtomicU32>,
    freed: Vec<AtomicU64>,
    /// Records up to here have been published, or are about to be.
    published: AtomicU64,
    next_lsn: AtomicU64,
    violations: AtomicUsize,
}

impl Owners {
    fn new(blocks: u64) -> Self {
        Self {
            owner: (0..blocks).map(|_| AtomicU32::new(0)).collect(),
            freed: (0..blocks).map(|_| AtomicU64::new(0)).collect(),
            published: AtomicU64::new(0),
            next_lsn: AtomicU64::new(1),
            violations: AtomicUsize::new(0),
        }
    }

    fn take(&self, run: BlockRun, me: u32) {
        for block in blocks(run) {
            let before = self.owner[block as usize].swap(me, Ordering::SeqCst);
            let freed = self.freed[block as usize].load(Ordering::SeqCst);
            if before != 0 || freed > self.published.load(Ordering::SeqCst) {
                self.violations.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn leave(&self, run: BlockRun, me: u32, lsn: u64) {
        for block in blocks(run) {
            self.freed[block as usize].store(lsn, Ordering::SeqCst);
            if self.owner[block as usize].swap(0, Ordering::SeqCst) != me {
                self.violations.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

struct Worker<'a> {
    allocator: &'a Allocator,
    owners: &'a Owners,
    me: u32,
    rng: Rng,
    mine: Vec<BlockRun>,
}

impl<'a> Worker<'a> {
    fn new(allocator: &'a Allocator, owners: &'a Owners, me: u32) -> Self {
        Self {
            allocator,
            owners,
            me,
            rng: Rng((me as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            mine: Vec::new(),
        }
    }

    fn request(&mut self) -> Request {
        let (want, align) = match self.rng.below(4) {
            0 => (1, 1),
            1 => (4, 4),
            2 => (1 + self.rng.below(16) as u32, 1),
            _ => (1 + self.rng.below(300) as u32, 1 << self.rng.below(5)),
        };
        let min = if self.rng.below(2) == 0 { want } else { want.div_ceil(8) };
        let mut request = Request { lane: self.rng.below(3) as u32, ..data(want, min, align) };
        if let (0, Some(last)) = (self.rng.below(3), self.mine.last()) {
            request.goal = Some(last.end());
        }
        request
    }

    fn step(&mut self) {
        let request = self.request();
        match self.allocator.alloc(&request, None) {
            Ok(run) => {
                self.owners.take(run, self.me);
                self.mine.push(run);
            }
            Err(AllocError::NeedReservation { suggested }) => {
                self.allocator.reserve_done(&suggested).unwrap()
            }
            Err(AllocError::Full | AllocError::Fragmented) => (0..8).for_each(|_| self.free_one()),
            Err(error) => panic!("{error}"),
        }
        if self.rng.below(5) < 2 {
            self.free_one();
        }
    }

    fn free_one(&mut self) {
        if self.mine.is_empty() {
            return;
        }
        let pick = self.rng.below(self.mine.len() as u64) as usize;
        let run = self.mine.swap_remove(pick);
        if self.rng.below(3) == 0 {
            self.owners.leave(run, self.me, 0);
            self.allocator.free_unwritten(run).unwrap();
            return;
        }
        let lsn = self.owners.next_lsn.fetch_add(1, Ordering::SeqCst);
        self.owners.leave(run, self.me, lsn);
        self.allocator.free_deferred(run, Lsn(lsn)).unwrap();
        if self.rng.below(4) == 0 {
            self.owners.published.fetch_max(lsn, Ordering::SeqCst);
            self.allocator.publish(Lsn(lsn)).unwrap();
        }
    }
}

fn stress(allocator: &Allocator, total: u64, steps: usize, meanwhile: impl FnOnce() + Send) {
    let owners = Owners::new(total);
    std::thread::scope(|scope| {
        for me in 1..=4 {
            let owners = &owners;
            scope.spawn(move || {
                let mut worker = Worker::new(allocator, owners, me);
                (0..steps).for_each(|_| worker.step());
                while !worker.mine.is_empty() {
                    worker.free_one();
                }
            });
        }
        scope.spawn(meanwhile);
    });
    assert_eq!(owners.violations.load(Ordering::SeqCst), 0);
    allocator.publish(Lsn(u64::MAX)).unwrap();
    let total = allocator.geometry().total_blocks;
    assert_eq!((allocator.free_blocks(), allocator.limbo_blocks()), (total - 8, 0));
    assert_eq!(allocator.available_blocks(Purpose::User), total - 8);
    assert_eq!(allocator.count_free().unwrap(), total - 8);
    let groups = allocator.reserved_groups();
    let free: u32 =
        groups.iter().flat_map(|&g| allocator.live_bits(g).unwrap()).map(|word| word.count_zeros()).sum();
    assert_eq!(allocator.reserved_free_blocks(), free as u64);
}

#[test]
fn no_block_is_given_twice() {
    let total = 12 * GROUP as u64;
    let config = Config { max_loaded_groups: 4, ..config() };
    stress(&open(total, config, &Disk::new(total)), total, 8000, || {});
}

#[test]
fn nor_on_a_tiny_and_always_full_volume() {
    let total = GROUP as u64 + 70;
    stress(&open(total, config(), &Disk::new(total)), total, 8000, || {});
}

#[test]
fn nor_while_the_volume_grows() {
    let (start, end) = (GROUP as u64, 20 * GROUP as u64 + 33);
    let a = open(start, config(), &Disk::new(start));
    stress(&a, end, 6000, || {
        let mut total = start;
        while total < end {
            total = (total + 97).min(end);
            a.grow(total).unwrap();
            std::thread::yield_now();
        }
    });
    assert_eq!(a.geometry().total_blocks, end);
}

#[test]
fn a_hold_always_finds_its_block() {
    // As many blocks as the threads hold together: each must find one at every moment, whatever
    // the others have claimed for an instant.
    let (a, _disk) = empty(1);
    let fill = a.alloc(&data(492, 492, 1), None).unwrap();
    assert_eq!((fill.len, a.free_blocks()), (492, 12));
    std::thread::scope(|scope| {
        for me in 0..4u32 {
            let a = &a;
            scope.spawn(move || {
                for _ in 0..3000 {
                    let mut hold = loop {
                        match a.hold(3, Purpose::User) {
                            Ok(hold) => break hold,
                            Err(_) => std::thread::yield_now(),
                        }
                    };
                    let request = Request { lane: me, ..data(3, 1, 1) };
                    let mut runs = Vec::new();
                    while hold.blocks() > 0 {
                        runs.push(a.alloc(&request, Some(&mut hold)).unwrap());
                    }
                    runs.into_iter().for_each(|run| a.free_unwritten(run).unwrap());
                }
            });
        }
    });
    assert_eq!((a.free_blocks(), a.available_blocks(Purpose::User)), (12, 12));
}
