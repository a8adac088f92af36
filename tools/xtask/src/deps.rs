//! Programs from outside: checked for, and installed through apt-get.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

use crate::cleanup::Guard;
use crate::privilege::root_command;
use crate::{cmd, paths, pg, say};

/// Something that must be there, and the packages that bring it.
#[derive(Clone, Copy)]
pub enum Need {
    /// A program, and its package.
    Program(&'static str, &'static str),
    /// A file by its full path, and its package.
    File(&'static str, &'static str),
    /// A PostgreSQL server with its tools and contributed modules.
    Postgres,
}

/// What running PostgreSQL on a volume needs.
pub const POSTGRES: &[Need] = &[Need::Program("fusermount3", "fuse3"), Need::Postgres];

/// What measuring needs.
pub const BENCH: &[Need] = &[
    Need::Program("fusermount3", "fuse3"),
    Need::Program("mkfs.ext4", "e2fsprogs"),
    Need::Program("mkfs.xfs", "xfsprogs"),
    Need::Program("xfs_repair", "xfsprogs"),
    Need::Program("mount", "mount"),
    Need::Program("losetup", "mount"),
    Need::Program("fio", "fio"),
    Need::Program("mariadbd", "mariadb-server-core"),
    Need::Program("mariadb", "mariadb-client-core"),
    Need::Program("sysbench", "sysbench"),
    Need::Postgres,
];

/// What building a package needs.
pub const PACKAGE: &[Need] = &[
    Need::Program("dpkg-deb", "dpkg"),
    Need::Program("strip", "binutils"),
    Need::Program("gzip", "gzip"),
    Need::Program("xz", "xz-utils"),
];

/// What a virtual machine needs.
pub const NFS: &[Need] = &[Need::Program("qemu-system-x86_64", "qemu-system-x86")];

/// What building fuzz targets needs: libFuzzer is C++.
pub const FUZZ: &[Need] = &[Need::Program("c++", "g++")];

/// What the commands need in total, but for [`BENCH`].
pub const EVERYTHING: &[Need] = &[
    Need::Program("fusermount3", "fuse3"),
    Need::Program("mkfs.ext4", "e2fsprogs"),
    Need::Program("mount", "mount"),
    Need::Program("losetup", "mount"),
    Need::Program("cc", "gcc"),
    Need::Program("c++", "g++"),
    Need::File("/usr/include/stdlib.h", "libc6-dev"),
    Need::Program("make", "make"),
    Need::Program("tar", "tar"),
    Need::Program("bzip2", "bzip2"),
    Need::Program("xz", "xz-utils"),
    Need::Program("flex", "flex"),
    Need::Program("bison", "bison"),
    Need::Program("perl", "perl"),
    Need::Program("strip", "binutils"),
    Need::Program("gzip", "gzip"),
    Need::Program("debootstrap", "debootstrap"),
    Need::Program("setfacl", "acl"),
    Need::Program("setfattr", "attr"),
    Need::Program("script", "bsdutils"),
    Need::Program("rsync", "rsync"),
    Need::Program("setfacl", "acl"),
    Need::Program("getfattr", "attr"),
    Need::Program("git", "git"),
    Need::Program("sqlite3", "sqlite3"),
    Need::Program("mariadbd", "mariadb-server-core"),
    Need::Program("mariadb-check", "mariadb-client-core"),
    Need::Program("sysbench", "sysbench"),
    Need::Postgres,
];

impl Need {
    fn is_met(self) -> bool {
        match self {
            Need::Program(program, _) => paths::find_program(program).is_some(),
            Need::File(path, _) => Path::new(path).is_file(),
            Need::Postgres => pg::install::find().is_ok(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Need::Program(name, _) | Need::File(name, _) => name,
            Need::Postgres => "PostgreSQL",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Need::Program(_, package) | Need::File(_, package) => package,
            Need::Postgres => "postgresql",
        }
    }
}

/// Installs what is missing of `needs`, says so, and checks that it is there afterwards.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<Need> = needs.iter().copied().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        say!("all needed programs are installed");
    } else {
        let names: Vec<_> = missing.iter().map(|need| need.name()).collect();
        say!("missing on this machine: {}", names.join(", "));
        install(&missing)?;
    }
    for need in missing {
        if !need.is_met() {
            bail!("{} is still missing after installing package {}", need.name(), need.package());
        }
    }
    ensure_fuse_device()
}

/// Installs packages by name.
fn install(missing: &[Need]) -> Result<()> {
    let _no_cluster = if missing.iter().any(|need| matches!(need, Need::Postgres)) {
        Some(suppress_default_cluster()?)
    } else {
        None
    };
    let mut packages: Vec<_> = missing.iter().map(|need| need.package()).collect();
    packages.sort_unstable();
    packages.dedup();
    install_packages(&packages)
}

/// `apt-get install`, after one `apt-get update` in the life of this process.
fn install_packages(packages: &[&str]) -> Result<()> {
    static UPDATED: AtomicBool = AtomicBool::new(false);
    if paths::find_program("apt-get").is_none() {
        bail!("there is no apt-get on this system: install {} by hand", packages.join(", "));
    }
    if !UPDATED.swap(true, Ordering::Relaxed) {
        // A third-party source that is out of reach must not stop us: the install tells what matters.
        if let Err(error) = cmd::capture(root_command("apt-get")?.args(["update", "-q"])) {
            eprintln!("warning: {error:#}");
        }
    }
    say!("installing with apt-get: {}", packages.join(" "));
    let mut apt = root_command("env")?;
    apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y"]);
    cmd::capture(apt.arg("--no-install-recommends").args(packages))?;
    Ok(())
}

/// Debian's package would set up and start a database of its own; we only want the programs.
fn suppress_default_cluster() -> Result<Guard> {
    const DIR: &str = "/etc/postgresql-common/createcluster.d";
    let file = format!("{DIR}/dbfs-xtask.conf");
    cmd::run(root_command("mkdir")?.args(["-p", DIR]))?;
    let script = format!("echo 'create_main_cluster = false' > {file}");
    cmd::run(root_command("sh")?.args(["-c", &script]))?;
    Ok(Guard::new(move || {
        let removed = root_command("rm").and_then(|mut rm| cmd::run(rm.args(["-f", &file])));
        if let Err(error) = removed {
            eprintln!("warning: {error:#}");
        }
    }))
}

fn ensure_fuse_device() -> Result<()> {
    const DEVICE: &str = "/dev/fuse";
    if Path::new(DEVICE).exists() {
        return Ok(());
    }
    say!("{DEVICE} is missing: loading the kernel's fuse module");
    let loaded = cmd::capture(root_command("modprobe")?.arg("fuse"));
    if !Path::new(DEVICE).exists() {
        let reason = loaded.err().map_or_else(String::new, |error| format!(" ({error:#})"));
        bail!("the kernel offers no {DEVICE}{reason}; in a container, pass it in with --device {DEVICE}");
    }
    Ok(())
}

/// The version of an installed Debian package.
pub fn installed_version(package: &str) -> Result<String> {
    let mut query = Command::new("dpkg-query");
    let version = cmd::capture(query.args(["-W", "-f", "${Version}", package]))
        .with_context(|| format!("package {package} is not installed"))?;
    Ok(version.trim().to_owned())
}
