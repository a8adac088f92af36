//! The PostgreSQL programs and the user that runs them.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where Debian and Ubuntu keep one folder per major version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// The programs that a usable installation has.
const PROGRAMS: [&str; 6] = ["initdb", "postgres", "psql", "pgbench", "pg_amcheck", "pg_checksums"];

/// An installation of PostgreSQL.
#[derive(Clone, Debug)]
pub struct Install {
    bin: PathBuf,
    major: u32,
    user: User,
}

/// An unprivileged user: PostgreSQL refuses to run as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl User {
    /// (uid, gid), as chown takes them.
    pub fn ids(self) -> (u32, u32) {
        (self.uid, self.gid)
    }
}

/// Finds the newest complete installation, but version 15 first: the one that is tested most.
pub fn find() -> Result<Install> {
    const PREFERRED: u32 = 15;
    let folders = std::fs::read_dir(VERSIONS).context("PostgreSQL is not installed")?;
    let mut majors: Vec<u32> = folders
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|major| is_complete(&bin_dir(Path::new("/"), *major)))
        .collect();
    majors.sort_by_key(|major| (*major == PREFERRED, *major));
    let major = majors.pop().context("no complete PostgreSQL installation found")?;
    Install::at(bin_dir(Path::new("/"), major), major)
}

/// The folder of the programs of version `major` below a file system root.
pub fn bin_dir(root: &Path, major: u32) -> PathBuf {
    root.join(VERSIONS.trim_start_matches('/')).join(major.to_string()).join("bin")
}

fn is_complete(bin: &Path) -> bool {
    PROGRAMS.iter().all(|program| bin.join(program).is_file())
}

impl Install {
    /// The installation whose programs are in `bin`.
    pub fn at(bin: PathBuf, major: u32) -> Result<Self> {
        if !is_complete(&bin) {
            bail!("{} lacks some of {}", bin.display(), PROGRAMS.join(", "));
        }
        Ok(Self { bin, major, user: unprivileged_user()? })
    }

    /// The folder of the programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The user that owns the data.
    pub fn user(&self) -> User {
        self.user
    }

    /// One of PostgreSQL's programs, run as the unprivileged user.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        self.as_user(&mut command);
        command
    }

    /// Makes any command run as the unprivileged user, in a directory that it may read.
    pub fn as_user(&self, command: &mut Command) {
        if rustix::process::geteuid().is_root() {
            command.uid(self.user.uid).gid(self.user.gid);
        }
        command.current_dir("/").env("LC_ALL", "C").env("TZ", "UTC").env("HOME", "/");
        for variable in ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS"] {
            command.env_remove(variable);
        }
    }
}

/// This process's own user, or `postgres` (made by Debian's package), or nobody if this is root.
fn unprivileged_user() -> Result<User> {
    let own = rustix::process::geteuid();
    if !own.is_root() {
        return Ok(User { uid: own.as_raw(), gid: rustix::process::getegid().as_raw() });
    }
    let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read the list of users")?;
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| lookup(&passwd, name))
        .context("there is neither a user postgres nor nobody")
}

fn lookup(passwd: &str, name: &str) -> Option<User> {
    let mut fields = passwd.lines().map(|line| line.split(':')).find(|f| f.clone().next() == Some(name))?;
    let uid = fields.nth(2)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(User { uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_whole_name() {
        let passwd = "root:x:0:0::/:/bin/sh\npostgresx:x:1:2::/:\npostgres:x:103:104:a,b:/var:/bin/sh\n";
        assert_eq!(lookup(passwd, "postgres"), Some(User { uid: 103, gid: 104 }));
        assert_eq!(lookup(passwd, "nobody"), None);
    }
}
