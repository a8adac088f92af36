//! Spans of time for people.

/// Nanoseconds with three digits that count: "830 ns", "12.3 us", "4.56 ms", "1.20 s".
pub fn show(ns: u64) -> String {
    const UNITS: [(&str, f64); 3] = [("us", 1e3), ("ms", 1e6), ("s", 1e9)];
    if ns < 1000 {
        return format!("{ns} ns");
    }
    // The first unit in which it has no more than three digits, rounded.
    let fits = |(_, unit): &(&str, f64)| ns as f64 / unit < 999.5;
    let (name, unit) = UNITS.into_iter().find(fits).unwrap_or(UNITS[2]);
    let value = ns as f64 / unit;
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {name}")
}

/// Nanoseconds as days, hours, minutes and seconds: "3 days 02:11:07".
pub fn clock(ns: u64) -> String {
    let s = ns / 1_000_000_000;
    let (days, h, m, s) = (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60);
    match days {
        0 => format!("{h:02}:{m:02}:{s:02}"),
        1 => format!("1 day {h:02}:{m:02}:{s:02}"),
        _ => format!("{days} days {h:02}:{m:02}:{s:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        let shown = [
            (0, "0 ns"),
            (999, "999 ns"),
            (1000, "1.00 us"),
            (12_345, "12.3 us"),
            (999_499, "999 us"),
            (999_999, "1.00 ms"),
            (4_560_000, "4.56 ms"),
            (1_200_000_000, "1.20 s"),
            (5_000_000_000_000, "5000 s"),
        ];
        for (ns, text) in shown {
            assert_eq!(show(ns), text);
        }
        assert_eq!(clock(59_000_000_000), "00:00:59");
        assert_eq!(clock(90_061_000_000_000), "1 day 01:01:01");
        assert_eq!(clock(1_000_000 * 1_000_000_000), "11 days 13:46:40");
    }
}
