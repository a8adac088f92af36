//! What a file is to a database, by how it is written.
//!
//! Names say little (`pg_wal`, `#ib_redo`, `*-wal`, `binlog.*`, or whatever the administrator likes); the
//! pattern of writing is what a log is. The rule: a *log* is written in sequence and synced again and
//! again; *data* is written in whole blocks here and there.
//!
//! * A write that begins where the one before ended, or rewrites the end of it (PostgreSQL writes its
//!   last WAL page again with each commit), goes on. Any other write jumps.
//! * A sync after few bytes that went on and got further speaks for a log. A sync that only rewrote, or
//!   that follows many bytes (a table that is loaded, a file that is copied), says nothing.
//! * A jump to whole blocks speaks for data: PostgreSQL's and InnoDB's pages, SQLite's checkpoints.
//! * A log that starts over (InnoDB's redo log, SQLite's WAL) or rewrites its head jumps now and then;
//!   many syncs stand against it. So evidence is counted, and a class is left only when it turns.

use std::sync::atomic::{AtomicI8, AtomicU8, AtomicU64, Ordering};

use super::FileClass;
use crate::types::BLOCK_SIZE;

/// Evidence that makes a class.
const ENOUGH: i8 = 3;
/// Evidence counts up to this, so that a file that is used otherwise changes its class in time.
const MOST: i8 = 12;
/// A sync after more bytes than this is no commit.
const MAX_COMMIT: u64 = 4 << 20;

/// How a file has been written while it was in memory. Threads that write at the same time may spoil
/// each other's evidence, and nothing else: all of it is a hint.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Where the last write ended.
    end: AtomicU64,
    /// The bytes by which writes got further since the last sync.
    progress: AtomicU64,
    /// There was a jump since the last sync.
    jumped: AtomicU8,
    /// Above zero for a log, below for data.
    evidence: AtomicI8,
    class: AtomicU8,
}

impl Usage {
    /// The class.
    pub(crate) fn class(&self) -> FileClass {
        FileClass::from_index(self.class.load(Ordering::Relaxed))
    }

    /// Notes a write of `len` bytes at `offset`.
    pub(crate) fn note_write(&self, offset: u64, len: u64) {
        let last = self.end.load(Ordering::Relaxed);
        let end = offset.saturating_add(len);
        self.end.store(end, Ordering::Relaxed);
        let goes_on = offset <= last && end >= last && last - offset <= len;
        if goes_on {
            let more = self.progress.load(Ordering::Relaxed).saturating_add(end - last);
            self.progress.store(more, Ordering::Relaxed);
            return;
        }
        self.jumped.store(1, Ordering::Relaxed);
        let block = BLOCK_SIZE as u64;
        if offset.is_multiple_of(block) && len.is_multiple_of(block) {
            self.count(-1);
        }
    }

    /// Notes that what was written has been synced.
    pub(crate) fn note_sync(&self) {
        let progress = self.progress.swap(0, Ordering::Relaxed);
        let jumped = self.jumped.swap(0, Ordering::Relaxed) != 0;
        if !jumped && (1..=MAX_COMMIT).contains(&progress) {
            self.count(1);
        }
    }

    fn count(&self, evidence: i8) {
        let sum = (self.evidence.load(Ordering::Relaxed) + evidence).clamp(-MOST, MOST);
        self.evidence.store(sum, Ordering::Relaxed);
        if sum.abs() >= ENOUGH {
            let class = if sum > 0 { FileClass::Log } else { FileClass::Data };
            self.class.store(class as u8, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(f: impl FnOnce(&Usage)) -> FileClass {
        let usage = Usage::default();
        assert_eq!(usage.class(), FileClass::Other);
        f(&usage);
        usage.class()
    }

    /// The last page is written again until it is full.
    #[test]
    fn a_postgres_wal_is_a_log() {
        let wal = after(|u| {
            let mut used = 0;
            for commit in 0..100u64 {
                let page = used / 8192 * 8192;
                used += 300 + commit * 7;
                u.note_write(page, used.next_multiple_of(8192) - page);
                u.note_sync();
            }
        });
        assert_eq!(wal, FileClass::Log);
    }

    #[test]
    fn a_redo_log_that_wraps_around_stays_a_log() {
        let redo = after(|u| {
            for round in 0..3u64 {
                for commit in 0..50u64 {
                    u.note_write(2048 + commit * 1024, 1024);
                    u.note_sync();
                    if commit % 20 == 0 {
                        u.note_write(512 * (1 + round % 2), 512); // its checkpoint
                    }
                }
            }
        });
        assert_eq!(redo, FileClass::Log);
    }

    #[test]
    fn a_sqlite_wal_is_a_log_and_its_database_is_data() {
        let wal = after(|u| {
            for _ in 0..4 {
                u.note_write(0, 32);
                let mut at = 32;
                for _ in 0..30 {
                    for _ in 0..3 {
                        u.note_write(at, 24);
                        u.note_write(at + 24, 4096);
                        at += 4120;
                    }
                    u.note_sync();
                }
            }
        });
        assert_eq!(wal, FileClass::Log);
        let database = after(|u| {
            for page in [0, 7, 3, 9, 0, 5] {
                u.note_write(page * 4096, 4096);
            }
            u.note_sync();
        });
        assert_eq!(database, FileClass::Data);
    }

    #[test]
    fn pages_written_in_order_with_gaps_are_data() {
        let table = after(|u| {
            for page in (0..1000u64).step_by(3) {
                u.note_write(page * 8192, 8192);
            }
            u.note_sync();
        });
        assert_eq!(table, FileClass::Data);
    }

    #[test]
    fn loading_and_rewriting_in_place_is_neither() {
        let loaded = after(|u| {
            for round in 0..10u64 {
                for i in 0..1000 {
                    u.note_write((round * 1000 + i) * 8192, 8192);
                }
                u.note_sync();
            }
        });
        assert_eq!(loaded, FileClass::Other);
        let control = after(|u| {
            for _ in 0..100 {
                u.note_write(0, 8192);
                u.note_sync();
            }
        });
        assert_eq!(control, FileClass::Other);
    }

    #[test]
    fn a_file_that_is_used_otherwise_changes_its_class() {
        let usage = Usage::default();
        for i in 0..1000 {
            usage.note_write(i * 512, 512);
            usage.note_sync();
        }
        assert_eq!(usage.class(), FileClass::Log);
        for i in 0..50 {
            usage.note_write(i * 7 % 50 * 16384, 16384);
        }
        assert_eq!(usage.class(), FileClass::Data);
    }

    #[test]
    fn offsets_at_the_end_of_all_numbers_do_no_harm() {
        let usage = Usage::default();
        usage.note_write(u64::MAX - 1, u64::MAX);
        usage.note_write(0, u64::MAX);
        usage.note_write(u64::MAX, 0);
        usage.note_sync();
    }
}
