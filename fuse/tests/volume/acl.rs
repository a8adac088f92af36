//! Access control lists, set and checked as unprivileged users do.

use crate::fixture::{Fixture, NOBODY};

const SOMEBODY: u32 = 12_345;

#[test]
fn a_named_user_gets_what_the_list_says() {
    let mut m = Fixture::new();
    m.run("echo secret > f; chmod 600 f; chown 1:1 f");
    assert!(!m.try_as(NOBODY, &[NOBODY], "cat f").status.success());
    m.run_as(1, &[1], &format!("setfacl -m u:{NOBODY}:r f"));
    for _ in 0..2 {
        assert_eq!(m.run_as(NOBODY, &[NOBODY], "cat f"), "secret\n");
        assert!(!m.try_as(NOBODY, &[NOBODY], "echo x > f").status.success());
        assert!(!m.try_as(SOMEBODY, &[SOMEBODY], "cat f").status.success());
        assert!(!m.try_as(NOBODY, &[NOBODY], "setfacl -m u:12345:r f").status.success(), "not the owner");
        m.remount();
    }
    // The mask is the group's bits, both ways.
    m.run_as(1, &[1], "test $(stat -c %a f) = 640; chmod 600 f");
    assert!(!m.try_as(NOBODY, &[NOBODY], "cat f").status.success(), "masked");
    m.run_as(1, &[1], "setfacl -m m::rw f; test $(stat -c %a f) = 660");
    assert_eq!(m.run_as(NOBODY, &[NOBODY], "cat f"), "secret\n");
    m.run_as(1, &[1], "setfacl -b f");
    assert!(!m.try_as(NOBODY, &[NOBODY], "cat f").status.success());
    m.run_as(1, &[1], "test $(getfacl -cE f | wc -l) = 4");
}

#[test]
fn supplementary_groups_count() {
    let m = Fixture::new();
    m.run("echo plain > f; chmod 640 f; chgrp 777 f; echo listed > g; chmod 600 g; setfacl -m g:888:r g");
    assert_eq!(m.run_as(NOBODY, &[NOBODY, 777], "cat f"), "plain\n");
    assert_eq!(m.run_as(NOBODY, &[NOBODY, 888], "cat g"), "listed\n");
    assert!(!m.try_as(NOBODY, &[NOBODY, 888], "cat f").status.success());
    assert!(!m.try_as(NOBODY, &[NOBODY, 777], "cat g").status.success());
}

#[test]
fn defaults_are_inherited_and_leave_the_umask_out() {
    let m = Fixture::new();
    m.run("umask 022; mkdir d; chmod 777 d; setfacl -d -m u:12345:rwx,g::rx,o::- d; mkdir plain; chmod 777 plain");
    let script =
        "umask 077; cd d; echo x > f; mkdir sub; mkfifo p; ln -s f l; echo y > sub/g; : > ../plain/f";
    m.run_as(NOBODY, &[NOBODY], script);
    let modes = m.run("stat -c %a d/f d/sub d/p d/sub/g plain/f");
    assert_eq!(modes.split_whitespace().collect::<Vec<_>>(), ["660", "770", "660", "660", "600"]);
    m.run_as(SOMEBODY, &[SOMEBODY], "cat d/f; echo z >> d/sub/g");
    assert!(!m.try_as(SOMEBODY, &[SOMEBODY], "cat plain/f").status.success());
    assert!(m.run("getfacl -cd d/sub").contains("user:12345:rwx"));
    assert!(m.run("getfacl -ac d/sub/g").contains("user:12345:rwx"));
    m.run("setfacl -k d; umask 027; : > d/again; test $(stat -c %a d/again) = 640");
}

#[test]
fn chmod_by_somebody_outside_the_group_takes_setgid() {
    let m = Fixture::new();
    m.run("echo x > f; chown 1:777 f; chmod 2770 f");
    m.run_as(1, &[1], "chmod 2750 f; test $(stat -c %a f) = 750");
    m.run("chmod 2770 f");
    m.run_as(1, &[1, 777], "chmod 2750 f; test $(stat -c %a f) = 2750");
    m.run_as(1, &[1, 777], "setfacl -m u:12345:r f; test $(stat -c %a f) = 2750");
    m.run_as(1, &[1], "setfacl -m u:12345:rw f; test $(stat -c %a f) = 770");
}
