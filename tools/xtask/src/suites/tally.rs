//! Counting what passed and what failed.

use std::fmt;

use anyhow::Result;

/// The error of a run whose failures have been shown already: nothing may follow its closing line.
#[derive(Debug)]
pub struct Reported;

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not all tests passed")
    }
}

impl std::error::Error for Reported {}

/// Counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    /// Counts known from elsewhere.
    pub fn new(passed: u64, failed: u64) -> Self {
        Self { passed, failed }
    }

    /// Adds the counts of another part.
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Runs one named check, prints and counts its outcome, and hands an error on.
    pub fn step<T>(&mut self, name: &str, check: impl FnOnce() -> Result<T>) -> Result<T> {
        let outcome = check();
        match &outcome {
            Ok(_) => {
                self.passed += 1;
                println!("test {name} ... ok");
            }
            // Counted where the error ends up: whoever catches it calls `fail`.
            Err(_) => println!("test {name} ... FAILED"),
        }
        outcome
    }

    /// Counts a failure and shows its reason.
    pub fn fail(&mut self, name: &str, error: &anyhow::Error) {
        self.failed += 1;
        println!("FAILED: {name}: {error:#}");
    }

    /// The number of failures.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// The number of checks that passed.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Prints the closing line, the last of all; an error if anything failed, or nothing was tested.
    pub fn finish(self) -> Result<()> {
        println!("{self}");
        if self.failed > 0 || self.passed == 0 {
            return Err(Reported.into());
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn failures_and_emptiness_end_in_an_error() {
        assert!(Tally::new(3, 0).finish().is_ok());
        assert!(Tally::new(3, 1).finish().is_err());
        assert!(Tally::default().finish().is_err());
    }

    #[test]
    fn a_failing_step_is_not_counted_twice() {
        let mut tally = Tally::default();
        let error = tally.step("x", || -> Result<()> { bail!("no") }).unwrap_err();
        tally.fail("suite", &error);
        assert_eq!(tally, Tally::new(0, 1));
    }
}
