//! git: clones, commits and packs, checked by git fsck.

use std::path::Path;

use anyhow::Result;

use super::{Bench, shell, tree};
use crate::suites::Tally;

/// Keeps the user's configuration out, and work in the background, which would keep the volume in use.
const ENVIRONMENT: &str = "export HOME=/nonexistent GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b \
     GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b; git() { command git -c safe.directory='*' -c core.fsync=all -c gc.auto=0 -c maintenance.auto=false \"$@\"; }; ";

/// Makes a repository beside the volume, and works with clones of it on the volume.
pub fn run(bench: &mut Bench, tally: &mut Tally) -> Result<()> {
    let origin = bench.work.join("origin");
    tree::make(&origin, bench.amount(300, 3_000), &mut bench.rng)?;
    let rounds = bench.amount(5, 40);
    let git = |dir: &Path, line: &str, args: &[&Path]| shell(dir, &format!("{ENVIRONMENT}{line}"), args);
    let commit = format!(
        "git init -q . && git add -A && git commit -qm first && for i in $(seq {rounds}); do echo $i >>log; seq $i 5000 >numbers; \
         git add -A; git commit -qm $i; done"
    );
    git(&origin, &commit, &[])?;
    tally.step("git clone", || {
        git(
            bench.dir(),
            "git clone -q --no-hardlinks \"$1\" clone && git -C clone fsck --full --strict 2>&1",
            &[&origin],
        )?;
        git(bench.dir(), "test -z \"$(git -C clone status --porcelain)\"", &[])
    })?;
    tally.step("git commit, branch, merge, gc", || {
        let work = "for i in 1 2 3; do git checkout -qb b$i master; seq $i 300 >new$i; git add -A; git commit -qm b$i; done; \
                    git checkout -q master; git merge -q b1 b2 b3 -m all; git gc -q --prune=now; git fsck --full --strict 2>&1; \
                    test -z \"$(git status --porcelain)\"";
        let branch = "git branch -M master; ";
        git(&bench.dir().join("clone"), &format!("{branch}{work}"), &[])
    })?;
    tally.step("git clone with hard links on the volume", || {
        git(bench.dir(), "git clone -q clone second && git -C second fsck --full 2>&1 && rm -rf clone && git -C second fsck --full 2>&1", &[])
    })?;
    tally.step("git after a remount", || {
        bench.target.unmount()?;
        bench.target.mount()?;
        git(bench.target.dir(), "git -C second fsck --full 2>&1 && test -z \"$(git -C second status --porcelain)\" && rm -rf second", &[])
    })?;
    Ok(())
}
