//! One block group in memory: a tiny slot for every group, a frame with the bits while loaded.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::hints::RunHints;
use super::search;
use super::slack::Slack;
use super::words::{Claim, Words};

/// What is known of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Nothing; the bits are where the loader finds them.
    Absent = 0,
    /// Somebody is asking the loader.
    Loading = 1,
    /// The bits are in a frame.
    Loaded = 2,
    /// Every bit is set; no frame is needed to remember that.
    Full = 3,
}

const PINS: u64 = (1 << 24) - 1;
const KIND_SHIFT: u32 = 24;
const KIND: u64 = 3 << KIND_SHIFT;
const EXCLUDED: u64 = 1 << 26;
const ROOM: u64 = 1 << 27;
const INDEX_SHIFT: u32 = 32;

/// A consistent view of a slot's state.
#[derive(Clone, Copy)]
pub(super) struct State(u64);

impl State {
    pub fn kind(self) -> Kind {
        match (self.0 & KIND) >> KIND_SHIFT {
            0 => Kind::Absent,
            1 => Kind::Loading,
            2 => Kind::Loaded,
            _ => Kind::Full,
        }
    }
    /// Kept free for a take-over.
    pub fn room(self) -> bool {
        self.0 & ROOM != 0
    }
    /// Position in the list of reserved groups.
    pub fn reserved(self) -> Option<u32> {
        ((self.0 >> INDEX_SHIFT) as u32).checked_sub(1)
    }
    /// Free blocks here are not for users.
    pub fn off_limits(self) -> bool {
        self.0 & (EXCLUDED | ROOM) != 0
    }
}

/// `Slot::free` when nobody has counted yet.
pub(super) const UNKNOWN: u32 = u32::MAX;

/// What is remembered of every group that was ever looked at: 24 bytes.
///
/// State changes other than pins happen under the allocator's admin lock.
pub(super) struct Slot {
    state: AtomicU64,
    frame: AtomicU32,
    /// Free blocks: never less than there are while loaded; a guess or [`UNKNOWN`] while absent.
    pub free: AtomicU32,
    /// Here and not with the bits, so that hopeless groups are passed over by looking at slots only.
    pub hints: RunHints,
}

impl Default for Slot {
    fn default() -> Self {
        let (state, hints) = (AtomicU64::new(0), RunHints::new());
        Self { state, frame: AtomicU32::new(0), free: AtomicU32::new(UNKNOWN), hints }
    }
}

const _: () = assert!(size_of::<Slot>() == 24);

impl Slot {
    pub fn state(&self) -> State {
        State(self.state.load(Ordering::SeqCst))
    }

    /// The frame that holds the bits; meaningful while loaded.
    pub fn frame(&self) -> u32 {
        self.frame.load(Ordering::Acquire)
    }

    pub fn set_frame(&self, frame: u32) {
        self.frame.store(frame, Ordering::Release);
    }

    pub fn set_kind(&self, kind: Kind) {
        self.replace(KIND, (kind as u64) << KIND_SHIFT);
    }

    pub fn set_excluded(&self, on: bool) {
        self.replace(EXCLUDED, if on { EXCLUDED } else { 0 });
    }

    pub fn set_room(&self, on: bool) {
        self.replace(ROOM, if on { ROOM } else { 0 });
    }

    pub fn set_reserved(&self, index: u32) {
        self.replace(!0 << INDEX_SHIFT, (index as u64 + 1) << INDEX_SHIFT);
    }

    fn replace(&self, mask: u64, bits: u64) {
        let change = |old: u64| Some(old & !mask | bits);
        // The closure never refuses.
        let _ = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
    }

    /// Keeps the frame from being taken away, if there is one, until the pin is dropped.
    pub fn pin(&self) -> Option<Pin<'_>> {
        let pin = Pin { slot: self };
        let old = State(self.state.fetch_add(1, Ordering::SeqCst));
        // Dropping the pin on the way out takes the count back.
        (old.kind() == Kind::Loaded).then_some(pin)
    }

    /// Turns a loaded group that nobody has pinned into a full one.
    pub fn close(&self) -> bool {
        let old = self.state.load(Ordering::SeqCst);
        if State(old).kind() != Kind::Loaded || old & PINS != 0 {
            return false;
        }
        let new = old & !KIND | (Kind::Full as u64) << KIND_SHIFT;
        self.state.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// See [`Slot::pin`].
pub(super) struct Pin<'a> {
    slot: &'a Slot,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.slot.state.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Tells a search that failed whether it can be trusted: it cannot if meanwhile bits were cleared,
/// or were set for a moment by a claim that was then rolled back.
#[derive(Default)]
pub(super) struct Churn {
    changes: AtomicU64,
    claiming: AtomicU64,
}

impl Churn {
    /// To be handed to [`Self::quiet_since`] after the search.
    pub fn mark(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }
    /// True if a search that began at `mark` has seen all there was to see.
    pub fn quiet_since(&self, mark: u64) -> bool {
        self.claiming.load(Ordering::SeqCst) == 0 && self.changes.load(Ordering::SeqCst) == mark
    }
    /// Something became free.
    pub fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }
}

/// What to look for in a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Offset in the group where the search begins.
    pub from: u32,
    /// Free blocks in a row that must be there.
    pub need: u32,
    /// Take up to this many if the run is longer; at least `need`.
    pub want: u32,
    /// Power of two the start must be a multiple of.
    pub align: u32,
    /// Blocks that are left alone.
    pub spare: Slack,
}

/// The bits of a loaded group, with what is known of them.
#[derive(Clone, Copy)]
pub(super) struct Frame<'a> {
    pub words: &'a Words,
    pub hints: &'a RunHints,
}

impl Frame<'_> {
    /// Forgets what searches have found out; after bits were cleared.
    pub fn cleared(&self) {
        self.hints.reset();
    }

    /// Claims a run, first fit from `wanted.from`, then from the start of the group.
    pub fn alloc(&self, wanted: Wanted, churn: &Churn, retries: &mut u64) -> Option<(u32, u32)> {
        let Wanted { from, need, align, .. } = wanted;
        let hint = self.hints.read();
        if hint.hopeless(need, align) {
            return None;
        }
        let (word, words) = (|i| self.words.word(i) | wanted.spare.of_word(i), self.words.len());
        let (mut at, mut wrapped) = (from, from == 0);
        loop {
            let mut found = None;
            if need < 4 && align < 4 {
                let broken = |from| search::find_in_broken_unit(word, words, from, need);
                found = broken(at).or_else(|| broken(0)).filter(|start| start % align == 0);
            }
            match found.or_else(|| search::find(word, words, at, need, align)) {
                Some(start) if self.claim(start, need, churn, retries) => {
                    return Some((start, need + self.extend(start, wanted, churn, retries)));
                }
                Some(start) => {
                    *retries += 1;
                    at = start;
                }
                None if wrapped => {
                    // There may still be such a run in the slack.
                    if wanted.spare == Slack::NONE {
                        self.hints.record(hint, need, align);
                    }
                    return None;
                }
                None => (at, wrapped) = (0, true),
            }
        }
    }

    /// Claims a run of `wanted.need` blocks in the words `window`, but not what is spared.
    pub fn alloc_in(
        &self,
        window: Range<usize>,
        wanted: Wanted,
        churn: &Churn,
        retries: &mut u64,
    ) -> Option<(u32, u32)> {
        let Wanted { need, align, .. } = wanted;
        if self.hints.read().hopeless(need, align) {
            return None;
        }
        let word = |i| self.words.word(i) | wanted.spare.of_word(i);
        let (mut at, end) = (window.start as u32 * 64, window.end.min(self.words.len()));
        // Ends: each race lost is a block that somebody else has got.
        while let Some(start) = search::find(word, end, at, need, align) {
            if self.claim(start, need, churn, retries) {
                return Some((start, need));
            }
            *retries += 1;
            at = start;
        }
        None
    }

    /// Claims a run that starts exactly at `wanted.from`.
    pub fn alloc_at(&self, wanted: Wanted, churn: &Churn, retries: &mut u64) -> Option<u32> {
        let Wanted { from, need, want, align, .. } = wanted;
        if from % align != 0 {
            return None;
        }
        let word = |i| self.words.word(i) | wanted.spare.of_word(i);
        let run = search::run_at(word, self.words.len(), from, want);
        let len = whole_units(run, wanted);
        (len >= need && self.claim(from, len, churn, retries)).then_some(len)
    }

    /// Sets the bits of a run if all are free.
    pub fn claim(&self, start: u32, len: u32, churn: &Churn, retries: &mut u64) -> bool {
        if start / 64 == (start + len - 1) / 64 {
            return self.words.claim(start, len, retries) == Claim::Done;
        }
        churn.claiming.fetch_add(1, Ordering::SeqCst);
        let claim = self.words.claim(start, len, retries);
        if claim == Claim::RolledBack {
            self.hints.reset();
            churn.changed();
        }
        churn.claiming.fetch_sub(1, Ordering::SeqCst);
        claim == Claim::Done
    }

    /// Makes a claimed run longer; returns by how much.
    fn extend(&self, start: u32, wanted: Wanted, churn: &Churn, retries: &mut u64) -> u32 {
        let (end, more) = (start + wanted.need, wanted.want - wanted.need);
        if more == 0 {
            return 0;
        }
        let word = |i| self.words.word(i) | wanted.spare.of_word(i);
        let run = search::run_at(word, self.words.len(), end, more);
        let extra = whole_units(wanted.need + run, wanted).saturating_sub(wanted.need);
        if extra > 0 && self.claim(end, extra, churn, retries) { extra } else { 0 }
    }
}

/// A run shorter than wanted is cut to whole units of its alignment, so that it leaves no splinter
/// behind that the next aligned request cannot use.
fn whole_units(run: u32, wanted: Wanted) -> u32 {
    let cut = run - run % wanted.align;
    if run >= wanted.want || cut < wanted.need { run } else { cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Group {
        words: Words,
        hints: RunHints,
    }

    impl Group {
        fn frame(&self) -> Frame<'_> {
            Frame { words: &self.words, hints: &self.hints }
        }
    }

    fn group(free: &[(u32, u32)]) -> Group {
        let group = Group { words: Words::full(8), hints: RunHints::new() };
        for &(start, len) in free {
            assert!(group.words.clear(start, len));
        }
        group
    }

    fn wanted(from: u32, need: u32, want: u32, align: u32) -> Wanted {
        Wanted { from, need, want, align, spare: Slack::NONE }
    }

    fn alloc(group: &Group, w: Wanted) -> Option<(u32, u32)> {
        group.frame().alloc(w, &Churn::default(), &mut 0)
    }

    #[test]
    fn takes_the_first_fit_and_wraps_around() {
        let f = group(&[(10, 5), (100, 200)]);
        assert_eq!(alloc(&f, wanted(50, 4, 4, 4)), Some((100, 4)));
        assert_eq!(alloc(&f, wanted(400, 4, 4, 1)), Some((10, 4)));
        assert_eq!(alloc(&f, wanted(400, 150, 150, 1)), Some((104, 150)));
    }

    #[test]
    fn extends_to_what_is_wanted_in_whole_units() {
        let f = group(&[(100, 23)]);
        assert_eq!(alloc(&f, wanted(0, 4, 64, 4)), Some((100, 20)));
        let f = group(&[(100, 23)]);
        assert_eq!(alloc(&f, wanted(0, 4, 23, 4)), Some((100, 23)));
        let f = group(&[(100, 30)]);
        assert_eq!(alloc(&f, wanted(0, 4, 6, 4)), Some((100, 6)));
    }

    #[test]
    fn small_requests_fill_broken_units_first() {
        let f = group(&[(0, 64), (129, 3)]);
        assert_eq!(alloc(&f, wanted(0, 1, 1, 1)), Some((129, 1)));
        assert_eq!(alloc(&f, wanted(0, 2, 2, 1)), Some((130, 2)));
        assert_eq!(alloc(&f, wanted(0, 1, 1, 1)), Some((0, 1)));
        assert_eq!(alloc(&f, wanted(0, 4, 4, 4)), Some((4, 4)));
    }

    #[test]
    fn slack_is_spared_if_it_should_be() {
        let f = group(&[(200, 300)]);
        let spare = |w| Wanted { spare: Slack::for_pages(8), ..w };
        assert_eq!(alloc(&f, spare(wanted(0, 4, 64, 4))), Some((200, 24)));
        assert_eq!(alloc(&f, spare(wanted(0, 4, 64, 4))), Some((256, 64)));
        let at = |from| f.frame().alloc_at(spare(wanted(from, 4, 400, 4)), &Churn::default(), &mut 0);
        assert_eq!((at(224), at(320)), (None, Some(160)));
        assert_eq!(alloc(&f, spare(wanted(0, 4, 4, 4))), None);
        assert!(!f.hints.read().hopeless(4, 4), "there is the slack");
        assert_eq!(alloc(&f, wanted(0, 4, 64, 4)), Some((224, 32)));
    }

    #[test]
    fn a_window_is_not_left() {
        let f = group(&[(0, 4), (260, 4), (300, 8), (510, 2)]);
        let take = |window, need, align| {
            f.frame().alloc_in(window, wanted(0, need, need, align), &Churn::default(), &mut 0)
        };
        assert_eq!(take(4..8, 8, 4), Some((300, 8)));
        assert_eq!(take(4..8, 4, 4), Some((260, 4)));
        assert_eq!(take(4..8, 4, 4), None);
        assert_eq!(take(4..9, 2, 1), Some((510, 2)), "the group has eight words");
        assert_eq!(take(0..4, 4, 4), Some((0, 4)));
    }

    #[test]
    fn failed_searches_are_remembered_until_bits_clear() {
        let f = group(&[(1, 3), (9, 3)]);
        assert_eq!(alloc(&f, wanted(0, 4, 4, 4)), None);
        assert!(f.hints.read().hopeless(4, 4));
        assert!(f.hints.read().hopeless(8, 16), "larger and stricter fails too");
        assert!(!f.hints.read().hopeless(4, 1), "but not a looser one");
        assert!(!f.hints.read().hopeless(3, 4));
        assert!(f.words.clear(4, 5));
        f.frame().cleared();
        assert_eq!(alloc(&f, wanted(0, 4, 4, 4)), Some((4, 4)));
    }

    #[test]
    fn a_clear_during_the_search_voids_its_verdict() {
        let f = group(&[]);
        let before = f.hints.read();
        f.frame().cleared();
        f.hints.record(before, 1, 1);
        assert!(!f.hints.read().hopeless(32768, 64));
    }

    #[test]
    fn exact_claims() {
        let f = group(&[(100, 10)]);
        let churn = Churn::default();
        assert_eq!(f.frame().alloc_at(wanted(101, 1, 4, 4), &churn, &mut 0), None);
        assert_eq!(f.frame().alloc_at(wanted(96, 1, 4, 4), &churn, &mut 0), None);
        assert_eq!(f.frame().alloc_at(wanted(100, 4, 64, 4), &churn, &mut 0), Some(8));
        assert_eq!(f.frame().alloc_at(wanted(108, 1, 64, 1), &churn, &mut 0), Some(2));
        assert_eq!(f.frame().alloc_at(wanted(511, 1, 64, 1), &churn, &mut 0), None);
    }

    #[test]
    fn a_search_disturbed_by_others_is_not_trusted() {
        let churn = Churn::default();
        let mark = churn.mark();
        assert!(churn.quiet_since(mark));
        churn.claiming.fetch_add(1, Ordering::SeqCst);
        assert!(!churn.quiet_since(mark), "a claim that may be rolled back is under way");
        churn.claiming.fetch_sub(1, Ordering::SeqCst);
        assert!(churn.quiet_since(mark));

        let f = group(&[(60, 20)]);
        assert!(!f.frame().claim(50, 30, &churn, &mut 0));
        assert!(churn.quiet_since(mark), "nothing was changed");
        assert!(!f.frame().claim(60, 30, &churn, &mut 0));
        assert!(!churn.quiet_since(mark), "bits were set for a moment");
        let mark = churn.mark();
        assert!(f.frame().claim(60, 20, &churn, &mut 0));
        assert!(churn.quiet_since(mark), "a claim that succeeds takes nothing that a search could get");
    }

    #[test]
    fn slots_keep_state_and_pins_apart() {
        let slot = Slot::default();
        assert!(slot.pin().is_none());
        slot.set_kind(Kind::Loaded);
        slot.set_reserved(7);
        slot.set_excluded(true);
        let pin = slot.pin().unwrap();
        assert!(!slot.close(), "pinned");
        drop(pin);
        assert_eq!(slot.state().reserved(), Some(7));
        assert!(slot.state().off_limits() && !slot.state().room());
        slot.set_excluded(false);
        assert!(!slot.state().off_limits());
        assert!(slot.close());
        assert_eq!(slot.state().kind(), Kind::Full);
        assert_eq!(slot.state().reserved(), Some(7));
        assert!(slot.pin().is_none());
    }
}
