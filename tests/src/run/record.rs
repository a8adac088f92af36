//! What is remembered of every operation, to judge a crash by.

use std::ops::Range;

use fs_core::Ino;

use crate::ops::Op;

/// What an operation that returned has promised to survive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Nothing.
    None,
    /// Data of this file, and with `times` its attributes; and all earlier changes of names.
    File {
        /// The file (number in the model).
        ino: Ino,
        /// fsync, not fdatasync.
        times: bool,
    },
    /// These bytes of this file, and all earlier changes of names.
    Range {
        /// The file (number in the model).
        ino: Ino,
        /// The bytes.
        range: Range<u64>,
        /// O_SYNC, not O_DSYNC.
        times: bool,
    },
    /// Everything.
    All,
}

/// A write call, successful or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file (number in the model).
    pub ino: Ino,
    /// The bytes.
    pub range: Range<u64>,
    /// It is all or nothing.
    pub atomic: bool,
}

/// One operation that ran.
#[derive(Clone, Debug)]
pub struct Record {
    /// The operation.
    pub op: Op,
    /// Device events before it started.
    pub before: u64,
    /// Device events when it returned.
    pub after: u64,
    /// What it promised.
    pub promise: Promise,
    /// It was a write.
    pub written: Option<Written>,
}
