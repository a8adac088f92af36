//! `dbfs generate`: manual pages and completions, for packages.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::{Cli, helpers};

/// Write manual pages or shell completions into a directory.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to write
    #[arg(value_enum)]
    what: What,
    /// An existing directory
    dir: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    /// A page for each command and each helper
    Man,
    /// For bash: a file for each program, named as bash-completion finds it
    Bash,
    /// For zsh
    Zsh,
    /// For fish
    Fish,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let write = match args.what {
        What::Man => manual_pages,
        What::Bash => |dir: &Path| completions(Shell::Bash, dir),
        What::Zsh => |dir: &Path| completions(Shell::Zsh, dir),
        What::Fish => |dir: &Path| completions(Shell::Fish, dir),
    };
    write(&args.dir).with_context(|| format!("cannot write into {}", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// All of them are for administrators: section 8.
fn manual_pages(dir: &Path) -> std::io::Result<()> {
    let mut dbfs = Cli::command();
    dbfs.build();
    page(&dbfs, "dbfs", dir)?;
    for command in dbfs.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        page(command, &format!("dbfs-{}", command.get_name()), dir)?;
    }
    helpers::NAMES.iter().try_for_each(|(name, helper)| page(&helper.command().name(*name), name, dir))
}

fn page(command: &Command, name: &str, dir: &Path) -> std::io::Result<()> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).section("8").render(&mut text)?;
    std::fs::write(dir.join(format!("{name}.8")), text)
}

fn completions(shell: Shell, dir: &Path) -> std::io::Result<()> {
    let write = |mut command: Command, name: &str| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, name, &mut text);
        let file = match shell {
            Shell::Zsh => format!("_{name}"),
            Shell::Fish => format!("{name}.fish"),
            _ => name.to_owned(),
        };
        std::fs::write(dir.join(file), text)
    };
    write(Cli::command(), "dbfs")?;
    helpers::NAMES.iter().try_for_each(|(name, helper)| write(helper.command().name(*name), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_gets_its_files() {
        let dir = tempfile::tempdir().unwrap();
        manual_pages(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("dbfs-mount.8")).unwrap();
        assert!(text.contains("allow_other"), "{text}");
        for (name, _) in helpers::NAMES {
            assert!(dir.path().join(format!("{name}.8")).is_file());
        }
        for (shell, file) in [(Shell::Bash, "mkfs.dbfs"), (Shell::Zsh, "_dbfs"), (Shell::Fish, "dbfs.fish")] {
            completions(shell, dir.path()).unwrap();
            assert!(std::fs::read_to_string(dir.path().join(file)).unwrap().contains("--help"));
        }
    }
}
