//! `dbfs dump`: the structures of a volume, for those who look for what went wrong.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use blockdev::BlockDevice;
use fs_core::{Ino, dump};

use crate::{engine, output};

/// Show structures of a dbfs volume.
///
/// The volume must not be mounted. Exit codes: 0 shown, 1 not shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Block device or image file
    volume: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// The superblock and the state of its copies
    Superblock,
    /// All root slots that were ever written
    Slots,
    /// The journals that a mount would read, record by record
    Journal,
    /// One inode: attributes, names, where its data is
    Inode {
        /// Its number
        number: u64,
    },
    /// The tree of the last checkpoint, a line for each node and item
    Tree,
    /// The used blocks of each block group
    Bitmap,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let device: Arc<dyn BlockDevice> = Arc::new(engine::open_to_look(&args.volume)?);
    let d = &device;
    let shown = match &args.what {
        What::Superblock => show(args.json, || dump::superblock(d), || dump::superblock_json(d)),
        What::Slots => show(args.json, || dump::slots(d), || dump::slots_json(d)),
        What::Journal => show(args.json, || dump::journal(d), || dump::journal_json(d)),
        What::Inode { number } => {
            show(args.json, || dump::inode(d, Ino(*number)), || dump::inode_json(d, Ino(*number)))
        }
        What::Bitmap => show(args.json, || dump::bitmap(d), || dump::bitmap_json(d)),
        What::Tree => show_tree(args.json, d),
    };
    shown.with_context(|| format!("cannot dump the volume on {}", args.volume.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn show(
    as_json: bool,
    text: impl FnOnce() -> fs_core::Result<String>,
    json: impl FnOnce() -> fs_core::Result<serde_json::Value>,
) -> Result<()> {
    if as_json { output::json(&json()?) } else { output::text(&text()?) }
}

/// Printed as it is read: a tree can be larger than memory.
fn show_tree(as_json: bool, device: &Arc<dyn BlockDevice>) -> Result<()> {
    let write = if as_json { dump::tree_json } else { dump::tree };
    let mut outcome = Ok(());
    output::stream(|out| {
        let mut watched = Watched { out, failed: None };
        let written = write(device, &mut watched);
        match watched.failed {
            Some(e) => return Err(e),
            None => outcome = written,
        }
        Ok(())
    })?;
    Ok(outcome?)
}

/// Keeps the error of a write, to tell it from those of the volume.
struct Watched<'a> {
    out: &'a mut dyn Write,
    failed: Option<io::Error>,
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).map_err(|e| {
            let kind = e.kind();
            // Such a write is only tried again.
            if kind != io::ErrorKind::Interrupted {
                self.failed = Some(e);
            }
            kind.into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
