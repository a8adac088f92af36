//! `dbfs bench io`: jobs on the library. What they measure is not looked at, only what they do.

use serde_json::Value;

mod common;

use common::Volume;

/// A job that ends after so many operations.
fn job(v: &Volume, ops: u64, args: &[&str]) -> Value {
    let ops = ops.to_string();
    let first = ["bench", "io", "--json", "--seconds", "3600", "--ops", &ops, "--size", "4M"];
    serde_json::from_str(&v.ok(&[&first, args, &["IMAGE"]].concat())).unwrap()
}

#[test]
fn each_kind_of_job_does_what_it_says() {
    let v = Volume::made();
    for (rw, threads, sync) in [
        ("randread", "4", "none"),
        ("read", "1", "none"),
        ("randwrite", "3", "dsync"),
        ("write", "1", "none"),
        ("append", "2", "fdatasync"),
    ] {
        let report = job(&v, 200, &["--rw", rw, "--threads", threads, "--sync", sync, "--bs", "8K"]);
        assert_eq!(report["rw"], rw);
        assert_eq!(report["operations"], 200, "{report:#}");
        assert_eq!(report["bytes"], 200 * 8192);
        assert!(report["iops"].as_f64().unwrap() > 0.0);
        let device = |what: &str| report["device"][what].as_u64().unwrap();
        match sync {
            "none" if rw.ends_with("read") => assert!(device("read_bytes") >= 8192, "{report:#}"),
            "none" => {}
            _ => assert!(device("flushes") > 0, "{report:#}"),
        }
        if !rw.ends_with("read") {
            let written = report["device_until_home"]["written_bytes"].as_u64().unwrap();
            // Random writes may meet the same page, which is then written once.
            assert!(written >= if rw == "randwrite" { 8192 } else { 200 * 8192 }, "{report:#}");
        }
        assert!(!v.ok(&["ls", "IMAGE"]).contains("dbfs-bench-io"));
    }
    v.ok(&["fsck", "-n", "--data", "IMAGE"]);
}

#[test]
fn the_file_can_be_kept_for_the_next_job() {
    let v = Volume::made();
    job(&v, 10, &["--keep"]);
    assert!(v.ok(&["ls", "IMAGE"]).contains("dbfs-bench-io"));
    let report = job(&v, 10, &["--rw", "randwrite", "--sync", "fdatasync", "--every", "5", "--buffered"]);
    assert_eq!(report["direct"], false);
    assert!(!v.ok(&["ls", "IMAGE"]).contains("dbfs-bench-io"));
}

#[test]
fn a_file_that_does_not_fit_is_refused_and_removed() {
    let v = Volume::made();
    v.fails(&["bench", "io", "--size", "1G", "IMAGE"], 1, &["No space left"]);
    assert!(!v.ok(&["ls", "IMAGE"]).contains("dbfs-bench-io"));
    v.fails(&["bench", "io", "--size", "4K", "--bs", "8K", "IMAGE"], 1, &["4 KiB"]);
    v.fails(&["bench", "io", "--bs", "100", "IMAGE"], 2, &["512"]);
    v.fails(&["bench", "io", "--seconds", "NaN", "IMAGE"], 2, &["seconds"]);
}
