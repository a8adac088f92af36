//! What went wrong, in words.

use std::fmt;

/// A broken promise or a wrong answer.
#[derive(Clone, Debug)]
pub struct Failure {
    what: String,
    context: Vec<String>,
}

impl Failure {
    /// A failure described by `what`.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), context: Vec::new() }
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
