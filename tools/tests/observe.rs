//! Looking at running volumes: `dbfs status`, `slow`, `explain`, `top` and the metrics. Needs root and
//! /dev/fuse.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

mod common;

use common::Volume;

fn mounted() -> Volume {
    let v = Volume::made();
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    v
}

fn json(v: &Volume, args: &[&str]) -> Value {
    serde_json::from_str(&v.ok(args)).unwrap()
}

/// Writes a log as a database does: small appends, each synced.
fn append_and_sync(v: &Volume, name: &str, times: usize) -> File {
    let mut file = File::create(v.mnt().join(name)).unwrap();
    for _ in 0..times {
        file.write_all(&[7; 700]).unwrap();
        file.sync_data().unwrap();
    }
    file
}

fn latency<'a>(status: &'a Value, list: &str, name: &str, class: &str) -> &'a Value {
    let found = status[list].as_array().unwrap().iter().find(|t| t["name"] == name && t["class"] == class);
    found.unwrap_or_else(|| panic!("no {name} of {class} in {status:#}"))
}

#[test]
fn status_tells_what_has_happened() {
    let v = mounted();
    drop(append_and_sync(&v, "wal", 20));
    fs::write(v.mnt().join("file"), vec![1; 200_000]).unwrap();
    let status = json(&v, &["status", "--json", "MNT"]);
    assert_eq!(status["mounted_on"], v.mnt().to_str().unwrap());
    assert_eq!(status["volume"], v.image().to_str().unwrap());
    assert_eq!((&status["read_only"], &status["failure"]), (&Value::Bool(false), &Value::Null));
    let fsync = latency(&status, "calls", "fsync", "all");
    assert_eq!(fsync["count"], 20);
    let figures = ["p50_ns", "p95_ns", "p99_ns", "max_ns"].map(|f| fsync[f].as_u64().unwrap());
    assert!(figures[0] > 0 && figures.is_sorted(), "{fsync:#}");
    assert!(latency(&status, "calls", "fsync", "log")["count"].as_u64().unwrap() >= 15);
    let journal = latency(&status, "stages", "journal", "all")["count"].as_u64().unwrap();
    assert!(journal >= 20, "{status:#}");
    assert!(status["journal"]["durable_lsn"].as_u64().unwrap() > 0);
    assert!(status["cache"]["resident_bytes"].as_u64().unwrap() >= 200_000);
    assert!(status["bytes_written"].as_u64().unwrap() >= 200_000 + 20 * 700);
    assert!(status["device"]["requests"][1]["bytes"].as_u64().unwrap() > 20 * 4096);
    assert_eq!(status["errors"]["checksum_errors"], 0);
    let text = v.ok(&["status", "MNT"]);
    for part in ["reads and writes", "none since the mount", "fsync", "journal", "p99"] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    // By the volume, too.
    assert!(v.ok(&["status", "IMAGE"]).contains("mounted for"));
    v.ok(&["umount", "MNT"]);
    v.fails(&["status", "MNT"], 1, &["no dbfs volume is mounted on"]);
}

#[test]
fn errors_show_up() {
    let v = mounted();
    let pattern = *b"this is the data that will rot..";
    fs::write(v.mnt().join("rotten"), pattern.repeat(4096)).unwrap();
    v.ok(&["umount", "MNT"]);
    let bytes = fs::read(v.image()).unwrap();
    let at = bytes.windows(pattern.len()).position(|w| w == pattern).unwrap();
    OpenOptions::new().write(true).open(v.image()).unwrap().write_all_at(b"T", at as u64).unwrap();
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    fs::read(v.mnt().join("rotten")).unwrap_err();
    assert!(v.ok(&["status", "MNT"]).contains("did not match their checksum; see the log"));
    v.ok(&["umount", "MNT"]);
}

#[test]
fn slow_names_file_and_stage() {
    let v = mounted();
    assert!(v.ok(&["slow", "MNT"]).contains("nothing was synced"));
    drop(append_and_sync(&v, "wal", 40));
    let syncs = json(&v, &["slow", "--json", "-n", "100", "MNT"])["syncs"].as_array().unwrap().clone();
    assert_eq!(syncs.len(), 32);
    let total = |s: &Value| s["total_ns"].as_u64().unwrap();
    assert!(syncs.windows(2).all(|w| total(&w[0]) >= total(&w[1])), "the slowest come first");
    for s in &syncs {
        assert_eq!(
            (&s["call"], &s["path"]),
            (&"fsync".into(), &v.mnt().join("wal").to_str().unwrap().into())
        );
        let stages: u64 = s["stages"].as_object().unwrap().values().map(|ns| ns.as_u64().unwrap()).sum();
        assert_eq!(stages + s["elsewhere_ns"].as_u64().unwrap(), total(s), "{s:#}");
        if let Some(culprit) = s["culprit"].as_str() {
            assert!(s["stages"][culprit].as_u64().unwrap() > s["elsewhere_ns"].as_u64().unwrap(), "{s:#}");
        }
    }
    let text = v.ok(&["slow", "-n", "1", "MNT"]);
    assert!(text.contains("fsync of") && text.contains("wal") && text.contains(" %: "), "{text}");
    v.ok(&["umount", "MNT"]);
}

#[test]
fn explain_shows_extents_and_memory() {
    let v = mounted();
    let path = v.mnt().join("file");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.sync_all().unwrap();
    for page in [3u64, 9, 17] {
        file.write_all_at(&[2; 16384], page * 16384).unwrap();
        file.sync_all().unwrap();
    }
    drop(file);
    v.ok(&["umount", "MNT"]);
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    let path = path.to_str().unwrap();
    let document = json(&v, &["explain", "--json", path]);
    assert_eq!((&document["size"], &document["written_bytes"]), (&(1 << 20).into(), &(1 << 20).into()));
    let extents = document["extents"].as_array().unwrap();
    assert_eq!(document["fragmentation"]["extents"], extents.len());
    assert!((4..=12).contains(&extents.len()), "{document:#}");
    let number = |e: &Value, field: &str| e[field].as_u64().unwrap();
    assert_eq!(extents.iter().map(|e| number(e, "length")).sum::<u64>(), 1 << 20);
    assert!(
        extents
            .windows(2)
            .all(|w| number(&w[0], "offset") + number(&w[0], "length") == number(&w[1], "offset"))
    );
    assert_eq!(document["cache"]["cached_pages"], 0);
    // It tells the truth: the bytes are there.
    let image = fs::read(v.image()).unwrap();
    let at = number(&extents[0], "physical") as usize;
    assert!(image[at..at + 4096].iter().all(|b| *b == 1));
    fs::read(path).unwrap();
    assert_eq!(json(&v, &["explain", "--json", path])["cache"]["cached_share"], 1.0);
    let few = json(&v, &["explain", "--json", "--extents", "1", path]);
    assert_eq!((few["extents"].as_array().unwrap().len(), &few["more_extents"]), (1, &true.into()));
    let text = v.ok(&["explain", path]);
    for part in ["1 MiB written", "extents of", "64 of 64 pages", "on the device"] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    v.fails(&["explain", "MNT"], 1, &["is not a regular file"]);
    v.fails(&["explain", "IMAGE"], 1, &["is not on a mounted dbfs volume"]);
    v.ok(&["umount", "MNT"]);
}

#[test]
fn a_volume_mounted_for_reading_can_be_looked_at() {
    let v = mounted();
    fs::write(v.mnt().join("file"), vec![1; 100_000]).unwrap();
    v.ok(&["umount", "MNT"]);
    v.ok(&["mount", "-o", "ro", "-o", "LOG", "IMAGE", "MNT"]);
    fs::read(v.mnt().join("file")).unwrap();
    let status = json(&v, &["status", "--json", "MNT"]);
    assert_eq!((&status["read_only"], &status["journal"]["size_bytes"]), (&true.into(), &0.into()));
    assert_eq!(latency(&status, "calls", "fsync", "all")["count"], 0);
    assert!(latency(&status, "stages", "load", "all")["count"].as_u64().unwrap() > 0);
    assert!(v.ok(&["status", "MNT"]).contains("State        read-only"));
    assert!(v.ok(&["top", "--once", "-i", "0.1", "MNT"]).contains("read-only"));
    let explained = json(&v, &["explain", "--json", v.mnt().join("file").to_str().unwrap()]);
    assert_eq!(explained["cache"]["cached_share"], 1.0);
    v.ok(&["umount", "MNT"]);
}

/// Requests that no command makes, and clients that leave.
#[test]
fn the_socket_takes_anything() {
    let v = mounted();
    let uuid = json(&v, &["status", "--json", "MNT"])["uuid"].as_str().unwrap().to_owned();
    let ask = |request: &str| {
        let mut stream = UnixStream::connect(format!("/run/dbfs/{uuid}.sock")).unwrap();
        // A daemon with too many clients answers without listening.
        let _ = stream.write_all(request.as_bytes());
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["event"].as_str().unwrap().to_owned()
    };
    let watched: Vec<String> = (0..30).map(|_| ask("{\"op\":\"watch\",\"every_ms\":0}\n")).collect();
    assert!(watched.iter().all(|event| ["status", "error"].contains(&event.as_str())), "{watched:?}");
    assert_eq!(watched[0], "status");
    // Those who left are noticed with the next picture.
    let deadline = Instant::now() + Duration::from_secs(60);
    while ask("{\"op\":\"slow\"}\n") != "slow" {
        assert!(Instant::now() < deadline, "no place becomes free");
        std::thread::sleep(Duration::from_millis(20));
    }
    for request in [
        "{\"op\":\"explain\",\"ino\":0,\"extents\":5}\n",
        "{\"op\":\"explain\",\"ino\":18446744073709551615,\"extents\":18446744073709551615}\n",
        "{\"op\":\"explain\",\"ino\":-1,\"extents\":5}\n",
        "{\"op\":\"explain\"}\n",
        "{\"op\":\"watch\",\"every_ms\":99999999999}\n",
        "{\"op\":\"fast\"}\n",
    ] {
        assert_eq!(ask(request), "error", "{request}");
    }
    v.ok(&["umount", "MNT"]);
}

#[test]
fn top_prints_pictures() {
    let v = mounted();
    let once = v.ok(&["top", "--once", "--interval", "0.1", "MNT"]);
    for part in ["dbfs top:", "calls/s", "Cache", "Journal", "fsync", "flush"] {
        assert!(once.contains(part), "{part:?} is missing in\n{once}");
    }
    assert_eq!(v.ok(&["top", "-b", "-n", "3", "-i", "0.1", "MNT"]).matches("dbfs top:").count(), 3);
    v.fails(&["top", "MNT"], 1, &["no terminal"]);
    v.fails(&["top", "-i", "0", "MNT"], 2, &["from 0.1 to 3600"]);
    v.ok(&["umount", "MNT"]);
}

/// On a terminal of its own: script(1) makes one.
fn on_a_terminal(v: &Volume, before: &str, keys: &[u8]) -> String {
    let program = env!("CARGO_BIN_EXE_dbfs");
    let line = format!(
        "stty rows 40 cols 120; {before} {program} top -i 0.1 {}; echo code=$?; stty -a",
        v.mnt().display()
    );
    let mut child = std::process::Command::new("script")
        .args(["-qfec", &line, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(keys).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn top_gives_the_terminal_back() {
    let v = mounted();
    for (before, keys, code) in [("", b"q".as_slice(), "code=0"), ("timeout --foreground 1", b"", "code=124")]
    {
        let text = on_a_terminal(&v, before, keys);
        let (opened, closed) = (text.find("\u{1b}[?1049h"), text.rfind("\u{1b}[?1049l"));
        assert!(opened.unwrap() < closed.unwrap(), "{text:?}");
        assert!(text.contains("\u{1b}[?25h") && text.contains(code), "{text:?}");
        // Cooked again: line editing and echo are on.
        assert!(text.contains(" icanon") && text.contains(" echo "), "{text:?}");
    }
    v.ok(&["umount", "MNT"]);
}
