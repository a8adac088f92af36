//! cp, tar, rsync, find, du and df.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Bench, expect_same, shell, tree};
use crate::suites::Tally;

/// Copies a tree by each program, and compares.
pub fn run(bench: &mut Bench, tally: &mut Tally) -> Result<()> {
    let source = bench.work.join("source");
    tree::make(&source, bench.amount(400, 5_000), &mut bench.rng)?;
    let wanted = tree::manifest(&source)?;
    let labels = tree::labels(&source)?;
    let before = used(bench.dir())?;
    let copy = |name: &str, line: &str| -> Result<PathBuf> {
        let to = bench.dir().join(name);
        std::fs::create_dir(&to)?;
        shell(Path::new("/"), line, &[&source, &to])?;
        expect_same(name, &wanted, &tree::manifest(&to)?)?;
        expect_same(name, &labels, &tree::labels(&to)?)?;
        tree::same_content(&source, &to)?;
        Ok(to)
    };
    tally.step("cp -a", || copy("cp", "cp -a \"$1/.\" \"$2\""))?;
    tally.step("tar", || {
        let to = copy("tar", "tar -C \"$1\" --format=posix --xattrs --acls -cf - . | tar -C \"$2\" --xattrs --acls -xpf - --numeric-owner")?;
        shell(&to, "tar -cf \"$2/all.tar\" . && tar -df \"$2/all.tar\"", &[&source, bench.dir()])
    })?;
    tally.step("rsync", || {
        let to = copy("rsync", "rsync -aHAXS --numeric-ids \"$1/\" \"$2\"")?;
        let line = "rsync -aHAXc --numeric-ids --delete --dry-run --itemize-changes \"$1/\" \"$2\"";
        expect_same("a second rsync", "", &shell(Path::new("/"), line, &[&source, &to])?)
    })?;
    tally.step("rsync --delete --inplace after changes", || {
        let change = "rm -r d0* && find . -type f -size +20k -exec chmod u+w {} + \
                      -exec dd if=/etc/passwd of={} bs=1 seek=7777 count=99 conv=notrunc status=none \\;";
        shell(&source, change, &[])?;
        let to = bench.dir().join("rsync");
        shell(Path::new("/"), "rsync -aH --inplace --numeric-ids --delete \"$1/\" \"$2\"", &[&source, &to])?;
        expect_same("rsync", &tree::manifest(&source)?, &tree::manifest(&to)?)?;
        tree::same_content(&source, &to)
    })?;
    tally.step("find", || {
        let count = |dir: &Path| {
            shell(dir, "find . -type f -newermt 1990-01-01 -size +8k -print0 | tr -dc '\\0' | wc -c", &[])
        };
        expect_same("find", &count(&bench.dir().join("cp"))?, &count(&bench.dir().join("tar"))?)?;
        expect_same(
            "find -delete",
            "",
            &shell(bench.dir(), "find tar -delete && find tar 2>/dev/null || true", &[])?,
        )
    })?;
    tally.step("du and df", || space(bench.dir(), before))?;
    Ok(())
}

/// What du counts is what df misses, within what metadata takes; and it comes back.
fn space(dir: &Path, before: u64) -> Result<()> {
    let text = shell(dir, "sync -f . && du -s --block-size=1 .", &[])?;
    let counted: u64 = text.split_whitespace().next().context("du says nothing")?.parse()?;
    let used = used(dir)?.saturating_sub(before);
    if used < counted / 2 || used > counted * 2 + (64 << 20) {
        bail!("du counts {counted} bytes, but df shows {used} more than before");
    }
    shell(dir, "rm -r cp rsync all.tar && sync -f .", &[])?;
    let left = self::used(dir)?.saturating_sub(before);
    if left > 64 << 20 {
        bail!("{left} bytes are still in use after everything was deleted");
    }
    Ok(())
}

fn used(dir: &Path) -> Result<u64> {
    let text = shell(dir, "df --block-size=1 --output=used . | tail -1", &[])?;
    Ok(text.trim().parse()?)
}
