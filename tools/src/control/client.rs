//! The commands' side.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use fs_core::format::Superblock;
use fs_core::format::superblock::SECOND_COPY;
use fs_core::{BLOCK_SIZE, BlockNr};

use super::protocol::{Request, Response, receive, send};
use crate::mounts::{self, DbfsMount};

/// Answers to a request, until the daemon has no more.
pub struct Answers(BufReader<UnixStream>);

impl Answers {
    /// The next one; an error if the daemon ends in between.
    pub fn next(&mut self) -> Result<Response> {
        let response = receive(&mut self.0).context("cannot hear from the daemon")?;
        match response.ok_or_else(|| anyhow!("the daemon has ended the connection"))? {
            Response::Error { message } => bail!("the daemon says: {message}"),
            response => Ok(response),
        }
    }
}

/// Sends `request` to the daemon that has mounted a volume on `dir`.
pub fn ask(dir: &Path, request: &Request) -> Result<Answers> {
    let shown = dir.display();
    let dir = mounts::absolute(dir).with_context(|| format!("there is no {shown}"))?;
    let Some(mount) = mounts::mounted_on(&dir)? else { bail!("no dbfs volume is mounted on {shown}") };
    ask_daemon(&mount, request)
}

/// The volume that is mounted on `place`, or lives there; without a place the only one that is mounted.
pub fn find(place: Option<&Path>) -> Result<DbfsMount> {
    let Some(place) = place else {
        let mut mounted = mounts::dbfs_mounts().context("cannot read the table of mounts")?;
        return match (mounted.pop(), mounted.is_empty()) {
            (Some(only), true) => Ok(only),
            (None, _) => bail!("no dbfs volume is mounted"),
            _ => bail!("several dbfs volumes are mounted; name one (`dbfs df` lists them)"),
        };
    };
    let shown = place.display();
    let dir = mounts::absolute(place).with_context(|| format!("there is no {shown}"))?;
    match mounts::mounted_on(&dir)?.or_else(|| mounts::mount_of(&dir)) {
        Some(mount) => Ok(mount),
        None => bail!("no dbfs volume is mounted on {shown}"),
    }
}

/// Sends `request` to the daemon of a mount.
pub fn ask_daemon(mount: &DbfsMount, request: &Request) -> Result<Answers> {
    let shown = mount.dir.display();
    let path = super::socket(&uuid(&mount.volume)?)?;
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("cannot reach the daemon of {shown} on {}", path.display()))?;
    match send(&mut stream, request) {
        // One with too many clients answers without listening.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        sent => sent.context("cannot speak to the daemon")?,
    }
    Ok(Answers(BufReader::new(stream)))
}

/// The UUID in the superblock of a volume that may be in use.
fn uuid(volume: &Path) -> Result<String> {
    let shown = volume.display();
    let file = File::open(volume).with_context(|| format!("cannot open {shown}"))?;
    let mut block = vec![0; BLOCK_SIZE];
    for copy in [BlockNr(0), SECOND_COPY] {
        file.read_exact_at(&mut block, copy.offset()).with_context(|| format!("cannot read {shown}"))?;
        if let Ok(sb) = Superblock::decode(&block, copy) {
            return Ok(sb.uuid.to_string());
        }
    }
    bail!("{shown} has no superblock")
}
