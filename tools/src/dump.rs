//! `dbfs dump`: the structures of a volume, for those who look for what went wrong.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use blockdev::{BlockDevice, Engine};
use fs_core::{Ino, dump};

use crate::{engine, output};

/// Show structures of a dbfs volume.
///
/// The volume must not be mounted. Exit codes: 0 shown, 1 not shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON (not for the tree)
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
    let device: Arc<dyn BlockDevice> = Arc::new(engine::open_device(&args.volume, true, Engine::Auto)?);
    let failed = || format!("cannot dump the volume on {}", args.volume.display());
    if args.json {
        let value = match &args.what {
            What::Superblock => dump::superblock_json(&device),
            What::Slots => dump::slots_json(&device),
            What::Journal => dump::journal_json(&device),
            What::Inode { number } => dump::inode_json(&device, Ino(*number)),
            What::Bitmap => dump::bitmap_json(&device),
            What::Tree => bail!("a tree can be larger than memory; it is dumped as text only"),
        };
        output::json(&value.with_context(failed)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = match &args.what {
        What::Superblock => dump::superblock(&device),
        What::Slots => dump::slots(&device),
        What::Journal => dump::journal(&device),
        What::Inode { number } => dump::inode(&device, Ino(*number)),
        What::Bitmap => dump::bitmap(&device),
        What::Tree => {
            let mut outcome = Ok(());
            output::stream(|out| {
                outcome = dump::tree(&device, out);
                Ok(())
            })?;
            outcome.map(|()| String::new())
        }
    };
    output::text(&text.with_context(failed)?)?;
    Ok(ExitCode::SUCCESS)
}
