//! Set-user-id bits and capabilities do not survive a change of the content or the owner, however it is made.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::fixture::{Fixture, NOBODY};

/// Ways for an unprivileged user to change file `f`.
const CHANGES: [&str; 5] = [
    "echo more >> f",
    "echo new > f",
    "truncate -s 3 f",
    "fallocate -l 9999 f",
    "dd if=/dev/zero of=f bs=4096 count=1 oflag=direct conv=notrunc status=none",
];

#[test]
fn changes_by_the_unprivileged_take_set_ids() {
    let m = Fixture::new();
    for change in CHANGES {
        fs::write(m.path("f"), vec![b'x'; 5000]).unwrap();
        fs::set_permissions(m.path("f"), PermissionsExt::from_mode(0o6777)).unwrap();
        assert_eq!(fs::metadata(m.path("f")).unwrap().mode() & 0o7777, 0o6777);
        m.run_as(NOBODY, &[NOBODY], change);
        assert_eq!(fs::metadata(m.path("f")).unwrap().mode() & 0o7777, 0o777, "{change}");
        fs::remove_file(m.path("f")).unwrap();
    }
}

#[test]
fn root_keeps_them_when_it_writes() {
    let m = Fixture::new();
    for change in CHANGES {
        fs::write(m.path("f"), vec![b'x'; 5000]).unwrap();
        fs::set_permissions(m.path("f"), PermissionsExt::from_mode(0o6777)).unwrap();
        m.run(change);
        assert_eq!(fs::metadata(m.path("f")).unwrap().mode() & 0o7777, 0o6777, "{change}");
    }
}

#[test]
fn a_new_owner_gets_no_privileges() {
    let m = Fixture::new();
    m.run("echo x > f; chmod 6755 f; chown 1 f; test $(stat -c %a f) = 755");
    m.run("chmod 2745 f; chown :5 f; test $(stat -c %a f) = 2745"); // mandatory locking, of old
    m.run("chmod 6755 f; perl -e 'chown -1, -1, \"f\"'; test $(stat -c %a:%u:%g f) = 755:1:5");
    m.run("perl -e 'chown -1, 6, \"f\"; chown 7, -1, \"f\"'; test $(stat -c %u:%g f) = 7:6; chown 1:5 f");
    m.run("mkdir d; chmod 2755 d; chown 1:1 d; test $(stat -c %a d) = 2755");
    m.run_as(1, &[5], "chmod 4755 f; chgrp 5 f; test $(stat -c %a f) = 755");
}

#[test]
fn every_change_takes_capabilities() {
    let m = Fixture::new();
    // cap_net_raw, permitted, in the form that the kernel keeps.
    let grant = "setfattr -n security.capability -v 0x0000000200200000000000000000000000000000 f";
    let there = || m.run("getfattr -m - f").contains("security.capability");
    for change in CHANGES.into_iter().chain(["chown 1 f", "chown :7 f"]) {
        fs::write(m.path("f"), vec![b'x'; 5000]).unwrap();
        m.run(grant);
        assert!(there());
        m.run(change);
        assert!(!there(), "{change}");
    }
}
