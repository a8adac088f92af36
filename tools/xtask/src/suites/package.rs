//! The Debian package in a fresh Debian: installed, used by the names that mount(8), mkfs(8) and fsck(8)
//! know, as root and as an ordinary user, and removed.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Plan, Tally};
use crate::cleanup::Guard;
use crate::target::{Kind, mounts};
use crate::workdir::{WorkDir, set_mode};
use crate::{cmd, deb, paths, say};

/// Where the package is put inside the new system.
const PACKAGE: &str = "/tmp/dbfs.deb";

/// What root does, a line of shell for each check.
const CHECKS: [(&str, &str); 9] = [
    (
        "mkfs -t dbfs makes a volume",
        "mkfs -t dbfs -L orders /srv/v.img 131072 && dbfs info /srv/v.img | grep orders",
    ),
    (
        "mount finds the fstab line",
        "mkdir /mnt/db && echo '/srv/v.img /mnt/db fuse.dbfs noauto,nofail,noatime,_netdev,x-systemd.device-timeout=5 0 2' \
         >>/etc/fstab && mount /mnt/db && mount | grep '^/srv/v.img on /mnt/db type fuse.dbfs (rw,.*noatime'",
    ),
    (
        "files are written",
        "cp -a /usr/share/doc /mnt/db && diff -r /usr/share/doc /mnt/db/doc && dbfs df /mnt/db",
    ),
    (
        "mount -o remount",
        "mount -o remount,ro /mnt/db && ! touch /mnt/db/x 2>/dev/null && mount -o remount,rw /mnt/db && touch /mnt/db/x",
    ),
    // With the daemon still at work, the check would say that the volume is in use.
    (
        "umount waits until all is on the device",
        "umount /mnt/db && flock -n /srv/v.img true && fsck.dbfs -n /srv/v.img",
    ),
    (
        "fsck runs the checker",
        "fsck -t dbfs -a /srv/v.img && fsck -t dbfs -f -a /srv/v.img && fsck -a /srv/v.img | grep clean",
    ),
    (
        "mount -t dbfs -r",
        "mount -t dbfs -r /srv/v.img /mnt/db && test -e /mnt/db/x && ! touch /mnt/db/y 2>/dev/null && umount /mnt/db",
    ),
    (
        "wrong options are refused as mount does",
        "code=0; mount -t fuse.dbfs -o frobnicate /srv/v.img /mnt/db || code=$?; test $code = 1",
    ),
    (
        "manual pages, completions and units are in place",
        "for f in man/man8/mount.dbfs.8.gz man/man8/dbfs-mkfs.8.gz bash-completion/completions/dbfs \
         zsh/vendor-completions/_dbfs fish/vendor_completions.d/dbfs.fish doc/dbfs/copyright doc/dbfs/OPERATIONS.md \
         dbfs/grafana-dashboard.json; \
         do test -s /usr/share/$f || exit 1; done && test -s /usr/lib/systemd/system/dbfs@.service && dpkg -V dbfs",
    ),
];

/// What an ordinary user does.
const USER_CHECK: &str = "cd /home/u && dbfs mkfs --size 64M mine.img && mkdir mnt && dbfs mount -o log=log mine.img mnt && \
     echo mine >mnt/f && findmnt -t fuse.dbfs mnt && dbfs umount mnt && test \"$(dbfs cat mine.img f)\" = mine && \
     ! dbfs mount -o log=log,allow_other mine.img mnt 2>refused && grep user_allow_other refused";

/// The same through mount(8), by an fstab line for users.
const FSTAB_USER_CHECK: &str = "cd /home/u && mount /home/u/mnt && echo more >mnt/g && \
     mount | grep '^/home/u/mine.img on /home/u/mnt type fuse.dbfs (rw,nosuid,nodev,noexec' && \
     umount /home/u/mnt && flock -n mine.img true && test \"$(dbfs cat mine.img g)\" = more";

/// Makes the system, and runs the checks in it.
pub fn run(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    if plan.kind != Kind::Dbfs {
        bail!("there is a package of dbfs only");
    }
    let package = deb::path()?;
    tally.step("systemd takes the unit", || verify_unit(work))?;
    let system = System::install(work)?;
    tally.step("apt installs the package", || system.install_package(&package))?;
    for (name, script) in CHECKS {
        tally.step(name, || system.shell(script))?;
    }
    tally.step("an ordinary user mounts his own image", || system.as_user(USER_CHECK))?;
    tally.step("an ordinary user mounts by a line of fstab", || {
        system.shell("echo '/home/u/mine.img /home/u/mnt fuse.dbfs user,noauto 0 0' >>/etc/fstab")?;
        system.as_user(FSTAB_USER_CHECK)
    })?;
    tally.step("apt removes it all", || {
        system.shell("apt-get purge -qq -y dbfs >/dev/null && ! find / -xdev -name '*dbfs*' -not -path '/tmp/*' -not -path '/var/log/*' | grep .")
    })?;
    drop(system);
    if mounts::list()?.iter().any(|m| m.starts_with(work.path())) {
        bail!("a mount was left behind below {}", work.path().display());
    }
    Ok(())
}

/// With the program that was built in place of the installed one: it has to exist.
fn verify_unit(work: &WorkDir) -> Result<()> {
    let Some(analyze) = paths::find_program("systemd-analyze") else {
        say!("there is no systemd here: its opinion of the unit is not asked for");
        return Ok(());
    };
    let program = std::env::current_exe()?;
    let text = std::fs::read_to_string(paths::workspace().join("tools/package/dbfs@.service"))?;
    let text = text.replace("/usr/bin/dbfs", &program.display().to_string());
    let unit = work.join("dbfs@data.service");
    std::fs::write(&unit, text)?;
    let said =
        cmd::capture(Command::new(analyze).args(["verify", "--man=no", "--recursive-errors=no"]).arg(&unit))?;
    std::fs::remove_file(unit)?;
    if !said.trim().is_empty() {
        bail!("systemd-analyze verify:\n{said}");
    }
    Ok(())
}

/// A small Debian in a directory. Field order is drop order.
struct System {
    _mounts: Vec<Guard>,
    root: PathBuf,
}

impl System {
    fn install(work: &WorkDir) -> Result<Self> {
        let root = work.dir("root", None)?;
        let release =
            cmd::capture(Command::new("sh").args(["-c", ". /etc/os-release && echo $VERSION_CODENAME"]))?;
        say!("installing a small system ({})", release.trim());
        let mut debootstrap = Command::new(paths::program("debootstrap")?);
        debootstrap.args(["--variant=minbase", release.trim()]).arg(&root);
        cmd::capture(&mut debootstrap).context("cannot install a fresh system")?;
        let mut system = Self { _mounts: Vec::new(), root };
        system.mount("proc", &["-t", "proc", "proc"])?;
        std::fs::write(system.root.join("dev/fuse"), "")?;
        // As on a system that was booted.
        symlink("../proc/self/mounts", system.root.join("etc/mtab"))?;
        system.mount("dev/fuse", &["--bind", "/dev/fuse"])?;
        Ok(system)
    }

    fn mount(&mut self, at: &str, args: &[&str]) -> Result<()> {
        let dir = self.root.join(at);
        cmd::capture(Command::new(paths::program("mount")?).args(args).arg(&dir))?;
        self._mounts.push(Guard::new(move || {
            if let Err(error) = mounts::detach(&dir) {
                eprintln!("warning: {error:#}");
            }
        }));
        Ok(())
    }

    fn install_package(&self, package: &Path) -> Result<()> {
        std::fs::copy(package, self.root.join(PACKAGE.trim_start_matches('/')))?;
        self.shell(&format!(
            "apt-get install -qq -y --no-install-recommends {PACKAGE} >/tmp/apt.log 2>&1 || {{ cat /tmp/apt.log; false; }}"
        ))
    }

    /// Runs a line as root inside.
    fn shell(&self, script: &str) -> Result<()> {
        let mut chroot = Command::new(paths::program("chroot")?);
        chroot.arg(&self.root).args(["/bin/sh", "-ec", script]);
        run_inside(&mut chroot, script)
    }

    /// Runs a line as an ordinary user with a home of his own.
    fn as_user(&self, script: &str) -> Result<()> {
        // As udev does on a system that has it.
        let device = std::fs::metadata("/dev/fuse")?;
        let old = std::os::unix::fs::PermissionsExt::mode(&device.permissions());
        let _restore = Guard::new(move || {
            if let Err(error) = set_mode(Path::new("/dev/fuse"), old & 0o777) {
                eprintln!("warning: {error:#}");
            }
        });
        set_mode(Path::new("/dev/fuse"), 0o666)?;
        self.shell("mkdir -p /home/u && chown 65534:65534 /home/u")?;
        let mut chroot = Command::new(paths::program("chroot")?);
        chroot.args(["--userspec=65534:65534", "--groups="]).arg(&self.root).args(["/bin/sh", "-ec", script]);
        run_inside(&mut chroot, script)
    }
}

fn run_inside(command: &mut Command, script: &str) -> Result<()> {
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin")
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive");
    // Debian's mirror may be reachable through a proxy only.
    for (name, value) in std::env::vars().filter(|(name, _)| name.to_lowercase().ends_with("_proxy")) {
        command.env(name, value);
    }
    let (success, text) = cmd::capture_any(command)?;
    if !success {
        bail!("{script}\n{text}");
    }
    Ok(())
}
