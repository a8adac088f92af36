//! Properties of the policies, and what each is for.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;

use super::lists::Lists;
use super::*;

const FRAMES: u32 = 24;

/// Frames whose pins and counts a test sets.
struct Rig {
    touches: Vec<TouchCount>,
    pinned: Vec<AtomicBool>,
    /// Frames that were claimed.
    claims: AtomicUsize,
}

impl Rig {
    fn new(frames: u32) -> Self {
        let touches = (0..frames).map(|_| TouchCount::default()).collect();
        let pinned = (0..frames).map(|_| AtomicBool::new(false)).collect();
        Self { touches, pinned, claims: AtomicUsize::new(0) }
    }

    fn is_pinned(&self, frame: FrameNr) -> bool {
        self.pinned[frame.index()].load(Ordering::Relaxed)
    }

    fn pin(&self, frame: u32, pinned: bool) {
        self.pinned[frame as usize].store(pinned, Ordering::Relaxed);
    }
}

impl Frames for Rig {
    fn touches(&self, frame: FrameNr) -> &TouchCount {
        &self.touches[frame.index()]
    }

    fn claim(&self, frame: FrameNr) -> bool {
        self.claims.fetch_add(usize::from(!self.is_pinned(frame)), Ordering::Relaxed);
        !self.is_pinned(frame)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Enter { frame: u32, page: u64 },
    Touch { frame: u32, interval: u32 },
    Pin { frame: u32, pinned: bool },
    Leave(u32),
    Victim,
    Capacity(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let frame = 0..FRAMES;
    prop_oneof![
        6 => (frame.clone(), 0u64..60).prop_map(|(frame, page)| Op::Enter { frame, page }),
        8 => (frame.clone(), 0u32..4).prop_map(|(frame, interval)| Op::Touch { frame, interval }),
        2 => (frame.clone(), any::<bool>()).prop_map(|(frame, pinned)| Op::Pin { frame, pinned }),
        1 => frame.prop_map(Op::Leave),
        5 => Just(Op::Victim),
        1 => (1usize..40).prop_map(Op::Capacity),
    ]
}

/// Every frame that entered is in exactly one list until it leaves or is a victim; victims are never
/// pinned; and there is a victim as long as something is not pinned.
fn holds<P: Policy, const N: usize>(
    mut policy: P,
    lists: impl Fn(&P) -> &Lists<N>,
    ops: &[Op],
    more: impl Fn(&P),
) {
    let rig = Rig::new(FRAMES);
    let mut inside = BTreeSet::new();
    for op in ops {
        match *op {
            Op::Enter { frame, page } => {
                if inside.insert(FrameNr(frame)) {
                    rig.touches[frame as usize].reset(0);
                    policy.enter(FrameNr(frame), hash_page(1, page));
                }
            }
            Op::Touch { frame, interval } => {
                rig.touches[frame as usize].touch(interval, policy.counting());
                policy.used(FrameNr(frame));
            }
            Op::Pin { frame, pinned } => rig.pin(frame, pinned),
            Op::Leave(frame) => {
                policy.leave(FrameNr(frame));
                inside.remove(&FrameNr(frame));
            }
            Op::Victim => match (policy.victim(&rig), rig.claims.swap(0, Ordering::Relaxed)) {
                (Some(victim), claims) => {
                    assert_eq!(claims, 1, "only the victim is claimed");
                    assert!(inside.remove(&victim), "{victim:?} was not in it");
                    assert!(!rig.is_pinned(victim), "{victim:?} is pinned");
                }
                (None, claims) => {
                    assert!(claims == 0 && inside.iter().all(|f| rig.is_pinned(*f)), "there were others")
                }
            },
            Op::Capacity(frames) => policy.set_capacity(frames),
        }
        let linked: Vec<FrameNr> = (0..N).flat_map(|list| lists(&policy).checked(list)).collect();
        assert_eq!(linked.iter().copied().collect::<BTreeSet<_>>(), inside);
        assert_eq!((linked.len(), policy.len()), (inside.len(), inside.len()));
        more(&policy);
    }
}

proptest! {
    #[test]
    fn lru_holds(ops in proptest::collection::vec(op(), 1..300)) {
        holds(Lru::new(4), Lru::lists, &ops, |_| {});
    }

    #[test]
    fn touch_holds(
        ops in proptest::collection::vec(op(), 1..300),
        threshold in 0u8..5,
        intervals in 0u32..8,
        hot_percent in 0u8..=100,
    ) {
        let options = TouchOptions { threshold, intervals, hot_percent };
        holds(TouchLru::new(options, 12), TouchLru::lists, &ops, TouchLru::check);
    }

    #[test]
    fn s3fifo_holds(
        ops in proptest::collection::vec(op(), 1..300),
        threshold in 0u8..5,
        small_percent in 0u8..=100,
    ) {
        let options = S3FifoOptions { threshold, small_percent, intervals: 0 };
        holds(S3Fifo::new(options, 12), S3Fifo::lists, &ops, |p| assert!(p.ghost().len() <= 40));
    }
}

/// Frames 0, 1, 2... with pages of the same numbers.
fn filled(mut policy: Box<dyn Policy>, frames: u32) -> (Box<dyn Policy>, Rig) {
    for frame in 0..frames {
        policy.enter(FrameNr(frame), hash_page(1, frame.into()));
    }
    (policy, Rig::new(frames))
}

fn victims(policy: &mut dyn Policy, rig: &Rig, n: usize) -> Vec<u32> {
    (0..n).filter_map(|_| policy.victim(rig)).map(|f| f.0).collect()
}

#[test]
fn lru_takes_what_was_used_longest_ago() {
    let (mut lru, rig) = filled(PolicyKind::Lru.make(4), 4);
    lru.used(FrameNr(0));
    rig.pin(1, true);
    assert_eq!(victims(&mut *lru, &rig, 4), [2, 3, 0]);
}

#[test]
fn touched_pages_stay_and_have_to_prove_themselves_again() {
    let options = TouchOptions { threshold: 2, intervals: 4, hot_percent: 20 };
    let (mut touch, rig) = filled(PolicyKind::Touch(options).make(10), 10);
    for interval in 1..=2 {
        (0..3).for_each(|f| rig.touches[f].touch(interval, touch.counting()));
    }
    rig.touches[3].touch(1, touch.counting());
    rig.touches[3].touch(1, touch.counting());
    // 3 was touched twice, but in one interval. Of the three that go to the hot end, two fit: 0 is
    // cool again, and the youngest there.
    assert_eq!(victims(&mut *touch, &rig, 10), [3, 4, 5, 6, 7, 8, 9, 0, 1, 2]);
}

#[test]
fn s3fifo_evicts_quickly_what_is_used_once_and_knows_what_comes_back() {
    let kind = PolicyKind::S3Fifo(S3FifoOptions::default());
    let (mut s3, rig) = filled(kind.make(10), 10);
    for (frame, interval) in [(0, 1), (1, 1), (1, 1), (1, 2)] {
        rig.touches[frame].touch(interval, s3.counting());
    }
    // 1 was used twice: it is in the main queue now.
    assert_eq!(victims(&mut *s3, &rig, 3), [0, 2, 3]);
    // Page 0 comes back: it goes to the main queue, behind 1. The small one is used up first.
    s3.enter(FrameNr(0), hash_page(1, 0));
    s3.enter(FrameNr(2), hash_page(1, 1000));
    assert_eq!(victims(&mut *s3, &rig, 9), [4, 5, 6, 7, 8, 9, 2, 1, 0]);
}

#[test]
fn the_ghost_forgets_in_order() {
    let mut ghost = ghost::Ghost::new(1000);
    (0..5000).for_each(|page| ghost.insert(hash_page(1, page)));
    let known = |ghost: &mut ghost::Ghost, pages: std::ops::Range<u64>| {
        pages.filter(|page| ghost.take(hash_page(1, *page))).count()
    };
    assert_eq!(known(&mut ghost, 0..4000), 0);
    let lately = known(&mut ghost, 4000..5000);
    assert!(lately > 950, "{lately}");
    assert_eq!(known(&mut ghost, 0..5000), 0, "what came back is no ghost any more");
    let mut none = ghost::Ghost::new(0);
    none.insert(7);
    assert!(!none.take(7));
}

#[test]
fn counts_are_bounded_and_once_an_interval() {
    let count = TouchCount::default();
    let counting = Counting { once_per_interval: true, most: 3 };
    count.reset(7);
    count.touch(7, counting);
    assert_eq!(count.count(), 0, "it entered in this interval");
    [8, 8, 8, 9].into_iter().for_each(|now| count.touch(now, counting));
    assert_eq!(count.count(), 2);
    (10..300).for_each(|now| count.touch(now, counting));
    assert_eq!(count.count(), 3);
    count.touch(u32::MAX, counting);
    assert_eq!(count.count(), 3);
    let clock = Clock::default();
    let ticks: Vec<u32> = (0..6).map(|_| clock.tick(2)).collect();
    assert_eq!(ticks, [0, 1, 1, 2, 2, 3]);
}
