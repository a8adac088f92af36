//! PostgreSQL's regression tests: the distribution's source package, and a server of that very version.
//!
//! Expected outputs belong to one minor version. A mirror may offer sources of an older one than is
//! installed; then that version's programs are fetched beside the installed ones, never over them.
//! Everything is kept in the target directory; apt's own configuration and state are not touched.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::install::{Install, bin_dir};
use crate::{cmd, deps, paths, say};

/// Where apt is configured.
const APT: &str = "/etc/apt";

/// What the suite needs, ready to be copied to where the unprivileged user can reach it.
#[derive(Debug)]
pub struct Regress {
    /// The folder `src/test/regress` of the sources, with `pg_regress` and its modules compiled.
    pub suite: PathBuf,
    /// Root of a private installation of the same version; `None` if the installed one has it.
    pub server: Option<PathBuf>,
}

/// Fetches and compiles, unless that was done before.
pub fn prepare(install: &Install) -> Result<Regress> {
    let package = format!("postgresql-{}", install.major());
    let base = paths::target_dir()?.join("pg-regress").join(&package);
    let done = base.join("done");
    if !done.is_file() {
        if base.exists() {
            std::fs::remove_dir_all(&base)?;
        }
        std::fs::create_dir_all(&base)?;
        let version = fetch(&package, &base)?;
        say!("compiling pg_regress {version}");
        compile(&base.join("source"))?;
        std::fs::write(&done, version)?;
    }
    let root = base.join("root");
    Ok(Regress {
        suite: base.join("source/src/test/regress"),
        server: bin_dir(&root, install.major()).is_dir().then_some(root),
    })
}

/// Brings the newest obtainable source, and programs of its version, into `base`; returns the version.
fn fetch(package: &str, base: &Path) -> Result<String> {
    say!("fetching the sources of {package}");
    let apt = Apt::new(base, package)?;
    let installed = deps::installed_version(package)?;
    let mut reasons = String::new();
    for version in apt.source_versions(package)? {
        match apt.try_version(package, &version, &installed, base) {
            Ok(()) => return Ok(version),
            Err(error) => writeln!(reasons, "{version}: {error:#}")?,
        }
    }
    bail!("no version of the sources of {package} could be fetched:\n{reasons}");
}

/// apt-get with state of its own, and the sources' side of the configured repositories.
struct Apt {
    downloads: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(base: &Path, package: &str) -> Result<Self> {
        let [parts, lists, cache, downloads] = ["parts", "lists", "cache", "downloads"].map(|d| base.join(d));
        for dir in [&parts, &lists.join("partial"), &cache.join("archives/partial"), &downloads] {
            std::fs::create_dir_all(dir)?;
        }
        let policy = cmd::capture(Command::new("apt-cache").args(["policy", package]))?;
        source_lists(&policy, &parts)?;
        let options = [
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            format!("Dir::Etc::sourceparts={}", parts.display()),
            format!("Dir::State::lists={}", lists.display()),
            format!("Dir::Cache={}", cache.display()),
            // The folders are this user's: nobody to become, and no lock of the system to take.
            "APT::Sandbox::User=".to_owned(),
        ];
        let apt =
            Self { downloads, options: options.iter().flat_map(|o| ["-o".into(), o.clone()]).collect() };
        cmd::capture(apt.command("apt-get").args(["-q", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).current_dir(&self.downloads);
        command
    }

    /// The versions that the repositories list, the newest first.
    fn source_versions(&self, package: &str) -> Result<Vec<String>> {
        let text = cmd::capture(self.command("apt-cache").args(["showsrc", package]))?;
        let mut versions: Vec<String> =
            text.lines().filter_map(|line| line.strip_prefix("Version: ")).map(str::to_owned).collect();
        versions.sort_by_key(|version| std::cmp::Reverse(DebianVersion(version.clone())));
        versions.dedup();
        Ok(versions)
    }

    fn try_version(&self, package: &str, version: &str, installed: &str, base: &Path) -> Result<()> {
        std::fs::remove_dir_all(&self.downloads)?;
        std::fs::create_dir_all(&self.downloads)?;
        let mut source = self.command("apt-get");
        cmd::capture(source.args(["-q", "source", "--download-only", &format!("{package}={version}")]))?;
        unpack_source(&self.downloads, &base.join("source"))?;
        if version == installed {
            return Ok(());
        }
        say!("{installed} is installed, sources are of {version}: fetching that version's programs, too");
        let major = package.trim_start_matches("postgresql-");
        for name in [package.to_owned(), format!("postgresql-client-{major}")] {
            // The binary side of the repositories is only in the system's lists.
            let mut download = Command::new("apt-get");
            download.args(["-q", "-o", "APT::Sandbox::User=", "download", &format!("{name}={version}")]);
            cmd::capture(download.current_dir(&self.downloads))?;
            let deb = find_file(&self.downloads, |file| {
                file.starts_with(&format!("{name}_")) && file.ends_with(".deb")
            })?;
            cmd::capture(Command::new("dpkg").arg("-x").arg(deb).arg(base.join("root")))?;
        }
        Ok(())
    }
}

/// A version in the order that dpkg defines.
#[derive(PartialEq, Eq)]
struct DebianVersion(String);

impl Ord for DebianVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        let is = |relation| {
            let mut dpkg = Command::new("dpkg");
            dpkg.args(["--compare-versions", &self.0, relation, &other.0]);
            dpkg.status().is_ok_and(|status| status.success())
        };
        match (is("lt"), is("gt")) {
            (true, _) => Ordering::Less,
            (_, true) => Ordering::Greater,
            _ => Ordering::Equal,
        }
    }
}

impl PartialOrd for DebianVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Writes, for the repositories that `apt-cache policy` names, their source entries into `parts`. Others
/// are left out: a repository without sources would fail the update.
fn source_lists(policy: &str, parts: &Path) -> Result<()> {
    let uris: Vec<&str> = policy
        .split_whitespace()
        .filter(|word| word.contains("://"))
        .map(|u| u.trim_end_matches('/'))
        .collect();
    let mut files = vec![PathBuf::from(APT).join("sources.list")];
    let folder = std::fs::read_dir(Path::new(APT).join("sources.list.d"));
    files.extend(folder.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())));
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let name = file.file_name().context("a list without a name")?;
        let converted = match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => stanzas_to_sources(&text, &uris),
            Some("list") => lines_to_sources(&text, &uris),
            _ => continue,
        };
        if !converted.is_empty() {
            std::fs::write(parts.join(name), converted)?;
        }
    }
    Ok(())
}

/// deb822 format: keeps the stanzas of `uris`, with their type turned into `deb-src`.
fn stanzas_to_sources(text: &str, uris: &[&str]) -> String {
    let mut result = String::new();
    for stanza in text.split("\n\n").filter(|stanza| mentions(stanza, uris)) {
        for line in stanza.lines() {
            result.push_str(if line.starts_with("Types:") { "Types: deb-src" } else { line });
            result.push('\n');
        }
        result.push('\n');
    }
    result
}

/// One-line format: keeps the `deb` lines of `uris`, as `deb-src` lines.
fn lines_to_sources(text: &str, uris: &[&str]) -> String {
    let entries = text.lines().filter_map(|line| line.strip_prefix("deb "));
    entries.filter(|entry| mentions(entry, uris)).map(|entry| format!("deb-src {entry}\n")).collect()
}

fn mentions(text: &str, uris: &[&str]) -> bool {
    text.split_whitespace().any(|word| uris.contains(&word.trim_end_matches('/')))
}

fn find_file(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir)?;
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let found = names.find(|name| wanted(name)).context("apt-get did not download what it was asked for")?;
    Ok(dir.join(found))
}

fn unpack_source(downloads: &Path, to: &Path) -> Result<()> {
    let archive = find_file(downloads, |file| file.contains(".orig.tar.") && !file.ends_with(".asc"))?;
    std::fs::create_dir_all(to)?;
    let mut tar = Command::new("tar");
    cmd::capture(tar.arg("-xf").arg(archive).arg("-C").arg(to).arg("--strip-components=1"))?;
    Ok(())
}

/// Compiles `pg_regress` and the modules that the tests load; the server is not compiled.
fn compile(source: &Path) -> Result<()> {
    let mut configure = Command::new("./configure");
    configure.args([
        "--without-readline",
        "--without-zlib",
        "--without-icu",
        "--disable-rpath",
        "CFLAGS=-O1",
    ]);
    cmd::capture(configure.current_dir(source))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    for (folder, goal) in [("src/backend", "generated-headers"), ("src/test/regress", "all")] {
        let mut make = Command::new("make");
        make.args(["-s", &format!("-j{jobs}"), "-C", folder, goal]);
        cmd::capture(make.current_dir(source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_dpkg_does() {
        let mut versions = ["15.9-1", "15.18-0+deb12u1", "15.18~beta1"].map(|v| DebianVersion(v.into()));
        versions.sort();
        assert_eq!(versions.map(|v| v.0), ["15.9-1", "15.18~beta1", "15.18-0+deb12u1"]);
    }

    const URIS: [&str; 1] = ["http://mirror/debian"];

    #[test]
    fn only_the_package_s_own_repositories_are_kept() {
        let text = "Types: deb\nURIs: http://mirror/debian/\nSuites: a\n\nTypes: deb\nURIs: http://else/x\n";
        assert_eq!(
            stanzas_to_sources(text, &URIS),
            "Types: deb-src\nURIs: http://mirror/debian/\nSuites: a\n\n"
        );
        let text = "# c\ndeb [x=y] http://mirror/debian a main\ndeb http://else b main\n";
        assert_eq!(lines_to_sources(text, &URIS), "deb-src [x=y] http://mirror/debian a main\n");
    }
}
