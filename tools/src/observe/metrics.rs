//! The metrics of a volume in Prometheus' text format 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::{Display, Write};

use fs_core::CounterValues;
use fs_core::stats::{Call, FileClass, HistogramValues, Stage};

use super::Observed;

/// Upper bounds of buckets, in nanoseconds, as powers of two: 1 us to 69 s. Only at powers of two does the
/// histogram know exactly.
const BOUNDS: std::ops::RangeInclusive<u32> = 10..=36;

/// The text for a scrape.
pub fn render(observed: &Observed) -> String {
    let mut page = Page(String::with_capacity(256 << 10));
    identity(&mut page, observed);
    state(&mut page, observed);
    counters(&mut page, &observed.volume.counters());
    latencies(&mut page, observed);
    device(&mut page, observed);
    page.0
}

/// What has been written so far.
struct Page(String);

/// Labels with their values.
type Labels<'a> = &'a [(&'a str, &'a str)];

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // A String takes everything.
        let _ = writeln!(self.0, "{text}");
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        if labels.is_empty() {
            return self.line(format_args!("{name} {value}"));
        }
        let labels: Vec<String> = labels.iter().map(|(l, v)| format!("{l}=\"{}\"", escape(v))).collect();
        self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
    }

    /// A family of one sample.
    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn histogram(&mut self, name: &str, labels: Labels<'_>, values: &HistogramValues) {
        let (bucket, count) = (format!("{name}_bucket"), values.count());
        let mut up_to = |bound: &str, n: u64| {
            let with_bound = [labels, &[("le", bound)]].concat();
            self.sample(&bucket, &with_bound, n);
        };
        for bits in BOUNDS {
            let seconds = (1u64 << bits) as f64 / 1e9;
            up_to(&seconds.to_string(), values.at_most(1 << bits));
        }
        up_to("+Inf", count);
        self.sample(&format!("{name}_sum"), labels, values.sum() as f64 / 1e9);
        self.sample(&format!("{name}_count"), labels, count);
    }
}

/// The value of a label.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn identity(page: &mut Page, observed: &Observed) {
    let sb = observed.volume.superblock();
    let labels = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("uuid", &sb.uuid.to_string()),
        ("label", &sb.label),
        ("volume", &observed.path.to_string_lossy()),
        ("mounted_on", &observed.dir.to_string_lossy()),
    ];
    page.family("dbfs_info", "gauge", "The volume that this daemon has mounted.");
    page.sample("dbfs_info", &labels, 1);
    page.gauge("dbfs_epoch", "The running epoch: grows with each mount.", observed.volume.epoch());
}

fn state(page: &mut Page, observed: &Observed) {
    let s = observed.volume.status();
    let space = observed.space();
    let gauges: [(&str, &str, u64); 20] = [
        ("dbfs_read_only", "1 if the volume was mounted for reading only.", s.read_only.into()),
        (
            "dbfs_stopped",
            "1 if the volume takes no changes any more because a journal write or flush has failed.",
            s.failure.is_some().into(),
        ),
        ("dbfs_space_size_bytes", "Space for users.", space.size_bytes),
        ("dbfs_space_free_bytes", "Space that is not in use.", space.free_bytes),
        ("dbfs_space_available_bytes", "Space that users can take.", space.available_bytes),
        ("dbfs_inodes", "Files, directories and other inodes.", space.inodes),
        ("dbfs_cache_capacity_bytes", "What the page cache may hold.", s.cache.capacity),
        ("dbfs_cache_resident_bytes", "What the page cache holds.", s.cache.resident),
        ("dbfs_cache_dirty_bytes", "Pages that have not reached the device in any form.", s.cache.dirty),
        (
            "dbfs_cache_journal_only_bytes",
            "Pages with bytes that are on the device in the journal only.",
            s.cache.journal_only,
        ),
        ("dbfs_journal_size_bytes", "Size of the journal.", s.journal.size),
        ("dbfs_journal_used_bytes", "Journal segments in use.", s.journal.used),
        (
            "dbfs_journal_since_checkpoint_bytes",
            "Journal segments written since the last checkpoint.",
            s.journal.since_checkpoint,
        ),
        ("dbfs_journal_durable_lsn", "The last record that survives a power cut.", s.journal.durable.get()),
        ("dbfs_journal_applied_lsn", "The record that collects changes.", s.journal.applied.get()),
        ("dbfs_journal_checkpoint_lsn", "The last record that the tree has.", s.journal.checkpoint.get()),
        (
            "dbfs_metadata_delta_bytes",
            "Changes of the metadata in memory until the next checkpoint.",
            s.delta_bytes,
        ),
        (
            "dbfs_files_with_lost_writes",
            "Files that have lost a write of a mapped page; their fsync fails until it is written again.",
            s.files_with_lost_writes,
        ),
        ("dbfs_page_size_bytes", "Size of the volume's pages.", observed.volume.page_size().bytes() as u64),
        ("dbfs_device_size_bytes", "Size of the device.", observed.volume.device_capabilities().size_bytes),
    ];
    for (name, help, value) in gauges {
        page.gauge(name, help, value);
    }
}

fn counters(page: &mut Page, values: &CounterValues) {
    for ((name, value), help) in values.list().into_iter().zip(CounterValues::descriptions()) {
        let name = format!("dbfs_{name}_total");
        page.family(&name, "counter", help);
        page.sample(&name, &[], value);
    }
}

fn latencies(page: &mut Page, observed: &Observed) {
    let stats = observed.volume.stats();
    let seconds = |ns: u64| ns as f64 / 1e9;
    page.gauge("dbfs_uptime_seconds", "Time since the mount.", seconds(stats.mounted_ns));
    page.gauge(
        "dbfs_checkpoint_running_seconds",
        "How long the checkpoint that runs has been running; 0 if none is.",
        seconds(stats.checkpoint_running_ns.unwrap_or(0)),
    );
    let name = "dbfs_checkpoint_duration_seconds";
    page.family(name, "histogram", "How long checkpoints took.");
    page.histogram(name, &[], &stats.checkpoints);
    let name = "dbfs_call_duration_seconds";
    page.family(name, "histogram", "How long calls of the file system took, by class of file.");
    for (class, call) in FileClass::ALL.iter().flat_map(|class| Call::ALL.map(|call| (class, call))) {
        let labels = [("call", call.name()), ("class", class.name())];
        page.histogram(name, &labels, stats.class(*class).call(call));
    }
    let name = "dbfs_stage_duration_seconds";
    page.family(name, "histogram", "How long calls spent in a stage, each time there was one.");
    for (class, stage) in FileClass::ALL.iter().flat_map(|class| Stage::ALL.map(|stage| (class, stage))) {
        let labels = [("stage", stage.name()), ("class", class.name())];
        page.histogram(name, &labels, stats.class(*class).stage(stage));
    }
    page.family("dbfs_read_bytes_total", "counter", "Bytes that reads have returned.");
    for class in FileClass::ALL {
        page.sample("dbfs_read_bytes_total", &[("class", class.name())], stats.class(class).bytes_read);
    }
    page.family("dbfs_written_bytes_total", "counter", "Bytes that writes have taken.");
    for class in FileClass::ALL {
        page.sample("dbfs_written_bytes_total", &[("class", class.name())], stats.class(class).bytes_written);
    }
}

fn device(page: &mut Page, observed: &Observed) {
    let kinds = observed.device.read();
    page.gauge(
        "dbfs_device_requests_in_flight",
        "Requests to the device under way.",
        observed.device.in_flight(),
    );
    let engine = observed.volume.device_engine_counts();
    page.gauge(
        "dbfs_device_requests_waiting",
        "Requests that wait because enough of their class are with the device.",
        engine.waiting,
    );
    for (name, help, value) in [
        (
            "dbfs_device_requests_in_registered_memory_total",
            "Requests whose memory the device knew.",
            engine.fixed,
        ),
        ("dbfs_device_spins_total", "How often somebody has spun for a result.", engine.spins),
        (
            "dbfs_device_spins_hit_total",
            "How often somebody has spun for a result not in vain.",
            engine.spins_hit,
        ),
    ] {
        page.family(name, "counter", help);
        page.sample(name, &[], value);
    }
    page.family("dbfs_device_bytes_total", "counter", "Bytes that the device has transferred or discarded.");
    for kind in &kinds {
        page.sample("dbfs_device_bytes_total", &[("op", kind.name)], kind.bytes);
    }
    page.family("dbfs_device_errors_total", "counter", "Requests that the device has failed.");
    for kind in &kinds {
        page.sample("dbfs_device_errors_total", &[("op", kind.name)], kind.errors);
    }
    let name = "dbfs_device_request_duration_seconds";
    page.family(name, "histogram", "How long requests to the device took.");
    for kind in &kinds {
        page.histogram(name, &[("op", kind.name)], &kind.latency);
    }
}

#[cfg(test)]
mod tests {
    use fs_core::stats::Histogram;

    use super::*;

    #[test]
    fn labels_cannot_break_the_format() {
        let mut page = Page(String::new());
        page.sample("x", &[("volume", "a\"b\\c\nd")], 1);
        assert_eq!(page.0, "x{volume=\"a\\\"b\\\\c\\nd\"} 1\n");
    }

    #[test]
    fn histograms_are_cumulative() {
        let h = Histogram::default();
        [1_000, 1_024, 1_025, 80_000_000_000].into_iter().for_each(|ns| h.record(ns));
        let mut page = Page(String::new());
        page.histogram("t", &[("op", "x")], &h.read());
        let lines: Vec<&str> = page.0.lines().collect();
        assert_eq!(lines[0], "t_bucket{op=\"x\",le=\"0.000001024\"} 2");
        assert_eq!(lines[1], "t_bucket{op=\"x\",le=\"0.000002048\"} 3");
        let end = ["t_bucket{op=\"x\",le=\"+Inf\"} 4", "t_sum{op=\"x\"} 80.000003049", "t_count{op=\"x\"} 4"];
        assert_eq!(lines[lines.len() - 3..], end);
    }
}
