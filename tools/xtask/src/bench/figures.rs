//! Figures of all rounds, their medians, their ratios and their spread.

use std::collections::BTreeMap;

use super::subject::Subject;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Operations per second.
    Operations,
    /// Transactions per second.
    Transactions,
    /// Milliseconds.
    Milliseconds,
    /// Bytes written to the device for each byte of the job.
    Factor,
}

impl Unit {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Operations => "operations/s",
            Unit::Transactions => "transactions/s",
            Unit::Milliseconds => "ms",
            Unit::Factor => "bytes/byte",
        }
    }

    /// Whether a greater figure is better.
    pub fn more_is_better(self) -> bool {
        matches!(self, Unit::Operations | Unit::Transactions)
    }
}

/// The middle of some figures, and how far they spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle figure.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

impl Spread {
    /// Of at least one figure.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let least = figures.iter().copied().min_by(f64::total_cmp)?;
        let greatest = figures.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { median: median(figures), least, greatest })
    }

    /// The greatest distance from the median, in percent of it.
    pub fn percent(self) -> f64 {
        let distance = (self.greatest - self.median).max(self.median - self.least);
        if self.median == 0.0 { 0.0 } else { distance / self.median.abs() * 100.0 }
    }
}

/// The middle figure, or the mean of the two middle ones; 0 if there is none.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The figures of one job.
#[derive(Clone, Debug)]
pub struct Job {
    /// What was done.
    pub name: String,
    /// What the figures count.
    pub unit: Unit,
    /// One figure for each round.
    pub figures: BTreeMap<Subject, Vec<f64>>,
}

/// All jobs, in the order in which they were first done.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    jobs: Vec<Job>,
}

impl Figures {
    /// Adds one round's figure.
    pub fn add(&mut self, name: &str, unit: Unit, subject: Subject, figure: f64) {
        let at = self.jobs.iter().position(|job| job.name == name).unwrap_or_else(|| {
            self.jobs.push(Job { name: name.to_owned(), unit, figures: BTreeMap::new() });
            self.jobs.len() - 1
        });
        self.jobs[at].figures.entry(subject).or_default().push(figure);
    }

    /// All of them.
    pub fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    /// The figures of a job, if it was done on a subject.
    pub fn of(&self, name: &str, subject: Subject) -> Option<&[f64]> {
        let job = self.jobs.iter().find(|job| job.name == name)?;
        job.figures.get(&subject).map(Vec::as_slice)
    }

    /// How many times better a subject does a job than another one, or the same does another job: round by
    /// round, as each round has its own weather.
    pub fn ratios(&self, better: (&str, Subject), worse: (&str, Subject)) -> Option<Vec<f64>> {
        let (a, b) = (self.of(better.0, better.1)?, self.of(worse.0, worse.1)?);
        let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
        (!ratios.is_empty()).then_some(ratios)
    }
}

impl Job {
    /// The speed of a subject in terms of another one's, round by round; more is better.
    pub fn speed(&self, subject: Subject, base: Subject) -> Option<Spread> {
        let (a, b) = (self.figures.get(&subject)?, self.figures.get(&base)?);
        let ratio = |(a, b): (&f64, &f64)| if self.unit.more_is_better() { a / b } else { b / a };
        Spread::of(&a.iter().zip(b).map(ratio).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spread() {
        assert!((median(&[1.0, 4.0, 2.0, 100.0]) - 3.0).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
        let spread = Spread::of(&[10.0, 12.0, 9.0]).unwrap();
        assert_eq!(spread, Spread { median: 10.0, least: 9.0, greatest: 12.0 });
        assert!((spread.percent() - 20.0).abs() < 1e-9);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn ratios_are_made_round_by_round() {
        let mut figures = Figures::default();
        for (subject, rounds) in [(Subject::Ext4, [10.0, 100.0, 20.0]), (Subject::Dbfs, [20.0, 100.0, 60.0])]
        {
            for figure in rounds {
                figures.add("reads", Unit::Operations, subject, figure);
                figures.add("mount", Unit::Milliseconds, subject, figure);
            }
        }
        let speed = figures.jobs()[0].speed(Subject::Dbfs, Subject::Ext4).unwrap();
        assert_eq!(speed, Spread { median: 2.0, least: 1.0, greatest: 3.0 });
        let slow = figures.jobs()[1].speed(Subject::Dbfs, Subject::Ext4).unwrap();
        assert!((slow.median - 0.5).abs() < 1e-9);
        assert_eq!(figures.jobs()[0].speed(Subject::Dbfs, Subject::Xfs), None);
        assert_eq!(
            figures.ratios(("reads", Subject::Dbfs), ("reads", Subject::Ext4)),
            Some(vec![2.0, 1.0, 3.0])
        );
    }
}
