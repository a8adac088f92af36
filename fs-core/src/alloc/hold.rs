//! Who may use how much of the free space.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// What space is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// New data of users: must leave the reserve alone.
    User,
    /// New blocks for data that has some: the old ones come back, so it must not fail on a full volume
    /// (contract C9). May use two thirds of the reserve: on the smallest volumes half of it has no room for the largest
    /// atomic overwrite beside what was set aside for its own nodes and for those of the next checkpoint.
    Overwrite,
    /// What everything else depends on: metadata and deleting. May use all of the reserve.
    Essential,
}

/// The counters of free space, in blocks.
///
/// `avail` goes down before bits are searched and goes up after bits are cleared, so whoever has
/// got a claim finds as many clear bits.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// Free blocks, wherever they are.
    free: AtomicI64,
    /// Free blocks in groups for users that nobody has claimed. Less than 0 when groups were put off
    /// limits with claims outstanding.
    avail: AtomicI64,
    /// Claimed by living holds.
    held: AtomicI64,
    /// What users must leave.
    reserve: i64,
}

impl Space {
    pub fn new(reserve: u64) -> Self {
        Self { reserve: clamp(reserve), ..Self::default() }
    }

    pub fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed).max(0) as u64
    }

    /// Claimable for `purpose`.
    pub fn available(&self, purpose: Purpose) -> u64 {
        (self.avail.load(Ordering::Relaxed) - self.floor(purpose)).max(0) as u64
    }

    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed).max(0) as u64
    }

    fn floor(&self, purpose: Purpose) -> i64 {
        match purpose {
            Purpose::User => self.reserve,
            Purpose::Overwrite => self.reserve / 3,
            Purpose::Essential => 0,
        }
    }

    /// Claims `want` blocks, or what there is if that is at least `min`.
    pub fn claim(&self, min: u64, want: u64, purpose: Purpose) -> Option<u64> {
        let floor = self.floor(purpose);
        let mut avail = self.avail.load(Ordering::SeqCst);
        loop {
            let n = clamp(want).min(avail - floor);
            if n < clamp(min) {
                return None;
            }
            match self.avail.compare_exchange_weak(avail, avail - n, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Some(n as u64),
                Err(now) => avail = now,
            }
        }
    }

    /// Takes back a claim, or makes blocks claimable whose bits are clear by now.
    pub fn give(&self, blocks: u64) {
        self.avail.fetch_add(clamp(blocks), Ordering::SeqCst);
    }

    /// Makes blocks unclaimable that went off limits.
    pub fn withdraw(&self, blocks: u64) {
        self.avail.fetch_sub(clamp(blocks), Ordering::SeqCst);
    }

    /// Blocks became free.
    pub fn freed(&self, blocks: u64) {
        self.free.fetch_add(clamp(blocks), Ordering::Relaxed);
    }

    /// Free blocks were allocated.
    pub fn used(&self, blocks: u64) {
        self.free.fetch_sub(clamp(blocks), Ordering::Relaxed);
    }
}

/// Volumes are bounded far below this (2^48 blocks); callers' numbers need not be.
fn clamp(blocks: u64) -> i64 {
    blocks.min(1 << 60) as i64
}

/// Space claimed ahead of an operation, so that it cannot fail for lack of space once it is
/// acknowledged. What is not used goes back when the hold is dropped.
#[derive(Debug)]
pub struct Hold {
    space: Arc<Space>,
    blocks: u64,
}

impl Hold {
    /// Claims `blocks`; `None` if there are not as many for this purpose.
    pub(super) fn claim(space: &Arc<Space>, blocks: u64, purpose: Purpose) -> Option<Self> {
        if blocks > 0 {
            space.claim(blocks, blocks, purpose)?;
        }
        space.held.fetch_add(clamp(blocks), Ordering::Relaxed);
        Some(Self { space: space.clone(), blocks })
    }

    /// Blocks still held.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Moves `blocks` of the claim into a hold of their own; `None` if there are not as many.
    pub fn take(&mut self, blocks: u64) -> Option<Hold> {
        self.blocks = self.blocks.checked_sub(blocks)?;
        Some(Self { space: self.space.clone(), blocks })
    }

    /// Adds another hold on the same volume to this one.
    pub fn merge(&mut self, mut other: Hold) {
        if Arc::ptr_eq(&self.space, &other.space) {
            self.blocks += std::mem::take(&mut other.blocks);
        }
    }

    /// Gives part of the claim back; all of it if `blocks` is more.
    pub fn give_back(&mut self, blocks: u64) {
        let blocks = blocks.min(self.blocks);
        self.consume(blocks);
        self.space.give(blocks);
    }

    /// Blocks that were allocated from the claim belong to it again: their bits are clear by now.
    pub(super) fn restore(&mut self, blocks: u64) {
        self.blocks += blocks;
        self.space.held.fetch_add(clamp(blocks), Ordering::Relaxed);
    }

    /// The claim was turned into allocated blocks. `blocks` is not more than what is held.
    pub(super) fn consume(&mut self, blocks: u64) {
        self.blocks -= blocks;
        self.space.held.fetch_sub(clamp(blocks), Ordering::Relaxed);
    }

    pub(super) fn is_on(&self, space: &Arc<Space>) -> bool {
        Arc::ptr_eq(&self.space, space)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.give_back(self.blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_respect_the_reserve() {
        let space = Arc::new(Space::new(9));
        space.give(99);
        assert_eq!(space.available(Purpose::User), 90);
        assert!(Hold::claim(&space, 91, Purpose::User).is_none());
        let user = Hold::claim(&space, 90, Purpose::User).unwrap();
        assert_eq!(space.claim(1, 4, Purpose::User), None);
        assert_eq!(space.claim(1, 40, Purpose::Overwrite), Some(6));
        assert_eq!(space.claim(1, 4, Purpose::Overwrite), None);
        assert_eq!(space.claim(1, 40, Purpose::Essential), Some(3));
        assert_eq!(space.claim(1, 1, Purpose::Essential), None);
        assert_eq!(space.held(), 90);
        drop(user);
        assert_eq!((space.held(), space.available(Purpose::User)), (0, 81));
        assert!(Hold::claim(&space, u64::MAX, Purpose::Essential).is_none());
    }

    #[test]
    fn holds_split_merge_and_return_the_rest() {
        let space = Arc::new(Space::new(0));
        space.give(100);
        let mut a = Hold::claim(&space, 50, Purpose::User).unwrap();
        let b = a.take(20).unwrap();
        assert!(a.take(31).is_none());
        assert_eq!((a.blocks(), b.blocks(), space.held()), (30, 20, 50));
        a.merge(b);
        a.consume(5);
        a.give_back(10);
        assert_eq!((a.blocks(), space.held(), space.available(Purpose::User)), (35, 35, 60));
        drop(a);
        assert_eq!((space.held(), space.available(Purpose::User)), (0, 95));
    }
}
