//! An idle volume lets the processor sleep. Needs root and /dev/fuse.

use std::fs;
use std::io::Write;
use std::time::Duration;

mod common;

use common::Volume;

/// Wake-ups a second that an idle daemon may make, all threads together.
const MOST_A_SECOND: u64 = 5;
/// How long they are counted.
const SECONDS: u64 = 3;

/// How often the threads of a process have waited for something.
fn waits(pid: u32) -> u64 {
    let of_thread = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // One that has just ended counts nothing.
    threads.filter_map(|thread| of_thread(fs::read_to_string(thread.ok()?.path().join("status")).ok()?)).sum()
}

#[test]
fn an_idle_daemon_sleeps() {
    let v = Volume::made();
    let mut daemon = v.foreground();
    // With all that a used volume leaves behind: pages that are dirty, in the journal only, or at home.
    for (name, sync) in [("log", true), ("data", true), ("scratch", false)] {
        let mut file = fs::File::create(v.mnt().join(name)).unwrap();
        file.write_all(&vec![1; if sync { 700 } else { 1 << 20 }]).unwrap();
        if sync {
            file.sync_data().unwrap();
        }
    }
    // What it was asked to do takes some seconds to come to rest.
    let mut counts = Vec::new();
    let rests = (0..10).any(|_| {
        let before = waits(daemon.id());
        std::thread::sleep(Duration::from_secs(SECONDS));
        counts.push(waits(daemon.id()).saturating_sub(before));
        counts.last().is_some_and(|n| *n <= MOST_A_SECOND * SECONDS)
    });
    assert!(rests, "wake-ups in {SECONDS} s each: {counts:?}");
    v.ok(&["umount", "MNT"]);
    assert!(daemon.wait().unwrap().success());
}
