//! `cargo xtask deb`: a Debian package.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{self, Profile};
use crate::workdir::set_mode;
use crate::{cmd, deps, paths, say};

/// Options of `cargo xtask deb`.
#[derive(clap::Args)]
pub struct Args {
    /// Compiled for tests rather than for release
    #[arg(long)]
    dev: bool,
}

/// Builds the package and prints where it is.
pub fn run(args: &Args) -> Result<()> {
    deps::ensure(deps::PACKAGE)?;
    let profile = if args.dev { Profile::Dev } else { Profile::Release };
    println!("{}", build(profile)?.display());
    Ok(())
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where [`build`] puts the package.
pub fn path() -> Result<PathBuf> {
    Ok(folder()?.join(format!("dbfs_{VERSION}_{}.deb", architecture()?)))
}

fn folder() -> Result<PathBuf> {
    Ok(paths::target_dir()?.join("debian"))
}

fn architecture() -> Result<String> {
    Ok(cmd::capture(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned())
}

/// Builds the package and returns its path.
pub fn build(profile: Profile) -> Result<PathBuf> {
    let package = path()?;
    let folder = folder()?;
    let program = cargo::build_dbfs(profile)?;
    let root = folder.join("root");
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    lay_out(&root, &program).context("cannot lay out the package")?;
    let size = cmd::capture(Command::new("du").args(["-sk", "--apparent-size"]).arg(&root))?;
    let size = size.split_whitespace().next().context("du says nothing")?;
    let control = root.join("DEBIAN");
    std::fs::create_dir_all(&control)?;
    std::fs::write(control.join("control"), control_file(&architecture()?, size)?)?;
    std::fs::write(control.join("md5sums"), checksums(&root)?)?;
    for script in ["postinst", "postrm"] {
        install(&format!("tools/package/{script}.sh"), &control.join(script), 0o755)?;
    }
    say!("building {}", package.display());
    let mut build = Command::new(paths::program("dpkg-deb")?);
    build.args(["--root-owner-group", "-Zxz", "--build"]).arg(&root).arg(&package);
    cmd::capture(&mut build)?;
    std::fs::remove_dir_all(&root)?;
    Ok(package)
}

fn control_file(architecture: &str, kib: &str) -> Result<String> {
    let libc = deps::installed_version("libc6")?;
    let (libc, _) = libc.split_once('-').unwrap_or((&libc, ""));
    Ok(format!(
        "Package: dbfs
Version: {VERSION}
Architecture: {architecture}
Maintainer: The dbfs developers <dbfs@localhost>
Installed-Size: {kib}
Depends: libc6 (>= {libc}), libgcc-s1, fuse3
Section: admin
Priority: optional
Description: file system for databases
 A userspace copy-on-write file system: pages are written atomically, so that
 double-write buffers and full-page writes can be switched off, and every block
 is checksummed. Volumes live on block devices or in image files.
"
    ))
}

/// Every file of the package below `root`.
fn lay_out(root: &Path, program: &Path) -> Result<()> {
    let binary = place(root, "usr/bin")?.join("dbfs");
    std::fs::copy(program, &binary)?;
    cmd::capture(Command::new(paths::program("strip")?).arg("--strip-debug").arg(&binary))?;
    set_mode(&binary, 0o755)?;
    let pages = place(root, "usr/share/man/man8")?;
    generate(program, "man", &pages)?;
    link_helpers(&pages, &place(root, "usr/sbin")?)?;
    compress(&pages)?;
    generate(program, "bash", &place(root, "usr/share/bash-completion/completions")?)?;
    generate(program, "zsh", &place(root, "usr/share/zsh/vendor-completions")?)?;
    generate(program, "fish", &place(root, "usr/share/fish/vendor_completions.d")?)?;
    let units = place(root, "usr/lib/systemd/system")?;
    install("tools/package/dbfs@.service", &units.join("dbfs@.service"), 0o644)?;
    let data = place(root, "usr/share/dbfs")?;
    install("tools/package/grafana-dashboard.json", &data.join("grafana-dashboard.json"), 0o644)?;
    let doc = place(root, "usr/share/doc/dbfs")?;
    install("tools/package/copyright", &doc.join("copyright"), 0o644)?;
    for text in ["README.md", "LICENSE-MIT", "docs/OPERATIONS.md", "docs/SEMANTICS.md"] {
        let name = Path::new(text).file_name().context("a file without a name")?;
        install(text, &doc.join(name), 0o644)?;
    }
    let examples = place(root, "usr/share/doc/dbfs/examples")?;
    install("tools/package/volume.conf", &examples.join("volume.conf"), 0o644)
}

/// The names by which mount(8) and others find the program: it writes a page for each.
fn link_helpers(pages: &Path, dir: &Path) -> Result<()> {
    for page in std::fs::read_dir(pages)? {
        let page = page?.file_name().to_string_lossy().into_owned();
        if let Some(name) = page.strip_suffix(".8").filter(|name| name.ends_with(".dbfs")) {
            symlink("../bin/dbfs", dir.join(name))?;
        }
    }
    Ok(())
}

/// The list by which `dpkg -V` finds changed files.
fn checksums(root: &Path) -> Result<String> {
    let list = "find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum";
    cmd::capture(Command::new("sh").args(["-c", list]).current_dir(root))
}

/// A folder below `root`. Each on the way gets the permissions of a package's.
fn place(root: &Path, path: &str) -> Result<PathBuf> {
    let dir = root.join(path);
    std::fs::create_dir_all(&dir)?;
    dir.ancestors().take_while(|d| d.starts_with(root)).try_for_each(|d| set_mode(d, 0o755))?;
    Ok(dir)
}

fn install(from: &str, to: &Path, mode: u32) -> Result<()> {
    let from = paths::workspace().join(from);
    std::fs::copy(&from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    set_mode(to, mode)
}

/// Lets the program write its own pages and completions.
fn generate(program: &Path, what: &str, dir: &Path) -> Result<()> {
    cmd::capture(Command::new(program).args(["generate", what]).arg(dir))?;
    let mut files = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    files.sort_by_key(|f| f.file_name());
    if files.is_empty() {
        bail!("`dbfs generate {what}` has written nothing");
    }
    files.iter().try_for_each(|file| set_mode(&file.path(), 0o644))
}

fn compress(dir: &Path) -> Result<()> {
    let files = std::fs::read_dir(dir)?.map(|f| Ok(f?.path())).collect::<Result<Vec<_>>>()?;
    cmd::capture(Command::new(paths::program("gzip")?).arg("-9n").args(files))?;
    Ok(())
}
