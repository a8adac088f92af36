//! Figures, their medians and their ratios.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use super::subject::Subject;

/// What a job's time on dbfs is held against, and the factor it must stay within.
const BARS: [(&str, Subject, f64); 7] = [
    ("8 KiB write + fdatasync", Subject::Ext4, 2.0),
    ("create + write + fsync", Subject::Ext4, 2.0),
    ("create", Subject::Noop, 1.5),
    ("stat, not cached", Subject::Noop, 1.5),
    ("stat, cached", Subject::Noop, 1.5),
    ("rename", Subject::Noop, 1.5),
    ("unlink", Subject::Noop, 1.5),
];

/// All figures, in microseconds per operation: one for each round, job and subject.
#[derive(Clone, Debug, Default)]
pub struct Table {
    jobs: Vec<(String, BTreeMap<Subject, Vec<f64>>)>,
}

impl Table {
    /// Adds one round's figure.
    pub fn add(&mut self, job: &str, subject: Subject, microseconds: f64) {
        let at = self.jobs.iter().position(|(name, _)| name == job);
        let at = at.unwrap_or_else(|| {
            self.jobs.push((job.to_owned(), BTreeMap::new()));
            self.jobs.len() - 1
        });
        self.jobs[at].1.entry(subject).or_default().push(microseconds);
    }

    /// Medians, rounds and ratios.
    pub fn to_json(&self, rounds: u32) -> String {
        let jobs: Vec<Value> = self.jobs.iter().map(|(name, figures)| job_json(name, figures)).collect();
        let all = json!({ "unit": "microseconds per operation", "rounds": rounds, "jobs": jobs });
        format!("{all:#}\n")
    }
}

fn job_json(name: &str, figures: &BTreeMap<Subject, Vec<f64>>) -> Value {
    let mut job = Map::new();
    job.insert("job".into(), json!(name));
    for (subject, rounds) in figures {
        job.insert(subject.name().into(), json!({ "median": median(rounds), "rounds": rounds }));
    }
    for base in [Subject::Raw, Subject::Ext4, Subject::Noop] {
        if let Some(ratio) = ratio(figures, base) {
            job.insert(format!("dbfs / {}", base.name()), json!(ratio));
        }
    }
    if let Some((base, factor, met)) = verdict(name, figures) {
        job.insert("bar".into(), json!({ "against": base.name(), "factor": factor, "met": met }));
    }
    Value::Object(job)
}

/// The middle figure, or the mean of the two middle ones; 0 if there is none.
pub fn median(rounds: &[f64]) -> f64 {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

fn ratio(figures: &BTreeMap<Subject, Vec<f64>>, base: Subject) -> Option<f64> {
    Some(median(figures.get(&Subject::Dbfs)?) / median(figures.get(&base)?))
}

/// The bar of a job, if it has one and was measured, and whether it is met.
fn verdict(name: &str, figures: &BTreeMap<Subject, Vec<f64>>) -> Option<(Subject, f64, bool)> {
    let (_, base, factor) = BARS.iter().find(|(job, ..)| *job == name)?;
    Some((*base, *factor, ratio(figures, *base)? <= *factor))
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<40}", "microseconds per operation (median)")?;
        for subject in Subject::ALL {
            write!(f, "{:>11}", subject.name())?;
        }
        writeln!(f, "{:>10}{:>10}  bar", "/ ext4", "/ no-op")?;
        for (name, figures) in &self.jobs {
            write!(f, "{name:<40}")?;
            for subject in Subject::ALL {
                let figure = figures.get(&subject).map(|rounds| format!("{:.1}", median(rounds)));
                write!(f, "{:>11}", figure.unwrap_or_else(|| "-".into()))?;
            }
            for base in [Subject::Ext4, Subject::Noop] {
                let ratio = ratio(figures, base).map(|ratio| format!("{ratio:.2}x"));
                write!(f, "{:>10}", ratio.unwrap_or_else(|| "-".into()))?;
            }
            match verdict(name, figures) {
                Some((base, factor, met)) => {
                    let word = if met { "met" } else { "MISSED" };
                    writeln!(f, "  {factor}x {}: {word}", base.name())?;
                }
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ratios_and_bars() {
        let mut table = Table::default();
        for (subject, rounds) in [(Subject::Ext4, [9.0, 10.0, 99.0]), (Subject::Dbfs, [25.0, 1.0, 19.0])] {
            for figure in rounds {
                table.add("create + write + fsync", subject, figure);
            }
        }
        let json: Value = serde_json::from_str(&table.to_json(3)).unwrap();
        assert_eq!(json["jobs"][0]["dbfs"]["median"], json!(19.0));
        assert_eq!(json["jobs"][0]["dbfs / ext4"], json!(1.9));
        assert_eq!(json["jobs"][0]["bar"]["met"], json!(true));
        assert!(table.to_string().contains("1.90x"));
        table.add("create + write + fsync", Subject::Dbfs, 26.0);
        table.add("create + write + fsync", Subject::Dbfs, 27.0);
        assert!(table.to_string().contains("MISSED"));
    }

    #[test]
    fn the_median_of_an_even_count_is_between() {
        assert!((median(&[1.0, 4.0, 2.0, 100.0]) - 3.0).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }
}
