//! Random operations against a naive model.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Alloc { want: u32, min: u32, align: u32, goal: Option<u64>, class: u8, held: bool },
    Free { pick: usize, cut: bool },
    FreeUnwritten(usize),
    Quarantine(usize),
    DoubleFree(u64),
    Publish(u64),
    Discard,
    NeedsMore,
    Grow(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let alloc = (1u32..200, 1u32..200, 0u32..6, proptest::option::of(0u64..4500), 0u8..2, any::<bool>())
        .prop_map(|(a, b, align, goal, class, held)| {
            let (want, min, align) = (a.max(b), a.min(b), 1 << align);
            Op::Alloc { want, min, align, goal, class, held }
        });
    let small = (1u32..9, proptest::option::of(0u64..4500)).prop_map(|(want, goal)| Op::Alloc {
        want,
        min: want,
        align: 1,
        goal,
        class: 0,
        held: false,
    });
    let op = prop_oneof![
        12 => alloc,
        8 => small,
        8 => (any::<usize>(), any::<bool>()).prop_map(|(pick, cut)| Op::Free { pick, cut }),
        2 => any::<usize>().prop_map(Op::FreeUnwritten),
        1 => any::<usize>().prop_map(Op::Quarantine),
        1 => (0u64..4500).prop_map(Op::DoubleFree),
        4 => (0u64..5).prop_map(Op::Publish),
        1 => Just(Op::Discard),
        1 => Just(Op::NeedsMore),
        1 => (0u64..300).prop_map(Op::Grow),
    ];
    proptest::collection::vec(op, 1..150)
}

struct Model {
    disk: Arc<Disk>,
    allocator: Allocator,
    total: u64,
    free: BTreeSet<u64>,
    reserved: BTreeSet<GroupNr>,
    /// Runs allocated, in the order they were.
    live: Vec<BlockRun>,
    limbo: Vec<(BlockRun, Lsn)>,
    quarantined: u64,
    lsn: u64,
}

impl Model {
    /// `used` runs are in use before the mount and live.
    fn new(used: &[(u64, u32)], slack: Slack) -> Self {
        let total = 8 * GROUP as u64 + 100;
        let disk = Disk::new(total + 10_000);
        let mut free: BTreeSet<u64> = (8..total).collect();
        let mut live = Vec::new();
        for &(start, len) in used {
            let run = run(start, len);
            if blocks(run).all(|b| free.contains(&b)) {
                free.retain(|b| !blocks(run).contains(b));
                disk.set(run, true);
                live.push(run);
            }
        }
        let config = Config {
            takeover_groups: 1,
            reserve_blocks: 50,
            low_water_blocks: 200,
            max_loaded_groups: 3,
            discard_queue: 5,
            slack,
            ..config()
        };
        let allocator = open(total, config, &disk);
        let (reserved, limbo) = (BTreeSet::new(), Vec::new());
        Self { disk, allocator, total, free, reserved, live, limbo, quarantined: 0, lsn: 0 }
    }

    fn group(&self, block: u64) -> GroupNr {
        GroupNr(block / GROUP as u64)
    }

    /// Is there such a run in a group that is, or could be, reserved?
    fn has_run(&self, min: u32, align: u32) -> bool {
        let room = self.allocator.room_groups();
        self.free.iter().any(|&s| {
            let group = self.group(s);
            s % align as u64 == 0
                && !room.contains(&group)
                && (s..s + min as u64).all(|b| self.free.contains(&b) && self.group(b) == group)
        })
    }

    fn available(&self) -> u64 {
        let room = self.allocator.room_groups();
        self.free.iter().filter(|&&b| !room.contains(&self.group(b))).count() as u64
    }

    fn reserve(&mut self, groups: Vec<GroupNr>, beside: Option<BlockNr>) {
        assert!(!groups.is_empty());
        let beside = beside.map(|block| self.group(block.0));
        let room = self.allocator.room_groups();
        for &group in &groups {
            assert!(!room.contains(&group) && self.reserved.insert(group));
            let of_use = self.free.iter().any(|&b| self.group(b) == group);
            // Of a group that was never looked at nobody knows.
            assert!(of_use || beside == Some(group), "a full group is of no use");
        }
        self.allocator.reserve_done(&groups).unwrap();
    }

    fn alloc(&mut self, request: Request, held: bool) {
        let mut hold = None;
        if held {
            hold = self.allocator.hold(request.want as u64, Purpose::Essential).ok();
        }
        let essential = request.class != Class::Data || hold.is_some();
        loop {
            match self.allocator.alloc(&request, hold.as_mut()) {
                Ok(run) => {
                    assert!(run.len >= request.min && run.len <= request.want);
                    assert_eq!(run.start.0 % request.align as u64, 0);
                    assert_eq!(self.group(run.start.0), self.group(run.end().0 - 1));
                    assert!(self.reserved.contains(&self.group(run.start.0)));
                    assert!(blocks(run).all(|b| self.free.remove(&b)), "{run:?} is not free");
                    self.disk.set(run, true);
                    self.live.push(run);
                    return;
                }
                Err(AllocError::NeedReservation { suggested }) => self.reserve(suggested, request.beside),
                Err(AllocError::Full | AllocError::Fragmented) => {
                    let claimable = self.available().saturating_sub(if essential { 0 } else { 50 });
                    assert!(claimable < request.min as u64 || !self.has_run(request.min, request.align));
                    return;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn pick(&mut self, pick: usize) -> Option<BlockRun> {
        (!self.live.is_empty()).then(|| self.live.swap_remove(pick % self.live.len()))
    }

    fn free_part(&mut self, mut run: BlockRun, cut: bool) {
        if cut && run.len > 1 {
            let rest = BlockRun::new(run.start, run.len / 2);
            self.live.push(rest);
            run = BlockRun::new(rest.end(), run.len - rest.len);
        }
        self.lsn += 1;
        self.allocator.free_deferred(run, Lsn(self.lsn)).unwrap();
        self.disk.set(run, false);
        self.limbo.push((run, Lsn(self.lsn)));
    }

    fn publish(&mut self, durable: Lsn) {
        let (done, waiting) = self.limbo.iter().partition::<Vec<_>, _>(|(_, lsn)| *lsn <= durable);
        let expect: u64 = done.iter().map(|(run, _)| run.len as u64).sum();
        assert_eq!(self.allocator.publish(durable).unwrap(), expect);
        self.free.extend(done.iter().flat_map(|&(run, _)| blocks(run)));
        self.limbo = waiting;
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Alloc { want, min, align, goal, class, held } => {
                let class = [Class::Data, Class::Metadata][class as usize];
                let goal = goal.map(BlockNr);
                // Some of them replace what is there.
                let beside = goal.filter(|block| block.0 < self.total && block.0.is_multiple_of(2));
                let request = Request { goal, beside, ..Request::new(want, min, align, class) };
                self.alloc(request, held);
            }
            Op::Free { pick, cut } => {
                if let Some(run) = self.pick(pick) {
                    self.free_part(run, cut);
                }
            }
            Op::FreeUnwritten(pick) => {
                let Some(run) = self.pick(pick) else { return };
                if !blocks(run).all(|b| self.reserved.contains(&self.group(b))) {
                    assert!(self.allocator.free_unwritten(run).is_err());
                    self.live.push(run);
                    return;
                }
                self.allocator.free_unwritten(run).unwrap();
                self.disk.set(run, false);
                self.free.extend(blocks(run));
            }
            Op::Quarantine(pick) => {
                if let Some(run) = self.pick(pick) {
                    self.allocator.quarantine(run).unwrap();
                    self.disk.set(run, false);
                    self.quarantined += run.len as u64;
                }
            }
            Op::DoubleFree(block) => {
                let free = self.free.contains(&block) && self.reserved.contains(&self.group(block));
                let limbo = self.limbo.iter().any(|(run, _)| blocks(*run).contains(&block));
                if free || limbo {
                    assert!(self.allocator.free_deferred(run(block, 1), Lsn(1)).is_err());
                    assert!(self.allocator.free_unwritten(run(block, 1)).is_err());
                    assert!(self.allocator.quarantine(run(block, 1)).is_err());
                }
            }
            Op::Publish(back) => self.publish(Lsn(self.lsn.saturating_sub(back))),
            Op::Discard => {
                for run in self.allocator.take_discardable(10) {
                    assert!(blocks(run).all(|b| self.free.contains(&b)));
                    self.allocator.free_unwritten(run).unwrap();
                }
            }
            Op::NeedsMore => {
                if let Some(groups) = self.allocator.needs_more() {
                    self.reserve(groups, None);
                }
            }
            Op::Grow(more) => {
                self.allocator.grow(self.total + more).unwrap();
                self.free.extend(self.total..self.total + more);
                self.total += more;
            }
        }
    }

    fn check_counts(&self) {
        let a = &self.allocator;
        assert_eq!(a.free_blocks(), self.free.len() as u64);
        assert_eq!(a.limbo_blocks(), self.limbo.iter().map(|(run, _)| run.len as u64).sum::<u64>());
        assert_eq!(a.quarantined_blocks(), self.quarantined);
        assert_eq!(a.held_blocks(), 0);
        assert_eq!(a.available_blocks(Purpose::Essential), self.available());
        let reserved = self.free.iter().filter(|&&b| self.reserved.contains(&self.group(b))).count();
        assert_eq!(a.reserved_free_blocks(), reserved as u64);
    }

    fn check_bits(&self) {
        for group in 0..self.total.div_ceil(GROUP as u64) {
            let Some(bits) = self.allocator.live_bits(GroupNr(group)) else { continue };
            for i in 0..GROUP as u64 {
                let used = bits[i as usize / 64] >> (i % 64) & 1 == 1;
                let block = group * GROUP as u64 + i;
                assert_eq!(used, !self.free.contains(&block), "block {block}");
            }
        }
        assert_eq!(self.allocator.count_free().unwrap(), self.free.len() as u64);
    }
}

fn used() -> impl Strategy<Value = Vec<(u64, u32)>> {
    prop_oneof![
        proptest::collection::vec((8u64..4000, 1u32..100), 0..30),
        proptest::collection::vec((8u64..4000, 1u32..600), 0..60),
        // Nearly full, with holes.
        (3u64..60)
            .prop_map(|step| (8..4196 - step).step_by(step as usize).map(|s| (s, step as u32 - 1)).collect()),
    ]
}

proptest! {
    #![proptest_config(cases(600))]

    #[test]
    fn agrees_with_the_model(used in used(), ops in ops(), pages in 0u32..4) {
        let slack = [Slack::NONE, Slack::for_pages(1), Slack::for_pages(4), Slack::for_pages(8)][pages as usize];
        let mut model = Model::new(&used, slack);
        for op in &ops {
            model.apply(op);
            model.check_counts();
        }
        model.check_bits();
    }
}
