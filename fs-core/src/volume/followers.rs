//! Followers' claims on freed blocks (rule R1).
//!
//! A node that follows reads the volume as of an earlier moment: a root, and the records behind it that it
//! has applied. What was freed since is not used again as long as the follower has a claim. But nobody
//! waits for a follower (contract C9): it loses its claim when the volume has no space left, or when too
//! much has been freed behind it, and starts again from a root.
//!
//! The journal is not kept for followers: one that is behind by the whole ring starts again, too. A claim
//! ends with the epoch; the follower claims again from the next one. What it reads without a claim may
//! have been overwritten, which the checksums tell.
//!
//! Lock order: the table is a leaf but for the allocator's lock.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::Volume;
use crate::alloc::Allocator;
use crate::error::Result;
use crate::mutants::{self, Mutant};
use crate::types::Lsn;

/// What followers may keep from being used again is at most this part of the volume, ...
const PINNED_PART: u64 = 16;
/// ... at most so many blocks (4 GiB), ...
const PINNED_BLOCKS: u64 = 1 << 20;
/// ... and at most so many runs, for each takes memory.
const PINNED_RUNS: u64 = 1 << 18;

/// How far a follower has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerPosition {
    /// It has applied the records up to here, and reads nothing that they have freed.
    pub applied: Lsn,
    /// It reads the root of the checkpoint of this LSN, or a later one, and none before it.
    pub root: Lsn,
}

/// Why a follower has to start again from a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimLost {
    /// The volume had no other space left.
    #[error(
        "the follower has lost its claim: the volume is full and needs the blocks that were freed behind it"
    )]
    Space,
    /// It was too far behind.
    #[error("the follower has lost its claim: too many blocks have been freed behind it")]
    Behind,
}

#[derive(Debug, Default)]
struct Table {
    claims: BTreeMap<u64, Claim>,
    next: u64,
    /// What was freed up to here may have been used again.
    published: Lsn,
    /// The newest root's checkpoint.
    root: Lsn,
}

#[derive(Debug)]
struct Claim {
    name: String,
    at: FollowerPosition,
    lost: Option<ClaimLost>,
}

impl Table {
    fn holding(&self) -> impl Iterator<Item = &Claim> {
        self.claims.values().filter(|c| c.lost.is_none())
    }

    /// What the slowest follower has applied.
    fn applied(&self) -> Option<Lsn> {
        self.holding().map(|c| c.at.applied).min()
    }

    /// Takes the claims that `which` says; returns how many.
    fn revoke(&mut self, reason: ClaimLost, which: impl Fn(&FollowerPosition) -> bool) -> u64 {
        let mut revoked = 0;
        for claim in self.claims.values_mut().filter(|c| c.lost.is_none() && which(&c.at)) {
            claim.lost = Some(reason);
            revoked += 1;
            tracing::warn!(
                follower = claim.name,
                applied = claim.at.applied.0,
                published = self.published.0,
                %reason,
                "a follower has to start again"
            );
        }
        revoked
    }
}

/// The claims of a volume.
#[derive(Debug, Default)]
pub(crate) struct Followers(Arc<Mutex<Table>>);

impl Followers {
    /// Before anything is served, with the LSN and root that the epoch starts from.
    pub(super) fn new(published: Lsn, root: Lsn) -> Self {
        Self(Arc::new(Mutex::new(Table { published, root, ..Table::default() })))
    }

    /// Lets go of what was freed up to `durable` and no follower needs. Returns how many claims were
    /// revoked, because they kept too much.
    pub(super) fn publish(&self, alloc: &Allocator, durable: Lsn) -> Result<u64> {
        let most = (alloc.geometry().total_blocks / PINNED_PART).min(PINNED_BLOCKS);
        let mut revoked = 0;
        loop {
            let applied = {
                let mut table = self.0.lock();
                table.published = table.published.max(durable);
                let applied = table.applied().filter(|_| !mutants::active(Mutant::IgnoreClaims));
                alloc.set_followers(applied);
                applied
            };
            alloc.publish(durable)?;
            let Some(slowest) = applied else { return Ok(revoked) };
            let (blocks, runs) = alloc.waiting_for_followers();
            if blocks <= most && runs <= PINNED_RUNS {
                return Ok(revoked);
            }
            revoked += self.0.lock().revoke(ClaimLost::Behind, |at| at.applied <= slowest);
        }
    }

    /// Takes the claims of all who keep anything from being used again, for lack of space; how many.
    pub(super) fn revoke(&self) -> u64 {
        let mut table = self.0.lock();
        let (published, root) = (table.published, table.root);
        table.revoke(ClaimLost::Space, |at| at.applied < published || at.root < root)
    }

    /// A new root is durable, of the checkpoint `root`. Returns the oldest one that may still be read: nodes
    /// that it or an earlier one has replaced are free to go. `waiting` is how many blocks of nodes are not
    /// free yet, of `total_blocks`; also returns how many claims were revoked because these are too many.
    pub(super) fn new_root(&self, root: Lsn, waiting: u64, total_blocks: u64) -> (Lsn, u64) {
        let mut table = self.0.lock();
        table.root = root;
        let mut revoked = 0;
        if waiting > total_blocks / PINNED_PART {
            revoked = table.revoke(ClaimLost::Behind, |at| at.root < root);
        }
        let oldest = table.holding().map(|c| c.at.root).min();
        (oldest.filter(|_| !mutants::active(Mutant::IgnoreClaims)).map_or(root, |o| o.min(root)), revoked)
    }
}

/// A follower's claim: until it is dropped or lost, nothing that the follower may read is used again.
pub struct FollowerClaim {
    table: Arc<Mutex<Table>>,
    id: u64,
    start: FollowerPosition,
}

impl FollowerClaim {
    /// Where the follower starts: at the root of this checkpoint, and it serves nobody before it has
    /// applied the records up to `applied`, for what they have freed may be in use again.
    pub fn start(&self) -> FollowerPosition {
        self.start
    }

    /// The follower has come so far, and no read of anything older is under way. Never goes back. Never
    /// blocks. Errors: the claim is lost, and nothing that the follower has read since its last successful
    /// call is to be relied on but by its checksums.
    pub fn advance(&self, to: FollowerPosition) -> std::result::Result<(), ClaimLost> {
        let mut table = self.table.lock();
        let Some(claim) = table.claims.get_mut(&self.id) else { return Ok(()) };
        claim.at.applied = claim.at.applied.max(to.applied);
        claim.at.root = claim.at.root.max(to.root);
        claim.lost.map_or(Ok(()), Err)
    }

    /// Why the claim is lost, if it is.
    pub fn lost(&self) -> Option<ClaimLost> {
        self.table.lock().claims.get(&self.id).and_then(|c| c.lost)
    }
}

impl Drop for FollowerClaim {
    fn drop(&mut self) {
        self.table.lock().claims.remove(&self.id);
    }
}

impl fmt::Debug for FollowerClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FollowerClaim").field("id", &self.id).field("lost", &self.lost()).finish()
    }
}

impl Volume {
    /// A claim for a follower that starts now; `name` is for messages. Never blocks. Errors: EROFS on a
    /// volume that is not open for writing.
    pub fn claim_for_follower(&self, name: &str) -> Result<FollowerClaim> {
        self.check_writable()?;
        let followers = &self.space.followers.0;
        let mut table = followers.lock();
        let start = FollowerPosition { applied: table.published.max(table.root), root: table.root };
        let id = table.next;
        table.next += 1;
        table.claims.insert(id, Claim { name: name.to_owned(), at: start, lost: None });
        drop(table);
        Ok(FollowerClaim { table: followers.clone(), id, start })
    }

    /// Lets go of what was freed up to `durable`, which a flushed record or slot carries, as far as no
    /// follower needs it.
    pub(super) fn publish_frees(&self, durable: Lsn) {
        let revoked = self.space.publish(durable);
        self.counters.claims_revoked.fetch_add(revoked, Ordering::Relaxed);
    }

    /// Takes the claims of followers that keep anything from being used again. Called when there is no space
    /// left although everything was committed and published. What they have kept in limbo is free then; the
    /// nodes they have kept are with the next checkpoint.
    pub(crate) fn revoke_claims(&self) {
        let revoked = self.space.followers.revoke();
        if revoked > 0 {
            self.counters.claims_revoked.fetch_add(revoked, Ordering::Relaxed);
            self.publish_frees(self.commit.published());
        }
    }
}
