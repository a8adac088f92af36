//! The figures as one page with plots, which needs nothing else.

use std::fmt::Write as _;

use super::bars::{Verdict, verdicts};
use super::figures::{Figures, Job};
use super::report::{OURS, Run, number, spread};
use super::subject::Subject;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem } h3 { font-size: 1rem; margin: 1.5rem 0 .2rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .25rem .6rem;
  border-bottom: 1px solid #ddd } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.met { color: #17663a } .missed { color: #a61b1b; font-weight: 600 } svg { display: block; width: 100% }
";

/// A plot's measures, in units of the picture.
const WIDTH: f64 = 900.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 170.0;
const ROW: f64 = 24.0;
const BAR: f64 = 15.0;

/// The page.
pub fn page(run: &Run, figures: &Figures) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>dbfs: figures</title><style>{STYLE}</style></head><body>\n\
         <h1>dbfs beside the device, ext4, XFS and a FUSE daemon that does nothing</h1>\n"
    );
    let _ = writeln!(
        html,
        "<p>Medians of {} rounds, in which all subjects had their turn on the same device; the thin line is the range \
         of all rounds.</p>",
        run.rounds
    );
    html += "<table>\n";
    for (name, value) in &run.facts {
        let _ = writeln!(html, "<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(value));
    }
    html += "</table>\n";
    html += &bars(&verdicts(figures));
    html += "<h2>Figures</h2>\n";
    for job in figures.jobs() {
        let better = if job.unit.more_is_better() { "more" } else { "less" };
        let _ = writeln!(
            html,
            "<h3>{}</h3>\n<div>{}, {better} is better</div>\n{}",
            escape(&job.name),
            job.unit.name(),
            plot(job)
        );
    }
    html + "</body></html>\n"
}

fn bars(verdicts: &[Verdict]) -> String {
    let mut html = String::new();
    if verdicts.is_empty() {
        return html;
    }
    html += "<h2>Bars</h2>\n<table>\n<tr><th>what</th><th class=\"n\">ratio</th><th class=\"n\">of all rounds</th>\
             <th class=\"n\">bar</th><th></th></tr>\n";
    for verdict in verdicts {
        let (class, word) = if verdict.is_met() { ("met", "met") } else { ("missed", "missed") };
        let sign = if verdict.at_most { "&le;" } else { "&ge;" };
        let ratio = verdict.ratio;
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td class=\"n\">{:.2}</td><td class=\"n\">{:.2}&ndash;{:.2}</td>\
             <td class=\"n\">{sign} {:.2}</td><td class=\"{class}\">{word}</td></tr>",
            escape(verdict.name),
            ratio.median,
            ratio.least,
            ratio.greatest,
            verdict.wanted
        );
    }
    html + "</table>\n"
}

/// A bar for each subject, with the range of its rounds.
fn plot(job: &Job) -> String {
    let rows: Vec<_> = Subject::ALL.iter().filter_map(|s| Some((*s, spread(job, *s)?))).collect();
    let most = rows.iter().map(|(_, spread)| spread.greatest).fold(f64::MIN_POSITIVE, f64::max);
    let x = |figure: f64| LEFT + figure / most * (WIDTH - LEFT - RIGHT);
    let height = ROW * rows.len() as f64;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\" font-size=\"13\">\n",
        escape(&job.name)
    );
    for (row, (subject, spread)) in rows.iter().enumerate() {
        let top = ROW * row as f64;
        let middle = top + ROW / 2.0;
        let colour = if OURS.contains(subject) { "#2f6fb5" } else { "#a9b3bd" };
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\
             <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"#222\" stroke-width=\"2\"/>",
            LEFT - 8.0,
            middle + 4.5,
            escape(subject.name()),
            middle - BAR / 2.0,
            x(spread.median) - LEFT,
            x(spread.least),
            x(spread.greatest)
        );
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{} &#177;{:.0}%</text>",
            x(spread.greatest) + 8.0,
            middle + 4.5,
            number(spread.median),
            spread.percent()
        );
    }
    svg + "</svg>"
}

/// Text that no browser takes for anything else.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::figures::Unit;
    use super::super::titles;
    use super::*;

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        let mut figures = Figures::default();
        for (subject, figure) in [(Subject::Raw, 200.0), (Subject::Library, 100.0)] {
            figures.add(titles::READ_16K_1, Unit::Operations, subject, figure);
            figures.add("<b>", Unit::Milliseconds, subject, figure);
        }
        let run = Run { rounds: 1, facts: vec![("machine", "a & b".into())] };
        let page = page(&run, &figures);
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(page.matches("<rect").count(), 4);
        assert!(page.contains("missed") && page.contains("a &amp; b") && page.contains("&lt;b&gt;"));
        assert!(!page.contains("http") && !page.contains("<script") && !page.contains("NaN"));
        // The longest bar ends where the plot does, and half of it is half as long.
        let widths: Vec<f64> = page
            .split("width=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next()?.parse().ok())
            .filter(|width| *width > 10.0)
            .collect();
        assert_eq!(widths, [640.0, 320.0, 640.0, 320.0]);
    }
}
