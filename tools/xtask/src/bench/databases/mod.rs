//! PostgreSQL and MariaDB under their usual loads.
//!
//! ext4 and XFS run with the settings that are safe on them: whole pages in the log, or pages written twice.
//! dbfs does not need that, and runs without; then, to compare, with it as well.

mod mariadb;
mod postgres;

use std::path::PathBuf;

use anyhow::{Context, Result};

pub use mariadb::run as sysbench;
pub use postgres::run as pgbench;

use super::subject::Subject;
use rustix::process::Pid;

/// Subjects that databases run on.
pub const SUBJECTS: [Subject; 3] = [Subject::Ext4, Subject::Xfs, Subject::Dbfs];

/// What guards against torn pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guarded {
    /// The database.
    ByDatabase,
    /// The file system alone.
    ByFileSystem,
}

/// How a subject is run: with what is safe on it, and then with everything on.
fn settings_of(subject: Subject) -> &'static [Guarded] {
    match subject {
        Subject::Dbfs => &[Guarded::ByFileSystem, Guarded::ByDatabase],
        _ => &[Guarded::ByDatabase],
    }
}

/// The titles under which a figure belongs: what is safe on the subject, and what all do.
fn titles_of(title: &str, subject: Subject, guarded: Guarded, everywhere: &str) -> Vec<String> {
    let same = format!("{title}, {everywhere} everywhere");
    match (subject, guarded) {
        (Subject::Dbfs, Guarded::ByFileSystem) => vec![title.to_owned()],
        (Subject::Dbfs, Guarded::ByDatabase) => vec![same],
        _ => vec![title.to_owned(), same],
    }
}

/// A control group of the user's that limits the memory, and with it the kernel's page cache, of a server and
/// of what it runs on.
#[derive(Clone, Debug)]
pub struct ControlGroup(PathBuf);

impl ControlGroup {
    /// The group whose directory is `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Puts a process into it; what it starts from then on is in it, too.
    pub fn take(&self, pid: Pid) -> Result<()> {
        let file = self.0.join("cgroup.procs");
        std::fs::write(&file, pid.as_raw_nonzero().to_string())
            .with_context(|| format!("cannot put a process into {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_compared_with_what_is_safe_and_with_what_is_the_same() {
        let titles = |subject, guarded| titles_of("load", subject, guarded, "all on");
        assert_eq!(titles(Subject::Ext4, Guarded::ByDatabase), ["load", "load, all on everywhere"]);
        assert_eq!(titles(Subject::Dbfs, Guarded::ByFileSystem), ["load"]);
        assert_eq!(titles(Subject::Dbfs, Guarded::ByDatabase), ["load, all on everywhere"]);
    }
}
