//! Times: birth, and those that are set.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::fixture::{Fixture, NOBODY};

const OMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW };

#[test]
fn the_time_of_birth_stays() {
    let mut m = Fixture::new();
    let before = SystemTime::now() - Duration::from_secs(2);
    fs::write(m.path("f"), b"x").unwrap();
    let born = fs::metadata(m.path("f")).unwrap().created().expect("statx tells it");
    assert!(born > before && born <= SystemTime::now());
    File::options().write(true).open(m.path("f")).unwrap().set_modified(before).unwrap();
    m.remount();
    let st = fs::metadata(m.path("f")).unwrap();
    assert_eq!((st.created().unwrap(), st.modified().unwrap()), (born, before));
}

#[test]
fn times_are_set_one_by_one() {
    let m = Fixture::new();
    fs::write(m.path("f"), b"x").unwrap();
    let set = |atime, mtime| {
        let times = Timestamps { last_access: atime, last_modification: mtime };
        utimensat(CWD, m.path("f"), &times, AtFlags::empty())
    };
    let get = || {
        let st = fs::metadata(m.path("f")).unwrap();
        use std::os::unix::fs::MetadataExt;
        ((st.atime(), st.atime_nsec()), (st.mtime(), st.mtime_nsec()))
    };
    let old = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    set(old(1_000, 1), old(2_000, 2)).unwrap();
    assert_eq!(get(), ((1_000, 1), (2_000, 2)));
    set(OMIT, old(-5, 999_999_999)).unwrap();
    assert_eq!(get(), ((1_000, 1), (-5, 999_999_999)));
    set(old(3_000, 3), OMIT).unwrap();
    assert_eq!(get(), ((3_000, 3), (-5, 999_999_999)));
    set(OMIT, OMIT).unwrap();
    assert_eq!(get(), ((3_000, 3), (-5, 999_999_999)));
    set(OMIT, NOW).unwrap();
    assert!(get().1.0 > 1_600_000_000 && get().0 == (3_000, 3));
    assert!(set(old(1, 1_000_000_000), OMIT).is_err());
    // Who may write may set the present time, and no other.
    m.run("chown 1 f; chmod 666 f");
    m.run_as(NOBODY, &[NOBODY], "touch f");
    assert!(!m.try_as(NOBODY, &[NOBODY], "touch -d @1000 f").status.success());
    assert!(!m.try_as(NOBODY, &[NOBODY], "touch -a f; touch -m -d @1000 f").status.success());
}
