//! Rules broken on purpose, so that tests can prove that they would notice.
//!
//! Without the feature `mutants` (and outside unit tests) [`active`] is constantly false and the
//! broken branches are compiled away.

/// A rule that a test build can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutant {
    /// R1: a freed block is free at once, not when the freeing record is known to be durable.
    ReuseBeforePublish = 1,
    /// R2: blocks are allocated in groups that this epoch has not reserved.
    AllocOutsideReservation = 2,
    /// R1: blocks of failed writes are handed out again.
    SkipQuarantine = 3,
    /// Allocation bits are set by a load and a store instead of a compare-and-swap.
    NonAtomicClaim = 4,
    /// R4: fsync does not flush.
    NoFlushOnCommit = 10,
    /// R4: the flush comes before the record it must cover.
    FlushBeforeRecord = 11,
    /// R5: a record claims that it is durable itself.
    DurableLsnTooHigh = 12,
    /// R7: a checkpoint does not wait until its LSN is durable.
    CheckpointBeforeDurable = 13,
    /// R7: the new tree is not flushed before the root that leads to it.
    NoFlushBeforeRoot = 14,
    /// R7: the root is not flushed before the old tree is given up.
    NoFlushAfterRoot = 15,
    /// Root slots: always the same slot is overwritten.
    RootInPlace = 16,
    /// R7: the journal is dropped one checkpoint too early.
    DropJournalEarly = 17,
    /// R7: nodes of the old tree are free as soon as the new root is written.
    ReuseNodesEarly = 18,
    /// R7: what recovery read is not flushed before it is served.
    NoFlushAfterRecovery = 19,
    /// R2: an epoch starts without its first record.
    NoEpochRecord = 20,
    /// C7: data is not verified.
    SkipDataChecksum = 21,
    /// Blocks that were overwritten are not freed.
    LeakOldBlocks = 22,
    /// R8: writeback does not hold the pages' lock.
    WritebackWithoutLock = 23,
    /// R8: inline data is not written home before the journal moves on.
    SkipHoming = 24,
    /// C1: fsync does not write dirty pages.
    FsyncSkipsData = 25,
    /// C1: fsync does not commit.
    FsyncSkipsCommit = 26,
    /// R2: a take-over allocates in groups that the old epoch may still write to.
    IgnoreOldReservations = 27,
    /// R2: reserved groups are used before the reservation is durable.
    UseUnflushedReservation = 28,
    /// R5: a journal that is damaged below its durable LSN is cut there.
    CutAtDamage = 29,
    /// R5: durable LSNs in records behind the damage are not looked for.
    IgnoreLaterRecords = 30,
    /// R5: any valid later record makes a torn tail corruption.
    LaterRecordIsProof = 31,
    /// R5: a read error during recovery is taken for the journal's end.
    ReadErrorIsTornTail = 32,
    /// R5: the data that the last records map is not verified in recovery.
    SkipRecoveredData = 33,
    /// C7: the checksum of journal records is not verified.
    SkipRecordChecksum = 34,
    /// R2: records need not follow each other.
    SkipPreviousChecksum = 35,
    /// C7: the checksum of tree nodes is not verified.
    SkipNodeChecksum = 36,
    /// R7: the checksum of root slots is not verified.
    SkipSlotChecksum = 37,
    /// R6: a failed flush is taken for a good one.
    IgnoreFlushFailure = 38,
    /// R6: a failed journal write is taken for a good one.
    IgnoreRecordFailure = 39,
    /// R6: pages count as clean before their write has succeeded.
    CleanBeforeWrite = 40,
    /// R8: a direct write leaves older bytes of the page in the cache, to be written home later.
    KeepSupersededFrames = 41,
    /// C1: bytes behind a truncated file's end are not zeroed.
    KeepTruncatedTail = 42,
    /// C3: the last unlink does not note that the inode has to be freed.
    UnlinkWithoutOrphan = 43,
    /// C3: a rename is two records.
    RenameInTwoSteps = 44,
    /// Inode numbers that only the journal names are given out again after a crash.
    ReuseInodeNumbers = 45,
    /// C2: a direct write takes effect page by page.
    SplitDirectWrite = 46,
    /// C1: O_DSYNC is ignored.
    IgnoreDsync = 47,
    /// R4: unflushed data is not bounded.
    UnboundedUnflushed = 48,
    /// R2: the root with the most checkpoints wins, not the one of the highest epoch.
    OldEpochWins = 49,
    /// R1: what a follower has a claim on is used again.
    IgnoreClaims = 50,
    /// C3: an extended attribute and its inode change in two records.
    XattrInTwoSteps = 60,
    /// A deleted inode's extended attributes stay.
    KeepXattrs = 61,
    /// A program's privileges survive a change of its content.
    KeepCapability = 62,
    /// C3: a file without a name is not noted as one that has to be freed.
    TmpfileWithoutOrphan = 63,
    /// C3: the first name of a file and its leaving the list of orphans are two records.
    FirstNameInTwoSteps = 64,
    /// R4: data that flies with its record is not waited for before the flush.
    AckBeforeData = 65,
    /// R4: the flush is submitted before the data that it must cover has completed.
    FlushBeforeData = 66,
    /// R6: data that failed in flight stays mapped.
    KeepLostMapping = 67,
    /// R6: what follows lost data is acknowledged before the device says that its superseding record is
    /// durable.
    AckBeforePublish = 68,
    /// R1: old blocks that a file has got back come free all the same.
    LeaveRecalledInLimbo = 69,
    /// R6: a page flies although bytes of its old content are in the journal only.
    FlyOverJournal = 70,
    /// R8: pages are let go while their data is in flight.
    LandWithoutPages = 71,
    /// R7: a grown volume's new blocks are used when one of the two root slots has the new size.
    UseSpaceOfOneRoot = 72,
    /// R4: FUA writes are acknowledged without a flush although something earlier is unflushed.
    FuaOverUnflushed = 73,
    /// R6: dirty pages of a sync count as clean while their data is in flight.
    CleanInFlight = 74,
    /// C1: of the pages of a large sync only those in flight are written.
    SyncLastStepOnly = 75,
}

impl Mutant {
    /// All of them.
    pub const ALL: &[Mutant] = &[
        Mutant::ReuseBeforePublish,
        Mutant::AllocOutsideReservation,
        Mutant::SkipQuarantine,
        Mutant::NonAtomicClaim,
        Mutant::NoFlushOnCommit,
        Mutant::FlushBeforeRecord,
        Mutant::DurableLsnTooHigh,
        Mutant::CheckpointBeforeDurable,
        Mutant::NoFlushBeforeRoot,
        Mutant::NoFlushAfterRoot,
        Mutant::RootInPlace,
        Mutant::DropJournalEarly,
        Mutant::ReuseNodesEarly,
        Mutant::NoFlushAfterRecovery,
        Mutant::NoEpochRecord,
        Mutant::SkipDataChecksum,
        Mutant::LeakOldBlocks,
        Mutant::WritebackWithoutLock,
        Mutant::SkipHoming,
        Mutant::FsyncSkipsData,
        Mutant::FsyncSkipsCommit,
        Mutant::IgnoreOldReservations,
        Mutant::UseUnflushedReservation,
        Mutant::CutAtDamage,
        Mutant::IgnoreLaterRecords,
        Mutant::LaterRecordIsProof,
        Mutant::ReadErrorIsTornTail,
        Mutant::SkipRecoveredData,
        Mutant::SkipRecordChecksum,
        Mutant::SkipPreviousChecksum,
        Mutant::SkipNodeChecksum,
        Mutant::SkipSlotChecksum,
        Mutant::IgnoreFlushFailure,
        Mutant::IgnoreRecordFailure,
        Mutant::CleanBeforeWrite,
        Mutant::KeepSupersededFrames,
        Mutant::KeepTruncatedTail,
        Mutant::UnlinkWithoutOrphan,
        Mutant::RenameInTwoSteps,
        Mutant::ReuseInodeNumbers,
        Mutant::SplitDirectWrite,
        Mutant::IgnoreDsync,
        Mutant::UnboundedUnflushed,
        Mutant::OldEpochWins,
        Mutant::IgnoreClaims,
        Mutant::XattrInTwoSteps,
        Mutant::KeepXattrs,
        Mutant::KeepCapability,
        Mutant::TmpfileWithoutOrphan,
        Mutant::FirstNameInTwoSteps,
        Mutant::AckBeforeData,
        Mutant::FlushBeforeData,
        Mutant::KeepLostMapping,
        Mutant::AckBeforePublish,
        Mutant::LeaveRecalledInLimbo,
        Mutant::FlyOverJournal,
        Mutant::LandWithoutPages,
        Mutant::UseSpaceOfOneRoot,
        Mutant::FuaOverUnflushed,
        Mutant::CleanInFlight,
        Mutant::SyncLastStepOnly,
    ];

    /// The mutant of this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|m| *m as u8 == number)
    }
}

#[cfg(any(test, feature = "mutants"))]
mod registry {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Mutant;

    static ACTIVE: AtomicU8 = AtomicU8::new(0);

    /// Breaks one rule in the whole process, or none.
    pub fn set(mutant: Option<Mutant>) {
        ACTIVE.store(mutant.map_or(0, |m| m as u8), Ordering::SeqCst);
    }

    #[cfg(test)]
    thread_local! {
        static LOCAL: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
    }

    /// Runs `f` with a rule broken on this thread only, so that unit tests can run side by side.
    #[cfg(test)]
    pub fn with<T>(mutant: Mutant, f: impl FnOnce() -> T) -> T {
        struct Restore(Option<Mutant>);
        impl Drop for Restore {
            fn drop(&mut self) {
                LOCAL.set(self.0);
            }
        }
        let _restore = Restore(LOCAL.replace(Some(mutant)));
        f()
    }

    /// Is this rule broken?
    pub fn active(mutant: Mutant) -> bool {
        #[cfg(test)]
        if LOCAL.get() == Some(mutant) {
            return true;
        }
        ACTIVE.load(Ordering::Relaxed) == mutant as u8
    }
}

#[cfg(test)]
pub use registry::with;
#[cfg(any(test, feature = "mutants"))]
pub use registry::{active, set};

/// Is this rule broken? Never, in this build.
#[cfg(not(any(test, feature = "mutants")))]
#[inline(always)]
pub const fn active(_mutant: Mutant) -> bool {
    false
}
