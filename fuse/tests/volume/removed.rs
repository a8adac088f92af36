//! Directories and files that were removed while somebody uses them.

use crate::fixture::Fixture;

#[test]
fn a_removed_working_directory_still_has_attributes() {
    let mut m = Fixture::new();
    m.run(
        "mkdir -p d/e; cd d/e; rmdir ../e; test \"$(stat -c '%h %F' .)\" = '0 directory'; \
         test -z \"$(ls -A .)\"; ! touch x 2>/dev/null; ! mkdir y 2>/dev/null; chmod 700 .; \
         test $(stat -c %a .) = 700; cd ..; rmdir ../d; test \"$(stat -c %h .)\" = 0",
    );
    m.remount(); // which finds no orphan
}

#[test]
fn removed_directories_are_not_kept_for_ever() {
    let mut m = Fixture::new();
    let before = m.run("stat -f -c %d .");
    m.run("for i in $(seq 300); do mkdir d$i; (cd d$i; rmdir ../d$i; stat . > /dev/null); done");
    m.run("sync -f .");
    assert_eq!(m.run("ls -A | wc -l").trim(), "0");
    assert!(!before.is_empty());
    m.remount();
}
