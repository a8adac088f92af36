//! When to cut.

use std::fmt;
use std::ops::Range;

use anyhow::{Result, bail};
use blockdev::recorder::{Log, RecordKind};

use crate::rng::Rng;

/// The marks that the engine sets around its checkpoints.
const BEGIN: &str = "checkpoint begin";
const END: &str = "checkpoint end";

/// A cut: records below it have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Sequence number.
    pub cut: u64,
    /// A checkpoint was under way.
    pub in_checkpoint: bool,
}

/// The moments that a recording offers.
#[derive(Debug, PartialEq, Eq)]
pub struct Moments {
    all: Range<u64>,
    checkpoints: Vec<Range<u64>>,
}

impl Moments {
    /// Reads a log; only what is at or after record `from` counts.
    pub fn read(log: &Log, from: u64) -> Result<Self> {
        let mut finder = Finder { from, ..Finder::default() };
        for record in log.iter() {
            match record.kind {
                RecordKind::Mark => finder.mark(record.seq, &log.name(&record)?),
                _ => finder.end = record.seq + 1,
            }
        }
        finder.finish()
    }

    /// The number of checkpoints, an unfinished one included.
    pub fn checkpoints(&self) -> usize {
        self.checkpoints.len()
    }

    /// Any moment.
    pub fn anywhere(&self, rng: &mut Rng) -> Moment {
        let cut = rng.range(self.all.start, self.all.end);
        Moment { cut, in_checkpoint: self.checkpoints.iter().any(|range| range.contains(&cut)) }
    }

    /// A moment in a checkpoint; an error if there was none.
    pub fn in_checkpoint(&self, rng: &mut Rng) -> Result<Moment> {
        if self.checkpoints.is_empty() {
            bail!("no checkpoint was recorded");
        }
        let pick = usize::try_from(rng.range(0, self.checkpoints.len() as u64))?;
        let range = &self.checkpoints[pick];
        Ok(Moment { cut: rng.range(range.start, range.end), in_checkpoint: true })
    }
}

/// Collects checkpoints from marks.
#[derive(Default)]
struct Finder {
    from: u64,
    end: u64,
    begun: Option<u64>,
    checkpoints: Vec<Range<u64>>,
}

impl Finder {
    fn mark(&mut self, seq: u64, name: &str) {
        match (name, self.begun) {
            (BEGIN, _) => self.begun = Some(seq),
            (END, Some(begin)) => {
                self.close(begin, seq);
                self.begun = None;
            }
            _ => {}
        }
        self.end = seq + 1;
    }

    /// A cut at the first record after the begin's mark, or before the end's, is not within.
    fn close(&mut self, begin: u64, end: u64) {
        let range = begin.max(self.from) + 2..end;
        if !range.is_empty() {
            self.checkpoints.push(range);
        }
    }

    fn finish(mut self) -> Result<Moments> {
        if let Some(begin) = self.begun {
            self.close(begin, self.end);
        }
        Ok(Moments { all: self.from..self.end.max(self.from) + 1, checkpoints: self.checkpoints })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at record {}{}", self.cut, if self.in_checkpoint { ", in a checkpoint" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finder(from: u64, marks: &[(u64, &str)], end: u64) -> Finder {
        let mut finder = Finder { from, ..Finder::default() };
        for (seq, name) in marks {
            finder.mark(*seq, name);
        }
        finder.end = end;
        finder
    }

    #[test]
    fn checkpoints_are_found_between_their_marks() {
        let marks = [(10, BEGIN), (20, END), (30, BEGIN), (31, END), (40, BEGIN)];
        let moments = finder(5, &marks, 50).finish().unwrap();
        assert_eq!(moments.checkpoints, [12..20, 42..50]);
        let mut rng = Rng::new(1);
        for _ in 0..100 {
            let moment = moments.in_checkpoint(&mut rng).unwrap();
            assert!((12..20).contains(&moment.cut) || (42..50).contains(&moment.cut), "{moment}");
            let moment = moments.anywhere(&mut rng);
            assert!((5..=50).contains(&moment.cut), "{moment}");
        }
    }

    #[test]
    fn what_lies_before_the_start_does_not_count() {
        let moments = finder(15, &[(2, BEGIN), (8, END), (10, BEGIN), (20, END)], 30).finish().unwrap();
        assert_eq!(moments.checkpoints.first(), Some(&(17..20)));
        assert_eq!(finder(15, &[], 12).finish().unwrap().all, 15..16);
        assert!(finder(0, &[], 12).finish().unwrap().in_checkpoint(&mut Rng::new(1)).is_err());
    }
}
