//! Limits and rules of names, and listings that go on while names come and go.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::fixture::{Fixture, NOBODY};

#[test]
fn as_many_links_as_allowed() {
    let m = Fixture::new();
    fs::write(m.path("f"), b"x").unwrap();
    fs::create_dir(m.path("links")).unwrap();
    for i in 1..65_000 {
        fs::hard_link(m.path("f"), m.path(&format!("links/{i}"))).unwrap();
    }
    let refused = fs::hard_link(m.path("f"), m.path("links/more")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EMLINK));
    assert_eq!(fs::metadata(m.path("f")).unwrap().nlink(), 65_000);
    fs::remove_file(m.path("links/1")).unwrap();
    fs::hard_link(m.path("f"), m.path("links/more")).unwrap();
}

#[test]
fn sticky_and_setgid_directories() {
    let m = Fixture::new();
    m.run("mkdir t; chmod 1777 t; echo x > t/of_root; mkdir g; chgrp 777 g; chmod 2777 g");
    assert!(!m.try_as(NOBODY, &[NOBODY], "rm -f t/of_root").status.success());
    assert!(!m.try_as(NOBODY, &[NOBODY], "mv t/of_root t/mine").status.success());
    m.run_as(NOBODY, &[NOBODY], "echo y > t/mine; rm t/mine; echo z > g/f; mkdir g/d; echo z > g/d/f");
    assert_eq!(m.run("stat -c %g g/f g/d g/d/f").split_whitespace().collect::<Vec<_>>(), ["777"; 3]);
    assert_eq!(m.run("stat -c %a g/d").trim(), "2755");
    m.run("test $(stat -c %h g) = 3; rm -r g/d; test $(stat -c %h g) = 2");
}

#[test]
fn every_kind_of_node() {
    let m = Fixture::new();
    m.run(
        "mkfifo p; mknod c c 1 3; mknod b b 7 200; perl -MSocket -e \
           'socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, sockaddr_un(\"s\")) or exit 1'",
    );
    let kind = |name| fs::symlink_metadata(m.path(name)).unwrap().file_type();
    assert!(kind("p").is_fifo() && kind("c").is_char_device());
    assert!(kind("b").is_block_device() && kind("s").is_socket());
    m.run("echo gone > c; test $(stat -c %t:%T b) = 7:c8");
    assert!(!m.try_as(NOBODY, &[NOBODY], "mknod n c 1 3").status.success());
}

#[test]
fn a_listing_goes_on_while_names_go() {
    const FILES: usize = 20_000;
    let m = Fixture::new();
    let dir = m.path("d");
    fs::create_dir(&dir).unwrap();
    for i in 0..FILES {
        fs::write(dir.join(format!("{i}")), b"").unwrap();
    }
    // Every name that stays is seen exactly once, whatever is removed while the listing goes on.
    let mut seen = std::collections::BTreeSet::new();
    for entry in fs::read_dir(&dir).unwrap() {
        let name: usize = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
        assert!(seen.insert(name), "{name} twice");
        if seen.len() % 5 == 0 {
            let _ = fs::remove_file(dir.join(format!("{}", name.div_ceil(2) * 2 % FILES)));
        }
    }
    let left: Vec<usize> = (0..FILES).filter(|i| dir.join(format!("{i}")).exists()).collect();
    assert!(left.len() < FILES && left.iter().all(|i| seen.contains(i)));
    m.run("rm -r d; test ! -e d");
}

#[test]
fn a_place_in_a_listing_can_be_gone_back_to() {
    let m = Fixture::new();
    let script = "mkdir d; cd d; for i in $(seq 500); do : > f$i; done; perl -e '\
        opendir(D, \".\") or die; my (@a, $at); \
        for (1..200) { $at = telldir(D) if $_ == 101; push @a, scalar readdir(D) } \
        my @rest = readdir(D); unlink grep { /^f/ } @a[0..99]; \
        seekdir(D, $at); my @again = readdir(D); \
        my %once = map { $_ => 1 } @again; \
        for (@a[100..199], @rest) { die \"lost $_\" unless $once{$_} } \
        die \"twice\" unless @again == 402 && keys %once == 402'";
    m.run(script);
}
