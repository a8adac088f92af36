//! What went wrong, in words.

use std::fmt;

/// A broken promise or a wrong answer.
#[derive(Clone, Debug)]
pub struct Failure {
    what: String,
    context: Vec<String>,
    refused: Option<i32>,
}

impl Failure {
    /// A failure described by `what`.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), context: Vec::new(), refused: None }
    }

    /// An operation that should have succeeded failed with `error`.
    pub fn refused(error: &fs_core::FsError) -> Self {
        let what = format!("failed with \"{error}\", should succeed");
        Self { what, context: Vec::new(), refused: Some(error.errno()) }
    }

    /// An operation failed with `got`, where `want` is the right error.
    pub fn refused_otherwise(got: &fs_core::FsError, want: &fs_core::FsError) -> Self {
        let what = format!("failed with \"{got}\", should with \"{want}\"");
        Self { what, context: Vec::new(), refused: Some(got.errno()) }
    }

    /// The kind of failure: its first words, without numbers. Two failures of different kinds are
    /// not the same bug.
    pub fn kind(&self) -> String {
        self.what.chars().filter(|c| !c.is_ascii_digit()).take(50).collect()
    }

    /// The errno, if an operation failed in a way that a failing device explains; the file system told the
    /// truth then.
    pub fn device_refusal(&self) -> Option<i32> {
        self.refused.filter(|e| [libc::EIO, libc::ENOSPC, libc::EROFS].contains(e))
    }

    /// Adds where it happened (outermost last).
    pub fn within(mut self, context: impl Into<String>) -> Self {
        self.context.push(context.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        self.context.iter().try_for_each(|c| write!(f, "\n  in {c}"))
    }
}

impl std::error::Error for Failure {}

/// Returns early with a [`Failure`] made of a format string.
#[macro_export]
macro_rules! fail_with {
    ($($arg:tt)*) => {
        return Err($crate::run::Failure::new(format!($($arg)*)))
    };
}
