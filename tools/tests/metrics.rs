//! `dbfs mount --metrics`: Prometheus' text over HTTP. Needs root and /dev/fuse.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

mod common;

use common::Volume;

/// Sends a request and takes all of the answer.
fn exchange(mut stream: impl Read + Write, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    (head.to_owned(), body.to_owned())
}

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Where the daemon says that its metrics are.
fn port(v: &Volume) -> String {
    let log = v.log();
    let address = log.split("metrics are on http://").nth(1).and_then(|rest| rest.split('/').next());
    address.unwrap_or_else(|| panic!("no address in {log}")).to_owned()
}

fn mounted(more: &[&str]) -> Volume {
    let v = Volume::made();
    v.ok(&[&["mount"], more, &["-o", "LOG", "IMAGE", "MNT"]].concat());
    v
}

/// A sample: its name, its labels, its value.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A line of the format; no value here has a quote or comma in it.
fn parse(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}').expect("labels end")),
    };
    assert!(is_name(name), "{line}");
    let label = |text: &str| {
        let (name, value) = text.split_once('=').unwrap_or_else(|| panic!("no label: {line}"));
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).expect("labels are quoted");
        assert!(is_name(name) && !value.contains('"'), "{line}");
        (name.to_owned(), value.to_owned())
    };
    let labels = labels.split(',').filter(|l| !l.is_empty()).map(label).collect();
    Sample { name: name.into(), labels, value: value.parse().unwrap_or_else(|_| panic!("no number: {line}")) }
}

/// All samples, after a look at the order of things: HELP and TYPE once for each family, before its samples, and
/// each series once.
fn samples(text: &str) -> (Vec<Sample>, BTreeMap<String, String>) {
    assert!(text.ends_with('\n'));
    let mut kinds: BTreeMap<String, String> = BTreeMap::new();
    let (mut helped, mut seen, mut current) = (BTreeSet::new(), BTreeSet::new(), String::new());
    let mut all = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty() && helped.insert(name.to_owned()), "{line}");
            current = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind) && name == current, "{line}");
            assert!(kinds.insert(name.into(), kind.into()).is_none(), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let sample = parse(line);
            let suffixes: &[&str] =
                if kinds[&current] == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|s| sample.name == format!("{current}{s}")), "{line} in {current}");
            let series = line.rsplit_once(' ').unwrap().0.to_owned();
            assert!(seen.insert(series), "twice: {line}");
            all.push(sample);
        }
    }
    (all, kinds)
}

/// Buckets grow, the last one is the count, and sum and count agree.
fn check_histogram(name: &str, samples: &[Sample]) {
    let mut by_labels: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
    for s in samples.iter().filter(|s| s.name == format!("{name}_bucket")) {
        let mut labels = s.labels.clone();
        let bound = labels.remove("le").expect("a bucket has a bound");
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
        by_labels.entry(labels).or_default().push((bound, s.value));
    }
    assert!(!by_labels.is_empty(), "{name}");
    for (labels, buckets) in by_labels {
        assert!(
            buckets.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1),
            "{name} {labels:?}: {buckets:?}"
        );
        let find = |suffix: &str| {
            let found = samples.iter().find(|s| s.name == format!("{name}{suffix}") && s.labels == labels);
            found.unwrap_or_else(|| panic!("{name}{suffix} {labels:?} is missing")).value
        };
        let (last, count, sum) = (*buckets.last().unwrap(), find("_count"), find("_sum"));
        assert_eq!(last, (f64::INFINITY, count), "{name} {labels:?}");
        assert_eq!(count > 0.0, sum > 0.0, "{name} {labels:?}");
        // The sum lies between what the bounds of the buckets allow.
        let mut below = 0.0;
        let (mut least, mut before) = (0.0, 0.0);
        for (bound, n) in buckets {
            least += (n - before) * below;
            (below, before) = (bound, n);
        }
        assert!(sum >= least * 0.999_999, "{name} {labels:?}: {sum} is less than {least}");
    }
}

fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |s: &&Sample| {
        s.name == name && labels.iter().all(|(l, v)| s.labels.get(*l).is_some_and(|have| have == v))
    };
    samples.iter().filter(fits).map(|s| s.value).sum()
}

#[test]
fn metrics_are_prometheus_text() {
    let v = mounted(&["--metrics", "0"]);
    let mut wal = fs::File::create(v.mnt().join("wal")).unwrap();
    for _ in 0..10 {
        wal.write_all(&[1; 500]).unwrap();
        wal.sync_data().unwrap();
    }
    drop(wal);
    let address = port(&v);
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let (head, body) = exchange(TcpStream::connect(&address).unwrap(), GET);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    let (samples, kinds) = samples(&body);
    for (name, _) in kinds.iter().filter(|(_, kind)| *kind == "histogram") {
        check_histogram(name, &samples);
    }
    let fsyncs = "dbfs_call_duration_seconds_count";
    assert_eq!(value(&samples, fsyncs, &[("call", "fsync")]), 10.0);
    assert!(value(&samples, fsyncs, &[("call", "fsync"), ("class", "log")]) > 4.0);
    assert!(value(&samples, "dbfs_stage_duration_seconds_count", &[("stage", "journal")]) >= 10.0);
    assert_eq!(value(&samples, "dbfs_written_bytes_total", &[]), 5000.0);
    assert_eq!(value(&samples, "dbfs_info", &[("mounted_on", v.mnt().to_str().unwrap())]), 1.0);
    assert!(value(&samples, "dbfs_commits_total", &[]) >= 10.0);
    v.ok(&["umount", "MNT"]);
    assert!(TcpStream::connect(&address).is_err(), "nobody listens any more");
}

/// Every metric and label that the dashboard asks for is exported.
#[test]
fn the_dashboard_names_what_is_exported() {
    let v = mounted(&["--metrics", "0"]);
    let (_, body) = exchange(TcpStream::connect(port(&v)).unwrap(), GET);
    v.ok(&["umount", "MNT"]);
    let (samples, _) = samples(&body);
    let exported: BTreeSet<&str> = samples.iter().map(|s| s.name.as_str()).collect();
    let labels: BTreeSet<&str> = samples.iter().flat_map(|s| s.labels.keys().map(String::as_str)).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/package/grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut expressions = Vec::new();
    collect(&dashboard, &mut expressions);
    assert!(expressions.len() >= 15, "{expressions:?}");
    let mut named = BTreeSet::new();
    for expression in &expressions {
        let words: Vec<&str> = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        let metrics: Vec<&str> = words.iter().copied().filter(|w| w.starts_with("dbfs_")).collect();
        assert!(!metrics.is_empty(), "{expression}");
        for metric in metrics {
            assert!(exported.contains(metric), "{metric} in {expression} is not exported");
            named.insert(metric);
        }
        for by in expression.split("by (").skip(1) {
            for label in by.split(')').next().unwrap().split(',').map(str::trim) {
                let known = labels.contains(label) || ["instance", "job"].contains(&label);
                assert!(known, "label {label} in {expression} is not exported");
            }
        }
    }
    assert!(
        named.contains("dbfs_stage_duration_seconds_bucket") && named.contains("dbfs_checksum_errors_total")
    );
}

/// All PromQL in a dashboard.
fn collect(value: &serde_json::Value, expressions: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            expressions.extend(fields.get("expr").and_then(|e| e.as_str()).map(str::to_owned));
            fields.values().for_each(|v| collect(v, expressions));
        }
        serde_json::Value::Array(list) => list.iter().for_each(|v| collect(v, expressions)),
        _ => {}
    }
}

#[test]
fn a_unix_socket_is_its_owners() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("metrics.sock");
    fs::write(&socket, "something else").unwrap();
    let option = format!("LOG,metrics={}", socket.display());
    let v = Volume::made();
    let option = option.replace("LOG", &format!("log={}", v.dir.path().join("log").display()));
    v.fails(&["mount", "-o", &option, "IMAGE", "MNT"], 32, &["cannot serve metrics", "not a socket"]);
    fs::remove_file(&socket).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap()); // left behind
    v.ok(&["mount", "-o", &option, "IMAGE", "MNT"]);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let (head, body) = exchange(UnixStream::connect(&socket).unwrap(), GET);
    assert!(head.starts_with("HTTP/1.1 200 OK") && body.contains("dbfs_epoch "), "{head}");
    v.ok(&["umount", "MNT"]);
    assert!(!socket.exists());
}

#[test]
fn a_taken_address_is_told_at_once() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let v = Volume::made();
    let address = taken.local_addr().unwrap().to_string();
    v.fails(&["mount", "--metrics", &address, "IMAGE", "MNT"], 32, &["cannot serve metrics", &address]);
    v.fails(&["mount", "--metrics", "nowhere", "IMAGE", "MNT"], 1, &["nowhere", "IP:PORT"]);
    v.fails(&["mount", "-o", "metrics=", "IMAGE", "MNT"], 1, &["metrics="]);
}

#[test]
fn hostile_clients_do_no_harm() {
    let v = mounted(&["--metrics", "0"]);
    let address = port(&v);
    let connect = || {
        let stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    };
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("DELETE /metrics HTTP/1.1\r\n\r\n", "405"),
        ("\0\0\0\0\r\n\r\n", "400"),
        ("GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", "400"),
    ] {
        let (head, _) = exchange(connect(), request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {head}");
    }
    let (head, body) = exchange(connect(), "HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK") && body.is_empty(), "{head}");
    // Too long: it is cut off, with or without an answer that arrives.
    let mut long = connect();
    let _ = long.write_all(&[b'a'; 100_000]);
    let mut answer = Vec::new();
    let _ = long.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", answer.escape_ascii());
    // Those who say nothing take all the places, for a while only.
    let idle: Vec<TcpStream> = (0..20).map(|_| connect()).collect();
    let mut refused = 0;
    for mut stream in idle {
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        refused += usize::from(answer.starts_with("HTTP/1.1 503"));
    }
    assert!((12..20).contains(&refused), "{refused}");
    let (head, _) = exchange(connect(), GET);
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    fs::write(v.mnt().join("file"), b"served all the time").unwrap();
    v.ok(&["umount", "MNT"]);
}
