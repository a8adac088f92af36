//! Export by the kernel's NFS server, in a virtual machine: many kernels that run tests have no such server.
//!
//! A small Debian with a kernel of its own is installed into an image, and started by qemu, which emulates the
//! processor where it cannot do better. Its only program is `tests/external/nfs-guest.sh`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Plan, Tally};
use crate::proc::{Proc, tail};
use crate::target::Kind;
use crate::workdir::{WorkDir, set_mode};
use crate::{cargo, cmd, paths, say};

/// What is in the machine beside what Debian cannot do without.
const PACKAGES: &str = "linux-image-amd64,nfs-kernel-server,nfs-common,fuse3,kmod,iproute2,libgcc-s1";

/// Longest run of the machine: an emulated processor on a busy host.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Makes the machine, lets it run, and counts what it says.
pub fn run(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    if plan.kind != Kind::Dbfs {
        bail!("the machine has dbfs only");
    }
    if !cfg!(target_arch = "x86_64") {
        bail!("the machine is made for x86-64");
    }
    let machine = Machine::install(plan, work)?;
    let log = machine.run(work)?;
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).replace('\r', "");
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((name, outcome)) = parse(line) else { continue };
        let mut said = String::new();
        while let Some(more) = lines.next_if(|line| outcome == Outcome::Failed && parse(line).is_none()) {
            said += more;
            said.push('\n');
        }
        let checked = tally.step(name, || match outcome {
            Outcome::Passed => Ok(()),
            Outcome::Failed => bail!("{said}"),
        });
        if let Err(error) = checked {
            tally.fail(name, &error);
        }
    }
    if !text.lines().any(|line| line == "DONE") {
        bail!("the machine did not come to its end:\n{}", tail(&log));
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
}

/// A line of the machine that tells the outcome of a check.
fn parse(line: &str) -> Option<(&str, Outcome)> {
    let (name, outcome) = line.strip_prefix("CHECK ")?.rsplit_once(' ')?;
    match outcome {
        "ok" => Some((name, Outcome::Passed)),
        "FAILED" => Some((name, Outcome::Failed)),
        _ => None,
    }
}

/// What the machine is started from.
struct Machine {
    kernel: PathBuf,
    initrd: PathBuf,
    disk: PathBuf,
}

impl Machine {
    fn install(plan: &Plan, work: &WorkDir) -> Result<Self> {
        let root = work.dir("root", None)?;
        let release =
            cmd::capture(Command::new("sh").args(["-c", ". /etc/os-release && echo $VERSION_CODENAME"]))?;
        say!("installing a system with a kernel ({})", release.trim());
        let mut debootstrap = Command::new(paths::program("debootstrap")?);
        debootstrap.args(["--variant=minbase", "--include", PACKAGES, release.trim()]).arg(&root);
        cmd::capture(&mut debootstrap).context("cannot install a system with a kernel")?;
        let guest = root.join("guest.sh");
        std::fs::copy(paths::external_tests().join("nfs-guest.sh"), &guest)?;
        set_mode(&guest, 0o755)?;
        std::fs::copy(cargo::build_dbfs(plan.profile)?, root.join("usr/bin/dbfs"))?;
        let disk = work.join("disk.img");
        std::fs::File::create(&disk)?.set_len(4 << 30)?;
        let mut mkfs = Command::new(paths::program("mkfs.ext4")?);
        cmd::capture(mkfs.args(["-q", "-F", "-d"]).arg(&root).arg(&disk))?;
        let boot = root.join("boot");
        Ok(Self { kernel: newest(&boot, "vmlinuz-")?, initrd: newest(&boot, "initrd.img-")?, disk })
    }

    /// Runs it until it switches itself off. Returns what it said.
    fn run(&self, work: &WorkDir) -> Result<PathBuf> {
        let log = work.join("console");
        let mut qemu = Command::new(paths::program("qemu-system-x86_64")?);
        qemu.args(["-m", "1024", "-smp", "2", "-nographic", "-no-reboot", "-nic", "none"]);
        // Emulated even where there is a /dev/kvm: on machines that are virtual themselves it may not work.
        qemu.args(["-accel", "tcg"]);
        qemu.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        qemu.args(["-append", "root=/dev/sda rw console=ttyS0 quiet init=/guest.sh panic=1"]);
        qemu.arg("-drive").arg(format!("file={},format=raw,if=ide,cache=unsafe", self.disk.display()));
        say!("starting the machine");
        let machine = Proc::spawn(&mut qemu, &log)?;
        if !machine.wait(LIMIT).context("the machine hangs")?.success() {
            return Err(machine.error("the machine failed"));
        }
        Ok(log)
    }
}

/// The file in `dir` whose name begins so; the last of several.
fn newest(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let files = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let named = files.filter_map(|file| Some(file.ok()?.path()));
    let named =
        named.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)));
    named.max().with_context(|| format!("there is no {prefix} in {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_told_from_other_lines() {
        assert_eq!(parse("CHECK NFS 3: rm -r ok"), Some(("NFS 3: rm -r", Outcome::Passed)));
        assert_eq!(parse("CHECK the volume is clean FAILED"), Some(("the volume is clean", Outcome::Failed)));
        assert_eq!(parse("CHECK the volume"), None);
        assert_eq!(parse("[    1.2] fuse: init"), None);
    }
}
