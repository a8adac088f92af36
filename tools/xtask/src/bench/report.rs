//! The figures as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::bars::{Verdict, verdicts};
use super::figures::{Figures, Job, Spread};
use super::subject::Subject;

/// What a run was made of, for those who read its figures later.
#[derive(Clone, Debug)]
pub struct Run {
    /// Rounds.
    pub rounds: u32,
    /// The rest, in pairs of a name and a value.
    pub facts: Vec<(&'static str, String)>,
}

/// What figures are given in terms of.
const BASES: [Subject; 4] = [Subject::Raw, Subject::Ext4, Subject::Xfs, Subject::Noop];

/// Figures of dbfs.
pub const OURS: [Subject; 3] = [Subject::Dbfs, Subject::Aged, Subject::Library];

/// Two tables: medians, and bars.
pub fn text(figures: &Figures) -> String {
    let mut text = format!("{:<74}", "medians");
    for subject in Subject::ALL {
        let _ = write!(text, "{:>11}", subject.name());
    }
    text += "  spread\n";
    for job in figures.jobs() {
        let _ = write!(text, "{:<74}", format!("{} [{}]", job.name, job.unit.name()));
        for subject in Subject::ALL {
            let median = spread(job, subject).map(|spread| number(spread.median));
            let _ = write!(text, "{:>11}", median.unwrap_or_else(|| "-".into()));
        }
        let widest = Subject::ALL.iter().filter_map(|s| Some(spread(job, *s)?.percent()));
        let _ = writeln!(text, "{:>7.0}%", widest.fold(0.0, f64::max));
    }
    let verdicts = verdicts(figures);
    if !verdicts.is_empty() {
        let _ = writeln!(text, "\n{:<88}{:>8}{:>16}{:>8}", "bars", "ratio", "of all rounds", "bar");
    }
    for verdict in &verdicts {
        let Verdict { name, ratio, wanted, .. } = verdict;
        let range = format!("{:.2}-{:.2}", ratio.least, ratio.greatest);
        let word = if verdict.is_met() { "met" } else { "MISSED" };
        let _ = writeln!(text, "{name:<88}{:>8.2}{range:>16}{wanted:>8.2}  {word}", ratio.median);
    }
    text
}

/// Everything.
pub fn json(run: &Run, figures: &Figures) -> Value {
    let jobs: Vec<Value> = figures.jobs().iter().map(job_json).collect();
    let bars = verdicts(figures);
    let facts: Map<String, Value> =
        run.facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({
        "rounds": run.rounds,
        "run": facts,
        "jobs": jobs,
        "bars": bars.iter().map(bar_json).collect::<Vec<_>>(),
    })
}

fn job_json(job: &Job) -> Value {
    let mut figures = Map::new();
    for (subject, rounds) in &job.figures {
        let mut value = json!({ "median": super::figures::median(rounds), "rounds": rounds });
        for base in BASES {
            if let (true, Some(speed)) = (OURS.contains(subject), job.speed(*subject, base)) {
                value[format!("speed / {}", base.name())] = spread_json(speed);
            }
        }
        figures.insert(subject.name().into(), value);
    }
    json!({ "job": job.name, "unit": job.unit.name(), "figures": figures })
}

fn bar_json(verdict: &Verdict) -> Value {
    json!({
        "name": verdict.name,
        "ratio": spread_json(verdict.ratio),
        "bar": verdict.wanted,
        "at_most": verdict.at_most,
        "met": verdict.is_met(),
    })
}

fn spread_json(spread: Spread) -> Value {
    json!({ "median": spread.median, "least": spread.least, "greatest": spread.greatest })
}

/// The figures of a subject, if the job was done on it.
pub fn spread(job: &Job, subject: Subject) -> Option<Spread> {
    Spread::of(job.figures.get(&subject)?)
}

/// A figure with as many digits as matter.
pub fn number(figure: f64) -> String {
    match figure {
        f if f.abs() >= 100.0 => format!("{f:.0}"),
        f if f.abs() >= 10.0 => format!("{f:.1}"),
        f => format!("{f:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::Unit;
    use super::super::titles;
    use super::*;

    #[test]
    fn tables_have_medians_ratios_and_bars() {
        let mut figures = Figures::default();
        for (subject, rounds) in
            [(Subject::Ext4, [90.0, 100.0, 990.0]), (Subject::Library, [99.0, 10.0, 495.0])]
        {
            for figure in rounds {
                figures.add(titles::APPEND, Unit::Operations, subject, figure);
            }
        }
        let run = Run { rounds: 3, facts: vec![("kernel", "6.1".into())] };
        let json = json(&run, &figures);
        assert_eq!(json["run"]["kernel"], "6.1");
        assert_eq!(json["jobs"][0]["figures"]["library"]["median"], 99.0);
        assert_eq!(json["jobs"][0]["figures"]["library"]["speed / ext4"]["median"], 0.5);
        assert_eq!(json["bars"][0]["met"], false);
        let text = text(&figures);
        assert!(text.contains("MISSED") && text.contains("0.10-1.10"), "{text}");
    }
}
